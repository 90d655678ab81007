"""A plan whose kernels are compiled, run again with nothing left to look up.

`kernel[grid](…)` spends most of its time on finding out which compiled kernel its arguments want. What it does at last
is to hand these to the compiled kernel's launcher, which puts Triton's own extras among them (flags, annotations, a
tensor map for each descriptor) and calls a C function. `CompiledLaunch` keeps what that function was given, with the
places of the stream and of the pointers, and calls it again with others. What Triton puts where differs between
versions, so its launcher is asked, once, with operands in place of tensors.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from triton import knobs

from .counters import zeroed_counters
from .launch import Launch, is_descriptor, moved
from .operands import Computed, Counters, Memory, Operand
from .target import current_device, current_stream

#: Tensor maps of a launch are remembered for so many combinations of addresses: layers of one shape share the launch.
#: Making them anew costs several times what the launch does.
_REMEMBERED = 1 << 12
#: Scratch begins at multiples of this many bytes, as torch's own allocations do.
_SCRATCH_ALIGNMENT = 256
#: Stands for the stream where operands stand for pointers.
_STREAM = object()
#: Picks the C function's arguments from [constants …, stream, pointers …].
_Picker = Callable[[list[Any]], tuple[Any, ...]]
#: Constants; its arguments but for the last, which Triton puts into a list from 3.7 on; those in the list.
_Call = tuple[list[Any], _Picker, _Picker | None]
_hooks = operator.attrgetter("pre_run_hooks")


@dataclasses.dataclass(frozen=True)
class _Address:
    """What a descriptor wants of its base, when its tensor map is made."""

    pointer: int

    def data_ptr(self) -> int:
        return self.pointer


class NotReplayable(Exception):
    """What is launched, or how, cannot be repeated with other addresses alone."""


class CompiledPlan:
    """Takes memory, puts addresses in their places, launches.

    A run gathers what launches are given in a list: [stream, results …, scratch …, counters …, given tensors …].

    Args:
        results, launches: of the plan, which was run.

    Raises:
        NotReplayable: where it does more than launch kernels, or Triton's launcher more than pass arguments on.
    """

    def __init__(self, results: Operand | tuple[Operand, ...], launches: Sequence[Launch]) -> None:
        self._is_tuple = isinstance(results, tuple)
        returned = results if isinstance(results, tuple) else (results,)
        used = {operand.source: operand for launch in launches for operand in launch.operands()}
        if any(isinstance(source, Computed) for source in used) or not all(
            isinstance(result.source, Memory) for result in returned
        ):
            raise NotReplayable("something is computed by torch, or returned as it was given")
        for result in returned:
            used.pop(result.source, None)
        scratch = [operand for source, operand in used.items() if isinstance(source, Memory)]
        counters = [operand for source, operand in used.items() if isinstance(source, Counters)]
        ends = [0]
        for operand in scratch:
            size = operand.numel() * operand.element_size()
            ends.append(ends[-1] + math.ceil(size / _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT)
        self._results = [(tuple(result.shape), result.dtype) for result in returned]
        self._scratch_bytes, self._scratch_offsets = ends[-1], ends[:-1]
        self._counters = [operand.numel() for operand in counters]
        self._device = returned[0].device
        self._index = returned[0].get_device()
        own = [operand.source for operand in (*returned, *scratch, *counters)]
        places = {source: 1 + index for index, source in enumerate(own)}
        places |= {source: 1 + len(own) + source for source in used if isinstance(source, int)}
        self._launches = [CompiledLaunch(launch, places) for launch in launches]

    def is_usable(self) -> bool:
        """False where Triton must see the launches, and where another device is the current one."""
        if current_device() != self._index or triton_listens():
            return False
        return not any(map(_hooks, self._launches))

    def __call__(self, addresses: list[int]) -> Any:
        """Run on tensors at these addresses."""
        device = self._device
        # torch.empty takes sizes one by one faster than as a tuple.
        results = [torch.empty(*shape, dtype=dtype, device=device) for shape, dtype in self._results]
        pool = [current_stream(self._index)]
        for result in results:
            pool.append(result.data_ptr())
        if self._scratch_bytes:
            # Given back before the kernels have run: whoever gets it next on this stream comes after them.
            scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=device).data_ptr()
            for offset in self._scratch_offsets:
                pool.append(scratch + offset)
        for count in self._counters:
            pool.append(zeroed_counters(device, count).data_ptr())
        pool += addresses
        for launch in self._launches:
            launch(pool)
        return tuple(results) if self._is_tuple else results[0]


class CompiledLaunch:
    """A launch of a compiled kernel, all of it but stream and pointers.

    Args:
        launch: one that was launched.
        places: source of an operand → its place in a run's list.
    """

    def __init__(self, launch: Launch, places: dict[Any, int]) -> None:
        compiled = launch.compiled
        if not hasattr(compiled, "packed_metadata") or not hasattr(compiled.run, "launch"):
            raise NotReplayable("not launched by a launcher that is known")
        for scratch in ("global_scratch_size", "profile_scratch_size"):
            if getattr(compiled.metadata, scratch, 0):
                raise NotReplayable("memory of Triton's own is allocated for each launch")
        self.pre_run_hooks: list[Any] = launch.kernel.pre_run_hooks
        self._compiled, self._values, self._places = compiled, launch.values(), places
        self._grid = (*launch.grid, 1, 1)[:3]
        self._described = [places[value.base.source] for value in self._values if is_descriptor(value)]
        self._function = compiled.run.launch
        if self._described:  # Triton has wrapped the C function in one that makes tensor maps
            self._function = inspect.getclosurevars(self._function).nonlocals.get("launcher")
            if self._function is None:
                raise NotReplayable("descriptors are not expanded as they are known to be")
        self._calls: dict[tuple[int, ...], _Call] = {}
        self._only_call = None if self._described else self._call_with({})

    def __call__(self, pool: list[Any]) -> None:
        """Launch with a run's list."""
        call = self._only_call
        if call is None:
            addresses = tuple([pool[place] for place in self._described])
            call = self._calls.get(addresses)
            if call is None:
                if len(self._calls) >= _REMEMBERED:
                    self._calls.clear()
                bases = dict(zip(self._described, addresses, strict=True))
                call = self._calls[addresses] = self._call_with(bases)
        constants, outer, inner = call
        pool = constants + pool
        if inner is None:
            self._function(*outer(pool))
        else:
            self._function(*outer(pool), inner(pool))

    def _call_with(self, bases: dict[int, int]) -> _Call:
        """Ask Triton's launcher what it passes on.

        Args:
            bases: place of a descriptor's base → its address.
        """
        values = [
            moved(value, _Address(bases[self._places[value.base.source]])) if is_descriptor(value) else value
            for value in self._values
        ]
        passed: list[tuple[Any, ...]] = []

        def listen(*arguments: Any) -> None:
            passed.append(arguments)

        launcher = copy.copy(self._compiled.run)
        launcher.launch = listen
        if bases:
            wrap = sys.modules[type(launcher).__module__].wrap_handle_tensordesc
            meta = getattr(self._compiled.metadata, "tensordesc_meta", None)
            launcher.launch = wrap(listen, dict(self._compiled.src.signature), meta)
        metadata = self._compiled.packed_metadata
        try:
            launcher(*self._grid, _STREAM, self._compiled.function, metadata, None, None, None, *values)
        except (AttributeError, TypeError) as error:
            raise NotReplayable("a launcher that wants something else") from error
        if len(passed) != 1:
            raise NotReplayable("not one call of the driver for a launch")
        outer = list(passed[0])
        inner = list(outer.pop()) if isinstance(outer[-1], (list, tuple)) else []
        place_of = {
            id(value): 0 if value is _STREAM else self._places[value.source]
            for value in (*outer, *inner)
            if value is _STREAM or isinstance(value, Operand)
        }
        constants = [value for value in (*outer, *inner) if id(value) not in place_of]
        rest = itertools.count()

        def picker(arguments: list[Any]) -> _Picker:
            return operator.itemgetter(
                *[
                    len(constants) + place_of[id(value)] if id(value) in place_of else next(rest)
                    for value in arguments
                ]
            )

        return constants, picker(outer), picker(inner) if inner else None


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
