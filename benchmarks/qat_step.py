"""Measures what quantization-aware training adds to a training step of a Llama block: forward, backward, optimizer.

    python3 -m benchmarks.qat_step                                  a small block on a CPU, Llama-3-8B's on a GPU
    python3 -m benchmarks.qat_step --tokens 4096 --compile --json results.json

Steps of the float and the fake-quantized block are timed alternately, so that other load on the machine affects both;
the result is the median. If the forward differs from the deployed rounding (SQNR relative to the converted block below
50 dB), the block gets no time, and the exit code is 1.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import tritonq
from benchmarks.llama_block import SHAPES, Block
from benchmarks.report import Report, parsed, parser_of

SCHEMES = ("w8a8", "w8a8_static", "w4a16", "w4a8")
#: The least SQNR of the fake-quantized block relative to the converted one, in dB, in float32 (docs/qat.md).
ALLOWED_SQNR = 50.0
WARM_UP_STEPS, STEPS = 2, 7


@dataclasses.dataclass
class Row:
    """One scheme: milliseconds of a float and of a QAT step, their ratio (None if wrong), and the SQNR in dB."""

    scheme: str
    float_milliseconds: float | None
    milliseconds: float | None
    ratio: float | None
    sqnr: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON; 1 if any result was wrong."""
    parser = parser_of("benchmarks.qat_step", __doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b" if gpu else "smollm2-135m")
    parser.add_argument("--tokens", type=int, default=4096 if gpu else 512, help="rows of the input")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--compile", action="store_true", help="torch.compile both blocks")
    options = parsed(parser, arguments)
    device = torch.device("cuda" if gpu else "cpu")
    fields = {"shape": options.shape, "tokens": options.tokens, "compiled": options.compile}
    report = Report(options.json, device, **fields)
    print(f"{options.shape}, {options.tokens} tokens{', compiled' if options.compile else ''}")
    print(f"{'scheme':<12} {'float ms':>10} {'QAT ms':>10} {'QAT / float':>12} {'SQNR dB':>8}")
    for scheme in options.schemes:
        row = measure(scheme, options.shape, options.tokens, options.compile, device)
        report.add(row, _line(row))
    return report.finish(any(row.ratio is None for row in report.rows))


def measure(scheme: str, shape: str, tokens: int, compiled: bool, device: torch.device) -> Row:
    """One scheme. A GPU trains in bfloat16, a CPU in float32."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    block = Block(SHAPES[shape]).to(device, dtype).train()
    x = torch.randn(1, tokens, SHAPES[shape].hidden, device=device, dtype=dtype)
    prepared = tritonq.prepare_qat(block, scheme)
    prepared(x)
    sqnr = _sqnr_of_promise(copy.deepcopy(prepared), x[:, : min(tokens, 64)])
    if not sqnr >= ALLOWED_SQNR:
        return Row(scheme, None, None, None, sqnr)
    steps = [_step(model, x, compiled) for model in (block, prepared)]
    times: list[list[float]] = [[], []]
    for count in range(WARM_UP_STEPS + STEPS):
        for step, seconds in zip(steps, times, strict=True):
            taken = _seconds(step, device)
            if count >= WARM_UP_STEPS:
                seconds.append(taken)
    plain, fake = (1e3 * statistics.median(seconds) for seconds in times)
    return Row(scheme, plain, fake, fake / plain, sqnr)


@torch.no_grad()
def _sqnr_of_promise(prepared: nn.Module, x: Tensor) -> float:
    """SQNR of the fake-quantized block relative to the converted one, in float32."""
    prepared, x = prepared.float().eval(), x.float()
    expected = prepared(x)
    noise = tritonq.convert(prepared)(x) - expected
    return float(20 * torch.log10(expected.norm() / noise.norm()))


def _step(model: nn.Module, x: Tensor, compiled: bool) -> Callable[[], None]:
    """A training step: the output's mean square, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=x.is_cuda)
    forward: Any = torch.compile(model) if compiled else model

    def step() -> None:
        forward(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def _line(row: Row) -> str:
    if row.float_milliseconds is None or row.milliseconds is None:
        return f"{row.scheme:<12} {'':>10} {'WRONG':>10} {'':>12} {row.sqnr:>8.1f}"
    times = f"{row.float_milliseconds:>10.2f} {row.milliseconds:>10.2f} {row.ratio:>12.2f}"
    return f"{row.scheme:<12} {times} {row.sqnr:>8.1f}"


if __name__ == "__main__":
    sys.exit(main())
