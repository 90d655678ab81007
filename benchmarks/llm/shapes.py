"""Sizes of Llama-shaped models."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes; `heads` of queries share `key_heads` of keys and values."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    rope_base: float = 500_000.0
    epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


MODELS = {
    "tiny": ModelShape(256, 128, 256, 2, 4, 2),
    "1b": ModelShape(128_256, 2048, 8192, 16, 32, 8),  # Llama-3.2-1B
    "8b": ModelShape(128_256, 4096, 14_336, 32, 32, 8),  # Llama-3-8B
}
