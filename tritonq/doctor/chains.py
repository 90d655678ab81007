"""Checks of layers in a row: run plainly, compiled, and in a CUDA graph.

    x → layer 0 → layer 1 → … → layer 5 → y

A kernel that starts early prefetches its weight while the previous kernel still writes its input, and launches reuse
scratch memory. A kernel that waits too little, or overwrites memory that another one still needs, is correct only if it
runs alone. So a chain must give the same results as its layers run one by one, each after the previous one has ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tritonq.doctor.checks import Outcome, compared
from tritonq.nn import QuantizedLinear
from tritonq.numerics.config import PRESETS

LAYERS = 6
SCHEMES = ("w4a16", "w8a16", "w8a8", "w8a8_static", "w4a8")
#: Different inputs in turn: a layer that reads too early gets values of another input.
_INPUTS = 3


@dataclasses.dataclass(frozen=True)
class ChainCheck:
    """A chain of layers of one scheme, `width` wide, on inputs of `rows` rows."""

    scheme: str
    rows: int
    width: int = 4096
    path: str = "called, compiled, in a graph"

    @property
    def name(self) -> str:
        """The number and the scheme of the layers."""
        return f"{LAYERS} × {self.scheme} {self.width}x{self.width} M={self.rows}"

    @torch.inference_mode()
    def run(self, device: str, repeats: int) -> Outcome:
        """Compare with the same layers run one by one."""
        layers = chained_layers(self.scheme, self.width, device)
        generator = torch.Generator(device).manual_seed(1)
        shape = (self.rows, self.width)
        inputs = [torch.randn(shape, device=device, generator=generator).bfloat16() for _ in range(_INPUTS)]
        expected = [_one_by_one(layers, x) for x in inputs]
        ways: list[Callable[[Tensor], Tensor]] = [layers]
        if inputs[0].is_cuda:
            for x in inputs:
                layers(x)  # the first makes the plans; later calls run them compiled
            ways.append(_in_graph(layers, inputs[0]))
        return compared(
            lambda: tuple(way(x) for way in ways for x in inputs),
            tuple(expected * len(ways)),
            exact=True,
            repeats=repeats,
        )


def chain_checks() -> list[ChainCheck]:
    """Each scheme, for one row and for many."""
    return [ChainCheck(scheme, rows) for scheme in SCHEMES for rows in (1, 256)]


def chained_layers(scheme: str, width: int, device: str) -> nn.Sequential:
    """Layers of one scheme; each returns values about as large as its input."""
    generator = torch.Generator(device).manual_seed(0)
    grid = (torch.full((1,), 0.05, device=device), torch.zeros(1, dtype=torch.int8, device=device))
    layers = []
    for _ in range(LAYERS):
        linear = nn.Linear(width, width, device=device, dtype=torch.bfloat16)
        nn.init.normal_(linear.weight, std=width**-0.5, generator=generator)
        given = grid if scheme == "w8a8_static" else None
        layers.append(QuantizedLinear.from_float(linear, PRESETS[scheme](), input_qparams=given))
    return nn.Sequential(*layers)


def _one_by_one(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Run each layer plainly, after the previous one has ended."""
    if not x.is_cuda:
        return layers(x)
    from tritonq.kernels.launch import plans

    with plans.set_aside():
        for layer in layers:
            x = layer(x)
            torch.cuda.synchronize(x.device)
    return x


def _in_graph(layers: nn.Sequential, example: Tensor) -> Callable[[Tensor], Tensor]:
    """The layers as a replay of one CUDA graph into poisoned memory."""
    static, graph = example.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layers(static)

    def replay(x: Tensor) -> Tensor:
        static.copy_(x)
        out.fill_(torch.nan)
        graph.replay()
        return out.clone()

    return replay
