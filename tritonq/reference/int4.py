"""int8 activations × int4 weights with scales per group."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.reference.epilogue import add_bias
from tritonq.reference.integers import int_matmul


def int4_int8_linear(
    x: Tensor,
    x_scale: Tensor,
    w: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Σ_g (float(acc_g) · w_scale_g) · x_scale + bias, acc_g exact in int32, groups in ascending order.

    With one group the order is that of `int8_linear`: (float(acc) · x_scale) · w_scale + bias.

    Args:
        x: int8 [M, K], symmetric codes.
        x_scale: float32 [M, 1].
        w: int8 [N, K], symmetric int4 codes.
        w_scale: float [N or 1, G].
        bias: float [N] or None.
        group_size: columns per group.
        dtype: of the result.

    Returns:
        [M, N].
    """
    scales = w_scale.float().t()  # [G, N or 1]
    if len(scales) == 1:
        return add_bias((int_matmul(x, w).float() * x_scale) * scales, bias).to(dtype)
    total = torch.zeros(x.shape[0], w.shape[0], device=x.device)
    for group, scale in enumerate(scales):
        columns = slice(group * group_size, (group + 1) * group_size)
        total += int_matmul(x[:, columns], w[:, columns]).float() * scale
    return add_bias(total * x_scale, bias).to(dtype)
