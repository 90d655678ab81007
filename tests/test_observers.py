"""Observers: against torch's where it has them, and the rules that are this library's own."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec
from tritonq.observers import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    as_observer_factory,
    make_observer,
    observed_weight_qparams,
)

PER_TENSOR = (MinMaxObserver, MovingAverageMinMaxObserver)
PER_CHANNEL = (PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver)
ALL = (*PER_TENSOR, *PER_CHANNEL)


def batches(count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(4, 6) * 3 + 1 for _ in range(count)]


def observe(observer: ObserverBase, data) -> ObserverBase:
    for batch in data:
        assert observer(batch) is batch
    return observer


def torch_observer(name: str, **words):
    observers = pytest.importorskip("torch.ao.quantization.observer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(observers, name)(**words)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("dtype", "quant_min", "quant_max"),
    [
        (torch.qint8, -128, 127),
        (torch.quint8, 0, 255),
        (torch.quint8, 0, 127),
        (torch.qint8, -8, 7),
    ],
)
def test_same_grid_as_torch(cls, symmetric, dtype, quant_min, quant_max):
    channel = "channel" if cls in PER_CHANNEL else "tensor"
    qscheme = getattr(torch, f"per_{channel}_{'symmetric' if symmetric else 'affine'}")
    words = {"dtype": dtype, "qscheme": qscheme, "quant_min": quant_min, "quant_max": quant_max}
    theirs = torch_observer(cls.__name__, **words)
    ours = cls(**words)
    for batch in batches():
        ours(batch)
        theirs(batch)
    assert torch.equal(ours.min_val, theirs.min_val)
    assert torch.equal(ours.max_val, theirs.max_val)
    scale, zero_point = ours.calculate_qparams()
    expected_scale, expected_zero = theirs.calculate_qparams()
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int8
    assert scale.shape == zero_point.shape == expected_scale.shape
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    if symmetric:
        assert not zero_point.any()
    else:
        offset = 128 if dtype == torch.quint8 else 0
        assert torch.equal(zero_point.int(), expected_zero.int() - offset)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, (-128, 127)),
        ({"dtype": torch.qint8}, (-128, 127)),
        ({"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}, (-127, 127)),
        ({"dtype": torch.quint8, "qscheme": torch.per_tensor_symmetric}, (-127, 127)),
        ({"dtype": torch.qint8, "reduce_range": True}, (-64, 63)),
        ({"dtype": torch.quint8, "reduce_range": True}, (-128, -1)),
        ({"dtype": torch.quint8, "quant_min": 0, "quant_max": 255}, (-128, 127)),
    ],
)
def test_code_ranges_are_signed(words, expected):
    observer = MinMaxObserver(**words)
    assert (observer.qmin, observer.qmax) == expected


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), st.booleans())
def test_scale_follows_the_contract(values, symmetric):
    x = torch.tensor(values)
    qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    scale, zero_point = observe(MinMaxObserver(torch.qint8, qscheme), [x]).calculate_qparams()
    spec = QuantSpec(8, symmetric, "tensor")
    expected, expected_zero = qparams.weight_qparams(x.reshape(1, -1), spec)
    assert torch.equal(scale, expected.reshape(1))
    assert int(zero_point) == (0 if expected_zero is None else int(expected_zero))


def test_zeros_get_scale_one_and_eps_raises_small_scales():
    assert observe(MinMaxObserver(), [torch.zeros(3)]).calculate_qparams()[0] == 1
    for qscheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        observer = observe(MinMaxObserver(qscheme=qscheme, eps=1e-3), [torch.tensor([-1e-9, 1e-9])])
        scale, zero_point = observer.calculate_qparams()
        assert float(scale) == pytest.approx(1e-3)
        assert int(zero_point) == (0 if observer.symmetric else -128)


def test_moving_average():
    observer = MovingAverageMinMaxObserver(averaging_constant=0.5)
    observe(observer, [torch.tensor([-1.0, 3.0]), torch.tensor([-3.0, 1.0])])
    assert observer.min_val == -2.0
    assert observer.max_val == 2.0


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_state_dict_copies_and_pickles_carry_the_statistics(cls):
    observer = observe(cls(), batches())
    loaded = cls()
    loaded.load_state_dict(observer.state_dict())
    for other in (loaded, copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        for ours, theirs in zip(observer.calculate_qparams(), other.calculate_qparams(), strict=True):
            assert torch.equal(ours, theirs)
    observer.reset_min_max_vals()
    assert not observer.has_data()
    assert loaded.has_data()


def test_half_leaves_statistics_in_float32():
    model = nn.Sequential(observe(MinMaxObserver(), batches())).half()
    assert model[0].min_val.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_observed_in_float32(dtype):
    observer = observe(PerChannelMinMaxObserver(), [torch.randn(3, 5).to(dtype)])
    assert observer.min_val.dtype == torch.float32


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_data_is_refused_by_name_and_not_recorded(cls, bad):
    observer = observe(cls(), [torch.ones(2, 2)])
    observer.name = "layers.0.fc1"
    with pytest.raises(ValueError, match=r"layers\.0\.fc1.*finite.*NaN or Inf"):
        observer(torch.tensor([[1.0, bad], [0.0, 0.0]]))
    assert torch.isfinite(observer.calculate_qparams()[0]).all()


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_what_a_gpu_cannot_say_at_once_is_said_later(cls):
    observer = cls()
    ones = torch.ones(2) if cls in PER_CHANNEL else torch.tensor(1.0)
    for high in (float("nan"), 2.0, float("inf"), 3.0):
        observer.fold(-ones, ones * high)  # `observe` without its check
    with pytest.raises(ValueError, match="NaN or Inf"):
        observer.calculate_qparams()


@pytest.mark.gpu
@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_observing_does_not_wait_for_the_gpu(cls):
    data = [batch.cuda() for batch in batches()]
    observer = cls()
    observer(data[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        observe(observer, data[1:])
        assert observer.min_val.is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = cls()
    observe(on_cpu, [batch.cpu() for batch in data])
    for ours, theirs in zip(observer.calculate_qparams(), on_cpu.calculate_qparams(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "bad", [torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), "x", None]
)
def test_only_float_tensors_are_observed(bad):
    with pytest.raises(TypeError, match="MinMaxObserver observes floating-point tensors, found"):
        MinMaxObserver()(bad)


def test_no_data_and_empty_data():
    observer = MinMaxObserver()
    observer(torch.empty(0, 4))
    with pytest.raises(ValueError, match="observed no data"):
        observer.calculate_qparams()


def test_channels_must_stay_the_same():
    observer = observe(PerChannelMinMaxObserver(ch_axis=1), [torch.randn(4, 6)])
    assert observer.calculate_qparams()[0].shape == (6,)
    with pytest.raises(ValueError, match="observes 6 channels, found 5"):
        observer(torch.randn(4, 5))
    with pytest.raises(ValueError, match="ch_axis=1"):
        observer(torch.randn(4))


@pytest.mark.parametrize(
    ("cls", "words", "message"),
    [
        (
            MinMaxObserver,
            {"dtype": torch.int8},
            "dtype must be torch.qint8 or torch.quint8, found torch.int8",
        ),
        (MinMaxObserver, {"qscheme": torch.per_channel_affine}, "qscheme must be torch.per_tensor_affine or"),
        (PerChannelMinMaxObserver, {"qscheme": torch.per_tensor_affine}, "qscheme must be torch.per_channel"),
        (MinMaxObserver, {"quant_min": 0}, "both be ints or both None, found 0 and None"),
        (
            MinMaxObserver,
            {"quant_min": -128, "quant_max": 127},
            "lie in 0 … 255 and hold 0, for torch.quint8",
        ),
        (MinMaxObserver, {"quant_min": 5, "quant_max": 5}, "found 5 and 5"),
        (MinMaxObserver, {"reduce_range": 1}, "reduce_range must be True or False, found 1"),
        (MinMaxObserver, {"eps": -1.0}, "eps must be None or a finite number ≥ 0, found -1.0"),
        (MovingAverageMinMaxObserver, {"averaging_constant": 0}, r"must be a number in \(0, 1\], found 0"),
        (PerChannelMinMaxObserver, {"ch_axis": "0"}, "ch_axis must be an int, found '0'"),
        (PlaceholderObserver, {"is_dynamic": False}, "is_dynamic must be True, found False"),
    ],
)
def test_bad_words_are_named(cls, words, message):
    with pytest.raises((TypeError, ValueError), match=message):
        cls(**words)


def test_factories_compare_hash_pickle_and_chain():
    factory = MinMaxObserver.with_args(dtype=torch.qint8).with_args(qscheme=torch.per_tensor_symmetric)
    same = MinMaxObserver.with_args(qscheme=torch.per_tensor_symmetric, dtype=torch.qint8)
    assert factory == same
    assert hash(factory) == hash(same)
    assert factory != MinMaxObserver.with_args(dtype=torch.qint8)
    assert pickle.loads(pickle.dumps(factory)) == copy.deepcopy(factory) == factory
    assert factory.__name__ == "MinMaxObserver"
    assert factory().symmetric
    assert QuantSpec(observer=factory).to_dict()["observer"] == "MinMaxObserver"


@pytest.mark.parametrize(
    ("observer", "granularity", "for_weight", "cls"),
    [
        (None, "tensor", False, MinMaxObserver),
        ("minmax", "channel", True, PerChannelMinMaxObserver),
        ("moving_average_minmax", "tensor", False, MovingAverageMinMaxObserver),
        ("moving_average_minmax", "channel", True, MovingAveragePerChannelMinMaxObserver),
        ("PerChannelMinMaxObserver", "channel", True, PerChannelMinMaxObserver),
        (
            MovingAverageMinMaxObserver.with_args(averaging_constant=0.1),
            "tensor",
            False,
            MovingAverageMinMaxObserver,
        ),
        (lambda: MinMaxObserver(torch.qint8, torch.per_tensor_symmetric), "tensor", False, MinMaxObserver),
    ],
)
def test_make_observer(observer, granularity, for_weight, cls):
    spec = QuantSpec(8, True, granularity, observer=observer)
    made = make_observer(spec, for_weight, "fc1")
    assert type(made) is cls
    assert made.name == "fc1"
    assert (made.qmin, made.qmax) == (spec.qmin, spec.qmax)


@pytest.mark.parametrize(
    ("observer", "granularity", "message"),
    [
        ("median", "tensor", "fc1: observer must be one of minmax, .*found 'median'"),
        (
            MinMaxObserver,
            "channel",
            "fc1: granularity 'channel' needs a per-channel observer, found MinMaxObserver",
        ),
        (MinMaxObserver.with_args(qscheme=torch.per_tensor_affine), "tensor", "symmetric=True contradicts"),
        (PerChannelMinMaxObserver.with_args(ch_axis=1), "channel", "needs ch_axis=0, found 1"),
        (PlaceholderObserver, "tensor", "PlaceholderObserver observes nothing"),
        (nn.ReLU, "tensor", "an observer class or what"),
    ],
)
def test_observers_that_contradict_the_spec(observer, granularity, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_observer(QuantSpec(8, True, granularity, observer=observer), for_weight=True, name="fc1")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_observed_is_a_weight_measured(symmetric, bits, granularity, group_size, dtype):
    weight = torch.randn(5, 10).to(dtype)
    plain = QuantSpec(bits, symmetric, granularity, group_size)
    assert observed_weight_qparams(weight, plain) is None
    observed = observed_weight_qparams(
        weight, QuantSpec(bits, symmetric, granularity, group_size, observer="moving_average_minmax")
    )
    assert observed is not None
    for ours, expected in zip(observed, qparams.weight_qparams(weight, plain), strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None and expected is not None:
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected)


def test_torch_observers_become_ours():
    quantization = pytest.importorskip("torch.ao.quantization")
    factory = as_observer_factory(quantization.default_per_channel_weight_observer)
    assert factory == PerChannelMinMaxObserver.with_args(
        ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, reduce_range=False
    )
    observer = as_observer_factory(
        quantization.MovingAverageMinMaxObserver.with_args(averaging_constant=0.2)
    )()
    assert type(observer) is MovingAverageMinMaxObserver
    assert observer.averaging_constant == 0.2
    observer = as_observer_factory(quantization.MinMaxObserver.with_args(quant_min=0, quant_max=127))()
    assert (observer.qmin, observer.qmax) == (-128, -1)
    observer = as_observer_factory(quantization.FakeQuantize.with_args(quant_min=0, quant_max=255))()
    assert type(observer) is MovingAverageMinMaxObserver  # what a FakeQuantize holds is what it stands for
    for unknown in (quantization.NoopObserver,):
        with pytest.raises(ValueError, match="has no counterpart"):
            as_observer_factory(unknown)
    with pytest.raises(ValueError, match=r"dtype must be torch\.qint8 or torch\.quint8, found torch\.qint32"):
        as_observer_factory(quantization.MinMaxObserver.with_args(dtype=torch.qint32))
