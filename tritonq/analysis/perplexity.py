"""Perplexity: the usual measure of what quantization costs a language model.

The text is cut into windows of tokens that do not overlap. Each window is run alone. Its first token is given, and
every other token is predicted from those before it:

    loss = mean of -ln p(token t | tokens 0 … t-1 of the window)        perplexity = exp(loss)

A sliding window would give most tokens more context and a lower perplexity, but needs many more passes. Compare numbers
only for the same text, tokenizer and window length. For different tokenizers, compare bits per byte.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Perplexity:
    """The result of one pass over a text.

    Attributes:
        loss: mean of -ln p(token), in nats.
        tokens: the number of predicted tokens.
        seconds: time to run and score, from the first window on.
    """

    loss: float
    tokens: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(loss); inf if that is too large for a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def tokens_per_second(self) -> float:
        """Tokens predicted per second, scoring included."""
        return self.tokens / self.seconds

    def bits_per_byte(self, byte_count: float) -> float:
        """The loss in bits, divided by the `byte_count` bytes of the predicted text."""
        return self.loss / math.log(2) * self.tokens / byte_count


@torch.inference_mode()
def perplexity(model: nn.Module, token_windows: Iterable[Tensor]) -> Perplexity:
    """Measure a causal language model, on the device of its parameters.

    Args:
        model: token ids int64 [B, T] → logits [B, T, V], or an object with `.logits` (transformers).
        token_windows: int64 [B, T] each, or [T] for a single window; T ≥ 2. Usually `cut_windows(…).split(B)`.

    Raises:
        ValueError: there is no window, or one is too short.
    """
    device = device_of(model)
    nats, tokens = 0.0, 0
    start = time.perf_counter()
    for window in token_windows:
        if window.dim() not in (1, 2) or window.shape[-1] < 2:
            raise ValueError(
                f"a window must be [T] or [B, T] with T ≥ 2 tokens, found shape {list(window.shape)}"
            )
        ids = window.reshape(-1, window.shape[-1]).to(device)
        output = model(ids[:, :-1])
        logits = output if isinstance(output, Tensor) else output.logits  # [B, T - 1, V]
        wanted = ids[:, 1:].flatten()
        # Reading the sum waits for the device, so the time includes all of its work.
        nats += F.cross_entropy(logits.float().flatten(0, 1), wanted, reduction="sum").item()
        tokens += wanted.numel()
    if tokens == 0:
        raise ValueError("token_windows must hold at least one window, found none")
    return Perplexity(nats / tokens, tokens, time.perf_counter() - start)


def cut_windows(tokens: Sequence[int] | Tensor, length: int, count: int | None = None) -> Tensor:
    """The windows of a text, int64 [W, length], from its beginning; an incomplete last window is dropped.

    Args:
        tokens: the ids of the whole text.
        length: tokens per window, at least 2.
        count: the largest number of windows; None takes all.

    Raises:
        ValueError: the text is shorter than one window.
    """
    if length < 2:
        raise ValueError(f"a window must have at least 2 tokens, found {length}")
    if len(tokens) < length:
        raise ValueError(f"the text has {len(tokens)} tokens, less than one window of {length}")
    windows = len(tokens) // length
    windows = windows if count is None else min(windows, count)
    return torch.as_tensor(tokens[: windows * length], dtype=torch.int64).view(windows, length)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer (a quantized model may have only buffers)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    raise ValueError("the model has neither parameters nor buffers")
