"""Observers that count or keep values, as modules: their words, their state, bad data, and their places in a model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tritonq.demo.evaluate import CONTEXT, cut_windows, fixed_slice_logits
from tritonq.demo.model import load_demo_model
from tritonq.demo.text import calibration_bytes, heldout_bytes
from tritonq.numerics.config import QuantConfig, QuantSpec
from tritonq.observers import (
    OBSERVERS,
    EntropyObserver,
    HistogramObserver,
    MSEObserver,
    PercentileObserver,
    PerChannelMSEObserver,
    PerChannelPercentileObserver,
    make_observer,
)

COUNTING = (HistogramObserver, MSEObserver, PercentileObserver, EntropyObserver)
KEEPING = (PerChannelMSEObserver, PerChannelPercentileObserver)
NAMES = ("histogram", "mse", "percentile", "entropy")
every = pytest.mark.parametrize("cls", [*COUNTING, *KEEPING], ids=lambda cls: cls.__name__)


def batches() -> list[Tensor]:
    """The range grows with each, so that bins are merged."""
    return [torch.randn(4, 60) * scale for scale in (1.0, 30.0, 3000.0)]


def same_qparams(one: Any, other: Any) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.calculate_qparams(), other.calculate_qparams(), strict=True)
    )


@every
@pytest.mark.parametrize("count", [0, 1, 3])
def test_state_dict_copies_and_pickles_carry_the_statistics(cls: Any, count: int) -> None:
    observer, loaded = cls(), cls()
    for batch in batches()[:count]:
        observer(batch)
    loaded.load_state_dict(observer.state_dict())
    others = (loaded, copy.deepcopy(observer), pickle.loads(pickle.dumps(observer)))
    for other in others:
        assert other.has_data() == (count > 0)
        for name, value in observer.state_dict().items():
            assert torch.equal(other.state_dict()[name], value)
    for twin in (observer, *others):  # and they go on alike
        twin(torch.full((4, 1), 7000.0))
    assert all(same_qparams(observer, other) for other in others)
    observer.reset()
    assert not observer.has_data()
    fresh = cls()
    for twin in (observer, fresh):
        twin(batches()[0] * 0 + 1)
    assert same_qparams(observer, fresh)


def test_a_histogram_of_other_bins_is_not_loaded() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for histogram"):
        HistogramObserver(100).load_state_dict(HistogramObserver(200).state_dict())


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_data_is_refused_by_name_and_not_recorded(cls: Any, bad: float) -> None:
    observer = cls()
    observer(torch.ones(2, 3))
    before = copy.deepcopy(observer)
    observer.name = "layers.0.fc1"
    with pytest.raises(ValueError, match=r"layers\.0\.fc1.*finite.*NaN or Inf"):
        observer(torch.tensor([[1.0, bad, 0.0], [0.0, 0.0, 0.0]]))
    assert same_qparams(observer, before)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_a_gpu_cannot_say_at_once_is_said_later(cls: Any, bad: float, monkeypatch: Any) -> None:
    for module in ("minmax", "histogram"):
        monkeypatch.setattr(f"tritonq.observers.{module}.answers_at_once", lambda x: False)
    observer = cls()
    for value in (1.0, bad, 2.0):
        observer(torch.tensor([[value, 0.5], [-1.0, 0.25]]))
    with pytest.raises(ValueError, match="NaN or Inf"):
        observer.calculate_qparams()
    low, high = observer.data_range()
    assert not (low.isfinite() & high.isfinite()).all()


@every
def test_no_data_and_empty_data(cls: Any) -> None:
    observer = cls()
    observer(torch.empty(0, 4))
    with pytest.raises(ValueError, match="observed no data"):
        observer.calculate_qparams()


def test_half_leaves_counts_and_values_alone() -> None:
    model: Any = nn.Sequential(HistogramObserver(), PerChannelMSEObserver())
    x = torch.randn(4, 50) * 1e5
    model(x)
    model.half()
    assert model[0].histogram.dtype == torch.int64
    assert torch.equal(model[1].values, x)


def test_a_batch_that_changes_later_was_seen_as_it_was() -> None:
    x = torch.randn(4, 50)
    observer, twin = PerChannelMSEObserver(), PerChannelMSEObserver()
    observer(x)
    twin(x.clone())
    x.zero_()
    assert same_qparams(observer, twin)


@pytest.mark.parametrize(
    ("cls", "words", "message"),
    [
        (HistogramObserver, {"bins": 15}, "bins must be an int in 16 … 8192, found 15"),
        (EntropyObserver, {"bins": 2048.0}, "bins must be an int in 16 … 8192, found 2048.0"),
        (MSEObserver, {"bins": 10_000}, "found 10000"),
        (PercentileObserver, {"percentile": 50}, r"percentile must be a number in \(50, 100\], found 50"),
        (PerChannelPercentileObserver, {"percentile": "99"}, r"percentile must be a number .* found '99'"),
        (
            HistogramObserver,
            {"qscheme": torch.per_channel_affine},
            "qscheme must be torch.per_tensor_affine or",
        ),
        (PerChannelMSEObserver, {"qscheme": torch.per_tensor_affine}, "qscheme must be torch.per_channel"),
    ],
)
def test_bad_words_are_named(cls: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        cls(**words)


def test_words_are_torchs_in_torchs_order() -> None:
    observer = HistogramObserver(100, torch.qint8, torch.per_tensor_symmetric, True, None, None, None, 0.5)
    assert (observer.bins, observer.qmin, observer.qmax, observer.eps) == (100, -64, 63, 0.5)
    observer(torch.tensor([1e-9, -1e-9]))
    assert observer.calculate_qparams()[0] == pytest.approx(0.5)
    assert "bins=100" in repr(observer)
    assert "percentile=99.5" in repr(PercentileObserver(99.5))


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    activations, weights = OBSERVERS[name]
    assert type(make_observer(QuantSpec(8, False, "tensor", observer=name), for_weight=False)) is activations
    assert type(make_observer(QuantSpec(8, True, "tensor", observer=name), for_weight=True)) is weights
    spec = QuantSpec(4, True, "channel", observer=name)
    if weights.per_channel:
        assert type(make_observer(spec, for_weight=True)) is weights
    else:
        message = f"fc: granularity 'channel' needs a per-channel observer, found {weights.__name__}"
        with pytest.raises(ValueError, match=message):
            make_observer(spec, for_weight=True, name="fc")


def test_an_activation_is_not_observed_by_channels() -> None:
    with pytest.raises(
        ValueError, match="fc: an activation needs a per-tensor observer, found PerChannelMSEObs"
    ):
        make_observer(QuantSpec(8, True, "tensor", observer=PerChannelMSEObserver), False, "fc")


# --- in models -----------------------------------------------------------------------------------------------------


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_calibrated_models(name: str, symmetric: bool) -> None:
    model, x = mlp(), torch.randn(512, 64)
    config = tritonq.W8A8Static(observer=name, activation_symmetric=symmetric)
    quantized = tritonq.quantize_(copy.deepcopy(model), config, calibration=x.split(64))
    assert relative_error(quantized(x), model(x)) < 0.03


def test_heavy_tails_cost_less_than_with_the_extremes() -> None:
    model, x = mlp(), torch.distributions.StudentT(3.0).sample((2048, 64))
    errors = {}
    for name in ("minmax", "histogram", "mse"):
        config = tritonq.W8A8Static(observer=name)
        quantized = tritonq.quantize_(copy.deepcopy(model), config, calibration=x.split(512))
        errors[name] = relative_error(quantized(x), model(x))
    assert errors["mse"] <= errors["histogram"] * 1.02
    assert errors["histogram"] < errors["minmax"] * 0.9


@pytest.mark.parametrize("name", ["mse", "percentile"])
@pytest.mark.parametrize(("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 48)])
def test_weights_in_models(name: str, granularity: str, group_size: int | None) -> None:
    model = mlp()
    with torch.no_grad():
        for index in (0, 2):
            model[index].weight.copy_(torch.randn_like(model[index].weight))
    errors = {}
    for observer in (None, name):
        spec = QuantSpec(4, True, granularity, group_size, observer=observer)
        quantized: Any = tritonq.quantize_(copy.deepcopy(model), QuantConfig(spec))
        errors[observer] = relative_error(quantized[0].dequantize(), model[0].weight)
    assert errors[name] < errors[None] * (0.95 if name == "mse" else 1.0)


@pytest.mark.parametrize(
    ("plain", "searched", "gain"),
    [
        (tritonq.W8A8Static(), tritonq.W8A8Static(observer="histogram"), 0.8),
        (tritonq.W8A8Static(), tritonq.W8A8Static(observer="mse"), 0.8),
        (
            tritonq.W4A16(group_size=128),
            QuantConfig(QuantSpec(4, True, "group", 128, observer="mse")),
            0.9,
        ),
    ],
    ids=["histogram", "mse", "mse of weights"],
)
def test_a_language_model(plain: QuantConfig, searched: QuantConfig, gain: float) -> None:
    model = load_demo_model()
    calibration = cut_windows(calibration_bytes()[: 16 * CONTEXT])[0].split(8)
    expected = fixed_slice_logits(model, heldout_bytes(), 8)

    def error(config: QuantConfig) -> float:
        batches = calibration if config.static else None
        quantized = tritonq.quantize_(copy.deepcopy(model), config, calibration=batches)
        return relative_error(fixed_slice_logits(quantized, heldout_bytes(), 8), expected)

    assert error(searched) < gain * error(plain)


@pytest.mark.parametrize("name", NAMES)
def test_fake_quantize(name: str) -> None:
    fake: Any = tritonq.FakeQuantize(QuantSpec(8, False, "tensor", observer=name))
    for batch in batches()[:2]:
        fake(batch)
    scale, zero = fake.observer.calculate_qparams()
    assert torch.equal(fake.scale, scale)
    assert torch.equal(fake.zero_point, zero)
    counts = fake.observer.histogram.clone()
    fake.disable_observer()
    fake(batches()[2])
    assert torch.equal(fake.observer.histogram, counts)
    assert torch.equal(fake.scale, scale)
    fake.enable_observer()
    fake(batches()[2])
    assert fake.observer.histogram.sum() == 3 * 240


def test_training_with_histograms_and_searched_weights() -> None:
    config = QuantConfig(
        QuantSpec(8, True, "channel", observer="mse"), QuantSpec(8, True, "tensor", observer="histogram")
    )
    model, x = mlp(), torch.randn(64, 64)
    prepared = tritonq.prepare_qat(model, config)
    prepared(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    quantized = tritonq.convert(prepared.eval())
    assert relative_error(quantized(x), prepared(x)) < 1e-3


@pytest.mark.gpu
@every
def test_observing_does_not_wait_for_the_gpu(cls: Any) -> None:
    data = [batch.cuda() for batch in batches()]
    observer, on_cpu = cls(), cls()
    observer(data[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data[1:]:
            observer(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch in data:
        on_cpu(batch.cpu())
    for name, value in on_cpu.state_dict().items():
        assert torch.equal(observer.state_dict()[name].cpu(), value)
    for ours, theirs in zip(observer.calculate_qparams(), on_cpu.calculate_qparams(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=0)
