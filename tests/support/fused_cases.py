"""Launches that hand INT8 over, for the ahead-of-time checks: fused epilogues, gated products, norms that quantize."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: Long rows are float32 that just fit a block, and bfloat16 that do not.
ROW_CASES = [
    (name, mode, columns)
    for name in ("rms", "add-rms", "layer", "gated")
    for mode, columns in (("token", 4096), ("token", 16_384), ("token", 20_000), ("tensor", 4096))
    if (name, mode) != ("gated", "tensor")
] + [("activation", "token", 4096)]

#: Float activations quantized inside of a product's launch: (weight's scheme, rows, dtype, symmetric activations).
DYNAMIC_CASES = {
    f"{scheme}-dynamic-{rows}-{name}-{'symmetric' if symmetric else 'affine'}-decode": (
        scheme,
        rows,
        dtype,
        symmetric,
    )
    for scheme, rows, name, dtype, symmetric in (
        ("w8a8", 1, "bf16", torch.bfloat16, True),
        ("w8a8", 1, "fp32", torch.float32, False),
        ("w8a8", 4, "bf16", torch.bfloat16, True),
        ("w8a8", 4, "fp16", torch.float16, False),
        ("w4a8-g128", 1, "bf16", torch.bfloat16, True),
        ("w4a8-g128", 4, "bf16", torch.bfloat16, True),
        ("w4a8-channel", 2, "fp32", torch.float32, True),
    )
}


def define(
    cases: dict[str, Callable[[], object]], sizes: dict[str, int], features: int, columns: int
) -> None:
    """Add them to `cases`: products of each of the sizes (rows of x) with weights [features, columns]."""
    from tritonq.kernels.blocks.int8_product import Grid, Int8Activation, Int8Weight, Residual

    one, code = torch.ones(1), torch.zeros(1, dtype=torch.int8)
    grid = Grid(one, code, False)

    def weight(columns: int = columns) -> Int8Weight:
        padded = -(-columns // 16) * 16
        return Int8Weight(
            torch.zeros(features, padded, dtype=torch.int8),
            torch.ones(1, features),
            torch.zeros(1, features, dtype=torch.int8),
            torch.zeros(features, dtype=torch.int32),
            torch.zeros(features),
        )

    def linear(
        rows: int, dtype: torch.dtype, activation: str, residual: Residual | None = None, *rest: Any
    ) -> Callable[[], object]:
        return product(rows, columns, dtype, activation, residual, *rest)

    def gated(
        rows: int, dtype: torch.dtype, activation: str, grid: Grid | None = None, columns: int = columns
    ) -> Callable[[], object]:
        return product(rows, columns, dtype, activation, None, grid, weight(columns))

    def product(rows: int, columns: int, *rest: Any) -> Callable[[], object]:
        def case() -> object:
            from tritonq.kernels.matmul.int8 import int8_matmul

            x = Int8Activation(torch.zeros(rows, columns, dtype=torch.int8), torch.ones(rows, 1))
            return int8_matmul(x, weight(columns), *rest)

        return case

    def dynamic(scheme: str, rows: int, dtype: torch.dtype, symmetric: bool) -> Callable[[], object]:
        def case() -> object:
            from tritonq.kernels.matmul import dynamic as dynamic_matmul
            from tritonq.numerics import config
            from tritonq.numerics import slabs as layouts

            x = torch.zeros(rows, columns, dtype=dtype)
            if scheme == "w8a8":
                w = weight()
                return dynamic_matmul.int8_dynamic_matmul(
                    x, symmetric, w._replace(zero=None) if symmetric else w
                )
            group_size = config.W4A8(group_size=128 if "g128" in scheme else None).weight.resolve_group_size(
                columns
            )
            layout = layouts.slab_layout("int4_bytes", columns, group_size)
            codes = torch.zeros(features, layout.words, dtype=torch.int8)
            slabs = (layout.group_size, layout.padded_group, layout.slab_width)
            return dynamic_matmul.int4_int8_dynamic_matmul(
                x, codes, torch.ones(layout.groups, features), None, *slabs
            )

        return case

    def quantization(name: str, mode: str, columns: int, dtype: torch.dtype) -> Callable[[], object]:
        def case() -> object:
            from tritonq.kernels.rows import norm_quantize

            x, w = torch.zeros(4, columns, dtype=dtype), torch.zeros(columns, dtype=dtype)
            given = () if mode == "token" else grid[:2]
            if name == "rms":
                return norm_quantize.rms_norm_quantize(x, w, 1e-6, False, *given)
            if name == "add-rms":
                return norm_quantize.add_rms_norm_quantize(x, x, w, 1e-6, False, *given)
            if name == "layer":
                return norm_quantize.layer_norm_quantize(x, w, w, 1e-6, False, *given)
            if name == "activation":
                return norm_quantize.gated_quantize_per_token(x, None, "gelu", True)
            return norm_quantize.gated_quantize_per_token(x, x, "silu", False)

        return case

    for size, rows in sizes.items():
        residual = torch.zeros(rows, features, dtype=torch.bfloat16)
        codes = torch.zeros(rows, features, dtype=torch.int8)
        cases[f"w8a8-gelu-residual-{size}"] = linear(rows, torch.bfloat16, "gelu", Residual(residual))
        cases[f"w8a8-silu-residual-requantize-{size}"] = linear(
            rows, torch.int8, "silu", Residual(codes, one, code), grid
        )
        cases[f"w8a8-gated-{size}"] = gated(rows, torch.bfloat16, "silu")
        cases[f"w8a8-gated-requantize-{size}"] = gated(rows, torch.int8, "gelu_tanh", grid)
    cases["w8a8-gated-odd"] = gated(1000, torch.int8, "silu", grid, columns=1000)
    for name, mode, length in ROW_CASES:
        dtype = torch.float32 if length == 16_384 else torch.bfloat16
        cases[f"quantize-{name}-{mode}-{length}"] = quantization(name, mode, length, dtype)

    for name, arguments in DYNAMIC_CASES.items():
        cases[name] = dynamic(*arguments)
