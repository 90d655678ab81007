"""torch._int_mm alone, cuBLASLt's int8 product: int8 inputs and int32 outputs; conversions are not timed.

cuBLAS needs more than 16 rows. Fewer are padded to 32, which costs nothing, because the weight must be read anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.linear.contender import MATMUL, Built, Contender
from tritonq import W8A8, ops
from tritonq.numerics import qparams

_LEAST_ROWS = 32


def build(linear: nn.Linear) -> Built:
    """int8 [M, K] · int8 [K, N] → int32."""
    codes, scale, _ = qparams.quantize_weight(linear.weight.detach(), W8A8().weight)
    transposed = codes.t()  # [K, N], each column contiguous: the only layout that cuBLAS's int8 takes

    def prepare(x: Tensor) -> tuple[Tensor, Tensor]:
        x_codes, x_scale, _ = ops.quantize_per_token(x, True)
        return functional.pad(x_codes, (0, 0, 0, max(0, _LEAST_ROWS - len(x)))), x_scale

    def call(prepared: tuple[Tensor, Tensor]) -> Tensor:
        return torch._int_mm(prepared[0], transposed)

    def finish(out: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        x_scale = prepared[1]
        return out[: len(x_scale)].float() * x_scale * scale.float().t()

    return Built(call, prepare, finish)


PEERS = (Contender("int_mm", "w8a8", build, tolerance=3e-2, measures=MATMUL),)
