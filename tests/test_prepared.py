"""Calls that are replayed: the driver is told the same as without, and kinds are as fine as Triton's own."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor

from tests.prepared_calls import operands
from tritonq.doctor.chains import LAYERS, SCHEMES
from tritonq.kernels.launch import replay
from tritonq.kernels.launch.recording import record

CASES = [f"{name}, {rows} rows" for rows in (1, 1024) for name in operands(1)]


@functools.cache
def _calls() -> dict[str, Any]:
    if shutil.which("cc") is None:
        pytest.skip("the stand-in for the driver needs a C compiler")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.prepared_calls"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("case", CASES)
def test_a_replay_tells_the_driver_the_same(case: str) -> None:
    call = _calls()[case]
    assert call["states"] == ["PreparedCall"]
    assert len(call["written"]) == (2 if case == "int8_linear_dynamic, 1024 rows" else 1)
    assert call["replayed"] == call["written"]


@pytest.mark.parametrize("rows", [1, 256])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_replays_of_chained_layers_tell_the_driver_the_same(scheme: str, rows: int) -> None:
    chain = _calls()["chains"][f"{scheme}, {rows} rows"]
    assert chain["states"] == ["PreparedCall"]
    assert len(chain["written"]) == LAYERS
    assert chain["replayed"] == chain["written"]
    for index, launches in enumerate(chain["replayed"]):
        said = str(launches)
        assert all(f"'{name}'" in said for name in ("x", "y", f"weight of {index}")), said
        assert said.count("weight of") == said.count(f"weight of {index}")


def test_hooks_run_as_without_a_record() -> None:
    assert _calls()["hooks"] == {"enter": 1, "pre_run": 1, "plain": 1}


def test_one_tensor_given_twice_is_two_tensors_to_the_next_call() -> None:
    for case, given in _calls()["twice"].items():
        assert given == list(case.partition(" ")[0]), case


@strategies.composite
def tensors(draw: strategies.DrawFn) -> Tensor:
    """Matrices of few kinds, so that two of them often are of one kind, at any address modulo 16."""
    dtype = draw(strategies.sampled_from((torch.int8, torch.float16, torch.float32)))
    rows, columns = draw(strategies.sampled_from(((1, 16), (2, 16), (2, 8))))
    offset = draw(strategies.sampled_from((0, 0, 1, 8, 16)))
    memory = torch.zeros(128, dtype=dtype)[offset : offset + 32].view(2, 16)[:rows, :columns]
    return memory if draw(strategies.booleans()) else memory.t()


values = strategies.sampled_from(
    (None, True, False, 0, 1, 2, 16, 1 << 31, 1 << 33, 0.0, 1.0, 0.5, "relu", torch.int8)
)
arguments = strategies.lists(strategies.one_of(tensors(), values), min_size=2, max_size=4).map(tuple)


@hypothesis.settings(max_examples=600)
@hypothesis.given(
    arguments, strategies.lists(strategies.one_of(tensors(), values), min_size=2, max_size=4).map(tuple)
)
def test_calls_of_one_kind_are_specialized_alike_by_triton(
    first: tuple[Any, ...], second: tuple[Any, ...]
) -> None:
    one, other = replay.kind_of("name", first)[0], replay.kind_of("name", second)[0]
    if one == other:
        assert _specialized(first) == _specialized(second)
        launched = [a if not isinstance(a, Tensor) else (a.shape, a.stride()) for a in first]
        assert launched == [a if not isinstance(a, Tensor) else (a.shape, a.stride()) for a in second]


@pytest.mark.parametrize(
    "argument", [torch.zeros(4), torch.zeros(5)[1:], None, True, 1, 16, 17, 1 << 40, 0.5]
)
def test_what_triton_tells_apart_is_of_two_kinds(argument: Any) -> None:
    others = [
        torch.zeros(4),
        torch.zeros(5)[1:],
        torch.zeros(4).half(),
        None,
        True,
        1,
        16,
        17,
        1 << 40,
        0.5,
        1.0,
    ]
    for other in others:
        if _specialized((argument,)) != _specialized((other,)):
            assert replay.kind_of("name", (argument,))[0] != replay.kind_of("name", (other,))[0]


def test_floats_are_of_one_kind_if_their_bits_are() -> None:
    kinds = [replay.kind_of("name", (value,))[0] for value in (0.0, -0.0, 1.0, float("nan"), float("inf"))]
    assert len(set(kinds)) == len(kinds)
    assert kinds == [
        replay.kind_of("name", (value,))[0] for value in (0.0, -0.0, 1.0, float("nan"), float("inf"))
    ]


def test_a_tensor_that_stands_for_its_negative_goes_through_the_dispatcher() -> None:
    x = torch.ones(4, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert replay.kind_of("name", (x,))[0] is None
    assert replay.kind_of("name", (x.resolve_neg(),))[0] is not None


def _specialized(arguments: tuple[Any, ...]) -> list[Any]:
    """What Triton's own key has of arguments: type, and alignment or value where it decides. Strings are constexprs."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    return [
        a if isinstance(a, (str, torch.dtype)) else native_specialize_impl(CUDABackend, a, False, True, True)
        for a in arguments
    ]


def test_a_call_that_asks_torch_for_more_than_memory_has_no_record() -> None:
    x = torch.ones(4)
    for call in (
        lambda: x + 1,
        lambda: torch.empty(4).zero_(),
        lambda: x,
        lambda: x.view(2, 2),
        lambda: None,
    ):
        _, recording = record(call, [x])
        assert recording is None
    assert record(lambda: torch.empty(4), [x])[1] is not None


@pytest.fixture
def cpu_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls on CPU tensors are replayed, wherever torch's own functions would look for a GPU."""
    monkeypatch.setattr(replay, "current_device", lambda: -1)
    monkeypatch.setattr(replay, "current_stream", lambda device: 0)


@pytest.mark.usefixtures("cpu_is_current")
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_several_results_are_replayed(shape: tuple[int, ...]) -> None:
    def implementation(x: Tensor) -> tuple[Tensor, Tensor]:
        torch.empty(100)  # memory that is not returned
        return torch.empty(shape, dtype=torch.int8), torch.empty(1, *shape)

    replay.forget()
    for _ in range(3):
        one, other = replay.prepared("test", (torch.ones(3),), implementation, implementation)
        assert (one.shape, one.dtype, other.shape) == (shape, torch.int8, (1, *shape))
    assert {type(call).__name__ for call in replay._kinds.values()} == {"PreparedCall"}
    replay.forget()


@pytest.mark.usefixtures("cpu_is_current")
def test_the_second_call_is_recorded_and_the_third_replayed() -> None:
    replay.forget()
    written = []

    def implementation(x: Tensor, rows: int) -> Tensor:
        written.append("implementation")
        return torch.empty(rows, *x.shape)

    def otherwise(x: Tensor, rows: int) -> Tensor:
        written.append("otherwise")
        return torch.empty(rows, *x.shape)

    for _ in range(4):
        result = replay.prepared("test", (torch.ones(3), 2), implementation, otherwise)
        assert result.shape == (2, 3)
    assert written == ["otherwise", "implementation"]
    replay.prepared("test", (torch.ones(3), 3), implementation, otherwise)
    with replay.set_aside():
        replay.prepared("test", (torch.ones(3), 2), implementation, otherwise)
    replay.forget()
    replay.prepared("test", (torch.ones(3), 2), implementation, otherwise)
    assert written[2:] == ["otherwise"] * 3
    replay.forget()
