"""Perplexity against its definition, token by token."""

from __future__ import annotations

import math
import types

import pytest
import torch
from torch import Tensor, nn

from tritonq.analysis.perplexity import Perplexity, cut_windows, device_of, perplexity


class Sums(nn.Module):
    """A causal model: the logits at t depend on all tokens up to t."""

    def __init__(self, as_attribute: bool = False) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 11))
        self.as_attribute = as_attribute

    def forward(self, ids: Tensor) -> object:
        logits = self.table[ids].cumsum(dim=1)
        return types.SimpleNamespace(logits=logits) if self.as_attribute else logits


def test_against_the_definition() -> None:
    model, windows = Sums(), torch.randint(0, 11, (5, 7))
    expected = []
    with torch.no_grad():
        for window in windows:
            for t in range(1, 7):
                logits = model(window[None, :t])
                assert isinstance(logits, Tensor)
                expected.append(-float(torch.log_softmax(logits[0, -1].double(), -1)[window[t]]))
    whole = perplexity(model, windows.split(2))
    assert whole.tokens == len(expected) == 30
    assert whole.loss == pytest.approx(sum(expected) / 30, rel=1e-6)
    assert whole.perplexity == pytest.approx(math.exp(sum(expected) / 30), rel=1e-6)
    assert perplexity(model, windows).loss == pytest.approx(whole.loss, rel=1e-6)
    other = Sums(as_attribute=True)
    other.load_state_dict(model.state_dict())
    assert perplexity(other, windows.split(2)).loss == whole.loss


def test_uniform_predictions_cost_the_logarithm_of_the_vocabulary() -> None:
    model = Sums()
    nn.init.zeros_(model.table)
    found = perplexity(model, torch.randint(0, 11, (2, 9)))
    assert found.perplexity == pytest.approx(11, rel=1e-6)
    assert found.bits_per_byte(byte_count=8) == pytest.approx(math.log2(11) * 16 / 8, rel=1e-6)
    assert found.tokens_per_second == found.tokens / found.seconds > 0


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    assert Perplexity(loss=1e4, tokens=1, seconds=1.0).perplexity == math.inf


def test_windows() -> None:
    assert cut_windows(range(10), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cut_windows(torch.arange(10), 5, count=1).tolist() == [[0, 1, 2, 3, 4]]
    assert cut_windows([1, 2], 2, count=9).dtype == torch.int64


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="text has 3 tokens, less than one window of 4"):
        cut_windows([1, 2, 3], 4)
    with pytest.raises(ValueError, match="at least 2 tokens, found 1"):
        cut_windows([1, 2, 3], 1)
    with pytest.raises(ValueError, match="at least one window, found none"):
        perplexity(Sums(), [])
    with pytest.raises(ValueError, match=r"found shape \[1\]"):
        perplexity(Sums(), torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="neither parameters nor buffers"):
        device_of(nn.Identity())
