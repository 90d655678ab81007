"""Decoding on a CPU: tokens one at a time with a cache, in a model of SmolLM2-135M's sizes with random weights.

    OMP_NUM_THREADS=1 python3 -m benchmarks.decode_on_cpu

float32, bfloat16, torch.ao's dynamic int8 and our schemes decode in turn, a few tokens each a round. Of each it prints
tokens per second by the wall clock, and milliseconds of processor time a token, which a busy machine changes less.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import tritonq
from benchmarks.machine import describe

_ROUNDS, _TOKENS, _PROMPT = 7, 3, 32
_SIZES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


class Decoder:
    """A model with a cache, and the token that comes next."""

    def __init__(self, model: Any, prompt: torch.Tensor) -> None:
        self.model, self.cache, self.token = model, None, prompt
        self.seconds: list[tuple[float, float]] = []
        self.decode(3)
        self.seconds.clear()

    @torch.no_grad()
    def decode(self, tokens: int) -> None:
        """Some tokens more; notes seconds per token, by the wall clock and of the processor."""
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(tokens):
            out = self.model(self.token, past_key_values=self.cache, use_cache=True)
            self.cache, self.token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        used = (time.perf_counter() - wall) / tokens, (time.process_time() - processor) / tokens
        self.seconds.append(used)

    def medians(self) -> tuple[float, float]:
        """Seconds per token: wall clock, processor."""
        wall, processor = (statistics.median(values) for values in zip(*self.seconds, strict=True))
        return wall, processor


def models() -> Iterator[tuple[str, Any]]:
    """(name, model), the float32 one first. "head too": the output layer is quantized, apart from the embedding."""
    from torch.ao.quantization import quantize_dynamic
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**_SIZES)).eval()

    def with_own_head() -> Any:
        model = copy.deepcopy(base)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    yield "float32", base
    yield "bfloat16", copy.deepcopy(base).to(torch.bfloat16)
    yield "torch.ao, head too", quantize_dynamic(with_own_head(), {nn.Linear}, dtype=torch.qint8)
    for scheme in ("w8a8", "w4a16"):
        yield scheme, tritonq.quantize_(copy.deepcopy(base), scheme)
        yield f"{scheme}, head too", tritonq.quantize_(with_own_head(), scheme, ignore=())


def main() -> int:
    """Measure and print."""
    warnings.simplefilter("ignore")  # torch.ao says that it will be removed
    print(
        ", ".join(
            f"{key} {value}" for key, value in describe(torch.device("cpu")).items() if value is not None
        )
    )
    prompt = torch.randint(_SIZES["vocab_size"], (1, _PROMPT))
    decoders = {name: Decoder(model, prompt) for name, model in models()}
    for _ in range(_ROUNDS):
        for decoder in decoders.values():
            decoder.decode(_TOKENS)
    float_wall, float_processor = decoders["float32"].medians()
    for name, decoder in decoders.items():
        wall, processor = decoder.medians()
        print(
            f"{name:20} {1 / wall:7.1f} tokens/s {float_wall / wall:5.2f} ×"
            f" {1e3 * processor:7.1f} ms of processor a token {float_processor / processor:5.2f} ×"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
