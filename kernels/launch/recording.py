"""What a call does on a GPU, seen once: the memory it takes and the kernels it launches.

A call that is made of `torch.empty` and `launch` alone, and whose decisions hang on its arguments' shapes, strides,
dtypes and values but never on what lies in its tensors, does the same each time, at other addresses. The recorder
watches such a call and says where each address came from: from an input, from memory that was taken, from the counters.
All else that torch is asked for meanwhile (a copy, a fill) makes the call one that is not replayed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .compiled_launch import CompiledLaunch, NotReplayable, Place, is_descriptor, moved
from .launch import recording

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format,
    _aten.empty_strided.default,
    _aten.empty_like.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}


@dataclasses.dataclass(frozen=True)
class Recording:
    """Addresses are numbered: inputs, then results, then scratch, then what is asked for again.

    Attributes:
        results: the tensors that were returned, as examples.
        is_tuple: whether they were returned as a tuple.
        scratch: bytes of the memory that was taken and not returned.
        asked_again: functions that return what must be asked for at each call.
        launches: the kernels.
    """

    results: list[Tensor]
    is_tuple: bool
    scratch: list[int]
    asked_again: list[Callable[[], Tensor]]
    launches: list[CompiledLaunch]


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs = inputs
        self.taken: list[Tensor] = []
        self.asked_again: list[tuple[Tensor, Callable[[], Tensor]]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.obstacle: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self.taken.append(result)
        elif not func.is_view:
            self.obstacle = self.obstacle or f"{func} is no kernel of ours"
        return result

    def launched(
        self,
        kernel: Any,
        compiled: Any,
        grid: tuple[int, ...],
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> None:
        values = list(arguments)
        for parameter in getattr(kernel, "params", ())[len(arguments) :]:
            values.append(constants.get(parameter.name, parameter.default))
        self.launches.append((kernel, compiled, grid, values))


def ask_again(ask: Callable[[], Tensor]) -> Tensor:
    """What `ask` returns, now and, where a call is recorded, whenever it is replayed."""
    tensor = ask()
    if recording.recorder is not None:
        recording.recorder.asked_again.append((tensor, ask))
    return tensor


def record(call: Callable[[], Any], inputs: Sequence[Tensor]) -> tuple[Any, Recording | None]:
    """Call, and return what it returned and, if it can be replayed, what it did.

    Args:
        call: takes `inputs`, and no other tensors.
        inputs: of a GPU each.
    """
    watching = _Recorder(inputs)
    recording.recorder = watching
    try:
        with watching:
            result = call()
    finally:
        recording.recorder = None
    try:
        return result, _recording(watching, result)
    except NotReplayable:
        return result, None


def _recording(seen: _Recorder, result: Any) -> Recording:
    if seen.obstacle is not None:
        raise NotReplayable(seen.obstacle)
    results = list(result) if isinstance(result, tuple) else [result]
    if not all(isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in results):
        raise NotReplayable("something else than tensors with a shape is returned")
    returned = [_taken_for(tensor, seen.taken) for tensor in results]
    scratch = [tensor for index, tensor in enumerate(seen.taken) if index not in returned]
    again = [tensor for tensor, _ in seen.asked_again]
    sources = [*seen.inputs, *results, *scratch, *again]
    if any(not tensor.is_contiguous() or tensor.data_ptr() % 16 for tensor in (*results, *scratch)):
        raise NotReplayable("memory is not dense and aligned")

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Place(_source_of(value, value.data_ptr(), sources))
        if is_descriptor(value):
            return moved(value, Place(_source_of(value.base, value.base.data_ptr(), sources)))
        return value

    launches = [
        CompiledLaunch(kernel, compiled, grid, [place(value) for value in values], len(sources))
        for kernel, compiled, grid, values in seen.launches
    ]
    return Recording(
        results,
        isinstance(result, tuple),
        [tensor.nbytes for tensor in scratch],
        [how for _, how in seen.asked_again],
        launches,
    )


def _taken_for(result: Tensor, taken: Sequence[Tensor]) -> int:
    """Which allocation a result is, as it was taken."""
    for index, tensor in enumerate(taken):
        same_memory = tensor.data_ptr() == result.data_ptr() != 0
        if same_memory and (tensor.dtype, tensor.shape) == (result.dtype, result.shape):
            return index
    raise NotReplayable("something else than fresh memory is returned")


def _source_of(value: Any, address: int, sources: Sequence[Tensor]) -> int:
    """Which tensor an address is of: the same tensor, or else the only one that begins there."""
    for index, tensor in enumerate(sources):
        if tensor is value:
            return index
    beginning_there = [index for index, tensor in enumerate(sources) if tensor.data_ptr() == address]
    if len(beginning_there) != 1 or address == 0:
        raise NotReplayable("an address is not of one tensor")
    return beginning_there[0]
