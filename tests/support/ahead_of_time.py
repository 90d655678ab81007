"""Compile the kernels for GPUs that are not here, exactly as their launchers would launch them.

Run in another process (`python -m tests.support.ahead_of_time TARGET [CASE …]`): the interpreter's variable
poisons a process for compiling. A launcher is called with real CPU tensors and a made-up `Target`; `launch` is
replaced by a recorder, whose arguments are turned into the signature that Triton's own launch would specialise on, and
compiled. Prints one JSON object per case: registers, stack, shared memory, instructions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from tests.support import fused_cases
from tests.support.compiled import compile_launch
from tools.ptx_emulator.specialization import Launch, launch_of

ROWS = {"decode": 1, "small": 16, "middle": 64, "large": 1024}
FEATURES, COLUMNS = 4096, 4096
#: Those that ask what they run on.
LAUNCHERS = (
    "int8",
    "weight_only",
    "weight_only_gradient",
    "int4_int8",
    "dynamic",
)
#: name → (one row of scales for all rows, group size, learned zero point)
FAKE_QUANTIZATIONS = {
    "g128": (False, 128, False),
    "g32-affine": (False, 32, True),
    "channel": (False, COLUMNS, False),
    "tensor-affine": (True, COLUMNS, True),
}
CASES: dict[str, Callable[[], object]] = {}
#: Case names that begin so go on with a configuration.
CANDIDATE = "candidate-"


def main(target_name: str, *names: str) -> None:
    """Compile the named cases (all of them by default) for one target."""
    from triton.backends.compiler import GPUTarget

    gpu, target = {
        "sm_80": (GPUTarget("cuda", 80, 32), ("cuda", 80, 108, 163 * 1024)),
        "sm_89": (GPUTarget("cuda", 89, 32), ("cuda", 89, 142, 99 * 1024)),
        "sm_90": (GPUTarget("cuda", 90, 32), ("cuda", 90, 132, 227 * 1024)),
        "sm_100": (GPUTarget("cuda", 100, 32), ("cuda", 100, 148, 227 * 1024)),
        "sm_120": (GPUTarget("cuda", 120, 32), ("cuda", 120, 170, 99 * 1024)),
        "gfx942": (GPUTarget("hip", "gfx942", 64), ("hip", 0, 304, 64 * 1024)),
    }[target_name]
    _define_cases()
    fused_cases.define(CASES, ROWS, FEATURES, COLUMNS)
    for name in names or CASES:
        case = _candidate(name.removeprefix(CANDIDATE)) if name.startswith(CANDIDATE) else CASES[name]
        for launch in _launches_of(case, target):
            print(json.dumps({"case": name, **dataclasses.asdict(compile_launch(launch, gpu))}), flush=True)


def _candidate(fields: str) -> Callable[[], object]:
    """W4A16 at M = 16 with the configuration that these fields describe, as JSON."""
    from tritonq.kernels.config.tile import TileConfig
    from tritonq.tuning.workload import Workload, product

    operands = product(Workload("w4a16", FEATURES, COLUMNS, 16), "cpu")
    return lambda: operands.run(config=TileConfig(**json.loads(fields)))


def _define_cases() -> None:
    from tritonq import reference
    from tritonq.kernels.blocks.int8_product import Grid, Int8Activation, Int8Weight
    from tritonq.kernels.matmul import int4_int8, weight_only, weight_only_gradient
    from tritonq.kernels.matmul import int8 as int8_matmul
    from tritonq.kernels.rows import observe, quantize
    from tritonq.numerics import config, qparams, slabs

    def case(name: str) -> Callable[[Callable[[], object]], None]:
        return lambda function: CASES.__setitem__(name, function)

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(FEATURES, COLUMNS, generator=generator)

    def operands(made: config.QuantConfig) -> tuple[Any, ...]:
        group_size = made.weight.resolve_group_size(COLUMNS)
        layout = slabs.slab_layout(slabs.weight_form(made), COLUMNS, group_size)
        codes, scale, zero = qparams.quantize_weight(weight.bfloat16(), made.weight)
        zero = None if zero is None else zero.t().contiguous()
        return slabs.pack(codes, layout), scale.t().contiguous(), zero, layout

    def tokens(rows: int, symmetric: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return reference.quantize_per_token(torch.randn(rows, COLUMNS, generator=generator), symmetric)

    for symmetric in (True, False):
        for columns in (COLUMNS, 20_000):
            x = torch.randn(4, columns, generator=generator).bfloat16()

            @case(f"quantize_per_token-{columns}-{'symmetric' if symmetric else 'affine'}")
            def _(x: Any = x, symmetric: bool = symmetric) -> object:
                return quantize.quantize_per_token(x, symmetric)

            @case(f"fake_quantize_per_token-{columns}-{'symmetric' if symmetric else 'affine'}")
            def _(x: Any = x, symmetric: bool = symmetric) -> object:
                return quantize.fake_quantize_per_token(x, symmetric)

    @case("quantize_per_tensor")
    def _() -> object:
        x = torch.randn(4, COLUMNS, generator=generator).bfloat16()
        return quantize.quantize_per_tensor(x, torch.ones(1), torch.zeros(1, dtype=torch.int8), False)

    for rows, columns in ((1, 4_000_000), (4096, 128)):

        @case(f"extremes-{rows}")
        def _(rows: int = rows, columns: int = columns) -> object:
            return observe.extremes(torch.zeros(rows * columns, dtype=torch.bfloat16), rows)

    for bins in (16, 2048, 8192):

        @case(f"histogram-{bins}")
        def _(bins: int = bins) -> object:
            counts, origin = torch.zeros(bins, dtype=torch.int64), torch.zeros((), dtype=torch.int32)
            return observe.histogram(torch.zeros(4_000_000).bfloat16(), counts, torch.ones(()), origin)

    for name, scales in FAKE_QUANTIZATIONS.items():
        for dtype in (torch.bfloat16, torch.float32):

            @case(f"fake_quantize-{name}-{str(dtype).removeprefix('torch.')}")
            def _(scales: Any = scales, dtype: torch.dtype = dtype) -> object:
                return _fake_quantize_both_ways(dtype, *scales)

    @case("w8a8-batch")  # K is split, on Hopper too
    def _() -> object:
        packed, scale, _, _ = operands(config.W8A8())
        codes, x_scale, _ = tokens(128)
        sums = torch.zeros(FEATURES, dtype=torch.int32)
        return int8_matmul.int8_matmul(
            Int8Activation(codes, x_scale), Int8Weight(packed, scale, None, sums), torch.float16
        )

    @case("w8a8-affine-odd")
    def _() -> object:
        rows, columns, features = 1000, 1000, 130
        packed = torch.zeros(features, 1008, dtype=torch.int8)
        zeros, sums = torch.zeros(1, features, dtype=torch.int8), torch.zeros(features, dtype=torch.int32)
        codes, x_zero = torch.zeros(rows, columns, dtype=torch.int8), torch.zeros(rows, 1, dtype=torch.int8)
        scale, x_scale = torch.ones(1, features), torch.ones(rows, 1)
        return int8_matmul.int8_matmul(
            Int8Activation(codes, x_scale, x_zero), Int8Weight(packed, scale, zeros, sums), torch.bfloat16
        )

    for scheme, made in {
        "w4a16-g100": config.W4A16(group_size=100),
        "w4a16-channel": config.W4A16(group_size=None),
        "w8a16-affine": config.W8A16(symmetric=False),
    }.items():

        @case(f"{scheme}-odd")
        def _(made: Any = made) -> object:
            odd = torch.randn(130, 314, generator=generator).bfloat16()
            layout = slabs.slab_layout(slabs.weight_form(made), 314, made.weight.resolve_group_size(314))
            codes, scale, zero = qparams.quantize_weight(odd, made.weight)
            return weight_only.weight_only_matmul(
                torch.randn(200, 314, generator=generator).bfloat16(),
                slabs.pack(codes, layout),
                scale.t().contiguous(),
                None if zero is None else zero.t().contiguous(),
                None,
                layout.group_size,
                layout.padded_group,
                layout.slab_width,
            )

    for size, rows in ROWS.items():

        @case(f"w8a8-{size}")
        def _(rows: int = rows) -> object:
            packed, scale, _, _ = operands(config.W8A8())
            codes, x_scale, _ = tokens(rows)
            sums, bias = torch.zeros(FEATURES, dtype=torch.int32), torch.zeros(FEATURES)
            w = Int8Weight(packed, scale, None, sums, bias)
            return int8_matmul.int8_matmul(Int8Activation(codes, x_scale), w, torch.bfloat16)

        @case(f"w8a8-affine-requantize-{size}")
        def _(rows: int = rows) -> object:
            packed, scale, zero, _ = operands(config.W8A8(symmetric=False))
            codes, _, _ = tokens(rows, symmetric=False)
            sums, bias = torch.zeros(FEATURES, dtype=torch.int32), torch.zeros(FEATURES)
            one, code = torch.ones(1), torch.zeros(1, dtype=torch.int8)
            w, grid = Int8Weight(packed, scale, zero, sums, bias), Grid(one, code, False)
            return int8_matmul.int8_matmul(Int8Activation(codes, one, code), w, torch.int8, grid=grid)

        for scheme, made in {
            "w4a16-g128": config.W4A16(group_size=128),
            "w4a16-g64-affine": config.W4A16(group_size=64, symmetric=False),
            "w4a16-g32": config.W4A16(group_size=32),
            "w4a16-channel": config.W4A16(group_size=None),
            "w8a16": config.W8A16(),
            "w8a16-g128-affine": config.W8A16(group_size=128, symmetric=False),
        }.items():
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                if dtype != torch.bfloat16 and scheme != "w4a16-g128":
                    continue

                @case(f"{scheme}-{str(dtype).removeprefix('torch.')}-{size}")
                def _(rows: int = rows, made: Any = made, dtype: torch.dtype = dtype) -> object:
                    packed, scale, zero, layout = operands(made)
                    x = torch.randn(rows, COLUMNS, generator=generator).to(dtype)
                    return weight_only.weight_only_matmul(
                        x,
                        packed,
                        scale,
                        zero,
                        None,
                        layout.group_size,
                        layout.padded_group,
                        layout.slab_width,
                    )

                @case(f"gradient-{scheme}-{str(dtype).removeprefix('torch.')}-{size}")
                def _(rows: int = rows, made: Any = made, dtype: torch.dtype = dtype) -> object:
                    packed, scale, zero, layout = operands(made)
                    dy = torch.randn(rows, FEATURES, generator=generator).to(dtype)
                    return weight_only_gradient.weight_only_gradient(
                        dy,
                        packed,
                        scale,
                        zero,
                        COLUMNS,
                        layout.group_size,
                        layout.padded_group,
                        layout.slab_width,
                    )

        for scheme, made in {
            "w4a8-g128": config.W4A8(),
            "w4a8-channel": config.W4A8(group_size=None),
        }.items():

            @case(f"{scheme}-{size}")
            def _(rows: int = rows, made: Any = made) -> object:
                packed, scale, _, layout = operands(made)
                codes, x_scale, _ = tokens(rows)
                return int4_int8.int4_int8_matmul(
                    codes,
                    x_scale,
                    packed,
                    scale,
                    None,
                    layout.group_size,
                    layout.padded_group,
                    layout.slab_width,
                    torch.bfloat16,
                )


def _fake_quantize_both_ways(dtype: torch.dtype, rows_share: bool, group_size: int, affine: bool) -> object:
    """Forward with a mask, both backward passes; of a weight of FEATURES rows, or an activation of as many."""
    from tritonq.kernels.rows import fake_quantize, fake_quantize_gradients
    from tritonq.reference import fake_quantize as straight_through

    x = torch.zeros(FEATURES, COLUMNS, dtype=dtype)
    scale = torch.ones(1 if rows_share else FEATURES, COLUMNS // group_size)
    grid = (scale, torch.zeros_like(scale) if affine else None, group_size, -8, 7)
    tile_columns = straight_through.tile_columns(group_size)
    _, mask = fake_quantize.fake_quantize_with_mask(x, *grid, tile_columns)
    fake_quantize.masked(x, mask, scale.shape[1], group_size, tile_columns)
    return fake_quantize_gradients.gradients(x, x, *grid, tile_columns, 1.0, (True, True, affine))


def _launches_of(case: Callable[[], object], target: tuple[str, int, int, int]) -> list[Launch]:
    """Run a case with every launch recorded instead, and every tensor seemingly on `target`."""
    import importlib

    from tritonq.kernels.launch.launch import launching
    from tritonq.kernels.launch.target import Target

    launches: list[Launch] = []

    def record(kernel: Any, grid: object, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        launches.append(launch_of(kernel, positional, keywords))

    with contextlib.ExitStack() as patches:
        patches.enter_context(launching(record))
        for module_name in LAUNCHERS:
            module = importlib.import_module(f"tritonq.kernels.matmul.{module_name}")
            patches.enter_context(mock.patch.object(module, "target_of", return_value=Target(*target)))
        case()
    return launches


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", "nothing compiles in the interpreter's process"
    main(*sys.argv[1:])
