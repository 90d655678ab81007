"""A Llama decoder written for speed: as few operators as plain PyTorch allows.

    one Linear for q, k and v, one for gate and up      no siblings to fuse
    the residual sum together with the next norm        one kernel if activations are int8: QuantizedNorm
    silu(gate) · up                                     one kernel, with the quantization for `down`
    a static cache, written in place                    [B, key heads, length, D]
    queries of one key head as rows of one attention    keys are read once, never repeated

Each block returns the value to add to the residual stream, so that the next norm can add it. No step depends on values
on the host, so it can be captured or compiled as a whole.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.llm.shapes import ModelShape
from tritonq.nn import QuantizedLinear, QuantizedNorm
from tritonq.nn.int8_product import activated


class Cache:
    """Keys, values and rotary angles in memory that never moves, and the number of filled positions."""

    def __init__(
        self, shape: ModelShape, batch: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        size = (shape.layers, batch, shape.key_heads, length, shape.head_size)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.filled = torch.zeros((), dtype=torch.int64, device=device)
        self.places = torch.arange(length, device=device)
        exponents = torch.arange(0, shape.head_size, 2, device=device) / shape.head_size
        angles = torch.outer(self.places.float(), shape.rope_base**-exponents)
        self.cosine, self.sine = angles.cos(), angles.sin()  # [length, D / 2]
        for tensor in (self.keys, self.values, self.filled):
            torch._dynamo.mark_static_address(tensor)


class Positions:
    """The positions of one call's tokens: places [T], angles [T, D / 2], and the mask [1, length] of the last one."""

    def __init__(self, cache: Cache, count: int) -> None:
        self.places = cache.places[:count] + cache.filled
        self.cosine, self.sine = cache.cosine[self.places], cache.sine[self.places]
        self.mask = (cache.places <= self.places[-1])[None]

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotate the pairs (i, i + D / 2) of [B, H, T, D]."""
        first, second = heads.float().chunk(2, dim=-1)
        turned = (first * self.cosine - second * self.sine, second * self.cosine + first * self.sine)
        return torch.cat(turned, dim=-1).to(heads.dtype)


class LeanBlock(nn.Module):
    """(value to add, residual stream) [B, T, hidden] → the same pair one block later."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        heads = shape.heads + 2 * shape.key_heads
        self.attention_norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.qkv = nn.Linear(shape.hidden, heads * shape.head_size, bias=False)
        self.o = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(
        self, added: Tensor | None, x: Tensor, positions: Positions, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        h, x = _normed(self.attention_norm, added, x)
        h, x = _normed(self.mlp_norm, self.o(self._attention(self.qkv(h), positions, keys, values)), x)
        return self.down(self._gated(self.gate_up(h))), x

    def _attention(self, qkv: Tensor, positions: Positions, keys: Tensor, values: Tensor) -> Tensor:
        """[B, T, (H + 2 · key heads) · D] → [B, T, H · D]."""
        shape = self.shape
        sizes = [shape.heads, shape.key_heads, shape.key_heads]
        # [B, T, heads, D] -> [B, heads, T, D]
        query, key, value = qkv.unflatten(-1, (-1, shape.head_size)).transpose(1, 2).split(sizes, dim=1)
        query, key = positions.rotate(query), positions.rotate(key)
        keys.index_copy_(2, positions.places, key)
        values.index_copy_(2, positions.places, value)
        if qkv.shape[1] == 1:
            grouped = query.reshape(len(qkv), shape.key_heads, -1, shape.head_size)
            mixed = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=positions.mask)
            return mixed.reshape(len(qkv), 1, -1)
        # A prompt: the cache was empty, so it attends only to itself.
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(-2)

    def _gated(self, gate_up: Tensor) -> object:
        gate, up = gate_up.chunk(2, dim=-1)
        if _quantizes_rows(self.down):
            return activated(gate, up, "silu", self.down.activation_symmetric)
        return functional.silu(gate) * up


class LeanDecoder(nn.Module):
    """Token ids [B, T] that follow the cached ones → logits [B, vocabulary] of the last one."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(LeanBlock(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, ids: Tensor, cache: Cache) -> Tensor:
        positions = Positions(cache, ids.shape[1])
        added: Tensor | None = None
        x: Tensor = self.embedding(ids)
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            added, x = layer(added, x, positions, keys, values)
        cache.filled.add_(ids.shape[1])
        h, _ = _normed(self.norm, added if added is None else added[:, -1], x[:, -1])
        logits: Tensor = self.lm_head(h)
        return logits


def use_fused_norms_(block: LeanBlock) -> None:
    """Make norms quantize for the dynamic layers that read them, in place."""
    for name, reader in (("attention_norm", block.qkv), ("mlp_norm", block.gate_up)):
        if _quantizes_rows(reader):
            norm = QuantizedNorm.from_float(getattr(block, name), symmetric=reader.activation_symmetric)
            setattr(block, name, norm)


def _quantizes_rows(layer: nn.Module) -> TypeGuard[QuantizedLinear]:
    return isinstance(layer, QuantizedLinear) and layer.config.dynamic


def _normed(norm: nn.Module, added: Tensor | None, x: Tensor) -> tuple[object, Tensor]:
    """(norm of the sum, the sum)."""
    if added is None:
        return norm(x), x
    if isinstance(norm, QuantizedNorm) and norm.dynamic:
        return norm(added, x)
    x = x + added
    return norm(x), x
