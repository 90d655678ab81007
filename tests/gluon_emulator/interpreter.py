"""What the rewritten kernels call: the rules of Triton's code generator for constants, operators, calls and loops."""

from __future__ import annotations

import builtins
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from triton.experimental.gluon.language import _core as core
from triton.experimental.gluon.language import _standard as standard
from triton.language import core as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from .rewrite import rewritten
from .semantic import Semantic

try:
    from triton.runtime.jit import ConstexprFunction
except ImportError:  # named otherwise in some versions
    from triton.runtime.jit import constexpr_function as ConstexprFunction

_KERNELS = (JITFunction, InterpretedFunction)


class Interpreter:
    """Runs kernel functions; also what Triton's builtins get for the code generator."""

    caller_context = None

    def __init__(self, semantic: Semantic) -> None:
        self.semantic = semantic
        self.builder = semantic.builder
        self._functions: dict[Callable[..., Any], Callable[..., Any]] = {}

    # Calls

    def call_JitFunction(self, kernel: Any, args: Any, kwargs: Any, caller_context: Any = None) -> Any:
        """Run a kernel function: parameters that are no tensors are constexpr in it."""
        function = self.function(kernel)
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if not isinstance(value, tl.base_value):
                bound.arguments[name] = self.constant(value)
        result = function(*bound.args, **bound.kwargs)
        return self.constant(result) if result is None else result

    def function(self, kernel: Any) -> Callable[..., Any]:
        """The Python function that runs a kernel function."""
        if kernel.fn not in self._functions:
            self._functions[kernel.fn] = rewritten(kernel.fn, self)
        return self._functions[kernel.fn]

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        function = self.plain(function)
        if isinstance(function, _BoundKernel):
            args, function = [function.owner, *args], function.kernel
        if isinstance(function, _KERNELS):
            return self.call_JitFunction(function, args, kwargs)
        if function in (core.static_assert, tl.static_assert):
            condition, *message = (self.plain(value) for value in args)
            assert condition, message[0] if message else "static_assert"
            return None
        if isinstance(function, ConstexprFunction):
            return self.constant(
                function(*map(self.plain, args), **{k: self.plain(v) for k, v in kwargs.items()})
            )
        owner = getattr(function, "__self__", None)
        if isinstance(owner, tl.base_value) or tl.is_builtin(function):
            wanted = _parameters(getattr(function, "__func__", function))
            if "_semantic" in wanted:
                kwargs["_semantic"] = self.semantic
            if "_generator" in wanted:
                kwargs["_generator"] = self
            result = function(*args, **kwargs)
            return tl.tuple(result) if isinstance(result, builtins.tuple) else result
        if getattr(builtins, getattr(function, "__name__", ""), None) is function or owner is not None:
            args = [self.plain(value) for value in args]
        return self.constant(function(*args, **kwargs))

    # Expressions

    def constant(self, value: Any) -> Any:
        if isinstance(value, (tl.base_value, tl.slice, *_KERNELS)):
            return value
        if isinstance(value, builtins.tuple):
            return tl.tuple([self.constant(item) for item in value])
        return tl.constexpr(value)

    def plain(self, value: Any) -> Any:
        return value.value if isinstance(value, tl.constexpr) else value

    def tuple(self, values: list[Any]) -> Any:
        return tl.tuple([self.constant(value) for value in values])

    def slice(self, start: Any, stop: Any, step: Any) -> Any:
        return tl.slice(self.constant(start), self.constant(stop), self.constant(step))

    def attribute(self, value: Any, name: str) -> Any:
        if isinstance(value, tl.tensor) and name == "T":
            return self.semantic.permute(value, (1, 0))
        if isinstance(value, tl.constexpr) and name not in ("value", "type"):
            value = value.value
        if isinstance(value, tl.base_value):
            found = inspect.getattr_static(type(value), name, None)
            # Of the language's own functions, those that Gluon wraps are meant.
            if isinstance(found, _KERNELS):
                return _BoundKernel(value, getattr(standard, name, found))
        return getattr(value, name)

    def subscript(self, value: Any, index: Any) -> Any:
        if isinstance(value, tl.tensor):
            return value.__getitem__(index, _semantic=self.semantic)
        if isinstance(value, tl.base_value) and not isinstance(value, tl.constexpr):
            return value[index]
        plain = self.plain(index)
        if isinstance(plain, tl.slice):
            plain = builtins.slice(*(self.plain(end) for end in (plain.start, plain.stop, plain.step)))
        return self.constant(self.plain(value)[plain])

    def binary(self, name: str, left: Any, right: Any) -> Any:
        if isinstance(left, tl.tensor):
            return getattr(left, name)(right, _semantic=self.semantic)
        if isinstance(right, tl.tensor):
            return getattr(right, re.sub("__(.*)__", r"__r\1__", name))(left, _semantic=self.semantic)
        if isinstance(self.plain(left), (tl.tuple, builtins.tuple)):
            return self.constant(getattr(self.constant(self.plain(left)), name)(right))
        result = getattr(self.plain(left), name)(self.plain(right))
        if result is NotImplemented:  # an int and a float
            result = getattr(self.plain(right), re.sub("__(.*)__", r"__r\1__", name))(self.plain(left))
        return self.constant(result)

    def unary(self, name: str, value: Any) -> Any:
        if isinstance(value, tl.tensor):
            return getattr(value, name)(_semantic=self.semantic)
        plain = self.plain(value)
        return self.constant(not plain if name == "__not__" else getattr(plain, name)())

    def is_same(self, left: Any, right: Any, is_wanted: bool) -> Any:
        return tl.constexpr((self.plain(left) is self.plain(right)) == is_wanted)

    def logical(self, name: str, *values: Callable[[], Any]) -> Any:
        """Constants end the evaluation, tensors do not: all of them are evaluated."""
        tensors = []
        value: Any = None
        for lazy in values:
            value = lazy()
            if isinstance(value, tl.tensor):
                tensors.append(value)
            elif bool(self.plain(value)) == (name == "logical_or"):
                return value
        if not tensors:
            return value
        result = tensors[0]
        for other in tensors[1:]:
            result = getattr(result, name)(other, _semantic=self.semantic)
        return result

    def either(self, condition: Any, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        value = first() if self.truth(condition) else second()
        return self.assigned(value) if isinstance(condition, tl.tensor) else value

    def truth(self, value: Any) -> bool:
        if isinstance(value, tl.tensor):
            if value.type.is_block():
                raise ValueError("a condition must be a scalar")
            return bool(value.handle.data)
        return bool(self.plain(value))

    # Statements

    def assigned(self, value: Any) -> Any:
        """What a plain assignment makes of a value: a tensor of a number."""
        value = self.plain(value)
        if isinstance(value, tl.tuple):
            return tl.tuple([self.assigned(item) for item in value], value.type)
        if value is None or isinstance(value, (tl.base_value, tl.dtype)):
            return tl.constexpr(None) if value is None else value
        return self.semantic.to_tensor(value)

    def annotated(self, annotation: Any, value: Any) -> Any:
        if annotation is tl.constexpr:
            return value if isinstance(value, tl.constexpr) else tl.constexpr(value)
        return self.assigned(value)

    def iterate(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
        function = self.plain(function)
        if function is tl.static_range:
            yield from (tl.constexpr(i) for i in range(*(self.plain(value) for value in args)))
            return
        if function not in (range, tl.range):
            raise NotImplementedError(f"Triton knows no loop over {function}")
        bounds = tl.range(*args, **kwargs) if function is tl.range else tl.range(*args)
        start, end, step = (self.semantic.to_tensor(b) for b in (bounds.start, bounds.end, bounds.step))
        type_ = self.semantic.integer_promote_impl(start.dtype, end.dtype)
        type_ = self.semantic.integer_promote_impl(type_, step.dtype)
        for i in range(*(int(b.handle.data) for b in (start, end, step))):
            yield self.semantic.scalar_constant(i, type_)


@functools.cache
def _parameters(function: Any) -> frozenset[str]:
    """Names of a builtin's parameters."""
    return frozenset((getattr(function, "signature", None) or inspect.signature(function)).parameters)


class _BoundKernel:
    """A kernel function as a method."""

    def __init__(self, owner: Any, kernel: Any) -> None:
        self.owner = owner
        self.kernel = kernel
