"""Cross-layer equalization: ranges equal, function unchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tests.support.equalize_models import WIDTH, Decoder, assert_unchanged, parameters_of, relative_error
from tritonq.numerics.config import QuantConfig, QuantSpec
from tritonq.optimize.equalize import cross_layer_equalize_


def uneven_mlp(activation: type[nn.Module] = nn.ReLU) -> Any:
    """An nn.Sequential of three Linears whose hidden channels differ in range by factors up to a thousand."""
    model: Any = nn.Sequential(
        nn.Linear(16, 24), activation(), nn.Linear(24, 20), activation(), nn.Linear(20, 8)
    )
    with torch.no_grad():
        model[0].weight *= torch.logspace(-2, 1, 24).unsqueeze(1)
        model[2].weight *= torch.logspace(1, -1, 20).unsqueeze(1)
    return model


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity, nn.LeakyReLU])
def test_ranges_become_equal_and_the_function_stays(activation):
    model, x = uneven_mlp(activation), torch.randn(64, 16)
    exact = copy.deepcopy(model)
    assert cross_layer_equalize_(model, x) is model
    for first, second in ((0, 2), (2, 4)):
        rows, columns = model[first].weight.abs().amax(dim=1), model[second].weight.abs().amax(dim=0)
        assert torch.allclose(rows, columns, rtol=1e-2)
    with torch.no_grad():
        assert relative_error(model(x), exact(x)) < 1e-6


def test_one_scale_for_a_whole_weight_loses_less():
    model, x = uneven_mlp(), torch.randn(256, 16)
    config = QuantConfig(QuantSpec(8, True, "tensor"))
    with torch.no_grad():
        expected = model(x)
        before = relative_error(tritonq.quantize_(copy.deepcopy(model), config)(x), expected)
        cross_layer_equalize_(model, x)
        after = relative_error(tritonq.quantize_(model, config)(x), expected)
    assert after < 0.7 * before


def test_only_linears_are_taken_from_a_decoder():
    model = Decoder()
    before = parameters_of(model)
    x = torch.randn(2, 6, WIDTH)
    with torch.no_grad():
        expected = model(x)
        cross_layer_equalize_(model, x)
        assert relative_error(model(x), expected) < 1e-5
    changed = {name for name, tensor in parameters_of(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"layers.{i}.{name}" for i in (0, 1) for name in
                       ("v.weight", "v.bias", "o.weight", "up.weight", "up.bias", "down.weight")}  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("0", ["4"])], "the source has 24 channels, 4 has 20 columns"),
        ([("1", ["2"])], "must be a norm or an nn.Linear, found GELU"),
        ([("0", ["2"])], "0 → 2: scaling it changes what the model returns"),
        (None, "no norm or Linear of the model can be scaled"),
    ],
)
def test_refused_and_unchanged(groups, message):
    model = uneven_mlp(nn.GELU)
    before = parameters_of(model)
    with pytest.raises(ValueError, match=message):
        cross_layer_equalize_(model, torch.randn(8, 16), groups=groups)
    assert_unchanged(model, before)


def test_norms_are_no_first_layers():
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"the first must be an nn\.Linear, found LayerNorm"):
        cross_layer_equalize_(model, torch.randn(2, 8), groups=[("0", ["1"])])
    with pytest.raises(ValueError, match="no two Linears of the model follow each other"):
        cross_layer_equalize_(model, torch.randn(2, 8))
