"""The static flow: what is observed, and int8 handed from layer to layer between QuantStub and DeQuantStub."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tritonq import DeQuantStub, QuantizedLinear, QuantizedTensor, QuantStub, QuantWrapper
from tritonq.nn.stubs import DeQuantize, Quantize
from tritonq.numerics.config import QuantSpec

STATIC = tritonq.W8A8Static()


class Chain(nn.Module):
    """quant → fc1 → relu → flatten → dropout → fc2 → dequant → head (float)"""

    def __init__(self) -> None:
        super().__init__()
        self.quant = QuantStub()
        self.fc1 = nn.Linear(16, 12)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout()
        self.fc2 = nn.Linear(24, 8)
        self.dequant = DeQuantStub()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.fc1(self.quant(x)))
        x = self.dropout(self.flatten(x))
        return self.head(self.dequant(self.fc2(x)))


def chain() -> Any:
    return Chain().eval()


def relative_error(found, expected) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def record_types(model: nn.Module, x) -> dict[str, str]:
    types = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: types.update({name: type(out).__name__}))
        for name, module in model.named_modules()
        if name
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return types


def observed(model: nn.Module) -> dict[str, str]:
    return {
        name: module.quantization_plan.observes
        for name, module in model.named_modules()
        if hasattr(module, "quantization_plan")
    }


def test_with_stubs_outputs_are_observed():
    prepared = tritonq.prepare(chain(), {"head": None, "_default": STATIC})
    assert observed(prepared) == {"quant": "output", "fc1": "output", "fc2": "output"}
    x = 3 * torch.randn(6, 2, 16)
    model = chain()
    model.load_state_dict(
        {k: v for k, v in prepared.state_dict().items() if "activation_post_process" not in k}
    )
    assert torch.equal(prepared(x), model(x))
    assert prepared.quant.activation_post_process.max_val == x.max()
    assert prepared.fc1.activation_post_process.min_val == model.fc1(x).min()


def test_without_stubs_inputs_are_observed():
    model: Any = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    prepared = tritonq.prepare(model, STATIC)
    assert observed(prepared) == {"0": "input", "2": "input"}
    x = torch.randn(6, 16)
    prepared(x)
    assert prepared[2].activation_post_process.min_val == 0
    quantized = tritonq.convert(prepared, chain=False)
    assert quantized[0].output_scale is None
    assert torch.equal(quantized[0].input_scale, prepared[0].activation_post_process.calculate_qparams()[0])
    assert set(record_types(quantized, x).values()) == {"Tensor"}


def test_int8_flows_from_stub_to_stub():
    model = chain()
    x = torch.randn(6, 2, 16)
    expected = model(x)
    quantized = tritonq.quantize_(model, {"head": None, "_default": STATIC}, calibration=[x])
    assert quantized is model
    assert isinstance(model.quant, Quantize)
    assert isinstance(model.dequant, DeQuantize)
    assert model.fc1.input_scale is None
    types = record_types(model, x)
    int8 = {name for name, kind in types.items() if kind == "QuantizedTensor"}
    assert int8 == {"quant", "fc1", "relu", "flatten", "dropout", "fc2"}
    assert relative_error(model(x), expected) < 0.02


def test_what_a_layer_hands_on_is_the_float_result_on_its_grid():
    model: Any = nn.Sequential(QuantStub(), nn.Linear(16, 12), nn.Linear(12, 8), DeQuantStub())
    x = torch.randn(64, 16)
    tritonq.quantize_(model, STATIC, calibration=[x])
    q = model[0](x)
    for layer in (model[1], model[2]):
        out = layer(q)
        assert isinstance(out, QuantizedTensor)
        exact = q.dequantize().double() @ layer.dequantize().double().t() + layer.bias.double()
        low, high = ((limit - out.q_zero_point()) * out.scale.double() for limit in (-128, 127))
        exact = exact.clamp(float(low), float(high))  # the observer saw float weights
        error = (out.dequantize().double() - exact).abs().max()
        assert error <= 0.5001 * float(out.scale)  # no more than rounding
        q = out


def test_the_dtype_it_stands_for_comes_back():
    model = chain().to(torch.bfloat16)
    x = torch.randn(6, 2, 16).bfloat16()
    expected = model(x)
    tritonq.quantize_(model, STATIC, calibration=[x], ignore=["head"])
    assert model(x).dtype == torch.bfloat16
    assert relative_error(model(x).float(), expected.float()) < 0.05
    assert model.fc1.output_scale.dtype == torch.float32


def test_one_stub_in_many_places_observes_them_all():
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = QuantStub(), DeQuantStub()
            self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.dequant(self.fc1(self.quant(x)))
            return self.dequant(self.fc2(self.quant(10 * x)))

    model: Any = Reused()
    prepared = tritonq.prepare(model, STATIC)
    x = torch.randn(32, 8)
    prepared(x)
    high = torch.maximum(x.max(), 10 * model.fc1(x).max())
    assert prepared.quant.activation_post_process.max_val == high
    assert relative_error(tritonq.convert(prepared)(x), model(x)) < 0.05


def test_a_float_tensor_where_int8_is_expected_names_quantstub():
    model: Any = nn.Sequential(QuantStub(), nn.Linear(8, 8), DeQuantStub(), nn.Linear(8, 8)).eval()
    x = torch.randn(4, 8)
    tritonq.quantize_(model, STATIC, calibration=[x])
    with pytest.raises(TypeError, match=r"'3'.*found a float tensor: put a QuantStub"):
        model(x)


def test_int8_where_float_is_expected_names_dequantstub():
    model: Any = nn.Sequential(QuantStub(), nn.Linear(8, 8), nn.Sigmoid())
    tritonq.quantize_(model, STATIC, calibration=[torch.randn(4, 8)])
    with pytest.raises(TypeError, match=r"sigmoid.*DeQuantStub"):
        model(torch.randn(4, 8))


def test_a_dynamic_layer_takes_int8_and_returns_float():
    model: Any = nn.Sequential(QuantStub(), nn.Linear(8, 8), nn.Linear(8, 8), DeQuantStub())
    x = torch.randn(64, 8)
    expected = model(x)
    tritonq.quantize_(model, {"2": "w8a8", "_default": STATIC}, calibration=[x])
    assert record_types(model, x) == {
        "0": "QuantizedTensor",
        "1": "QuantizedTensor",
        "2": "Tensor",
        "3": "Tensor",
    }
    assert relative_error(model(x), expected) < 0.05


def test_stubs_stay_where_nothing_is_static():
    for scheme in ("w8a16", "w8a8"):
        model = tritonq.quantize_(chain(), scheme)
        assert isinstance(model.quant, QuantStub)
        assert isinstance(model.dequant, DeQuantStub)
        model(torch.randn(2, 2, 16))


def test_which_config_a_stub_gets():
    symmetric = tritonq.W8A8Static(activation_symmetric=True)

    def symmetric_stub(config) -> bool | None:
        plan = getattr(tritonq.prepare(chain(), config).quant, "quantization_plan", None)
        return None if plan is None else plan.config.activation.symmetric

    assert symmetric_stub(STATIC) is False
    assert symmetric_stub({"fc1": symmetric, "fc2": symmetric}) is True
    assert symmetric_stub({"fc1": symmetric, "_default": STATIC}) is False
    assert symmetric_stub({"fc1": symmetric, "_default": "w4a16"}) is True
    assert symmetric_stub({"quant": symmetric, "_default": STATIC}) is True
    assert symmetric_stub({QuantStub: symmetric, "_default": STATIC}) is True
    assert symmetric_stub({"quant": None, "_default": STATIC}) is None
    with pytest.raises(
        ValueError, match="QuantStub 'quant': the static layers have 2 different activation specs"
    ):
        symmetric_stub({"fc1": symmetric, "fc2": STATIC})


def test_a_model_whose_stub_is_switched_off_is_one_without_stubs():
    prepared = tritonq.prepare(chain(), STATIC, ignore=["quant"])
    assert set(observed(prepared).values()) == {"input"}
    x = torch.randn(4, 2, 16)
    expected = prepared(x)
    assert relative_error(tritonq.convert(prepared)(x), expected) < 0.05


def test_wrapper():
    inner: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    model = QuantWrapper(inner)
    assert not model.training
    x = torch.randn(16, 8)
    expected = model(x)
    assert relative_error(tritonq.quantize_(model, STATIC, calibration=[x])(x), expected) < 0.03


class Branches(nn.Module):
    """Two expert branches, each with a chain of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)
        )

    def forward(self, x, which=0):
        return self.dequant(self.experts[which](self.quant(x)))


def test_unobserved_branch_between_stubs():
    model: Any = Branches()
    x = torch.randn(64, 8)
    prepared = tritonq.prepare(model, STATIC)
    prepared(x)
    with pytest.raises(
        ValueError, match=r"2 of 5 layers have observed no data: experts\.1\.0, experts\.1\.2"
    ):
        tritonq.convert(prepared)
    quantized = tritonq.convert(prepared, unobserved="dynamic")
    assert isinstance(quantized.quant, Quantize)
    for which in (0, 1):
        assert relative_error(quantized(x, which), model(x, which)) < 0.05


def test_everything_unobserved_between_stubs():
    model = chain()
    quantized = tritonq.convert(tritonq.prepare(model, STATIC), unobserved="dynamic")
    assert isinstance(quantized.quant, QuantStub)
    assert isinstance(quantized.dequant, DeQuantStub)
    x = torch.randn(4, 2, 16)
    assert relative_error(quantized(x), model(x)) < 0.05


def test_two_inputs_of_different_range_saturate_rather_than_wrap():
    model: Any = nn.Sequential(QuantStub(), nn.Linear(8, 8), DeQuantStub())
    x = torch.randn(32, 8)
    tritonq.quantize_(model, STATIC, calibration=[x])
    far = model[0](torch.tensor([[1e9, -1e9, float("inf"), -float("inf"), float("nan"), 0, 0, 0]]))
    zero = model[0].zero_point.item()
    assert far.data.tolist() == [[127, -128, 127, -128, zero, zero, zero, zero]]


def test_hooks_on_stubs_survive():
    model = chain()
    kinds = []
    model.quant.register_forward_hook(lambda module, args, out: kinds.append(type(out).__name__))
    model.dequant.register_forward_pre_hook(lambda module, args: kinds.append(type(args[0]).__name__))
    x = torch.randn(2, 2, 16)
    tritonq.quantize_(model, STATIC, calibration=[x])
    kinds.clear()
    with pytest.raises(TypeError, match="QuantStub"):  # the head is static too, and fed float
        model(x)
    assert kinds == ["QuantizedTensor", "QuantizedTensor"]


def test_observer_range_of_a_qconfig_reaches_the_grid():
    config = tritonq.QConfig(
        activation=tritonq.MinMaxObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=127),
        weight=tritonq.MinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-128, quant_max=127
        ),
    )
    model: Any = nn.Sequential(nn.Linear(8, 8))
    x = torch.randn(32, 8)
    weight = model[0].weight.detach().clone()
    tritonq.quantize_(model, config, calibration=[x])
    layer = model[0]
    assert layer.config.weight.granularity == "tensor"
    assert layer.config.activation == QuantSpec(8, False, "tensor", observer=config.activation)
    assert float(layer.input_scale) == pytest.approx(float(x.max() - x.min()) / 127, rel=1e-6)
    assert float(layer.scales.flatten()[0]) == pytest.approx(float(weight.abs().max()) / 127.5, rel=1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_flow_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    model, x = chain(), torch.randn(6, 2, 16)
    tritonq.quantize_(model, STATIC, calibration=[x], ignore=["head"])
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend=backend, fullgraph=True)(x), model(x))


def test_repr_says_what_is_handed_on():
    model = chain()
    tritonq.quantize_(model, STATIC, calibration=[torch.randn(2, 2, 16)], ignore=["head"])
    assert isinstance(model.fc1, QuantizedLinear)
    assert "hands_over=int8" in repr(model.fc1)
    assert "Quantize(scale=" in repr(model)


def test_a_gradient_that_comes_back_to_a_stub_is_refused() -> None:
    model = nn.Sequential(tritonq.QuantStub(), nn.Linear(8, 4), tritonq.DeQuantStub())
    x = torch.randn(3, 8)
    q = tritonq.quantize_(model, "w8a8_static", calibration=[x])
    with pytest.raises(NotImplementedError, match="train the float model"):
        q(x.requires_grad_()).sum().backward()
