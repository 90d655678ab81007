"""One product to measure: its operands, the call of its kernel with any configuration, and the expected result.

Operands are random. On the device "meta" they have no memory; the call then shows what the launcher would do on a GPU
that this machine does not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonq import reference
from tritonq.kernels.blocks.int8_product import Grid, Int8Activation, Int8Weight
from tritonq.kernels.config import choose
from tritonq.kernels.config.tile import TileConfig
from tritonq.kernels.launch.launch import launching
from tritonq.kernels.launch.target import Target, pretended
from tritonq.numerics import slabs
from tritonq.numerics.config import PRESETS, QuantConfig
from tritonq.tuning.schemes import DYNAMIC, GATED, GRADIENT


@dataclasses.dataclass(frozen=True)
class Workload:
    """A product x [M, K] · weight [N, K]ᵀ of one of `SCHEMES`; for a gradient, dy [M, N] · weight.

    Attributes:
        scheme: one of `SCHEMES`.
        features, columns, rows: N, K and M.
        dtype: of float activations and of the result: "bfloat16", "float16" or "float32".
        group_size: of int4 weights; None takes the preset's.
    """

    scheme: str
    features: int
    columns: int
    rows: int
    dtype: str = "bfloat16"
    group_size: int | None = None

    @property
    def config(self) -> QuantConfig:
        """How the weight is quantized."""
        preset = self.scheme.removesuffix(GATED).removesuffix(GRADIENT).removesuffix(DYNAMIC)
        given = {} if self.group_size is None else {"group_size": self.group_size}
        return PRESETS[preset](**given)

    def __str__(self) -> str:
        return f"{self.scheme} {self.features}x{self.columns} M={self.rows}"


@dataclasses.dataclass(frozen=True)
class Product:
    """Operands of a workload on a device.

    Attributes:
        launcher: of the kernel, or a function that hands it the arguments of the weight by name.
        before, after: its arguments before and after those of the weight.
        weights: the arguments of the weight, once per copy.
        expected: computes the result that the first copy must give; float32 unless `exact`.
        exact: every bit of the result must match.
    """

    launcher: Callable[..., Tensor]
    before: tuple[Any, ...]
    weights: Sequence[tuple[Any, ...]]
    after: tuple[Any, ...]
    expected: Callable[[], Tensor]
    exact: bool

    def run(self, copy: int = 0, config: TileConfig | None = None) -> Tensor:
        """The product with one copy of the weight; config None takes the usual choice."""
        return self.launcher(*self.before, *self.weights[copy], *self.after, config=config)


def explained(workload: Workload, target: Target) -> choose.Explanation:
    """The configuration that a workload runs with on a target, and why. The machine need not have that GPU."""
    operands = product(workload, "meta")
    with pretended(target), launching(lambda *launch: None), choose.asked() as explanations:
        operands.run()
    return explanations[0]


def product(workload: Workload, device: torch.device | str, copies: int = 1) -> Product:
    """Random operands of a workload, with `copies` copies of the weight."""
    generator = None if torch.device(device).type == "meta" else torch.Generator(device).manual_seed(0)
    weight = _Weight(workload, device, generator)
    dtype = getattr(torch, workload.dtype)
    rows, columns, features = workload.rows, workload.columns, workload.features
    numbers = (weight.layout.group_size, weight.layout.padded_group, weight.layout.slab_width)
    packed, scale = weight.packed, weight.scale

    def floats(count: int) -> Tensor:
        return torch.randn(rows, count, device=device, generator=generator).to(dtype)

    def rotating(*tensors: Tensor | None) -> list[tuple[Any, ...]]:
        again = [tuple(None if one is None else one.clone() for one in tensors) for _ in range(copies - 1)]
        return [tensors, *again]

    if workload.scheme.endswith(GRADIENT):
        from tritonq.kernels.matmul.weight_only_gradient import weight_only_gradient

        dy = floats(features)
        return Product(
            weight_only_gradient,
            (dy,),
            rotating(packed, scale, None),
            (columns, *numbers),
            # The kernel rounds the weight to dy's dtype; the expected product is not rounded.
            lambda: dy.float() @ weight.dequantized(dtype).float(),
            exact=False,
        )
    if workload.config.weight_only:
        from tritonq.kernels.matmul.weight_only import weight_only_matmul

        x = floats(columns)
        return Product(
            weight_only_matmul,
            (x,),
            rotating(packed, scale, None),
            (None, *numbers),
            lambda: x.float() @ weight.dequantized(torch.float32).t(),
            exact=False,
        )
    if workload.scheme.endswith(DYNAMIC):
        return _dynamic_product(weight, floats(columns), rotating)
    codes = _codes(rows, columns, 127, device, generator)
    x_scale = torch.rand(rows, 1, device=device, generator=generator) / 100 + 0.01
    if workload.config.weight.bits == 4:
        from tritonq.kernels.matmul.int4_int8 import int4_int8_matmul

        exact = weight.layout.groups == 1
        return Product(
            int4_int8_matmul,
            (codes, x_scale),
            rotating(packed, scale),
            (None, *numbers, dtype),
            lambda: reference.int4_int8_linear(
                codes, x_scale, weight.codes(), scale.t(), None, numbers[0], dtype if exact else torch.float32
            ),
            exact,
        )
    from tritonq.kernels.matmul.int8 import int8_matmul

    x8, operands = Int8Activation(codes, x_scale), (packed, scale, None, weight.sums())
    if workload.scheme.endswith(GATED):
        up = (packed.roll(1, 0), scale, None, weight.sums().roll(1, 0))
        one, zero = torch.ones(1, device=device), torch.zeros(1, dtype=torch.int8, device=device)
        # Each product is about 0.8 · √K, the two multiplied 0.6 · K: 40 of these steps.
        grid = Grid(one * (columns / 64), zero, False)

        def gated() -> Tensor:
            gate = reference.Int8Weight(weight.codes(), scale.t())
            up = gate._replace(codes=gate.codes.roll(1, 0))
            return reference.int8_gated_linear_requantize(codes, x_scale, None, gate, up, *grid, "silu")

        def of_two(*tensors: Any, config: TileConfig | None) -> Tensor:
            first, second = Int8Weight(*tensors[:4]), Int8Weight(*tensors[4:])
            return int8_matmul(x8, first, torch.int8, "silu", None, grid, second, config)

        return Product(of_two, (), rotating(*operands, *up), (), gated, exact=False)
    return Product(
        lambda *tensors, config: int8_matmul(x8, Int8Weight(*tensors), dtype, config=config),
        (),
        rotating(*operands),
        (),
        lambda: reference.int8_linear(codes, x_scale, None, weight.codes(), scale.t(), None, None, dtype),
        exact=True,
    )


def _dynamic_product(
    weight: _Weight, x: Tensor, rotating: Callable[..., Sequence[tuple[Any, ...]]]
) -> Product:
    """A product that quantizes x per token, inside of the product or in a launch before it."""
    from tritonq.kernels.matmul import dynamic

    scale, layout = weight.scale, weight.layout

    def quantized() -> tuple[Tensor, Tensor]:
        codes, x_scale, _ = reference.quantize_per_token(x, True)
        return codes, x_scale

    if layout.form == "int4_bytes":
        exact = layout.groups == 1
        dtype = x.dtype if exact else torch.float32
        numbers = (layout.group_size, layout.padded_group, layout.slab_width)
        return Product(
            dynamic.int4_int8_dynamic_matmul,
            (x,),
            rotating(weight.packed, scale),
            (None, *numbers),
            lambda: reference.int4_int8_linear(
                *quantized(), weight.codes(), scale.t(), None, layout.group_size, dtype
            ),
            exact,
        )
    return Product(
        lambda *tensors, config: dynamic.int8_dynamic_matmul(x, True, Int8Weight(*tensors), config),
        (),
        rotating(weight.packed, scale, None, weight.sums()),
        (),
        lambda: reference.int8_linear(*quantized(), None, weight.codes(), scale.t(), None, None, x.dtype),
        exact=True,
    )


class _Weight:
    """A weight of random codes, packed, with scales [G, N]."""

    def __init__(
        self, workload: Workload, device: torch.device | str, generator: torch.Generator | None
    ) -> None:
        made, columns = workload.config, workload.columns
        group_size = made.weight.resolve_group_size(columns)
        self.layout = slabs.slab_layout(slabs.weight_form(made), columns, group_size)
        largest = 7 if made.weight.bits == 4 else 127
        codes = _codes(workload.features, columns, largest, device, generator)
        self.packed = slabs.pack(codes, self.layout)
        shape = (self.layout.groups, workload.features)
        self.scale = torch.rand(shape, device=device, generator=generator) / 100 + 0.005
        self.scale = self.scale.to(getattr(torch, workload.dtype))

    def codes(self) -> Tensor:
        return slabs.unpack(self.packed, self.layout)

    def sums(self) -> Tensor:
        return self.codes().sum(dim=1, dtype=torch.int32)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        scale = self.scale.t().repeat_interleave(self.layout.group_size, dim=1)[:, : self.layout.in_features]
        return (self.codes().float() * scale.float()).to(dtype)


def _codes(
    rows: int, columns: int, largest: int, device: torch.device | str, generator: torch.Generator | None
) -> Tensor:
    shape = (rows, columns)
    return torch.randint(
        -largest - 1, largest + 1, shape, dtype=torch.int8, device=device, generator=generator
    )
