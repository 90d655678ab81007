"""INT8 × INT8 in Gluon against the reference, bit for bit: values, the ring's protocol, splits, edges, the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.hopper import hopper_launches
from tests.support.kernel_inputs import (
    FLOATS,
    addressable,
    assert_codes_close,
    assert_same,
    random_codes,
    random_grid,
    random_weight,
)
from tests.support.pairwise import pairwise
from tests.support.poison import Poison
from tests.test_kernels_epilogue import EXACT, RESIDUALS, random_residual
from tritonq import reference
from tritonq.numerics import config

kernels: Any = pytest.importorskip("tritonq.kernels.matmul.int8", reason="Triton is not installed")
hopper: Any = pytest.importorskip("tritonq.kernels.hopper.int8", reason="Triton has no Gluon")
shapes: Any = pytest.importorskip("tritonq.kernels.config.hopper_shapes")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

TileConfig, Target = kernels.TileConfig, kernels.Target
H100 = Target("cuda", 90, 132, 227 * 1024)
#: Small ones; half a tile at a time and a whole one; warps below and beside each other; a ring of 2 and of 3.
TILES = (
    TileConfig(64, 64, 128, 1, 4, 2, "hopper"),
    TileConfig(128, 64, 128, 2, 4, 3, "hopper"),
    TileConfig(256, 64, 128, 1, 8, 2, "hopper"),
    TileConfig(128, 128, 128, 4, 8, 2, "hopper"),
)


@pytest.mark.parametrize(
    "case",
    pairwise(
        rows=(70, 1, 129),
        columns=(300, 31, 513),
        features=(192, 144, 16),
        tile=TILES,
        out=(*FLOATS, "int8 symmetric", "int8 affine"),
        activation=reference.ACTIVATIONS,
        residual=RESIDUALS,
        per_token=(True, False),
        x_affine=(False, True),
        w_affine=(True, False),
        w_dtype=FLOATS,
        bias=(torch.bfloat16, None, torch.float32),
        seed=(0, 1, 2),
    ),
)
def test_against_the_reference(case: dict[str, Any], device: str) -> None:
    rows, columns, features, activation = (
        case[name] for name in ("rows", "columns", "features", "activation")
    )
    made = config.W8A8(symmetric=not case["w_affine"])
    w = random_weight(made, features, columns, case["w_dtype"], device)
    shape = (rows, 1) if case["per_token"] else (1,)
    x_scale = torch.rand(shape, device=device) / columns**0.5 + 0.01
    x_zero = random_codes(*shape, device=device) if case["x_affine"] else None
    x = random_codes(rows, columns, device=device)
    bias = None if case["bias"] is None else torch.randn(features, device=device).to(case["bias"])
    residual = random_residual(case["residual"], rows, features, "wide rows", device)
    given = (kernels.Int8Activation(addressable(x), x_scale, x_zero), w.int8(bias))
    added = None if residual[0] is None else kernels.Residual(*residual)
    operands = (x, x_scale, x_zero, w.codes, w.scale, w.zero, bias)
    out = case["out"]
    if isinstance(out, torch.dtype):
        exact = reference.int8_linear(*operands, torch.float32, activation, *residual)
        with hopper_launches(case["seed"]):
            found = kernels.int8_matmul(*given, out, activation, added, config=case["tile"])
        if activation in EXACT:
            assert_same(found, exact.to(out))
        else:
            step = 2e-6 if out == torch.float32 else torch.finfo(out).eps
            torch.testing.assert_close(found.float(), exact.to(out).float(), rtol=step, atol=2e-6)
        return
    grid = random_grid(device, max(1.0, columns**0.5 / 4), "affine" in out)
    with hopper_launches(case["seed"]):
        out_grid = kernels.Grid(*grid)
        found = kernels.int8_matmul(*given, torch.int8, activation, added, out_grid, config=case["tile"])
    expected = reference.int8_linear_requantize(*operands, *grid, activation, *residual)
    if activation in EXACT:
        assert_same(found, expected)
    else:
        assert_codes_close(found, expected)


@pytest.mark.parametrize("splits", [1, 8])
def test_splits_agree_to_the_bit_in_any_order_of_events(splits: int, device: str, poison: Poison) -> None:
    """Two steps of K: most of 8 splits find none; several pieces fall to each program."""
    rows, columns, features = 70, 256, 192
    x = random_codes(rows, columns, device=device)
    w = random_weight(config.W8A8(), features, columns, torch.float32, device)
    scale = torch.rand(rows, 1, device=device)
    expected = reference.int8_linear(x, scale, None, w.codes, w.scale, None, None, torch.float32)
    for seed in range(2):
        with hopper_launches(seed):
            found = kernels.int8_matmul(
                kernels.Int8Activation(x, scale), w.int8(), torch.float32,
                config=TileConfig(64, 64, 128, splits, 4, 2, "hopper"),
            )  # fmt: skip
        assert_same(found, expected)
    assert (len(poison.zeroed) > 0) == (splits > 1)


def test_columns_of_padding_are_never_read(device: str) -> None:
    x, w = random_codes(3, 31, device=device), random_weight(config.W8A8(), 16, 31, torch.float32, device)
    x = addressable(x)
    scale = torch.rand(3, 1, device=device)

    def multiply() -> torch.Tensor:
        with hopper_launches():
            return kernels.int8_matmul(
                kernels.Int8Activation(x, scale), w.int8(), torch.float32, config=TILES[0]
            )

    clean = multiply()
    w.packed[:, 31:] = 99
    assert_same(multiply(), clean)


def test_sums_of_extreme_codes_do_not_overflow(device: str) -> None:
    columns = 33_025 // 16 * 16  # the longest K of two affine operands, aligned
    x = torch.full((1, columns), -128, dtype=torch.int8, device=device)
    w = random_weight(config.W8A8(symmetric=False), 16, columns, torch.float32, device)
    w.packed.fill_(-128)
    w.scale.fill_(1)
    zero, sums = torch.full((1, 16), 127, dtype=torch.int8, device=device), torch.full((16,), -128 * columns)
    one = torch.ones(1, device=device)
    weight = w.int8()._replace(zero=zero, sums=sums.int().to(device))
    with hopper_launches():
        found = kernels.int8_matmul(
            kernels.Int8Activation(x, one, zero[0, :1]),
            weight,
            torch.float32,
            config=TileConfig(64, 64, 128, 2, 4, 4, "hopper"),
        )
    assert (found == torch.tensor(columns * 255 * 255).float()).all()


@pytest.mark.parametrize(
    ("rows", "features", "columns", "long", "shape"),
    [
        (4096, 28672, 4096, False, (256, 1)),  # tiles enough
        (4096, 28672, 4096, True, (128, 1)),  # half of the registers belong to a residual
        (1024, 4096, 4096, False, (256, 1)),  # 128 wide tiles for 132 multiprocessors
        (512, 4096, 4096, False, (128, 1)),  # 128 narrow ones
        (128, 4096, 14336, False, (128, 4)),  # 32 narrow ones, in four parts each
    ],
)
def test_the_rule_fills_the_gpu(
    rows: int, features: int, columns: int, long: bool, shape: tuple[int, int]
) -> None:
    chosen = shapes.choose_int8_config(H100, rows, features, columns, long)
    assert (chosen.block_n, chosen.splits) == shape
    variant = kernels.Int8("long" if long else "short", addressable=True)
    problem = kernels.Problem(variant, rows, features, columns)
    assert shapes.why_not_int8(problem, H100, chosen) is None
    assert (chosen.block_n + chosen.block_m) * chosen.block_k * chosen.num_stages < H100.shared_memory


def test_the_rule_is_asked_for_aligned_rows_of_a_hopper() -> None:
    def path_of(target: Any, rows: int, addressable: bool, features: int = 4096) -> str:
        problem = kernels.Problem(kernels.Int8("short", addressable), rows, features, 4096)
        return str(kernels.int8_rule.choose(problem, target).path)

    assert path_of(H100, 65, True) == "hopper"
    assert path_of(H100, 64, True) == "pointers"
    assert path_of(H100, 65, False) == "pointers"
    assert path_of(H100, 65, True, 4099) == "pointers"  # the output's rows count, too
    assert path_of(Target("cuda", 100, 148, 227 * 1024), 1024, True) == "descriptors"


def test_the_copy_engine_is_given_rows_behind_each_other(device: str) -> None:
    """Which strides it takes besides is not written down; the plain kernel takes any."""
    from tritonq.kernels.launch.descriptors import is_addressable

    memory = random_codes(4, 64, device=device)
    for rows in (memory, memory[:, :31], memory[:, 16:], memory[1:], memory[::2]):
        assert is_addressable(rows)
    for rows in (
        memory[:1].expand(4, 64),
        memory.as_strided((4, 64), (16, 1)),
        memory.as_strided((1, 64), (0, 1)),
    ):
        assert not is_addressable(rows)
    for rows in (memory[:, 1:], memory.t(), memory[:0], memory.flatten()[:210].view(3, 70)):
        assert not is_addressable(rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_k": 64}, "block_k must be 128"),
        ({"block_m": 32}, "not one of Hopper's"),
        ({"num_stages": 6}, "6 slots do not fit"),
        ({"num_warps": 4}, "256 sums per thread, 128 allowed"),
        ({"splits": 2}, "128 sums per thread leave no registers"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, int], words: str) -> None:
    fields = {
        "block_n": 256,
        "block_m": 128,
        "block_k": 128,
        "splits": 1,
        "num_warps": 8,
        "num_stages": 4,
    } | change
    problem = kernels.Problem(kernels.Int8("short", addressable=True), 1024, 4096, 4096)
    assert words in shapes.why_not_int8(problem, H100, TileConfig(**fields, path="hopper"))


def test_registers_at_launch_are_those_of_a_multiprocessor() -> None:
    from tritonq.kernels.hopper.ring import registers_at_launch

    assert registers_at_launch(8) == 168
    assert registers_at_launch(4) == 248
    for warps, programs in ((8, 1), (4, 1), (4, 2)):
        used = registers_at_launch(warps, programs) * 32 * (warps + 4) * programs
        assert 0.9 * 65_536 <= used <= 65_536
    assert 8 * 240 + 4 * 24 == 12 * 168
