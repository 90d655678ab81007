"""An operator leaves the dispatcher out only where nobody listens to it.

The tests run anywhere: `on_gpu` is made to say yes, and what would run a call's plan is made to say that it was asked.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tritonq import ops
from tritonq.ops import bypass

x = torch.randn(3, 32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of calls that left the dispatcher out; they are computed all the same."""
    found: list[tuple[Any, ...]] = []

    def call(planner: Any, arguments: tuple[Any, ...], operator: Any) -> Any:
        found.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(bypass, "on_gpu", lambda value: isinstance(value, Tensor))
    monkeypatch.setattr(bypass, "plans", lambda: types.SimpleNamespace(call=call))
    return found


class SeenOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def dual_level() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


LISTENERS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "dispatch mode": SeenOperators,
    "function mode": SeenFunctions,
    "forward AD": dual_level,
    "profiler": torch.profiler.profile,
}


@pytest.mark.filterwarnings("ignore")  # of the profiler, on a machine without a GPU
@pytest.mark.parametrize("listener", LISTENERS)
def test_who_listens_hears_the_operator(listener: str, asked: list[Any]) -> None:
    with torch.no_grad():
        with LISTENERS[listener]():
            ops.quantize_per_token(x, True)
        assert asked == []
        ops.quantize_per_token(x, True)
    assert len(asked) == 1


def test_a_dispatch_mode_sees_the_operator_itself(asked: list[Any]) -> None:
    with torch.no_grad(), SeenOperators() as seen:
        ops.quantize_per_token(x, True)
    assert seen.names[0] == "tritonq.quantize_per_token.default"


def test_a_gradient_that_is_needed_is_recorded(asked: list[Any]) -> None:
    learned = x.clone().requires_grad_()
    y = ops.fake_quantize_per_token(learned, True)
    assert y.requires_grad
    assert asked == []
    with torch.no_grad():
        assert not ops.fake_quantize_per_token(learned, True).requires_grad
    ops.fake_quantize_per_token(x, True)
    assert len(asked) == 2


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_tracing_and_vmap_go_through_the_dispatcher(asked: list[Any]) -> None:
    with torch.no_grad():
        codes = torch.vmap(lambda rows: ops.quantize_per_token(rows, True)[0])(x[None])
        with torch._subclasses.FakeTensorMode() as mode:
            ops.quantize_per_token(mode.from_tensor(x), True)
        traced = torch.fx.symbolic_trace(lambda value: ops.quantize_per_token(value, True))
    assert asked == []
    assert torch.equal(codes[0], ops.quantize_per_token(x, True)[0])
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [
        torch.ops.tritonq.quantize_per_token.default
    ]


def test_a_default_device_and_inference_mode_are_no_listeners(asked: list[Any]) -> None:
    with torch.inference_mode(), torch.device("cpu"):
        ops.quantize_per_token(x, True)
    with torch.no_grad(), torch.autocast("cpu"):
        ops.quantize_per_token(x, True)
    assert len(asked) == 2


def test_words_come_in_their_places(asked: list[Any]) -> None:
    with torch.no_grad():
        ops.quantize_per_token(x, symmetric=False)
        assert asked[0][1] is False
        with pytest.raises(RuntimeError, match="expected at most 2"):
            ops.quantize_per_token(x, True, symetric=False)
        codes = ops.quantize_per_token(x=x, symmetric=False)[0]
    assert len(asked) == 1
    assert torch.equal(codes, ops.quantize_per_token(x, False)[0])


def test_compiled_and_exported_programs_hold_the_operator(asked: list[Any]) -> None:
    class Module(torch.nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return ops.fake_quantize_per_token(value, True)

    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.compile(Module(), backend=backend, fullgraph=True)(x)
        exported = torch.export.export(Module(), (x,))
    for graph in (graphs[0].graph, exported.graph):
        names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        assert names == ["tritonq.fake_quantize_per_token.default"]
    assert asked == []


@pytest.mark.parametrize("name", [name for name in ops.__all__ if hasattr(getattr(ops, name), "overload")])
def test_defaults_are_the_schemas(name: str) -> None:
    operator = getattr(ops, name)
    parameters = inspect.signature(operator).parameters.values()
    arguments = operator.overload._schema.arguments
    assert [p.name for p in parameters] == [a.name for a in arguments]
    defaults = [None if p.default is inspect.Parameter.empty else p.default for p in parameters]
    assert defaults == [argument.default_value for argument in arguments]


def test_what_torch_no_longer_says_counts_as_a_listener() -> None:
    assert bypass._of_torch("_no_such_function", 1)() == 1
    assert bypass._of_torch("_no_such_module.function", True)() is True
    assert bypass._of_torch("_len_torch_dispatch_stack", 1) is torch._C._len_torch_dispatch_stack
