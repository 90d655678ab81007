"""Plans: run compiled they tell the driver what Triton would, and kinds are as fine as Triton's own."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor

from tests.support.planned_calls import operands
from tritonq.doctor.chains import LAYERS, SCHEMES
from tritonq.kernels.launch import compiled, plans
from tritonq.kernels.launch.operands import Operand, operands_of

CASES = [f"{name}, {rows} rows" for rows in (1, 1024) for name in operands(1)]


@functools.cache
def _calls() -> dict[str, Any]:
    if shutil.which("cc") is None:
        pytest.skip("the stand-in for the driver needs a C compiler")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.planned_calls"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_run_tells_the_driver_the_same(case: str) -> None:
    call = _calls()[case]
    assert call["is_compiled"]
    assert len(call["plain"]) == (2 if case == "int8_linear_dynamic, 1024 rows" else 1)
    assert call["first"] == call["plain"] == call["compiled"]


@pytest.mark.parametrize("rows", [1, 256])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_runs_of_chained_layers_tell_the_driver_the_same(scheme: str, rows: int) -> None:
    chain = _calls()["chains"][f"{scheme}, {rows} rows"]
    assert chain["are_compiled"]
    assert len(chain["plain"]) == LAYERS
    assert chain["compiled"] == chain["plain"]
    for index, launches in enumerate(chain["compiled"]):
        said = str(launches)
        assert all(f"'{name}'" in said for name in ("x", "y", f"weight of {index}")), said
        assert said.count("weight of") == said.count(f"weight of {index}")


def test_hooks_run_as_in_a_plain_run() -> None:
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
    one, other = plans.kind_of("name", first)[0], plans.kind_of("name", second)[0]
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
            assert plans.kind_of("name", (argument,))[0] != plans.kind_of("name", (other,))[0]


def test_floats_are_of_one_kind_if_their_bits_are() -> None:
    kinds = [plans.kind_of("name", (value,))[0] for value in (0.0, -0.0, 1.0, float("nan"), float("inf"))]
    assert len(set(kinds)) == len(kinds)
    assert kinds == [
        plans.kind_of("name", (value,))[0] for value in (0.0, -0.0, 1.0, float("nan"), float("inf"))
    ]


def test_a_tensor_that_stands_for_its_negative_goes_through_the_dispatcher() -> None:
    x = torch.ones(4, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert plans.kind_of("name", (x,))[0] is None
    assert plans.kind_of("name", (x.resolve_neg(),))[0] is not None


def _specialized(arguments: tuple[Any, ...]) -> list[Any]:
    """What Triton's own key has of arguments: type, and alignment or value where it decides. Strings are constexprs."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    return [
        a if isinstance(a, (str, torch.dtype)) else native_specialize_impl(CUDABackend, a, False, True, True)
        for a in arguments
    ]


@pytest.fixture
def cpu_is_current(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plans on CPU tensors are kept and run compiled, wherever torch's own functions would look for a GPU."""
    monkeypatch.setattr(plans, "INTERPRETED", False)
    monkeypatch.setattr(compiled, "current_device", lambda: -1)
    monkeypatch.setattr(compiled, "current_stream", lambda device: 0)
    plans.forget()
    yield
    plans.forget()


@pytest.mark.usefixtures("cpu_is_current")
@pytest.mark.parametrize(
    ("results", "runs_compiled"),
    [
        (lambda x: x.new_empty(4, dtype=torch.int8), True),
        (lambda x: (x.new_empty(4, dtype=torch.int8), x.new_empty(2, dtype=x.dtype)), True),
        (lambda x: x, False),
        (lambda x: x.computed(Tensor.neg), False),
        (
            lambda x: (x.new_empty(4, dtype=x.dtype), x.new_empty(4, dtype=x.dtype).computed(Tensor.zero_)),
            False,
        ),
    ],
)
def test_what_torch_computes_is_never_run_compiled(
    results: Callable[[Operand], Any], runs_compiled: bool
) -> None:
    call = plans.launcher(lambda x: plans.Plan(results(x)))
    for _ in range(2):
        call(torch.ones(4))
    (plan,) = plans.made.values()
    assert (plan.compiled is not None) == runs_compiled


@pytest.mark.usefixtures("cpu_is_current")
def test_torch_computes_at_each_run() -> None:
    call = plans.launcher(lambda x: plans.Plan((x.computed(Tensor.neg), x)))
    for x in (torch.ones(4), torch.arange(4.0)):
        negative, given = call(x)
        assert torch.equal(negative, -x)
        assert given is x


@pytest.mark.usefixtures("cpu_is_current")
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_several_results(shape: tuple[int, ...]) -> None:
    @plans.launcher
    def call(x: Operand) -> plans.Plan:
        return plans.Plan((x.new_empty(*shape, dtype=torch.int8), x.new_empty(1, *shape, dtype=x.dtype)))

    addresses = set()
    for _ in range(3):
        one, other = call(torch.ones(3))
        assert (one.shape, one.dtype, other.shape, other.dtype) == (
            shape,
            torch.int8,
            (1, *shape),
            torch.float32,
        )
        addresses.add((one.data_ptr(), other.data_ptr()))
    (plan,) = plans.made.values()
    assert plan.compiled is not None
    assert plan[1].run([torch.ones(3)]).shape == (1, *shape)


@pytest.mark.usefixtures("cpu_is_current")
def test_a_plan_is_made_once_for_each_kind() -> None:
    planned = []

    @plans.launcher
    def call(x: Operand, rows: int = 2) -> plans.Plan:
        planned.append((x.shape, x.stride(0), x.data_ptr(), rows))
        return plans.Plan(x.new_empty(rows, *x.shape, dtype=x.dtype))

    for _ in range(4):
        assert call(torch.ones(3)).shape == (2, 3)
        assert call(torch.ones(3), rows=2).shape == (2, 3)
    assert planned == [((3,), 1, 0, 2)]
    call(torch.ones(3), 3)
    call(torch.ones(6)[::2])
    call(torch.ones(4)[1:])
    assert planned[1:] == [((3,), 1, 0, 3), ((3,), 2, 0, 2), ((3,), 1, 4, 2)]
    with plans.set_aside():
        call(torch.ones(3))
    assert len(planned) == 5
    plans.forget()
    call(torch.ones(3))
    assert len(planned) == 6


@pytest.mark.usefixtures("cpu_is_current")
def test_arguments_of_other_types_are_the_dispatchers() -> None:
    def planner(x: Tensor, eps: float, bias: Tensor | None, symmetric: bool = True) -> Any:
        operand: Any = x
        return plans.Plan(operand.new_empty(1, dtype=torch.int8))

    def operator(*arguments: Any) -> str:
        return "operator"

    x = torch.nn.Parameter(torch.ones(3))
    negative = torch.ones(3, dtype=torch.complex64).conj().imag
    for arguments in (
        (x, 1, None, True),
        (x, 1.0, 1.0, True),
        (x, 1.0, None, "yes"),
        (x, 1.0, None),
        (x,) * 5,
    ):
        assert plans.call(planner, arguments, operator) == "operator"
    assert plans.call(planner, (negative, 1.0, None, True), operator) == "operator"
    assert not plans.made
    for bias in (None, x):
        assert plans.call(planner, (x, 1.0, bias, True), operator).shape == (1,)
    assert len(plans.made) == 2


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (1, 4), (0, 4)])
def test_an_operand_looks_as_its_tensor(shape: tuple[int, ...]) -> None:
    memory = torch.zeros(8, 40)
    for x in (torch.zeros(shape), memory.as_strided(shape, (40, 2)[: len(shape)]), memory[:, 1:].half()):
        (operand,) = operands_of([x])
        for asked in ("dtype", "shape", "device", "is_cuda", "is_meta"):
            assert getattr(operand, asked) == getattr(x, asked)
        for asked in ("dim", "numel", "element_size", "get_device", "is_contiguous"):
            assert getattr(operand, asked)() == getattr(x, asked)()
        assert operand.data_ptr() == x.data_ptr() % 16
        assert [operand.stride(dim) for dim in range(x.dim())] == list(x.stride())
        assert (operand.contiguous() is operand) == x.is_contiguous()
        if not x.is_contiguous():
            copy = x.contiguous()
            assert [operand.contiguous().stride(dim) for dim in range(x.dim())] == list(copy.stride())
