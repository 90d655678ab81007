"""The weight-only kernel in Gluon against the dequantized weight: operands, groups, rings, splits, edges, the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.assembly import run_assembly
from tests.support.hopper import hopper_launches
from tests.support.kernel_inputs import (
    Weight,
    assert_close_to_float32,
    assert_same,
    random_weight,
    with_strides,
)
from tests.support.pairwise import pairwise
from tests.support.poison import Poison
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.weight_only", reason="Triton is not installed")
shapes: Any = pytest.importorskip("tritonq.kernels.config.hopper_weight_only_shapes")
operand: Any = pytest.importorskip("tritonq.kernels.hopper.weight_operand")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig, Target = kernels.TileConfig, kernels.Target
H100 = Target("cuda", 90, 132, 227 * 1024)
HALVES = (torch.bfloat16, torch.float16)


def tile(bits: int, block_m: int, splits: int, stages: int) -> Any:
    registers = 80 if block_m <= 16 else 168
    return TileConfig(128, block_m, 256 if bits == 4 else 128, splits, 8, stages, "hopper", registers)


def multiply(x: Tensor, w: Weight, bias: Tensor | None, chosen: Any, seed: int = 0) -> Tensor:
    layout = w.layout
    with hopper_launches(seed):
        return kernels.weight_only_matmul(
            x, w.packed, w.kernel_scale, w.kernel_zero, bias,
            layout.group_size, layout.padded_group, layout.slab_width, config=chosen,
        )  # fmt: skip


def check(x: Tensor, w: Weight, bias: Tensor | None, chosen: Any, seed: int = 0) -> None:
    found = multiply(x, w, bias, chosen, seed)
    assert found.dtype == x.dtype
    exact = reference.weight_only_linear(x.float(), w.codes, w.scale, w.zero, bias, w.layout.group_size)
    magnitude = x.float().abs() @ w.dequantized().abs().t()
    magnitude = magnitude if bias is None else magnitude + bias.float().abs()
    assert_close_to_float32(found, exact, magnitude, stored=Tensor.to)


def made(bits: int, group_size: int | None, symmetric: bool) -> config.QuantConfig:
    make = config.W4A16 if bits == 4 else config.W8A16
    return make(group_size=group_size, symmetric=symmetric)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "case",
    pairwise(
        group_size=(128, None, 32, 64),
        shape=((8, 1), (16, 19), (128, 70)),  # rows of x: a tile's, and all
        columns=(328, 64, 576),
        features=(144, 16, 80),  # multiples of 16: rows of zero points are addressable
        splits=(1, 2, 4),
        stages=(2, 3),
        strides=("contiguous", "wide rows", "transposed", "expanded"),
        dtype=HALVES,
        symmetric=(True, False),
        scale_dtype=(torch.bfloat16, torch.float32),
        bias=(None, torch.float32),
        seed=(0, 1, 2),
    ),
)
def test_against_the_dequantized_weight(case: dict[str, Any], bits: int, device: str) -> None:
    features, columns, (block_m, rows) = case["features"], case["columns"], case["shape"]
    w = random_weight(
        made(bits, case["group_size"], case["symmetric"]), features, columns, case["scale_dtype"], device
    )
    x = with_strides(torch.randn(rows, columns, device=device).to(case["dtype"]), case["strides"])
    bias = None if case["bias"] is None else torch.randn(features, device=device).to(case["bias"])
    check(x, w, bias, tile(bits, block_m, case["splits"], case["stages"]), case["seed"])


@pytest.mark.parametrize("bits", [4, 8])
def test_one_scale_a_row_and_the_widest_tile(bits: int, device: str) -> None:
    """N that is no multiple of 8, more tiles than one."""
    w = random_weight(made(bits, None, False), 131, 320, torch.bfloat16, device)
    check(torch.randn(257, 320, device=device).bfloat16(), w, None, tile(bits, 256, 1, 4))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("group_size", "symmetric"), [(128, True), (32, False), (None, False)])
def test_one_column_at_a_time_finds_every_code(
    bits: int, group_size: int | None, symmetric: bool, device: str
) -> None:
    """x = identity: each output is one code, minus its zero point, times its group's scale, and nothing else."""
    columns, features = 256, 48
    w = random_weight(made(bits, group_size, symmetric), features, columns, torch.float32, device)
    found = multiply(torch.eye(columns, device=device).bfloat16(), w, None, tile(bits, 64, 1, 2))
    assert_same(found, w.dequantized().t().to(torch.bfloat16))


@pytest.mark.parametrize("splits", [2, 8])
def test_splits_repeat_their_bits_in_any_order_of_events(splits: int, device: str, poison: Poison) -> None:
    """Three steps of K: most of 8 splits find none."""
    w = random_weight(made(4, 64, False), 32, 768, torch.float32, device)
    x, bias = torch.randn(5, 768, device=device).bfloat16(), torch.randn(32, device=device)
    first = multiply(x, w, bias, tile(4, 8, splits, 2))
    for seed in (1, 2):
        assert_same(multiply(x, w, bias, tile(4, 8, splits, 2), seed), first)
    check(x, w, bias, tile(4, 8, splits, 2))
    assert len(poison.zeroed) > 0


def test_infinity_beyond_a_row_s_end_is_never_read(device: str) -> None:
    """K ends inside a group and a step; columns behind it, in x's memory and in the packed weight, are not zero."""
    w = random_weight(made(4, 64, False), 32, 328, torch.bfloat16, device)
    memory = torch.full((4, 400), torch.inf, device=device).bfloat16()
    memory[:, :328] = torch.randn(4, 328, device=device).bfloat16()
    check(memory[:, :328], w, None, tile(4, 8, 1, 2))


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("dtype", HALVES)
def test_every_word_and_zero_point_unpacks_exactly(dtype: torch.dtype, position: int) -> None:
    words = torch.arange(-(2**15), 2**15).to(torch.int16)
    codes = (words.int() >> 4 * position & 0xF) - 8
    assembly = operand.word_assembly(position, dtype == torch.bfloat16)
    for zero in range(-8, 8):
        offsets = (-(136.0 if dtype == torch.bfloat16 else 1032.0) - torch.full((2**16,), zero)).to(dtype)
        found = run_assembly(assembly, [words, offsets], dtype, 2)
        assert_same(found.float(), (codes - zero).float())


@pytest.mark.parametrize("has_zero", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_every_byte_and_zero_point_unpacks_exactly(dtype: torch.dtype, has_zero: bool) -> None:
    codes = torch.arange(-128, 128).to(torch.int8)
    assembly = operand.byte_assembly(dtype == torch.bfloat16, has_zero)
    for zero in range(-128, 128) if has_zero else (0,):
        offsets = (-(0.0 if dtype == torch.bfloat16 else 1152.0) - torch.full((256,), zero)).to(dtype)
        found = run_assembly(assembly, [codes, offsets], dtype, 2)
        assert_same(found.float(), codes.float() - zero)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [None, 128, 32])
@pytest.mark.parametrize(
    ("rows", "features", "columns", "shape"),
    [
        (1, 28672, 4096, (8, 1)),
        (16, 4096, 14336, (16, 8)),
        (33, 4096, 4096, (64, 4)),
        (128, 28672, 4096, (128, 1)),
        (256, 4096, 4096, (64, 1)),
        (4096, 4096, 4096, (128, 1)),
    ],
)
def test_the_rule_fills_the_gpu(
    rows: int, features: int, columns: int, shape: tuple[int, int], group_size: int | None, bits: int
) -> None:
    slabs = 4 if bits == 4 else 1
    size = group_size or columns
    chosen = shapes.choose_config(H100, rows, features, columns, slabs, size)
    if shape == (128, 1) and group_size is None and rows > 256:
        shape = (256, 1)  # room for as many sums again
    assert (chosen.block_m, chosen.splits) == shape
    assert chosen.num_stages >= 3
    variant = kernels.WeightOnly(slabs, size, 64, "torch.bfloat16", suits_hopper=True)
    problem = kernels.Problem(variant, rows, features, columns)
    assert shapes.why_not_weight_only(problem, H100, chosen) is None
    assert chosen in list(shapes.candidates(problem, H100))


def test_the_rule_is_asked_for_layers_that_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Hopper, with 16-bit rows of a multiple of 8 columns, groups of 32 and more, and aligned scales."""

    def path_of(
        target: Any,
        dtype: torch.dtype = torch.bfloat16,
        features: int = 64,
        **layer: Any,
    ) -> str:
        w = random_weight(
            made(**({"bits": 4, "group_size": 64, "symmetric": True} | layer)), features, 512, dtype, "cpu"
        )
        x = torch.zeros(3, 512, dtype=dtype)
        layout = w.layout
        config = kernels._config(
            x, w.packed, w.kernel_scale, w.kernel_zero, target,
            layout.group_size, layout.padded_group, layout.slab_width,
        )  # fmt: skip
        return str(config.path)

    assert path_of(H100) == "hopper"
    assert path_of(H100, group_size=None, features=7) == "hopper"
    assert path_of(H100, bits=8, group_size=32, symmetric=False) == "hopper"
    assert path_of(H100, torch.float32) == "pointers"
    assert path_of(H100, group_size=100) == "pointers"
    assert path_of(H100, group_size=96) == "pointers"
    assert path_of(H100, features=63) == "pointers"
    assert path_of(H100, symmetric=False, features=72) == "pointers"
    assert path_of(Target("cuda", 100, 148, 227 * 1024)) == "pointers"
    monkeypatch.setattr(shapes, "AVAILABLE", False)
    assert path_of(H100, features=128) == "pointers"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_k": 128}, "block_k must be 256"),
        ({"block_m": 256}, "256 rows of x, 128 allowed"),
        ({"max_registers": 80}, "128 rows of x, 16 allowed"),
        ({"max_registers": 96}, "max_registers must be one of"),
        ({"num_warps": 4}, "128 rows of the weight and 8 warps"),
        ({"block_m": 64, "num_stages": 5}, "5 slots do not fit"),
        ({"splits": 32}, "32 splits of 16 steps"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, int], words: str) -> None:
    shape = {"block_n": 128, "block_m": 128, "block_k": 256, "splits": 1}
    fields = shape | {"num_warps": 8, "num_stages": 4, "max_registers": 168} | change
    variant = kernels.WeightOnly(4, 128, 64, "torch.bfloat16", suits_hopper=True)
    problem = kernels.Problem(variant, 1024, 4096, 4096)
    assert words in shapes.why_not_weight_only(problem, H100, TileConfig(**fields, path="hopper"))
