"""Launching a kernel that is compiled already, with nothing decided again.

`kernel[grid](…)` spends most of its time on finding out which compiled kernel its arguments want. What it does at last
is to hand these to the compiled kernel's launcher, which puts Triton's own extras among them (flags, annotations, a
tensor map for each descriptor) and calls a C function. `CompiledLaunch` keeps what that function was given, with the
places of the stream and of the pointers, and calls it again with others. What Triton puts where differs between
versions, so its launcher is asked, once, with marks in their places.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

from triton import knobs

#: Tensor maps of a launch are remembered for so many combinations of addresses: layers of one shape share the launch.
#: Making them anew costs several times what the launch does.
_REMEMBERED = 1 << 12


class NotReplayable(Exception):
    """What was launched, or how, cannot be repeated with other addresses alone."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Stands among a kernel's arguments for the pointer at `index` of those that a launch is given."""

    index: int


@dataclasses.dataclass(frozen=True)
class Address:
    """What a descriptor wants of its base, when its tensor map is made."""

    pointer: int

    def data_ptr(self) -> int:
        """The address."""
        return self.pointer


@dataclasses.dataclass
class _Call:
    """Picks the C function's arguments from [stream, pointers …, constants …]."""

    constants: list[Any]
    outer: Callable[[list[Any]], tuple[Any, ...]]
    inner: Callable[[list[Any]], tuple[Any, ...]] | None


class CompiledLaunch:
    """One launch of a compiled kernel, all of it but stream and pointers.

    Args:
        kernel: the jit function, whose hooks are honoured.
        compiled: what Triton compiled it to.
        grid: programs along up to three axes.
        values: of all its parameters in order, constexprs too. A `Place` stands for each pointer; a descriptor has one
            for its base.
        pointers: how many pointers a launch is given.

    Raises:
        NotReplayable: where Triton's launcher does more than pass arguments on.
    """

    def __init__(
        self, kernel: Any, compiled: Any, grid: tuple[int, ...], values: Sequence[Any], pointers: int
    ) -> None:
        if not hasattr(compiled, "packed_metadata") or not hasattr(compiled.run, "launch"):
            raise NotReplayable("not launched by a launcher that is known")
        for scratch in ("global_scratch_size", "profile_scratch_size"):
            if getattr(compiled.metadata, scratch, 0):
                raise NotReplayable("memory of Triton's own is allocated for each launch")
        self.pre_run_hooks: list[Any] = kernel.pre_run_hooks
        self._compiled, self._values, self._pointers = compiled, list(values), pointers
        self._grid = (*grid, 1, 1)[:3]
        self._descriptors = [
            (position, value.base.index) for position, value in enumerate(values) if is_descriptor(value)
        ]
        self._function = compiled.run.launch
        if self._descriptors:  # Triton has wrapped the C function in one that makes tensor maps
            self._function = inspect.getclosurevars(self._function).nonlocals.get("launcher")
            if self._function is None:
                raise NotReplayable("descriptors are not expanded as they are known to be")
        self._calls: dict[tuple[int, ...], _Call] = {}
        self._plain = None if self._descriptors else self._call_with([])

    def __call__(self, stream_and_pointers: list[Any]) -> None:
        """Launch on a stream (its handle) with addresses: [stream, pointer, …]."""
        call = self._plain
        if call is None:
            addresses = tuple([stream_and_pointers[1 + index] for _, index in self._descriptors])
            call = self._calls.get(addresses)
            if call is None:
                if len(self._calls) >= _REMEMBERED:
                    self._calls.clear()
                call = self._calls[addresses] = self._call_with(addresses)
        pool = stream_and_pointers + call.constants
        if call.inner is None:
            self._function(*call.outer(pool))
        else:
            self._function(*call.outer(pool), call.inner(pool))

    def _call_with(self, addresses: Sequence[int]) -> _Call:
        """Ask Triton's launcher what it passes on, descriptors lying at these addresses."""
        values = list(self._values)
        for (position, _), address in zip(self._descriptors, addresses, strict=True):
            values[position] = moved(values[position], Address(address))
        passed: list[tuple[Any, ...]] = []

        def listen(*arguments: Any) -> None:
            passed.append(arguments)

        launcher = copy.copy(self._compiled.run)
        launcher.launch = listen
        if self._descriptors:
            wrap = sys.modules[type(launcher).__module__].wrap_handle_tensordesc
            meta = getattr(self._compiled.metadata, "tensordesc_meta", None)
            launcher.launch = wrap(listen, dict(self._compiled.src.signature), meta)
        stream = Place(-1)
        metadata = self._compiled.packed_metadata
        try:
            launcher(*self._grid, stream, self._compiled.function, metadata, None, None, None, *values)
        except (AttributeError, TypeError) as error:
            raise NotReplayable("a launcher that wants something else") from error
        if len(passed) != 1:
            raise NotReplayable("not one call of the driver for a launch")
        outer, inner = list(passed[0]), None
        if isinstance(outer[-1], (list, tuple)):
            inner = list(outer.pop())
        constants: list[Any] = []

        def picker(arguments: list[Any]) -> Callable[[list[Any]], tuple[Any, ...]]:
            indices = []
            for argument in arguments:
                if isinstance(argument, Place):
                    indices.append(1 + argument.index)
                else:
                    indices.append(1 + self._pointers + len(constants))
                    constants.append(argument)
            if len(indices) == 1:
                return lambda pool: (pool[indices[0]],)
            return operator.itemgetter(*indices) if indices else lambda pool: ()

        return _Call(constants, picker(outer), None if inner is None else picker(inner))


def triton_listens() -> bool:
    """True while a launch must go through Triton: a profiler's hooks, debugging, instrumentation."""
    runtime = knobs.runtime
    return bool(
        getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
        or runtime.debug
        or knobs.compilation.instrumentation_mode
        or getattr(runtime, "add_stages_inspection_hook", None)
    )


def is_descriptor(value: Any) -> bool:
    """True for a descriptor of a tensor, plain Triton's or Gluon's."""
    return hasattr(value, "base") and hasattr(value, "block_shape")


def moved(descriptor: Any, base: Any) -> Any:
    """A descriptor with another base; its checks do not run again."""
    moved = copy.copy(descriptor)
    moved.base = base
    return moved
