"""Calls that were seen before, repeated with nothing decided again: a prepared call.

Shape checks, the configuration, Triton's own look-up of what it compiled: all of that depends on what kind of arguments
a call has, not on where they lie. So the first call with arguments of a kind runs as it is written, the second is
recorded (recording.py), and all later ones replay the record: take memory, put addresses in their places, launch.

The kind of a tensor is its dtype, shape, strides, device and its address modulo 16; of anything else, its type and
value. This is as fine as what Triton specializes a kernel for, and finer: where two calls are of the same kind, Triton
would launch the same compiled kernel, with the same integers. What it would look at besides, hooks and switches for
debugging, is looked at before each replay. That the constants which kernels read have not changed is not: they are this
package's own.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .compiled_launch import triton_listens
from .launch import is_replaced
from .recording import Recording, record
from .target import current_device, current_stream

#: More kinds of calls than this at once (rows of the input differ freely), and all are forgotten.
_REMEMBERED = 1 << 14
_ALIGNMENT = 16
#: Scratch begins at multiples of this many bytes, as torch's own allocations do.
_SCRATCH_ALIGNMENT = 256
_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_PLAIN_VALUES = frozenset((type(None), bool, int, str, torch.dtype))

#: A kind's state: it was seen once; it cannot be replayed; or its record.
_ONCE, _NEVER = "once", "never"
_kinds: dict[tuple[Any, ...], PreparedCall | str] = {}
_set_aside = 0
_hooks = operator.attrgetter("pre_run_hooks")


class PreparedCall:
    """A recorded call, ready to be repeated on other addresses of the same kinds."""

    def __init__(self, recording: Recording, device: torch.device) -> None:
        self._device, self._index = device, device.index if device.type == "cuda" else -1
        self._results = [(tuple(result.shape), result.dtype) for result in recording.results]
        self._is_tuple = recording.is_tuple
        ends = [0]
        for size in recording.scratch:
            ends.append(ends[-1] + math.ceil(size / _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT)
        self._scratch_bytes, self._scratch_offsets = ends[-1], ends[:-1]
        self._asked_again = recording.asked_again
        self._launches = recording.launches

    def is_usable(self) -> bool:
        """False where the call must run as it is written: on another device, or with somebody listening to launches."""
        if _set_aside or is_replaced() or current_device() != self._index or triton_listens():
            return False
        return not any(map(_hooks, self._launches))

    def __call__(self, addresses: list[int]) -> Any:
        """Repeat the call on inputs at these addresses."""
        device = self._device
        # torch.empty takes sizes one by one faster than as a tuple.
        results = [torch.empty(*shape, dtype=dtype, device=device) for shape, dtype in self._results]
        pool = [current_stream(self._index), *addresses]
        for result in results:
            pool.append(result.data_ptr())
        if self._scratch_bytes:
            # Given back before the kernels have run: whoever gets it next on this stream comes after them.
            scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=device).data_ptr()
            for offset in self._scratch_offsets:
                pool.append(scratch + offset)
        for ask in self._asked_again:
            pool.append(ask().data_ptr())
        for launch in self._launches:
            launch(pool)
        return tuple(results) if self._is_tuple else results[0]


def prepared(
    name: str, arguments: tuple[Any, ...], implementation: Callable[..., Any], otherwise: Callable[..., Any]
) -> Any:
    """Call an implementation, by its record where there is one.

    Args:
        name: the implementation's.
        arguments: plain values and tensors, the first of them all a tensor on a GPU; none needs a gradient.
        implementation: decides by the kinds of its arguments alone, never by what lies in its tensors.
        otherwise: computes the same and checks its arguments first; called until a record is worth making, and where
            there is none.
    """
    kind, addresses = kind_of(name, arguments)
    call = None if kind is None else _kinds.get(kind)
    if type(call) is PreparedCall:
        return call(addresses) if call.is_usable() else otherwise(*arguments)
    if kind is None or call is _NEVER or _set_aside or is_replaced() or triton_listens():
        return otherwise(*arguments)
    if call is None:
        _remember(kind, _ONCE)
        return otherwise(*arguments)
    # A tensor that is given twice (x, and what is added to x) is two arguments, which another call gives two tensors.
    own = [a.detach() if type(a) in _PLAIN_TENSORS else a for a in arguments]
    inputs = [a for a in own if isinstance(a, Tensor)]
    result, recording = record(lambda: implementation(*own), inputs)
    if recording is not None:
        _remember(kind, PreparedCall(recording, inputs[0].device))
    elif len(set(addresses)) == len(addresses):
        _remember(kind, _NEVER)
    return result


def kind_of(name: str, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...] | None, list[int]]:
    """(what decides how a call runs, None for arguments that are not plain; the addresses of its tensors)."""
    kind: list[Any] = [name]
    addresses: list[int] = []
    for argument in arguments:
        cls = type(argument)
        if cls in _PLAIN_TENSORS:
            if argument.is_neg():  # what lies there has the other sign: the imaginary part of a conjugate
                return None, addresses
            address = argument.data_ptr()
            addresses.append(address)
            shape, strides = argument.shape, argument.stride()
            kind += (argument.dtype, shape, strides, argument.get_device(), address % _ALIGNMENT)
        elif cls is float:  # of which -0.0 equals 0.0, and NaN not itself
            kind += (cls, argument.hex())
        elif cls in _PLAIN_VALUES:
            kind += (cls, argument)
        else:
            return None, addresses
    return tuple(kind), addresses


def _remember(kind: tuple[Any, ...], state: PreparedCall | str) -> None:
    if len(_kinds) >= _REMEMBERED:
        _kinds.clear()
    _kinds[kind] = state


def forget() -> None:
    """Run each kind of call as it is written again: after configurations changed."""
    _kinds.clear()


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Meanwhile every call runs as it is written, in the whole process."""
    global _set_aside
    _set_aside += 1
    try:
        yield
    finally:
        _set_aside -= 1
