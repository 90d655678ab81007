"""The operators on int8 activations and int4 weights (W4A8). Weights come in the layout `int4_bytes`.

`int4_int8_linear_dynamic` takes float activations and quantizes them per token, in one launch or two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq import reference
from tritonq.numerics import slabs as layouts
from tritonq.ops.backends import cpu_engine, uses_kernels
from tritonq.ops.declare import gradient_of_bias_only, operator


def _fake(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


@operator(
    "int4_int8_linear(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, int group_size, "
    "ScalarType dtype) -> Tensor",
    _fake,
    gradient_of_bias_only("int4_int8_linear", x_scale=1, bias=4),
)
def int4_int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """int8 [M, K] · int4 [N, K]ᵀ → float [M, N]; x_scale float32 [M, 1]; weight_scale float [G, N]."""
    layout = layouts.slab_layout("int4_bytes", x.shape[1], group_size)
    if uses_kernels(x):
        from tritonq.kernels.matmul.int4_int8 import int4_int8_matmul

        dense = weight_scale.contiguous()  # a sibling's are columns of joined ones (tritonq/nn/siblings.py)
        return int4_int8_matmul(
            x, x_scale, weight, dense, bias, group_size, layout.padded_group, layout.slab_width, dtype
        )
    engine = cpu_engine(x)
    if engine is not None:
        operands = (x, x_scale, weight, weight_scale, bias, layout, dtype)
        return engine.int4.int4_int8_linear(engine, *operands)
    codes = layouts.unpack(weight, layout)
    return reference.int4_int8_linear(x, x_scale, codes, weight_scale.t(), bias, group_size, dtype)


@operator(
    "int4_int8_linear_dynamic(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, int group_size) -> Tensor",
    lambda x, weight, *rest: x.new_empty((x.shape[0], weight.shape[0])),
    gradient_of_bias_only("int4_int8_linear_dynamic", x_scale=0, bias=3),
)
def int4_int8_linear_dynamic(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group_size: int
) -> Tensor:
    """float [M, K] → [M, N] of its dtype: `int4_int8_linear` of what `quantize_per_token` makes of x, symmetrically."""
    layout = layouts.slab_layout("int4_bytes", x.shape[1], group_size)
    if uses_kernels(x):
        from tritonq.kernels.matmul.dynamic import int4_int8_dynamic_matmul

        slabs = (group_size, layout.padded_group, layout.slab_width)
        return int4_int8_dynamic_matmul(x, weight, weight_scale.contiguous(), bias, *slabs)
    engine = cpu_engine(x)
    if engine is not None:
        return engine.int4.int4_int8_linear_dynamic(engine, x, weight, weight_scale, bias, layout)
    codes, scale, _ = reference.quantize_per_token(x, True)
    unpacked = layouts.unpack(weight, layout)
    return reference.int4_int8_linear(codes, scale, unpacked, weight_scale.t(), bias, group_size, x.dtype)
