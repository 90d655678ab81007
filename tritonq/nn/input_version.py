"""Whether an input is still what it was when another layer read it.

torch counts how often a tensor was changed in place, in eager code as `x._version`; ops/tensor_version.py does so while
torch.compile traces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq import ops
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.ops.bypass import functorch_level, is_exporting, tracing_state


def input_tensors(x: Tensor | QuantizedTensor) -> tuple[Tensor, ...]:
    """The tensors that an input consists of."""
    if isinstance(x, Tensor):
        return (x,)
    parts: tuple[Tensor | None, ...] = (x.data, x.scale, x.zero_point)
    return tuple(part for part in parts if part is not None)


def input_version(x: Tensor | QuantizedTensor) -> tuple[int, ...] | None:
    """Another value after each change of x in place; always () for tensors made under torch.inference_mode.

    None where nothing can be told: under torch.export, torch.jit.trace and vmap.
    """
    tensors = input_tensors(x)
    if torch.compiler.is_compiling():
        if is_exporting():
            return None
        return tuple(size for tensor in tensors for size in ops.traced_version(tensor).shape)
    if tracing_state() is not None or functorch_level() is not None:
        return None
    return () if tensors[0].is_inference() else tuple(tensor._version for tensor in tensors)
