"""Plan and run: what a call launches depends on the kinds of its arguments, not on their addresses or values.

A launcher is a function from operands to a `Plan`: which memory to take, which kernels to launch on what. A plan is
made once for each kind of arguments and run with every call's tensors:

    make the plan       shape checks, the configuration, grids and constants
    run it plainly      the first time: Triton looks up or compiles each kernel
    run it compiled     from then on: take memory, put addresses in their places, launch (compiled.py)

The kind of a tensor is its dtype, shape, strides, device and its address modulo 16; of anything else, its type and
value. This is as fine as what Triton specializes a kernel for, and finer: where two calls are of one kind, Triton would
launch the same compiled kernel, with the same integers. Hooks and debugging switches of Triton's, another current
device and launches that are replaced lead to a plain run. That the constants which kernels read have not changed is not
checked: they are this package's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .compiled import CompiledPlan, NotReplayable
from .launch import Launch, is_replaced
from .operands import Operand, operands_of
from .target import INTERPRETED, on_device_of

#: More kinds of calls than this at once (rows of the input differ freely), and all are forgotten.
_REMEMBERED = 1 << 14
_ALIGNMENT = 16
_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_PLAIN_VALUES = frozenset((type(None), bool, int, str, torch.dtype))

#: Kind of a call → its plan.
made: dict[tuple[Any, ...], Plan] = {}
_set_aside = 0


class Plan:
    """What a call does.

    Args:
        results: what it returns, an operand or several.
        launches: in order. Memory that is not returned is scratch: given back when the last is launched.
    """

    def __init__(self, results: Operand | tuple[Operand, ...], *launches: Launch) -> None:
        self.results, self.launches = results, launches

    @functools.cached_property
    def compiled(self) -> CompiledPlan | None:
        """The plan, which was run once, with nothing left to look up; None where it must run plainly."""
        with contextlib.suppress(NotReplayable):
            return CompiledPlan(self.results, self.launches)
        return None

    def __getitem__(self, which: int | slice) -> Plan:
        """The same launches, of whose results only some are returned."""
        assert isinstance(self.results, tuple)
        return Plan(self.results[which], *self.launches)

    def then(self, later: Plan) -> Plan:
        """This plan, then another, whose results are returned."""
        return Plan(later.results, *self.launches, *later.launches)

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Run it plainly on tensors of the kinds that it was made for."""
        found: dict[Any, Tensor] = dict(enumerate(tensors))

        def tensor_of(operand: Operand) -> Tensor:
            source: Any = operand.source
            if source not in found:
                found[source] = source.make(operand, tensor_of)
            return found[source]

        with on_device_of(tensors[0]):
            for launch in self.launches:
                launch.start(tensor_of)
            if isinstance(self.results, tuple):
                return tuple([tensor_of(result) for result in self.results])
            return tensor_of(self.results)


def launcher(planner: Callable[..., Plan]) -> Callable[..., Any]:
    """Decorate a function from operands to a plan: called with tensors it computes, with operands it plans.

    Named tuples of tensors are taken as the tensors in them.
    """
    signature = inspect.signature(planner)

    @functools.wraps(planner)
    def called(*arguments: Any, **words: Any) -> Any:
        first = arguments[0]
        if isinstance(first[0] if _is_named_tuple(first) else first, Operand):
            return planner(*arguments, **words)
        bound = signature.bind(*arguments, **words)
        bound.apply_defaults()
        tuples = tuple([type(value) if _is_named_tuple(value) else None for value in bound.args])
        parts = [value if _is_named_tuple(value) else (value,) for value in bound.args]
        return call(_of_parts(planner, tuples), tuple(itertools.chain.from_iterable(parts)))

    return called


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


@functools.cache
def _of_parts(planner: Callable[..., Plan], tuples: tuple[Any, ...]) -> Callable[..., Plan]:
    """The planner of arguments that lie apart, of which some belong to a named tuple."""

    def plan(*parts: Any) -> Plan:
        rest = iter(parts)
        return planner(
            *[
                next(rest) if named is None else named(*itertools.islice(rest, len(named._fields)))
                for named in tuples
            ]
        )

    return plan


def call(
    planner: Callable[..., Plan], arguments: tuple[Any, ...], operator: Callable[..., Any] | None = None
) -> Any:
    """Run a call's plan, and make it where there is none.

    Args:
        planner: makes the plan.
        arguments: all of them, in their places.
        operator: called instead where arguments are not of the types that `planner` names: torch's dispatcher
            converts or refuses them.
    """
    kind, addresses = kind_of(planner, arguments)
    plan = made.get(kind)
    if plan is None or _set_aside or is_replaced():
        if operator is not None and (kind is None or not _are_as_named(planner, arguments)):
            return operator(*arguments)
        return _first_call(planner, arguments, kind)
    compiled = plan.compiled
    if compiled is not None and compiled.is_usable():
        return compiled(addresses)
    return plan.run([argument for argument in arguments if isinstance(argument, Tensor)])


def _first_call(planner: Callable[..., Plan], arguments: tuple[Any, ...], kind: Any) -> Any:
    plan = planner(*operands_of(arguments))
    result = plan.run([argument for argument in arguments if isinstance(argument, Tensor)])
    if kind is not None and not (INTERPRETED or _set_aside or is_replaced()):
        if len(made) >= _REMEMBERED:
            made.clear()
        made[kind] = plan
    return result


def _are_as_named(planner: Callable[..., Plan], arguments: tuple[Any, ...]) -> bool:
    types = _types_of(planner)
    return len(arguments) == len(types) and all(map(isinstance, arguments, types))


@functools.cache
def _types_of(planner: Callable[..., Plan]) -> list[tuple[type, ...]]:
    hints = typing.get_type_hints(planner)
    del hints["return"]
    return [typing.get_args(hint) or (hint,) for hint in hints.values()]


def kind_of(planner: Any, arguments: tuple[Any, ...]) -> tuple[Any, list[int]]:
    """(what decides how a call runs, None for arguments that are not plain; the addresses of its tensors)."""
    kind: list[Any] = [planner]
    addresses: list[int] = []
    for argument in arguments:
        cls = type(argument)
        if cls in _PLAIN_TENSORS:
            if argument.is_neg():  # its memory has the other sign: the imaginary part of a conjugate
                return None, addresses
            address = argument.data_ptr()
            addresses.append(address)
            shape, strides = argument.shape, argument.stride()
            kind += (argument.dtype, shape, strides, argument.get_device(), address % _ALIGNMENT)
        elif cls is float:  # of which -0.0 equals 0.0, and NaN not itself
            kind += (cls, argument.hex())
        elif cls in _PLAIN_VALUES or dataclasses.is_dataclass(cls):
            kind += (cls, argument)
        else:
            return None, addresses
    return tuple(kind), addresses


def forget() -> None:
    """Make all plans again: after configurations changed."""
    made.clear()


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Meanwhile every call in the process makes a new plan and runs it plainly."""
    global _set_aside
    _set_aside += 1
    try:
        yield
    finally:
        _set_aside -= 1
