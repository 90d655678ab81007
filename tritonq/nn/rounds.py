"""Which calls of siblings belong together: a round is one input, computed once for all of them.

The first call of a round computes, the others take what is theirs. That is right as long as nothing has changed in
between that a computation would see:

    the input      the same object, with the same count of changes in place (torch's version counter, which also guards
                   autograd's saved tensors)
    the weights    likewise
    surroundings   thread, stream, graph capture, inference mode, dispatch modes

A trace of torch.compile has counts of its own (tritonq/ops/tensor_version.py). Each sibling runs alone, as if it had no
others,

    while autograd records: its gradients are its own
    on inputs made under torch.inference_mode, which carry no version, unless a recorded run has shown that nothing
    changes them in between
    under torch.jit.trace and vmap, and in torch.export, whose programs name every tensor as the model does
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from tritonq import ops
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.ops.bypass import dispatch_modes, functorch_level, tracing_state


class Round:
    """One input, and the outputs for it that nobody has taken yet.

    Args:
        x: the input; not kept alive by the round, but while a trace runs.
        state: at the time of the computation.
        left: sibling → its output, None where it shall compute that alone.
    """

    def __init__(self, x: Any, state: tuple[int, ...], left: dict[int, Tensor | None]) -> None:
        self.state, self.left = state, left
        self._is_traced = torch.compiler.is_compiling()
        self._x = x if self._is_traced else (TensorWeakRef(x) if isinstance(x, Tensor) else weakref.ref(x))

    def offers(self, index: int, x: Any, state: tuple[int, ...]) -> bool:
        """Whether `left` holds what sibling `index` returns for x."""
        if index not in self.left or self.state != state:
            return False
        return (self._x if self._is_traced else self._x()) is x


class Progress:
    """Where the siblings' calls have got to: the round that is not complete yet, if any."""

    def __init__(self) -> None:
        self.round: Round | None = None
        self.predicts_one_input = True


class ProgressInThread(Progress, threading.local):
    """The same, in each thread its own."""


def state_of(x: Tensor | QuantizedTensor, weights: Sequence[Tensor], proven: bool) -> tuple[int, ...] | None:
    """What must not change within a round; None where that cannot be told, and for traces that must see each layer.

    Args:
        x: the input.
        weights: of all siblings.
        proven: a run has shown that nothing changes x between two siblings' calls.
    """
    tensors = _tensors_of(x)
    if torch.compiler.is_compiling():
        return tuple(size for tensor in tensors for size in ops.traced_version(tensor).shape)
    if tracing_state() is not None or functorch_level() is not None:
        return None
    if not tensors[0].is_inference():
        state = [tensor._version for tensor in (*tensors, *weights)]
    elif proven:
        state = []
    else:
        return None
    state += (torch.is_inference_mode_enabled(), dispatch_modes())
    if tensors[0].is_cuda:
        state.append(torch.cuda.current_stream(tensors[0].device).cuda_stream)
        state.append(torch.cuda.is_current_stream_capturing())
    return tuple(state)


def autograd_records(x: Tensor | QuantizedTensor, bias: Tensor | None) -> bool:
    """Whether a layer's output has a gradient."""
    if not torch.is_grad_enabled():
        return False
    tensors = _tensors_of(x) if bias is None else (*_tensors_of(x), bias)
    return any(tensor.requires_grad for tensor in tensors)


def _tensors_of(x: Tensor | QuantizedTensor) -> tuple[Tensor, ...]:
    if isinstance(x, Tensor):
        return (x,)
    parts: tuple[Tensor | None, ...] = (x.data, x.scale, x.zero_point)
    return tuple(part for part in parts if part is not None)
