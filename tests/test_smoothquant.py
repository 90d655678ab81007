"""SmoothQuant: the factors, what stays the same, what gets better, what is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tests.support.equalize_models import (
    WIDTH,
    Block,
    Decoder,
    GemmaRMSNorm,
    assert_unchanged,
    outlying,
    parameters_of,
    relative_error,
)
from tritonq.optimize.equalize import Group

DECODER_LAYER = ("layers.0.norm1", ["layers.0.q", "layers.0.k", "layers.0.v"])


def batches(count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, 16, WIDTH, dtype=dtype) for _ in range(count)]


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y


def test_the_factors_are_the_papers():
    model, data = outlying(Decoder()), batches()
    exact = copy.deepcopy(model)
    inputs: list[Tensor] = []
    handle = exact.layers[0].q.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for batch in data:
        output(exact, batch)
    handle.remove()
    for alpha in (0.0, 0.3, 1):
        smoothed = tritonq.smooth_(copy.deepcopy(model), data, alpha=alpha, groups=[DECODER_LAYER])
        largest = torch.cat(inputs).abs().amax(dim=(0, 1))
        weight = torch.cat([exact.layers[0].q.weight, exact.layers[0].k.weight, exact.layers[0].v.weight])
        factors = largest**alpha / weight.abs().amax(dim=0) ** (1 - alpha)
        layer = smoothed.layers[0]
        assert relative_error(layer.norm1.weight, exact.layers[0].norm1.weight / factors) < 1e-6
        for name in "qkv":
            wanted = getattr(exact.layers[0], name).weight * factors
            assert relative_error(getattr(layer, name).weight, wanted) < 1e-6
            assert torch.equal(getattr(layer, name).bias, getattr(exact.layers[0], name).bias)
        assert torch.equal(layer.up.weight, exact.layers[0].up.weight)


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm, GemmaRMSNorm])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, "search"])
def test_the_function_stays(norm, alpha):
    model, data = outlying(Decoder(norm)), batches()
    exact = copy.deepcopy(model)
    assert tritonq.smooth_(model, data, alpha=alpha) is model
    assert not torch.equal(model.layers[1].norm1.weight, exact.layers[1].norm1.weight)
    x = torch.randn(3, 7, WIDTH)
    assert relative_error(output(model, x), output(exact, x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_rounded_once_more_and_no_more_than_that(dtype):
    """They are those of a float32 model, rounded. With α = 0 factors hang on weights alone, so both have the same."""
    model, data = outlying(Decoder()).to(dtype), batches(dtype=dtype)
    before, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    tritonq.smooth_(model, data, alpha=0.0)
    tritonq.smooth_(exact, [x.float() for x in data], alpha=0.0)
    expected = exact.state_dict()
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, expected[name].to(dtype)), name
    assert not torch.equal(model.layers[0].q.weight, before.layers[0].q.weight)


def test_static_int8_gets_better():
    model, data = outlying(Decoder()), batches(6)
    x = torch.cat(batches(8))
    expected = output(model, x)

    def error(alpha: float | str | None) -> float:
        quantized = copy.deepcopy(model)
        if alpha is not None:
            tritonq.smooth_(quantized, data, alpha=alpha)
        tritonq.quantize_(quantized, "w8a8_static", calibration=data)
        return relative_error(output(quantized, x), expected)

    plain = error(None)
    assert error(0.5) < 0.5 * plain
    assert error("search") < 0.6 * plain


@pytest.mark.parametrize("scheme", ["w8a8_static", "w8a8", "w4a8", "w4a16"])
def test_the_search_is_no_worse_than_any_alpha_it_tries(scheme):
    """Measured on what the three quantized Linears of a group return for the calibration data."""
    model, data = outlying(Decoder()), batches()
    x = torch.cat(data)
    block = model.layers[0]
    with torch.no_grad():
        expected = torch.cat([layer(block.norm1(x)) for layer in (block.q, block.k, block.v)], dim=-1)

    def error(alpha: float | str) -> float:
        changed = tritonq.smooth_(
            copy.deepcopy(model), data, alpha=alpha, config=scheme, groups=[DECODER_LAYER]
        )
        tritonq.quantize_(
            changed, scheme, filter_fn=lambda _, name: name in DECODER_LAYER[1], calibration=data
        )
        block = changed.layers[0]
        with torch.no_grad():
            found = torch.cat([layer(block.norm1(x)) for layer in (block.q, block.k, block.v)], dim=-1)
        return relative_error(found, expected)

    searched = error("search")
    assert all(searched <= 1.001 * error(alpha) for alpha in (0.0, 0.2, 0.5, 0.8, 1.0))


def test_what_was_done_is_logged(caplog):
    with caplog.at_level(logging.INFO, "tritonq.equalize"):
        tritonq.smooth_(Decoder(), batches(), alpha=0.25)
    messages = [record.getMessage() for record in caplog.records]
    assert "layers.1.norm2 → layers.1.gate, layers.1.up: alpha 0.25" in messages
    assert "norm: left alone, lm_head is ignored" in messages


def test_dead_channels_and_columns_of_zeros_stay():
    model = Decoder()
    with torch.no_grad():
        model.layers[0].norm1.weight[4] = 0
        for layer in (model.layers[0].q, model.layers[0].k, model.layers[0].v):
            layer.weight[:, 9] = 0
    before = parameters_of(model)
    tritonq.smooth_(model, batches(), groups=[DECODER_LAYER])
    after = parameters_of(model)
    for channel in (4, 9):
        for name in ("norm1.weight", "q.weight"):
            name = f"layers.0.{name}"
            assert torch.equal(after[name][..., channel], before[name][..., channel])
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_given_groups_of_linears_and_batches_as_dictionaries():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, hidden: Tensor, scale: float) -> dict[str, Tensor]:
            return {"y": scale * self.block(hidden)}

    model = Named()
    exact = copy.deepcopy(model)
    data = ({"hidden": x, "scale": 2.0} for x in batches())  # an iterator: every batch is seen once
    tritonq.smooth_(model, data, groups=[Group("block.up", ("block.down",)), ["block.v", ("block.o",)]])
    assert not torch.equal(model.block.up.bias, exact.block.up.bias)
    assert torch.equal(model.block.q.weight, exact.block.q.weight)
    x = torch.randn(1, 4, WIDTH)
    with torch.no_grad():
        assert relative_error(model(x, 1.0)["y"], exact(x, 1.0)["y"]) < 1e-5


def nan_batches() -> list[Tensor]:
    data = batches()
    data[1][0, 3, 5] = float("nan")
    return data


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 1.5}, ValueError, r"alpha must be a number in \[0, 1\] or 'search', found 1.5"),
        ({"alpha": float("nan")}, ValueError, "alpha must be a number"),
        ({"alpha": "best"}, ValueError, "alpha must be .* found 'best'"),
        ({"alpha": True}, TypeError, "alpha must be .* found True"),
        ({"alpha": None}, TypeError, "alpha must be .* found None"),
        ({"config": "w3"}, ValueError, "config must be"),
        ({"calibration": []}, ValueError, "calibration must have at least one batch, found none"),
        ({"calibration": torch.randn(2, 3, WIDTH)}, TypeError, "calibration must be an iterable of batches"),
        ({"calibration": [3]}, TypeError, "calibration batch 0 must be a tensor"),
        ({"calibration": nan_batches()}, ValueError, "layers.0.q: its input on the calibration data must be finite"),
        ({"groups": []}, ValueError, "groups must hold at least one group"),
        ({"groups": "layers.0.norm1"}, TypeError, "groups must be pairs"),
        ({"groups": [("layers.0.norm1", "layers.0.q")]}, TypeError, "groups must be pairs"),
        ({"groups": [("layers.0.norm7", ["layers.0.q"])]}, ValueError, "the model has no module 'layers.0.norm7'"),
        ({"groups": [("layers.0.norm1", ["layers.0.x"])]}, ValueError, "the model has no module 'layers.0.x'"),
        ({"groups": [("layers.0.norm1", [])]}, ValueError, "it has no reader"),
        ({"groups": [("layers.0", ["layers.0.q"])]}, ValueError, "must be a norm or an nn.Linear, found Block"),
        ({"groups": [("layers.0.norm1", ["layers.0.norm2"])]}, ValueError, "must be an nn.Linear, found RMSNorm"),
        ({"groups": [("layers.0.norm1", ["layers.0.down"])]}, ValueError, "32 channels, layers.0.down has 48 columns"),
        ({"groups": [DECODER_LAYER, DECODER_LAYER]}, ValueError, "the source of one group, found layers.0.norm1 2"),
        ({"groups": [("layers.0.norm1", ["layers.0.q"])]}, ValueError, "scaling it changes what the model returns"),
        ({"groups": [("layers.0.norm2", DECODER_LAYER[1])]}, ValueError, "scaling it changes what the model returns"),
        ({"groups": [DECODER_LAYER, ("layers.0.gate", ["layers.0.down"])]}, ValueError, "layers.0.gate → "),
    ],
)  # fmt: skip
def test_refused_and_unchanged(options, error, message):
    model = Decoder()
    before = parameters_of(model)
    with pytest.raises(error, match=message):
        tritonq.smooth_(model, options.pop("calibration", batches()), **options)
    assert_unchanged(model, before)


def test_a_model_with_nothing_to_scale():
    with pytest.raises(ValueError, match="no norm or Linear of the model can be scaled"):
        tritonq.smooth_(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)), [torch.randn(2, 4)])


def test_weights_that_float16_cannot_hold_are_refused():
    model: Any = nn.Sequential(nn.RMSNorm(WIDTH, eps=1e-9), nn.Linear(WIDTH, 8)).half()
    with torch.no_grad():
        model[0].weight[:2] = 2e4  # two large products that cancel, each too large by itself
        model[1].weight[:, 0] = 6.0
        model[1].weight[:, 1] = -6.0
    before = parameters_of(model)
    with pytest.raises(ValueError, match=r"1: its weight, scaled, is not finite in torch\.float16"):
        tritonq.smooth_(model, [torch.ones(1, 3, WIDTH).half()], alpha=1.0, groups=[("0", ["1"])])
    assert_unchanged(model, before)


def test_infinities_in_what_the_model_returns():
    class Masked(Decoder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(torch.arange(64) % 2 == 0, -torch.inf)

    model = Masked()
    before = parameters_of(model)
    tritonq.smooth_(model, batches())
    assert not torch.equal(model.layers[1].up.weight, before["layers.1.up.weight"])


def test_a_reader_that_no_batch_reaches():
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) if x.shape[1] > 3 else x

    with pytest.raises(ValueError, match=r"block\.norm1 is not called by the model"):
        tritonq.smooth_(
            Skips(), [torch.randn(1, 2, WIDTH)], groups=[("block.norm1", ["block.q", "block.k", "block.v"])]
        )
