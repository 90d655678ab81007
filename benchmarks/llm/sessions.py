"""A model with its cache: one interface to the lean decoder and to transformers' Llama."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.llm.lean_decoder import Cache, LeanDecoder
from benchmarks.llm.shapes import ModelShape

LEAN, TRANSFORMERS = "lean", "transformers"


class Session(abc.ABC):
    """Decodes a batch of sequences of equal length.

    Args:
        model: on its device.
        batch: sequences.
        length: positions of the cache.
    """

    model: nn.Module

    @abc.abstractmethod
    def logits(self, ids: Tensor) -> Tensor:
        """Append tokens [B, T]; returns the logits [B, vocabulary] after the last. Can be captured and compiled."""

    @abc.abstractmethod
    def rewind(self, filled: int) -> None:
        """Forget all positions but the first `filled`."""


class LeanSession(Session):
    """The session of a `LeanDecoder`."""

    def __init__(self, model: LeanDecoder, batch: int, length: int) -> None:
        weight = model.embedding.weight
        self.model, self.cache = model, Cache(model.shape, batch, length, weight.device, weight.dtype)

    def logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids, self.cache)
        return logits

    def rewind(self, filled: int) -> None:
        self.cache.filled.fill_(filled)


class TransformersSession(Session):
    """The session of a LlamaForCausalLM with a StaticCache."""

    def __init__(self, model: Any, batch: int, length: int) -> None:
        from transformers import StaticCache

        self.model, self.cache = model, StaticCache(config=model.config, max_cache_len=length)
        config, weight = model.config, model.lm_head.weight
        heads = (batch, config.num_key_value_heads, config.head_dim)
        self.cache.early_initialization(*heads, weight.dtype, weight.device)

    def logits(self, ids: Tensor) -> Tensor:
        words: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        logits: Tensor = self.model(input_ids=ids, **words).logits
        return logits[:, -1]

    def rewind(self, filled: int) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(filled)


SESSIONS: dict[str, Any] = {LEAN: LeanSession, TRANSFORMERS: TransformersSession}


def on_meta(decoder: str, shape: ModelShape, dtype: torch.dtype) -> tuple[nn.Module, nn.ModuleList]:
    """(a model without memory for its parameters, its blocks)."""
    if decoder == LEAN:
        with torch.device("meta"):
            lean = LeanDecoder(shape).to(dtype)
        return lean, lean.layers
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=8192,
        rms_norm_eps=shape.epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its angles are in no checkpoint
    return model, model.model.layers
