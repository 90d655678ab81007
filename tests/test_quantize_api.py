"""quantize_, quantize_dynamic, prepare and convert: in place or a copy, all or nothing, and what survives."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import UserDict
from typing import Any, cast

import pytest
import torch
from torch import nn

import tritonq
from tritonq import QuantizedLinear
from tritonq.util.progress import track

SCHEMES = ("w8a16", "w4a16", "w8a8", "w8a8_static", "w4a8")


def mlp() -> Any:
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)).eval()


def data(count: int = 3) -> list[torch.Tensor]:
    return [torch.randn(5, 32) for _ in range(count)]


def snapshot(model: nn.Module):
    """Everything about a model that a failed call must leave alone."""
    modules = {
        name: (module, module.training, set(module._modules)) for name, module in model.named_modules()
    }
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    plans = [name for name, module in model.named_modules() if hasattr(module, "quantization_plan")]
    return (
        modules,
        hooks,
        plans,
        {key: value.clone() for key, value in model.state_dict().items() if value.numel()},
    )


def assert_unchanged(model: nn.Module, before) -> None:
    modules, hooks, plans, state = snapshot(model)
    assert (modules, hooks, plans) == before[:3]
    assert state.keys() == before[3].keys()
    assert all(torch.equal(state[key].nan_to_num(), before[3][key].nan_to_num()) for key in state)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantize_in_place(scheme, dtype):
    model = mlp().to(dtype)
    x = torch.randn(7, 32).to(dtype)
    expected = model(x).float()
    assert tritonq.quantize_(model, scheme, calibration=[x]) is model
    found = model(x)
    assert found.dtype == dtype
    error = (found.float() - expected).norm() / expected.norm()
    assert error < (0.2 if scheme.startswith("w4") else 0.03)
    assert all(not hasattr(module, "quantization_plan") for module in model.modules())


@pytest.mark.parametrize("way", ["prepare", "quantize_dynamic"])
def test_copies_leave_the_model_alone(way):
    model = mlp()
    before = snapshot(model)
    if way == "prepare":
        prepared = tritonq.prepare(model, "w8a8_static")
        prepared(data()[0])
        before_convert = snapshot(prepared)
        quantized = tritonq.convert(prepared)
        assert_unchanged(prepared, before_convert)
        assert tritonq.convert(prepared, inplace=True) is prepared
    else:
        quantized = tritonq.quantize_dynamic(model)
    assert isinstance(quantized[0], QuantizedLinear)
    assert_unchanged(model, before)
    assert tritonq.quantize_dynamic(model, inplace=True) is model
    assert isinstance(model[0], QuantizedLinear)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_prepare_and_convert_is_quantize(scheme):
    model, batches = mlp(), data()
    prepared = tritonq.prepare(model, scheme)
    for batch in batches:
        assert torch.equal(prepared(batch), model(batch))
    converted = tritonq.convert(prepared)
    quantized = tritonq.quantize_(model, scheme, calibration=batches)
    assert torch.equal(converted(batches[0]), quantized(batches[0]))


def test_hooks_and_their_handles_survive():
    model = mlp()
    calls: list[str] = []
    handles = [
        model[0].register_forward_pre_hook(lambda module, args: calls.append("pre")),
        model[0].register_forward_pre_hook(
            lambda module, args, kwargs: calls.append("pre kw"), with_kwargs=True
        ),
        model[0].register_forward_hook(lambda module, args, out: calls.append("post")),
        model[0].register_forward_hook(
            lambda module, args, kwargs, out: calls.append("post kw"), with_kwargs=True
        ),
        model[0].register_forward_hook(lambda module, args, out: calls.append("always"), always_call=True),
        model[0].register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward")),
        model[0].register_full_backward_pre_hook(lambda module, grad_out: calls.append("pre backward")),
    ]
    tritonq.quantize_(model, "w8a16")
    calls.clear()
    model(data()[0].requires_grad_()).sum().backward()
    assert calls == ["pre", "pre kw", "post", "post kw", "always", "pre backward", "backward"]
    for handle in handles:
        handle.remove()
    calls.clear()
    model(data()[0])
    assert calls == []


def test_observers_see_what_the_quantized_layer_will_see():
    model = mlp()
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 100,))
    model[0].register_forward_hook(lambda module, args, out: out / 100)
    x = data()[0]
    expected = model(x)
    tritonq.quantize_(model, "w8a8_static", calibration=[x])
    assert float(model[0].input_scale) * 255 == pytest.approx(100 * float(x.max() - x.min()), rel=1e-5)
    assert (model(x) - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8_static"])
def test_training_flags_survive(scheme):
    model: Any = nn.Sequential(nn.Linear(32, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[0].eval()
    running = model[2].running_mean.clone()
    flags = [module.training for module in model.modules()]
    tritonq.quantize_(model, scheme, calibration=data())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(model[2].running_mean, running)


def test_layers_are_freed_one_by_one():
    model: Any = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    alive = [weakref.ref(layer) for layer in model]
    seen = []
    original: Any = QuantizedLinear.from_float

    def counting(cls, linear, *arguments, **words):
        gc.collect()
        seen.append(sum(reference() is not None for reference in alive))
        return original(linear, *arguments, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuantizedLinear, "from_float", classmethod(counting))
        tritonq.quantize_(model, "w8a8_static", calibration=[torch.randn(2, 8)])
    assert seen == [4, 3, 2, 1]
    gc.collect()
    assert all(reference() is None for reference in alive)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_last_layer_leaves_the_first_alone(scheme, bad):
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 4] = bad
    before = snapshot(model)
    for function in (tritonq.quantize_, tritonq.prepare):
        words = {"calibration": data()} if function is tritonq.quantize_ else {"inplace": True}
        with pytest.raises(ValueError, match=r"Linear '2': weight must be finite, found 1 NaN or Inf"):
            function(model, scheme, **words)
        assert_unchanged(model, before)


def test_weights_that_went_bad_after_prepare():
    prepared = tritonq.prepare(mlp(), "w8a8_static")
    prepared(data()[0])
    with torch.no_grad():
        prepared[2].weight[0, 0] = float("nan")
    before = snapshot(prepared)
    with pytest.raises(ValueError, match="Linear '2': weight must be finite"):
        tritonq.convert(prepared, inplace=True)
    assert_unchanged(prepared, before)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken model")


def test_a_model_that_raises_during_calibration_is_as_it_was():
    model: Any = nn.Sequential(nn.Linear(32, 8), Failing()).train()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="broken model"):
        tritonq.quantize_(model, "w8a8_static", calibration=data())
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("calibration", "kind", "message"),
    [
        (None, ValueError, "0 has a static config and needs calibration batches, found calibration=None"),
        ([], ValueError, "at least one batch, found none"),
        (iter([]), ValueError, "at least one batch, found none"),
        (torch.randn(3, 32), TypeError, "iterable of batches .*found Tensor"),
        ({"input": torch.randn(3, 32)}, TypeError, "iterable of batches .*found dict"),
        (7, TypeError, "iterable of batches .*found int"),
        ("text", TypeError, "iterable of batches .*found str"),
        ([torch.randn(3, 32), 7], TypeError, "calibration batch 1 must be a tensor, .*found int"),
        (
            [torch.full((3, 32), float("nan"))],
            ValueError,
            "0: MinMaxObserver needs finite data, found NaN or Inf",
        ),
        ([torch.randn(0, 32)], ValueError, "2 of 2 layers have observed no data: 0, 2"),
    ],
)
def test_bad_calibration(calibration, kind, message):
    model = mlp()
    before = snapshot(model)
    with pytest.raises(kind, match=message):
        tritonq.quantize_(model, "w8a8_static", calibration=calibration)
    assert_unchanged(model, before)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 8)

    def forward(self, x, factor=1.0):
        return self.fc(input=x * factor)


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: x,
        lambda x: (x, 1.0),
        lambda x: [x, 1.0],
        lambda x: {"factor": 1.0, "x": x},
        lambda x: UserDict(x=x),
    ],
)
def test_forms_of_a_batch(batch):
    x = data()[0]
    model: Any = TwoInputs()
    tritonq.quantize_(model, "w8a8_static", calibration=(batch(x) for _ in range(2)))
    assert float(model.fc.input_scale) * 255 == pytest.approx(float(x.max() - x.min()), rel=1e-5)


def test_calibration_runs_without_gradients_and_in_eval_mode():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    tritonq.quantize_(nn.Sequential(nn.Linear(32, 8), Spy()).train(), "w8a8_static", calibration=data(1))
    assert seen == [(False, False)]


def test_other_schemes_leave_calibration_untouched():
    batches = iter(data(1))
    tritonq.quantize_(mlp(), "w8a8", calibration=batches)
    assert len(list(batches)) == 1


def test_mixed_precision():
    model: Any = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    x = data()[0]
    expected = model(x)
    tritonq.quantize_(
        model, {"0": "w8a8_static", "1": "w4a16", "2": None, "_default": "w8a8"}, calibration=[x]
    )
    schemes = [getattr(layer, "config", None) and layer.config.scheme for layer in model]
    assert schemes == ["w8a8_static", "w4a16", None, "w8a8"]
    assert (model(x) - expected).norm() / expected.norm() < 0.2


def test_convert_before_calibration():
    prepared = tritonq.prepare(mlp(), "w8a8_static")
    before = snapshot(prepared)
    with pytest.raises(ValueError, match=r"2 of 2 layers have observed no data: 0, 2; run calibration"):
        tritonq.convert(prepared, inplace=True)
    assert_unchanged(prepared, before)
    quantized = tritonq.convert(prepared, unobserved="dynamic")
    assert [quantized[0].config.scheme, quantized[2].config.scheme] == ["w8a8", "w8a8"]
    assert quantized[0].config.activation.symmetric is False
    x = data()[0]
    assert (quantized(x) - prepared(x)).norm() / prepared(x).norm() < 0.03


class Experts(nn.Module):
    """A branch that calibration may never take."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(32, 8), nn.Linear(32, 8)])

    def forward(self, x, which=0):
        return self.experts[which](x)


def test_a_branch_without_data():
    model: Any = Experts()
    with pytest.raises(ValueError, match=r"1 of 2 layers have observed no data: experts\.1"):
        tritonq.quantize_(model, "w8a8_static", calibration=data())
    prepared = tritonq.prepare(model, "w8a8_static")
    prepared(data()[0])
    quantized = tritonq.convert(prepared, unobserved="dynamic")
    assert [expert.config.scheme for expert in quantized.experts] == ["w8a8_static", "w8a8"]
    quantized(data()[0], 1)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: tritonq.convert(mlp()),
            ValueError,
            "needs a model from prepare, found one with no prepared layer",
        ),
        (
            lambda: tritonq.convert(cast(Any, "model")),
            TypeError,
            "model must be a torch.nn.Module, found str",
        ),
        (
            lambda: tritonq.convert(tritonq.prepare(mlp(), "w8a8"), unobserved="skip"),
            ValueError,
            "unobserved must be 'error' or 'dynamic', found 'skip'",
        ),
        (
            lambda: tritonq.convert(mlp(), inplace=cast(bool, 1)),
            TypeError,
            "inplace must be True or False, found 1",
        ),
        (lambda: tritonq.prepare(mlp()), ValueError, "needs a config, or a model with qconfig attributes"),
        (
            lambda: tritonq.prepare(tritonq.prepare(mlp(), "w8a8"), "w8a8"),
            ValueError,
            "the model is already prepared \\(0, …\\): convert it",
        ),
        (
            lambda: tritonq.quantize_(tritonq.prepare(mlp(), "w8a8"), "w8a8"),
            ValueError,
            "model is already prepared",
        ),
        (
            lambda: tritonq.quantize_(mlp(), tritonq.W8A8Static(observer="median"), calibration=data()),
            ValueError,
            "0: observer must be one of minmax, .*found 'median'",
        ),
        (
            lambda: tritonq.quantize_dynamic(mlp(), dtype=torch.float16),
            ValueError,
            "must be torch.qint8 or torch.quint8, found torch.f",
        ),
        (lambda: tritonq.quantize_dynamic(mlp(), 3), TypeError, "qconfig_spec must be a set .*found 3"),
        (
            lambda: tritonq.quantize_dynamic(mlp(), {3}),
            TypeError,
            "a key must be a module's class or name, found 3",
        ),
        (
            lambda: tritonq.quantize_dynamic(mlp(), {nn.Linear: tritonq.default_qconfig}),
            ValueError,
            "must be dynamic, found w8a8_static",
        ),
    ],
)
def test_refusals(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_prepared_models_copy_and_pickle():
    x = data()[0]
    prepared = tritonq.prepare(mlp(), "w8a8_static")
    prepared(x)
    expected = tritonq.convert(prepared)(x)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(tritonq.convert(other)(x), expected)


def test_calibration_can_be_saved_and_loaded():
    x = data()[0]
    model = mlp()
    prepared = tritonq.prepare(model, "w8a8_static")
    prepared(x)
    fresh = tritonq.prepare(model, "w8a8_static")
    fresh.load_state_dict(prepared.state_dict())
    assert torch.equal(tritonq.convert(fresh)(x), tritonq.convert(prepared)(x))


def test_a_moving_average_gives_other_scales():
    batches = [torch.randn(5, 32), 10 * torch.randn(5, 32)]
    plain = tritonq.quantize_(mlp(), "w8a8_static", calibration=batches)
    config = tritonq.W8A8Static(observer="moving_average_minmax")
    averaged = tritonq.quantize_(mlp(), config, calibration=batches)
    assert averaged[0].input_scale < plain[0].input_scale / 2


def test_track_passes_items_on(capsys):
    assert list(track([1, 2, 3], "Counting")) == [1, 2, 3]
    assert list(track((item for item in "ab"), "Counting")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_track_draws_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track([1, 2, 3], "Counting")) == [1, 2, 3]
    assert "Counting" in capsys.readouterr().err


def test_calibration_data_on_another_device():
    model = nn.Sequential(nn.Linear(4, 4))
    batches = [torch.randn(2, 4), torch.randn(2, 4, device="meta")]
    with pytest.raises(
        ValueError, match="calibration batch 1 must be on cpu, where the model is, found meta"
    ):
        tritonq.quantize_(model, "w8a8_static", calibration=batches)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("config", ["w4a16", "w8a8_static"])
def test_a_weight_is_searched_for_nan_once(config, monkeypatch):
    isfinite, searched = torch.isfinite, []

    def counting(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (13, 37):
            searched.append(tensor)
        return isfinite(tensor)

    monkeypatch.setattr(torch, "isfinite", counting)
    calibration = [torch.randn(3, 37)]
    tritonq.quantize_(nn.Sequential(nn.Linear(37, 13)), config, calibration=calibration)
    assert len(searched) == 1
    prepared = tritonq.prepare(nn.Sequential(nn.Linear(37, 13)), config)
    prepared(calibration[0])
    tritonq.convert(prepared)
    assert len(searched) == 3  # in prepare and in convert: the weight may have changed in between
