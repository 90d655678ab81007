"""The introductory example: its errors, and torch's own quantization of the same model as oracle."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

EXAMPLE = Path(__file__).parents[1] / "examples" / "introductory_mlp.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("introductory_mlp", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error_of(example, way, cls=None) -> float:
    model = example.float_model(cls or example.MLP)
    batch = torch.randn(1, example.SIZES[0])
    with torch.no_grad():
        expected = model(batch)
        quantized = way(model, batch) if way is example.static else way(model)
        found = quantized(batch)
    assert found.dtype == torch.float32
    return example.relative_error(found, expected)


def test_dynamic(example):
    assert error_of(example, example.dynamic) <= 4.5e-4


def test_static_with_one_stub(example):
    assert error_of(example, example.static) <= 2.4e-3


def test_static_with_a_stub_a_place(example):
    assert error_of(example, example.static, example.MLPWithAStubAPlace) <= 7e-4


def test_w4a16(example):
    assert error_of(example, example.w4a16) <= 3.5e-3


@pytest.mark.parametrize("seed", range(10))
def test_static_over_seeds_and_many_rows(example, seed):
    with torch.no_grad():
        for cls, limit in ((example.MLP, 2.4e-3), (example.MLPWithAStubAPlace, 7e-4)):
            model = example.float_model(cls, seed)
            batch = torch.randn(30, example.SIZES[0])
            assert example.relative_error(example.static(model, batch)(batch), model(batch)) <= limit


def test_the_program_runs(example, capsys):
    example.main()
    printed = capsys.readouterr().out
    for way in ("dynamic", "static", "w4a16"):
        assert f"\n{way}" in "\n" + printed
    assert "QuantizedLinear(in_features=768" in printed


def torch_quantization():
    """torch.ao.quantization, skipping where it or its CPU engine is gone."""
    quantization = pytest.importorskip("torch.ao.quantization")
    if torch.backends.quantized.engine not in ("x86", "fbgemm", "onednn"):
        pytest.skip("torch has no int8 engine for this CPU")
    return quantization


def rows(example) -> Tensor:
    return torch.randn(30, example.SIZES[0])


def test_dynamic_is_no_worse_than_torch(example):
    quantization = torch_quantization()
    model, batch = example.float_model(), rows(example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)(batch)
        ours = example.dynamic(model)(batch)
        expected = model(batch)
    assert example.relative_error(ours, expected) <= 1.1 * example.relative_error(theirs, expected)


def test_static_is_no_worse_than_torch_and_takes_its_stubs(example, monkeypatch):
    quantization = torch_quantization()
    float_model, batch = example.float_model(), rows(example)
    monkeypatch.setattr(example.quantization, "QuantStub", quantization.QuantStub)
    monkeypatch.setattr(example.quantization, "DeQuantStub", quantization.DeQuantStub)
    model = example.MLP().eval()
    model.load_state_dict(float_model.state_dict())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(batch)
        ours = example.static(model, batch)
        model.qconfig = quantization.QConfig(
            activation=quantization.MinMaxObserver.with_args(dtype=torch.quint8),
            weight=quantization.PerChannelMinMaxObserver.with_args(
                dtype=torch.qint8, qscheme=torch.per_channel_symmetric
            ),
        )
        prepared = quantization.prepare(model)
        prepared(batch)
        theirs = quantization.convert(prepared)
        limit = 1.1 * example.relative_error(theirs(batch), expected)
    assert example.relative_error(ours(batch), expected) <= limit
    assert type(ours.quant).__name__ == "Quantize"
    # The same grid at the input: torch's unsigned zero point less 128.
    assert float(ours.quant.scale) == pytest.approx(float(theirs.quant.scale), rel=1e-6)
    assert int(ours.quant.zero_point) == int(theirs.quant.zero_point) - 128
    weight = theirs.linear1.weight()
    codes, scales = weight.int_repr(), weight.q_per_channel_scales()
    assert torch.allclose(ours.linear1.scales[0].double(), scales * (127.5 / 127), rtol=1e-6)
    assert (ours.linear1.int_weight().int() - codes.int()).abs().max() <= 1
