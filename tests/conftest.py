"""What every test runs in: kernels interpreted where there is no GPU, poisoned memory, fixed seeds, strict hypothesis.

Whether kernels are compiled or interpreted is decided once, before anything imports triton: without a CUDA GPU
TRITON_INTERPRET=1 is set, and kernels run in Triton's interpreter on CPU tensors. With a GPU, or where the variable is
set already, nothing is touched, and the same tests run on what is there. There a kernel may never end: pytest-timeout
then ends the process (with pytest-xdist, one worker) and says in which test.

TRITONQ_PTX=90 (or 80) runs every launch as it is compiled for that compute capability, on CPU tensors, in the emulator
of tools/ptx_emulator: the tests of plain kernels, too. TRITONQ_PTX_EVERY=n takes every n-th test of a function there.
Elsewhere Hopper's kernels alone are emulated, in every third of the cases that `pairwise` makes, or every n-th.
"""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator

import hypothesis
import numpy
import pytest
import torch

if os.environ.get("TRITONQ_PTX"):
    os.environ["TRITON_INTERPRET"] = "0"
elif not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    assert sys.modules.get("triton") is None, "triton was imported before TRITON_INTERPRET could be set"
    os.environ["TRITON_INTERPRET"] = "1"

from tests.support.poison import Poison, poisoned_kernels

#: Compute capability times ten that launches are emulated as compiled for; None: they run.
EMULATED = int(os.environ.get("TRITONQ_PTX") or 0) or None

# The default draws the same examples every time. HYPOTHESIS_PROFILE=explore draws new ones and remembers failures.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def why_kernels_cannot_run() -> str | None:
    """The reason that Triton kernels run neither compiled nor interpreted here, or None."""
    if EMULATED:
        return None
    try:
        triton_version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return None if torch.cuda.is_available() else "no CUDA GPU, and TRITON_INTERPRET is not 1"
    numpy_version = importlib.metadata.version("numpy")
    if _release(triton_version) < (3, 7) and _release(numpy_version) >= (2, 4):
        return f"the interpreter of Triton {triton_version} fails with NumPy {numpy_version} (2.4 or newer)"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


#: Compiling counts, which takes most of a test's time where Triton's cache is empty.
GPU_SECONDS = 300


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a GPU is, give every test a timeout, unless the command line does; elsewhere, emulate a part of the tests.

    A thread must watch: Python sees a signal only when the call that waits for the GPU returns.
    """
    if EMULATED or not torch.cuda.is_available():
        _keep_every(int(os.environ.get("TRITONQ_PTX_EVERY", "1" if EMULATED else "3")), config, items)
    elif config.getoption("timeout", 0) is None:
        for item in items:
            item.add_marker(pytest.mark.timeout(GPU_SECONDS, method="thread"))


def _keep_every(n: int, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect emulated tests but for every n-th of each function."""
    seen: collections.Counter[object] = collections.Counter()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        place = 0
        function, call = getattr(item, "function", None), getattr(item, "callspec", None)
        if EMULATED or (call is not None and "test_hopper_" in item.nodeid and "case" in call.params):
            place = seen[function]
            seen[function] += 1
        (left_out if place % n else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture
def device() -> str:
    """Where tensors of the tests lie: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() and not EMULATED else "cpu"


@pytest.fixture
def kernels_can_run() -> Iterator[None]:
    """Skip a test that launches kernels directly where nothing can run them."""
    reason = why_kernels_cannot_run()
    if reason is not None:
        pytest.skip(reason)
    # The interpreter computes with NumPy, which warns where a GPU silently gives the Inf or NaN that is meant.
    with numpy.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Poison]:
    """Kernels write to poisoned, fenced memory in every test; the fences are inspected afterwards."""
    poison = poisoned_kernels(monkeypatch)
    yield poison
    poison.check()


@pytest.fixture(autouse=True)
def as_compiled() -> Iterator[None]:
    """Launches are emulated where TRITONQ_PTX asks for it."""
    if EMULATED is None:
        yield
        return
    from tests.support.emulated import emulated_gpu

    with emulated_gpu(EMULATED):
        yield


@pytest.fixture(autouse=True)
def gpu_only(request: pytest.FixtureRequest) -> None:
    """Skip what is marked `gpu` where there is none."""
    if request.node.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(autouse=True)
def needs_extra(request: pytest.FixtureRequest) -> None:
    """Skip what is marked `needs_extra` where one of its modules is not installed."""
    for marker in request.node.iter_markers("needs_extra"):
        for module in marker.args:
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
