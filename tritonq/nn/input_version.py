"""Tells whether an input has changed since another layer read it.

torch counts a tensor's changes in place: `x._version` in eager code, ops/tensor_version.py while torch.compile traces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq import ops
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.ops.bypass import functorch_level, is_exporting, tracing_state


def input_tensors(x: Tensor | QuantizedTensor) -> tuple[Tensor, ...]:
    """The tensor itself, or the codes, scale and zero point of a QuantizedTensor."""
    if isinstance(x, Tensor):
        return (x,)
    parts: tuple[Tensor | None, ...] = (x.data, x.scale, x.zero_point)
    return tuple(part for part in parts if part is not None)


def input_version(x: Tensor | QuantizedTensor) -> tuple[int, ...] | None:
    """A value that differs after each change of x in place; always () for tensors made under torch.inference_mode.

    None if changes cannot be seen: under torch.export, torch.jit.trace and vmap.
    """
    tensors = input_tensors(x)
    if torch.compiler.is_compiling():
        if is_exporting():
            return None
        return tuple(size for tensor in tensors for size in ops.traced_version(tensor).shape)
    if tracing_state() is not None or functorch_level() is not None:
        return None
    return () if tensors[0].is_inference() else tuple(tensor._version for tensor in tensors)
