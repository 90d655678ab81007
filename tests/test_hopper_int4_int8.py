"""W4A8 in Gluon against the reference; bit for bit with one scale per row, else to the rounding of float32 sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.hopper import hopper_launches
from tests.support.kernel_inputs import (
    FLOATS,
    addressable,
    assert_same,
    random_codes,
    random_weight,
)
from tests.support.pairwise import pairwise
from tests.support.poison import Poison
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.int4_int8", reason="Triton is not installed")
shapes: Any = pytest.importorskip("tritonq.kernels.config.hopper_shapes")
pytest.importorskip("tritonq.kernels.hopper.int4_int8", reason="Triton has no Gluon")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig = kernels.TileConfig
Target = pytest.importorskip("tritonq.kernels.launch.target").Target
H100 = Target("cuda", 90, 132, 227 * 1024)


def tile(block_m: int, slab_width: int, splits: int, stages: int) -> Any:
    return TileConfig(128, block_m, 2 * slab_width, splits, 8, stages, "hopper")


def multiply(x: torch.Tensor, scale: torch.Tensor, w: Any, bias: Any, out: torch.dtype, chosen: Any) -> Any:
    layout = w.layout
    sizes = (layout.group_size, layout.padded_group, layout.slab_width)
    return kernels.int4_int8_matmul(
        addressable(x), scale, w.packed, w.kernel_scale, bias, *sizes, out, config=chosen
    )


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(17, 70, 1),
        columns=(384, 300, 640),
        features=(144, 16),
        group_size=(128, 64, None, 32),
        block_m=(16, 64, 128),
        splits=(1, 2, 8),
        stages=(2, 4),
        out=FLOATS,
        w_dtype=FLOATS,
        bias=(torch.float32, None, torch.bfloat16),
        seed=(0, 1, 2),
    ),
)
def test_against_the_reference(case: dict[str, Any], device: str) -> None:
    rows, columns, features, out = (case[name] for name in ("rows", "columns", "features", "out"))
    w = random_weight(config.W4A8(group_size=case["group_size"]), features, columns, case["w_dtype"], device)
    x = random_codes(rows, columns, device=device)
    scale = torch.rand(rows, 1, device=device) / 10 + 0.01
    bias = None if case["bias"] is None else torch.randn(features, device=device).to(case["bias"])
    chosen = tile(case["block_m"], w.layout.slab_width, case["splits"], case["stages"])
    with hopper_launches(case["seed"]):
        found = multiply(x, scale, w, bias, out, chosen)
    exact = reference.int4_int8_linear(x, scale, w.codes, w.scale, bias, w.layout.group_size, torch.float32)
    if w.layout.groups == 1:
        assert_same(found, exact.to(out))
    else:
        magnitude = (x.float() * scale).abs() @ w.dequantized().abs().t()
        error = (found.float() - exact).abs()
        assert (error <= torch.finfo(out).eps * exact.abs() + 2e-6 * magnitude).all(), error.max()


@pytest.mark.parametrize("group_size", [128, None])
def test_splits_put_counters_back_and_repeat_their_bits(
    group_size: int | None, device: str, poison: Poison
) -> None:
    x = random_codes(20, 640, device=device)
    w = random_weight(config.W4A8(group_size=group_size), 144, 640, torch.float32, device)
    scale = torch.rand(20, 1, device=device)
    found = []
    for seed in range(3):
        with hopper_launches(seed):
            found.append(multiply(x, scale, w, None, torch.float32, tile(32, 64, 4, 2)))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])
    assert len(poison.zeroed) > 0


@pytest.mark.parametrize(
    ("rows", "features", "columns", "group_size", "shape"),
    [
        (4096, 28672, 4096, 4096, (256, 1)),
        (4096, 28672, 4096, 128, (128, 1)),
        (1, 4096, 14336, 128, (16, 4)),
        (64, 4096, 4096, 128, (64, 4)),
        (1, 28672, 4096, 128, (16, 1)),
    ],
)
def test_the_rule(rows: int, features: int, columns: int, group_size: int, shape: tuple[int, int]) -> None:
    one_group = group_size == columns
    chosen = kernels.choose_config(H100, rows, features, columns // 128, 64, 1, one_group, True)
    assert (chosen.path, chosen.block_m, chosen.splits) == ("hopper", *shape)
    problem = kernels.Problem(kernels.Int4Int8(group_size, 64, addressable=True), rows, features, columns)
    assert shapes.why_not_int4_int8(problem, H100, chosen) is None
    assert kernels.choose_config(H100, rows, features, columns // 128, 64).path == "pointers"
