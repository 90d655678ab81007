"""What stays in float unasked is said by name and bytes; messages say what to do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tritonq.nn import QuantizedLinear


class Own(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Model(nn.Module):
    """An experts' stack of 4 · 16 · 8 floats, a subclass and a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 8)
        self.plain, self.own = nn.Linear(8, 16), Own(16, 8)
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.randn(4, 16, 8))
        self.norm, self.conv = nn.LayerNorm(8), nn.Conv1d(8, 8, 3)


def test_named_with_bytes() -> None:
    with pytest.warns(UserWarning, match="stay in float") as found:
        tritonq.quantize_(Model(), "w8a16")
    (message,) = [str(warning.message) for warning in found]
    assert message.startswith("83% of the weights stay in float")  # (512 + 128) / 768
    assert "experts.up (2,048 bytes), own.weight (512 bytes); name" in message


@pytest.mark.parametrize(
    "words",
    [
        {"config": "w8a16", "ignore": ["experts", "own"]},
        {"config": {"experts": None, "own": None, "_default": "w8a16"}},
        {"config": {"plain": "w8a16"}},
        {"config": "w8a16", "filter_fn": lambda module, name: name == "plain"},
    ],
    ids=["ignore", "None", "no default", "filter"],
)
def test_not_where_it_was_asked_for(words: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "ignore: the pattern|config: the pattern")
        tritonq.quantize_(Model(), **words)


@pytest.mark.parametrize("name", ["A_log", "relative_position_bias_table"])
def test_matrices_that_no_product_reads_are_no_weights(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16))
    model.add_module("other", nn.Module())
    model.get_submodule("other").register_parameter(name, nn.Parameter(torch.randn(16, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tritonq.quantize_(model, "w8a16")


def test_attention_that_stays_in_float_on_purpose_is_not_named() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.linear = nn.MultiheadAttention(16, 2), nn.Linear(16, 16)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tritonq.quantize_(Both(), "w8a16", ignore=["attention"])
    assert type(model.attention) is nn.MultiheadAttention
    assert isinstance(model.get_submodule("linear"), QuantizedLinear)


def test_a_small_rest_is_not_worth_a_word() -> None:
    model = nn.Sequential(nn.Linear(128, 128), Own(10, 10))
    tritonq.quantize_(model, "w8a16")  # 100 of 16,484
    assert type(model[1]) is Own


def test_transposed_layers_are_named() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.ModuleDict({"c_attn": conv1d(24, 8), "lm_head": nn.Linear(8, 8)})
    with pytest.raises(
        ValueError, match=r"weights are in 1 Conv1D layers \(c_attn, …\), which store them transposed"
    ):
        tritonq.quantize_(model, "w4a16")


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_unobserved_layers_can_be_dynamic() -> None:
    batches = [torch.randn(4, 8)]
    with pytest.raises(ValueError, match="pass unobserved='dynamic'"):
        tritonq.quantize_(Branches(), "w8a8_static", calibration=batches)
    model: Any = tritonq.quantize_(Branches(), "w8a8_static", calibration=batches, unobserved="dynamic")
    assert isinstance(model.unused, QuantizedLinear)
    assert model.unused.config.dynamic
    with pytest.raises(ValueError, match="unobserved must be 'error' or 'dynamic', found 'no'"):
        tritonq.quantize_(Branches(), "w8a8_static", calibration=batches, unobserved="no")


def test_a_loader_with_labels() -> None:
    loader = [(torch.randn(4, 8), torch.zeros(4))]
    with pytest.raises(TypeError, match=r"calibration batch 0 is a tuple of 2, .*leave labels out"):
        tritonq.quantize_(Branches(), "w8a8_static", calibration=loader)
