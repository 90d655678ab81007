"""Measures a model's predictions: bits per byte, and logits to compare two models.

The protocol of `bits_per_byte`: the text is cut into windows of `context` bytes that do not overlap; an incomplete last
window is dropped. Each window is predicted alone and begins with the start symbol. The model reads
[start, b0, ..., b(n-2)] and is scored on [b0, ..., b(n-1)], so every byte counts once. The result is the mean of
-log2 p(byte). The loop is in tritonq/analysis/perplexity.py.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritonq.analysis.perplexity import device_of, perplexity
from tritonq.demo.model import START_BYTE

CONTEXT = 256
BATCH = 16

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a text."""

    bits_per_byte: float
    byte_count: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Bytes predicted per second, scoring included."""
        return self.byte_count / self.seconds


def cut_windows(data: bytes, context: int = CONTEXT) -> tuple[Tensor, Tensor]:
    """Cut `data` into (inputs, targets), each int64 [windows, context], by the protocol of this module."""
    if len(data) < context:
        raise ValueError(f"the text has {len(data)} bytes, less than one window of {context}")
    window_count = len(data) // context
    targets = torch.tensor(list(data[: window_count * context])).view(window_count, context)
    return F.pad(targets[:, :-1], (1, 0), value=START_BYTE), targets


def evaluate(
    model: nn.Module,
    data: bytes,
    context: int = CONTEXT,
    batch: int = BATCH,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measure `model` (byte ids [B, T] -> logits [B, T, 256]) on `data`, on the device of its parameters.

    `progress(done, total)` is called after each batch with numbers of windows.
    """
    _, targets = cut_windows(data, context)
    window_count = len(targets)

    def batches() -> Iterator[Tensor]:
        for first in range(0, window_count, batch):
            yield F.pad(targets[first : first + batch], (1, 0), value=START_BYTE)
            if progress is not None:
                progress(min(first + batch, window_count), window_count)

    found = perplexity(model, batches())
    return Evaluation(found.loss / math.log(2), found.tokens, found.seconds)


def bits_per_byte(
    model: nn.Module,
    data: bytes,
    context: int = CONTEXT,
    batch: int = BATCH,
    progress: ProgressCallback | None = None,
) -> float:
    """The mean of -log2 p(byte) of `model` on `data`; see the module's docstring for the protocol."""
    return evaluate(model, data, context, batch, progress).bits_per_byte


@torch.inference_mode()
def fixed_slice_logits(model: nn.Module, data: bytes, windows: int = 4, context: int = CONTEXT) -> Tensor:
    """Logits, float32 [windows, context, 256] on the CPU, for the first `windows` windows of `data`."""
    inputs, _ = cut_windows(data, context)
    return model(inputs[:windows].to(device_of(model))).float().cpu()


def relative_error(logits: Tensor, reference: Tensor) -> float:
    """||logits - reference|| / ||reference||, both read as one long vector."""
    return ((logits - reference).norm() / reference.norm()).item()
