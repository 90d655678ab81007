"""The emulator: right kernels compute the right values under every schedule, broken ones are caught."""

import functools

import pytest
import torch

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tests import gluon_kernels as kernels
from tests.gluon_emulator import (
    BarrierError,
    DeadlockError,
    DependentLaunchError,
    FenceError,
    OutOfBoundsError,
    RaceError,
    UnfinishedError,
    emulate,
    emulated_launches,
)
from tests.gluon_emulator.assembly import run_assembly
from tritonq.kernels.blocks import unpack
from tritonq.kernels.launch.launch import launch

SEEDS = range(12)
DTYPES = {
    torch.int8: gl.int8,
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
}
COPY = {"BYTES": 64 * 64 * 2, "WAIT": True, "FENCE": True, "STORE_WAIT": True, "PHASE": 0}


def descriptor(tensor, block):
    layout = gl.NVMMASharedLayout.get_default_for(list(block), DTYPES[tensor.dtype])
    return TensorDescriptor.from_tensor(tensor, list(block), layout)


def run_copy(seed, **changes):
    source = torch.randn(160, 64).to(torch.bfloat16)
    target, counter = torch.zeros_like(source), torch.zeros(1, dtype=torch.int32)
    block = (64, 64)
    emulate(
        kernels.copy_kernel,
        (3,),
        descriptor(source, block),
        descriptor(target, block),
        counter,
        seed=seed,
        **{**COPY, **changes},
    )
    assert counter.item() == 3
    torch.testing.assert_close(target, source * 2, rtol=0, atol=0)


def run_ring(seed, dtype=torch.int8, broken="", steps=5):
    rows, columns, inner = 64, 32, 64
    inputs = (torch.randint(-128, 128, (n, steps * inner - 16)) for n in (2 * rows, columns))
    a, b = (x.to(dtype) if dtype == torch.int8 else x.to(dtype) / 64 for x in inputs)
    out = torch.zeros(2 * rows, columns, dtype=torch.float32)
    emulate(
        kernels.ring_kernel,
        (2, 1),
        descriptor(a, (rows, inner)),
        descriptor(b, (columns, inner)),
        descriptor(out, (rows, columns)),
        steps,
        STAGES=2,
        BREAK=broken,
        num_warps=4,
        seed=seed,
    )
    torch.testing.assert_close(out, a.float() @ b.float().T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_copy(seed):
    run_copy(seed)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"WAIT": False}, RaceError, id="no wait for the load"),
        pytest.param({"PHASE": 1}, (RaceError, DeadlockError), id="wrong phase"),
        pytest.param({"FENCE": False}, FenceError, id="no fence"),
        pytest.param({"STORE_WAIT": False}, RaceError, id="no wait before reuse"),
        pytest.param({"BYTES": 64 * 64}, BarrierError, id="too few bytes expected"),
        pytest.param({"BYTES": 64 * 64 * 4}, DeadlockError, id="too many bytes expected"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_broken_copy(changes, error, seed):
    with pytest.raises(error, match=r"gluon_kernels\.py|mbarrier"):
        run_copy(seed, **changes)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", SEEDS)
def test_ring(seed, dtype):
    run_ring(seed, dtype)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        pytest.param("no wait for empty slots", (RaceError, BarrierError), id="no wait for empty slots"),
        pytest.param("wrong phase", (RaceError, DeadlockError), id="wrong phase"),
        pytest.param("early release", RaceError, id="released before the product is over"),
        pytest.param("release of the running one", RaceError, id="released one too early"),
        pytest.param("never released", DeadlockError, id="never released"),
        pytest.param("no last wait", UnfinishedError, id="accumulator used too early"),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_broken_ring(broken, error, seed):
    with pytest.raises(error, match=r"gluon_kernels\.py"):
        run_ring(seed, broken=broken)


def test_arithmetic():
    count, n = 128, 100
    x = torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32)
    x[:50] = torch.arange(-25, 25)
    y = torch.empty(6, count, dtype=torch.int32)
    emulate(kernels.arithmetic_kernel, (1,), x, y, n, COUNT=count)
    x[n:] = 0
    total = x.sum(dtype=torch.int32)
    total = -total if total > 0 else total
    scaled = (x.float() * 0.75).to(torch.int32)
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


def test_out_of_bounds():
    x, y = torch.zeros(100, dtype=torch.int32), torch.zeros(6, 128, dtype=torch.int32)
    with pytest.raises(OutOfBoundsError, match="x_ptr, which has 400"):
        emulate(kernels.arithmetic_kernel, (1,), x, y, 101, COUNT=128)


def test_dependent_launch():
    weight, x, y = torch.tensor([3.0]), torch.tensor([5.0]), torch.zeros(1)
    run = functools.partial(emulate, kernels.dependent_kernel, (1,), weight, x, y, launch_pdl=True)
    run(WAIT=True, early=["weight_ptr"])
    assert y.item() == 15
    with pytest.raises(DependentLaunchError, match="weight_ptr is read"):
        run(WAIT=True)
    with pytest.raises(DependentLaunchError, match="x_ptr is read"):
        run(WAIT=False, early=[weight])


@pytest.mark.parametrize("seed", range(4))
def test_concurrent_programs(seed):
    counter, y = torch.zeros(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    emulate(kernels.spinning_kernel, (4,), counter, y, seed=seed, concurrent=True)
    assert y.tolist() == [4] * 4


def test_programs_that_run_one_after_the_other_wait_in_vain():
    counter, y = torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(DeadlockError, match=r"in vain .* gluon_kernels\.py"):
        emulate(kernels.spinning_kernel, (2,), counter, y)


def test_launches_are_emulated():
    weight, x, y = torch.tensor([3.0]), torch.tensor([5.0]), torch.zeros(1)
    with emulated_launches(seed=1) as launched:
        launch(kernels.dependent_kernel, (1,), weight, x, y, WAIT=True, num_warps=1)
    assert launched == [kernels.dependent_kernel]
    assert y.item() == 15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_assembly_of_unpacking(dtype):
    """The PTX with which plain kernels unpack codes gives what shifts and casts give, for every word and byte."""
    name = {torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    words = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for position in range(4):
        text = getattr(unpack, f"_ptx_words_to_{name}").fn(position)
        (found,) = run_assembly(text, [words], [dtype], pack=2)
        expected = ((words.int() >> 4 * position) & 15) - 8
        torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)
    codes = torch.arange(-128, 128).to(torch.int8)
    (found,) = run_assembly(getattr(unpack, f"_ptx_bytes_to_{name}").fn(), [codes], [dtype], pack=4)
    torch.testing.assert_close(found, codes.to(dtype), rtol=0, atol=0)
