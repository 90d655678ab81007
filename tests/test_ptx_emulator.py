"""The emulator of compiled kernels: right ones compute right values in any order of events, broken ones are found."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tests.support import gluon_kernels as kernels
from tests.support.assembly import run_assembly
from tools.ptx_emulator import (
    BarrierError,
    DeadlockError,
    DependentLaunchError,
    FenceError,
    OutOfBoundsError,
    RaceError,
    UnfinishedError,
    UnknownInstructionError,
)
from tools.ptx_emulator.launches import compiled_for, emulated_launches, execute
from tools.ptx_emulator.specialization import launch_of
from tritonq.kernels.launch.launch import Launch
from tritonq.kernels.launch.operands import operands_of
from tritonq.kernels.launch.plans import Plan

unpack: Any = pytest.importorskip("tritonq.kernels.blocks.unpack")

SEEDS = range(6)
DTYPES = {
    torch.int8: gl.int8,
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
}
COPY = {"BYTES": 64 * 64 * 2, "WAIT": True, "FENCE": True, "STORE_WAIT": True, "PHASE": 0}


def run(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    seed: int = 0,
    early: tuple[str, ...] = (),
    edit: Callable[[str], str] = lambda ptx: ptx,
    **constants: Any,
) -> None:
    """Execute a kernel whose PTX has been edited."""
    recorded = launch_of(kernel, arguments, constants)
    made = compiled_for(recorded)
    execute(recorded, made | {"ptx": edit(made["ptx"])}, grid, seed, early)


def without(pattern: str, which: int = 0, count: int = 1) -> Callable[[str], str]:
    """An edit that takes out instructions: those of the matches of a pattern from `which` on."""

    def edit(ptx: str) -> str:
        lines = ptx.splitlines()
        places = [place for place, line in enumerate(lines) if re.search(pattern, line)]
        assert len(places) >= which + count, f"{len(places)} lines with {pattern}"
        for place in places[which : which + count]:
            lines[place] = ""
        return "\n".join(lines)

    return edit


def descriptor(tensor: torch.Tensor, block: tuple[int, int]) -> Any:
    layout = gl.NVMMASharedLayout.get_default_for(list(block), DTYPES[tensor.dtype])
    return TensorDescriptor.from_tensor(tensor, list(block), layout)


def run_copy(seed: int, edit: Callable[[str], str] = lambda ptx: ptx, **changes: Any) -> None:
    source = torch.randn(160, 64).to(torch.bfloat16)
    target, counter = torch.zeros_like(source), torch.zeros(1, dtype=torch.int32)
    tiles = descriptor(source, (64, 64)), descriptor(target, (64, 64))
    run(kernels.copy_kernel, (3,), *tiles, counter, seed=seed, edit=edit, **{**COPY, **changes})
    assert counter.item() == 3
    torch.testing.assert_close(target, source * 2, rtol=0, atol=0)


def run_ring(
    seed: int,
    dtype: torch.dtype = torch.int8,
    broken: str = "",
    steps: int = 5,
    edit: Callable[[str], str] = lambda ptx: ptx,
) -> None:
    rows, columns, inner = 64, 32, 64
    a, b = (torch.randint(-128, 128, (n, steps * inner - 16)).to(dtype) for n in (2 * rows, columns))
    if dtype != torch.int8:
        a, b = a / 64, b / 64
    out = torch.zeros(2 * rows, columns, dtype=torch.float32)
    tiles = descriptor(a, (rows, inner)), descriptor(b, (columns, inner)), descriptor(out, (rows, columns))
    run(
        kernels.ring_kernel, (2, 1), *tiles, steps,
        STAGES=2, BREAK=broken, num_warps=4, seed=seed, edit=edit,
    )  # fmt: skip
    torch.testing.assert_close(out, a.float() @ b.float().T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_copy(seed: int) -> None:
    run_copy(seed)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"WAIT": False}, RaceError, id="no wait for the load"),
        pytest.param({"PHASE": 1}, (RaceError, DeadlockError), id="wrong phase"),
        pytest.param({"STORE_WAIT": False}, RaceError, id="no wait before reuse"),
        pytest.param({"BYTES": 64 * 64}, BarrierError, id="too few bytes expected"),
        pytest.param({"BYTES": 64 * 64 * 4}, DeadlockError, id="too many bytes expected"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_that_is_written_wrong(changes: dict[str, Any], error: Any, seed: int) -> None:
    with pytest.raises(error, match=r"gluon_kernels\.py"):
        run_copy(seed, **changes)


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        pytest.param(r"fence\.proxy\.async", FenceError, id="no fence before the copy out"),
        pytest.param(r"mbarrier\.init", BarrierError, id="no barrier made"),
        pytest.param(r"^\s*bar\.sync", (RaceError, BarrierError), id="no barriers between warps"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_that_is_compiled_wrong(pattern: str, error: Any, seed: int) -> None:
    def edit(ptx: str) -> str:
        return without(pattern, count=len(re.findall(pattern, ptx, re.MULTILINE)))(ptx)

    with pytest.raises(error, match=r"copy_kernel"):
        run_copy(seed, edit)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", SEEDS)
def test_ring(seed: int, dtype: torch.dtype) -> None:
    run_ring(seed, dtype)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        pytest.param("no wait for empty slots", (RaceError, BarrierError), id="no wait for empty slots"),
        pytest.param("wrong phase", (RaceError, DeadlockError), id="wrong phase"),
        pytest.param("early release", RaceError, id="released before the product is over"),
        pytest.param("release of the running one", RaceError, id="released one too early"),
        pytest.param("never released", DeadlockError, id="never released"),
        pytest.param("the slot is not carried", (DeadlockError, RaceError, BarrierError), id="not carried"),
        pytest.param("no last wait", UnfinishedError, id="accumulator used too early"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_ring_that_is_written_wrong(broken: str, error: Any, seed: int) -> None:
    with pytest.raises(error, match=r"gluon_kernels\.py|ring_kernel"):
        run_ring(seed, broken=broken)


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        pytest.param(r"wgmma\.wait_group\S* 1;", RaceError, id="no wait for the product before"),
        pytest.param(r"fence\.proxy\.async", FenceError, id="no fence"),
    ],
)
def test_a_ring_that_is_compiled_wrong(pattern: str, error: Any) -> None:
    def edit(ptx: str) -> str:
        return without(pattern, count=len(re.findall(pattern, ptx)))(ptx)

    with pytest.raises(error, match=r"ring_kernel"):
        run_ring(0, edit=edit)


def test_arithmetic() -> None:
    count, n = 128, 100
    x = torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32)
    x[:50] = torch.arange(-25, 25)
    y = torch.empty(6, count, dtype=torch.int32)
    run(kernels.arithmetic_kernel, (1,), x, y, n, COUNT=count)
    x[n:] = 0
    total = x.sum(dtype=torch.int32)
    total = -total if total > 0 else total
    scaled = (x.float() * 0.75).to(torch.int32)
    in_int8 = scaled.abs() < 128  # what becomes of others is not defined
    y[2][~in_int8] = 0
    scaled[~in_int8] = 0
    expected = [
        torch.div(x, 2, rounding_mode="trunc"),
        torch.fmod(x, 2) * 3,
        scaled.to(torch.int8).to(torch.int32),
        (x >> 1) + ((x >> 28) & 15),
        torch.maximum(x, -x),
        torch.where(x > 0, total, x * 2147483647),
    ]
    for found, wanted in zip(y, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_out_of_bounds() -> None:
    x, y = torch.zeros(100, dtype=torch.int32), torch.zeros(6, 128, dtype=torch.int32)
    with pytest.raises(OutOfBoundsError, match="x_ptr, which has 400"):
        run(kernels.arithmetic_kernel, (1,), x, y, 101, COUNT=128)


def test_memory_before_the_kernel_in_front_has_ended() -> None:
    weight, x, y = torch.tensor([3.0]), torch.tensor([5.0]), torch.zeros(1)
    operands = (kernels.dependent_kernel, (1,), weight, x, y)
    run(*operands, launch_pdl=True, WAIT=True, early=("weight_ptr",))
    assert y.item() == 15
    with pytest.raises(DependentLaunchError, match="weight_ptr is touched"):
        run(*operands, launch_pdl=True, WAIT=True)
    with pytest.raises(DependentLaunchError, match="x_ptr is touched"):
        run(*operands, launch_pdl=True, WAIT=False, early=("weight_ptr",))


def test_launches_are_emulated() -> None:
    weight, x, y = torch.tensor([3.0]), torch.tensor([5.0]), torch.zeros(1)
    with emulated_launches(seed=1) as emulated:
        operands = operands_of([weight, x, y])
        launch = Launch(kernels.dependent_kernel, (1,), *operands, WAIT=True, num_warps=1)
        Plan(operands[2], launch).run([weight, x, y])
    assert emulated.kernels == ["dependent_kernel"]
    assert y.item() == 15


def test_an_instruction_that_is_not_known_is_named() -> None:
    weight, x, y = torch.tensor([3.0]), torch.tensor([5.0]), torch.zeros(1)
    with pytest.raises(UnknownInstructionError, match=r"mul\.unheard\.f32"):
        run(
            kernels.dependent_kernel, (1,), weight, x, y,
            WAIT=True, edit=lambda ptx: re.sub(r"mul\.f32|mul\.rn\.f32", "mul.unheard.f32", ptx),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_assembly_of_unpacking(dtype: torch.dtype) -> None:
    """The PTX with which plain kernels unpack codes gives what shifts and casts give, for every word and byte."""
    name = {torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    words = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for position in range(4):
        text = getattr(unpack, f"_ptx_words_to_{name}").fn(position)
        found = run_assembly(text, [words], dtype, pack=2)
        expected = ((words.int() >> 4 * position) & 15) - 8
        torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)
    codes = torch.arange(-128, 128).to(torch.int8)
    found = run_assembly(getattr(unpack, f"_ptx_bytes_to_{name}").fn(), [codes], dtype, pack=4)
    torch.testing.assert_close(found, codes.to(dtype), rtol=0, atol=0)
