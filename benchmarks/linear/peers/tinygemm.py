"""tinygemm, PyTorch's int4 product: aten::_weight_int4pack_mm, groups of 128.

A weight is (code - 8) · scale + zero, with codes 0 … 15 and bfloat16 pairs (scale, zero) [K / 128, N, 2]. On a GPU two
codes share a byte, the even column in its upper half, and the operator packs those into its tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.linear.contender import Built, Contender
from tritonq import W4A16
from tritonq.numerics import qparams

GROUP_SIZE = 128
#: 16-wide tiles of K that one thread reads at once; torchao packs with the same number.
_INNER_K_TILES = 8


def build(linear: nn.Linear) -> Built:
    """x bfloat16 [M, K] → bfloat16 [M, N]."""
    signed, scale, _ = qparams.quantize_weight(linear.weight.detach(), W4A16(group_size=GROUP_SIZE).weight)
    codes = signed.to(torch.int32) + 8  # [N, K], 0 … 15
    scales_and_zeros = torch.stack((scale, torch.zeros_like(scale)), dim=-1).transpose(0, 1).contiguous()
    if linear.weight.is_cuda:
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        packed = torch._convert_weight_to_int4pack(pairs, _INNER_K_TILES)
        product = torch._weight_int4pack_mm
    else:
        packed = torch._convert_weight_to_int4pack_for_cpu(codes, _INNER_K_TILES)
        product = torch._weight_int4pack_mm_for_cpu

    def call(x: Tensor) -> Tensor:
        return product(x, packed, GROUP_SIZE, scales_and_zeros)

    return Built(call)


PEERS = (Contender("tinygemm", "w4a16", build, tolerance=0.15, dtypes=(torch.bfloat16,)),)
