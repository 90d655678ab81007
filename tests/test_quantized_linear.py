"""QuantizedLinear: what it computes, what it takes and refuses, and that nothing but loading changes its codes."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.kernel_inputs import FLOATS, assert_same, with_strides
from tests.support.quantized_layers import (
    SCHEMES,
    STATIC,
    K,
    N,
    assert_unchanged,
    input_qparams,
    quantized,
    snapshot,
)
from tritonq import reference
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.numerics import config
from tritonq.numerics.config import QuantConfig, QuantSpec


def on_the_grid(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The float64 values that the layer's product really sees for x [M, K]."""
    if layer.config.weight_only:
        return x.double()
    assert layer.config.activation is not None
    symmetric = layer.config.activation.symmetric
    if layer.config.dynamic:
        codes, scale, zero = reference.quantize_per_token(x, symmetric)
    else:
        assert layer.input_scale is not None
        assert layer.input_zero_point is not None
        scale, zero = layer.input_scale, layer.input_zero_point
        codes = reference.quantize_per_tensor(x, scale, zero, symmetric)
    return (codes.double() - zero.double()) * scale.double()


# --- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_is_a_product_on_the_grids(scheme: str, dtype: torch.dtype, device: str) -> None:
    layer = quantized(scheme, device, dtype)
    x = torch.randn(17, K, device=device).to(dtype)
    found = layer(x)
    assert found.dtype == dtype
    assert layer.bias is not None
    exact = on_the_grid(layer, x) @ layer.dequantize(torch.float64).t() + layer.bias.double()
    allowed = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}[dtype]
    assert (found.double() - exact).norm() / exact.norm() <= allowed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantizing_loses_little(scheme: str, device: str) -> None:
    """Against the float layer: the weight's codes are those of this weight, in this order."""
    linear = nn.Linear(K, N, device=device)
    layer = QuantizedLinear.from_float(linear, SCHEMES[scheme], input_qparams=input_qparams(scheme))
    layer = layer.to(device)
    x = torch.randn(64, K, device=device).clamp(-3, 3)
    error = ((layer(x) - linear(x)).norm() / linear(x).norm()).item()
    assert error < (0.02 if SCHEMES[scheme].weight.bits == 8 else 0.2)
    weight_error = (layer.dequantize() - linear.weight).norm() / linear.weight.norm()
    assert layer.weight_sqnr is not None
    assert math.isclose(layer.weight_sqnr, -20 * math.log10(weight_error.item()), abs_tol=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_rank_and_any_strides(scheme: str, device: str) -> None:
    layer = quantized(scheme, device)
    rows = torch.randn(24, K, device=device)
    flat = layer(rows)
    for leading in ([2, 3, 4], [24, 1], [4, 6]):
        assert_same(layer(rows.reshape(*leading, K)), flat.reshape(*leading, N))
    one = layer(rows[5])
    assert one.shape == (N,)
    torch.testing.assert_close(one, flat[5], rtol=1e-5, atol=1e-5)
    # A BLAS may sum float products in another order where strides differ; integers leave it no choice.
    slack = 1e-5 if layer.config.weight_only else 0.0
    for strides in ("wide rows", "transposed", "sliced"):
        torch.testing.assert_close(layer(with_strides(rows, strides)), flat, rtol=slack, atol=slack)
    expanded, repeated = layer(rows[:1].expand(24, K)), layer(rows[:1].repeat(24, 1))
    torch.testing.assert_close(expanded, repeated, rtol=slack, atol=slack)
    swapped = rows.reshape(4, 6, K).transpose(0, 1)
    assert_same(layer(swapped), flat.reshape(4, 6, N).transpose(0, 1))
    for empty in ([0], [2, 0], [0, 3]):
        assert layer(torch.empty(*empty, K, device=device)).shape == torch.Size([*empty, N])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_output_has_the_inputs_dtype(scheme: str, device: str) -> None:
    layer = quantized(scheme, device, torch.bfloat16)
    for dtype in FLOATS:
        assert layer(torch.randn(3, K, device=device).to(dtype)).dtype == dtype


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_bias(scheme: str, device: str) -> None:
    layer = quantized(scheme, device, bias=False)
    assert layer.bias is None
    x = torch.zeros(3, K, device=device)
    assert not layer(x).any()
    assert "bias" not in layer.state_dict()


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if SCHEMES[name].dynamic])
def test_rows_that_are_not_finite(scheme: str, device: str) -> None:
    layer = quantized(scheme, device)
    x = torch.randn(5, K, device=device)
    clean = layer(x)
    x[1, 3], x[3, K - 1] = math.inf, math.nan
    found = layer(x)
    assert found[[1, 3]].isnan().all()
    assert_same(found[[0, 2, 4]], clean[[0, 2, 4]])


@pytest.mark.parametrize("scheme", STATIC)
def test_static_layers_hand_on_codes(scheme: str, device: str) -> None:
    out_scale, out_zero = torch.tensor([0.02]), torch.tensor([9], dtype=torch.int8)
    layer = quantized(scheme, device, torch.bfloat16, output_qparams=(out_scale, out_zero))
    symmetric = SCHEMES[scheme].activation == QuantSpec(8, True, "tensor")
    data = torch.randint(-127, 128, (2, 3, K), device=device, dtype=torch.int8)
    x_scale = torch.tensor([0.04], device=device)
    x_zero = torch.tensor([5], dtype=torch.int8, device=device)
    found = layer(QuantizedTensor(data, x_scale, x_zero, torch.bfloat16))
    assert isinstance(found, QuantizedTensor)
    assert found.dtype == torch.bfloat16
    assert (found.scale.item(), found.q_zero_point()) == (out_scale.item(), 9)
    zero = None if layer.zero_points is None else layer.zero_points.t()
    weight = (layer.int_weight(), layer.scales.t(), zero, layer.bias)
    expected = reference.int8_linear_requantize(
        data.reshape(-1, K), x_scale, x_zero, *weight, out_scale.to(device), out_zero.to(device), symmetric
    )
    assert_same(found.data, expected.reshape(2, 3, N))
    # A float input is quantized on the layer's own grid, and comes back as float.
    assert layer(torch.randn(3, K, device=device)).dtype == torch.float32


# --- looking at it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_and_dequantized_weight(scheme: str, device: str) -> None:
    layer = quantized(scheme, device, torch.float16)
    codes, spec = layer.int_weight(), SCHEMES[scheme].weight
    assert (codes.dtype, codes.shape) == (torch.int8, (N, K))
    assert spec.qmin <= codes.min()
    assert codes.max() <= spec.qmax
    group = torch.arange(K, device=device) // layer.group_size
    zero = 0 if layer.zero_points is None else layer.zero_points.t()[:, group].float()
    expected = (codes.float() - zero) * layer.scales.t()[:, group].float()
    assert_same(layer.dequantize(torch.float32), expected)
    assert_same(layer.weight, expected.half())


WRITES = {
    "in place": lambda layer: layer.weight.zero_(),
    "data": lambda layer: layer.weight.data.add_(1),
    "operator": lambda layer: operator.iadd(layer.weight.data, 1),
    "a part": lambda layer: operator.setitem(layer.weight, 0, 1.0),
    "a view": lambda layer: layer.weight.detach()[0].t().mul_(2),
    "new data": lambda layer: setattr(layer.weight, "data", torch.zeros(N, K)),
    "copy": lambda layer: layer.weight.view(-1).copy_(torch.zeros(N * K)),
    "initialized": lambda layer: nn.init.normal_(layer.weight),
    "an output": lambda layer: torch.add(torch.zeros(N, K), 1, out=layer.weight),
    "a tensor": lambda layer: setattr(layer, "weight", torch.zeros(N, K)),
    "a parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(N, K))),
}


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_the_weight_raises(write: str, scheme: str) -> None:
    """As adapters are merged (`layer.weight.data += delta`): it would vanish."""
    layer = quantized(scheme)
    before = snapshot(layer)
    with (
        torch.no_grad(),
        pytest.raises((ValueError, AttributeError), match=r"weight of a .*would vanish|read-only"),
    ):
        WRITES[write](layer)
    assert_unchanged(layer, before)


def test_the_weight_can_be_read() -> None:
    layer = quantized("w8a8")
    weight = layer.weight
    assert (weight.dtype, weight.shape, weight.requires_grad) == (torch.float32, (N, K), False)
    assert type(weight + 1) is Tensor
    assert_same(weight.to(torch.float16), layer.dequantize().half())
    x = torch.randn(2, K, requires_grad=True)
    nn.functional.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand(2, K))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_have_the_names_of_files(scheme: str) -> None:
    """Frozen, a floating-point one first, no dtype that collective operations do not know, and nothing else."""
    layer = quantized(scheme, dtype=torch.bfloat16)
    layer(torch.randn(3, K))
    parameters = dict(layer.named_parameters())
    stored = {name: t for name, t in layer.state_dict().items() if not name.startswith("input_")}
    assert parameters.keys() == stored.keys()
    assert [name for name, parameter in parameters.items() if parameter.requires_grad] == ["bias"]
    assert next(layer.parameters()).dtype == torch.bfloat16
    for name, parameter in parameters.items():
        if name != "weight_zero_point":
            assert parameter.dtype == stored[name].dtype
        assert parameter.dtype != torch.int16
    assert {b.dtype for b in layer.buffers()} <= {torch.float32, torch.int32, torch.int8}
    assert sum(b.nbytes for b in layer.buffers()) <= 4 * N + 10  # of the weight only the sums of codes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_its_description_names_the_scheme(scheme: str) -> None:
    text = repr(quantized(scheme))
    made = SCHEMES[scheme]
    wanted = [f"in_features={K}", f"out_features={N}", "bias=True", f"scheme={made.scheme}"]
    wanted += [f"granularity={made.weight.granularity}", f"symmetric={made.weight.symmetric}"]
    if made.weight.granularity == "group":
        wanted.append(f"group_size={made.weight.resolve_group_size(K)}")
    for word in wanted:
        assert word in text


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "kind", "words"),
    [
        (torch.zeros(3, K + 1), ValueError, [str(K), f"[3, {K + 1}]"]),
        (torch.zeros(K, 3), ValueError, [str(K), f"[{K}, 3]"]),
        (torch.zeros(()), ValueError, [str(K), "[]"]),
        (torch.zeros(3, K, dtype=torch.float64), TypeError, ["float32, float16 or bfloat16", "float64"]),
        (torch.zeros(3, K, dtype=torch.int8), TypeError, ["float32, float16 or bfloat16", "int8"]),
        (torch.zeros(3, K, dtype=torch.int64), TypeError, ["float32, float16 or bfloat16", "int64"]),
        (torch.zeros(3, K, dtype=torch.bool), TypeError, ["float32, float16 or bfloat16", "bool"]),
        ([0.0] * K, TypeError, ["float32, float16 or bfloat16", "list"]),
        (None, TypeError, ["float32, float16 or bfloat16", "NoneType"]),
        (torch.zeros(3, K, device="meta"), ValueError, ["is on cpu", "meta"]),
    ],
)
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w8a8", "w8a8_static", "w4a8"])
def test_inputs_it_refuses(scheme: str, x: Any, kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as error:
        quantized(scheme)(x)
    for word in ["'layers.0'", *words]:
        assert word in str(error.value)


def test_a_quantized_tensor_where_none_is_taken() -> None:
    x = QuantizedTensor(
        torch.zeros(3, K, dtype=torch.int8), torch.ones(1), torch.zeros(1, dtype=torch.int8), torch.float32
    )
    for scheme in ("w8a16", "w4a16", "w4a8"):
        with pytest.raises(TypeError, match=r"layers\.0.*QuantizedTensor.*DeQuantStub"):
            quantized(scheme)(x)
    with pytest.raises(TypeError, match=r"layers\.0.*QuantStub"):
        quantized("w8a8_static", input_qparams=None)(torch.zeros(3, K))


def test_layers_it_refuses() -> None:
    def refused(linear: nn.Linear, kind: type[Exception], *words: str) -> None:
        with pytest.raises(kind) as error:
            QuantizedLinear.from_float(linear, config.W8A16(), name="lm_head")
        for word in ("'lm_head'", *words):
            assert word in str(error.value)

    broken = nn.Linear(8, 8)
    with torch.no_grad():
        broken.weight[0, 0], broken.weight[1, 1] = math.nan, math.inf
    refused(broken, ValueError, "weight must be finite", "2")
    broken = nn.Linear(8, 8)
    with torch.no_grad():
        assert broken.bias is not None
        broken.bias[3] = -math.inf
    refused(broken, ValueError, "bias must be finite", "1")
    refused(nn.Linear(8, 8).double(), TypeError, "float32, float16 or bfloat16", "float64")
    refused(nn.Linear(8, 8, device="meta"), ValueError, "meta")


@pytest.mark.parametrize(
    ("made", "limit"),
    [
        (config.W8A8(), 131_071),
        (config.W4A8(), 131_071),
        (config.W8A8(activation_symmetric=False), 65_793),
        (config.W8A8Static(), 65_793),
        (config.W8A8(symmetric=False, activation_symmetric=False), 33_025),
    ],
)
def test_the_largest_in_features(made: QuantConfig, limit: int) -> None:
    qparams = (torch.ones(1), torch.zeros(1, dtype=torch.int8)) if made.static else None
    QuantizedLinear.from_float(nn.Linear(limit, 1), made, input_qparams=qparams)
    with pytest.raises(ValueError, match=f"at most {limit:,}.*found {limit + 1:,}"):
        QuantizedLinear.from_float(nn.Linear(limit + 1, 1), made, input_qparams=qparams)


def test_float_activations_have_no_such_limit() -> None:
    QuantizedLinear.from_float(nn.Linear(131_072 + 5, 1), config.W8A16())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_input_may_be_named_and_the_layer_be_made_in_inference_mode(scheme: str, device: str) -> None:
    x = torch.randn(3, K, device=device)
    with torch.inference_mode():
        layer = quantized(scheme, device)
    assert_same(layer(input=x), layer(x))


def test_from_float_takes_names_and_says_what_it_misses() -> None:
    linear = nn.Linear(K, N)
    assert QuantizedLinear.from_float(linear, "w4a16").config == config.W4A16()
    with pytest.raises(
        ValueError, match="Linear 'fc': weight must hold values, found LazyLinear before its first input"
    ):
        QuantizedLinear.from_float(nn.LazyLinear(N), "w8a16", name="fc")


def test_a_bias_that_is_not_finite_is_not_loaded() -> None:
    layer = QuantizedLinear.from_float(nn.Linear(K, N), "w8a16")
    state = layer.state_dict()
    before = state["bias"].clone()
    state["bias"] = torch.full((N,), torch.nan)
    with pytest.raises(RuntimeError, match="bias must be finite"):
        layer.load_state_dict(state)
    assert torch.equal(layer.state_dict()["bias"], before)
