"""A short decoder block of Llama's shape, which the block benchmarks measure."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Sizes of a block: hidden, the MLP's intermediate size, query heads, key and value heads."""

    hidden: int
    intermediate: int
    heads: int
    key_heads: int

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "llama-3-8b": BlockShape(4096, 14336, 32, 8),
    "smollm2-135m": BlockShape(576, 1536, 9, 3),
}


class Block(nn.Module):
    """x [B, T, hidden] → [B, T, hidden]; attention is causal, positions are rotary."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        keys = shape.key_heads * shape.head_size
        self.input_norm, self.middle_norm = nn.RMSNorm(shape.hidden), nn.RMSNorm(shape.hidden)
        self.q, self.o = (nn.Linear(shape.hidden, shape.hidden, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(shape.hidden, keys, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(shape.hidden, shape.intermediate, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.input_norm(x)
        x = x + self.o(self.attention(self.q(h), self.k(h), self.v(h)))
        h = self.middle_norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, T, heads · head_size] of each → the same shape."""
        q, k, v = (t.unflatten(-1, (-1, self.shape.head_size)).transpose(1, 2) for t in (q, k, v))
        q, k = (_rotated(t) for t in (q, k))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(-2)


def _rotated(heads: Tensor) -> Tensor:
    """heads [B, H, T, D], rotated by their positions T."""
    length, size = heads.shape[-2:]
    exponents = torch.arange(0, size, 2, device=heads.device, dtype=torch.float32) / size
    angles = torch.outer(torch.arange(length, device=heads.device), 500_000.0**-exponents)
    first, second = heads.float().chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(heads.dtype)
