"""A QuantizedLinear's tensors: moved and copied, in state_dict, and loaded either whole or not at all."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.kernel_inputs import FLOATS, assert_same
from tests.support.quantized_layers import SCHEMES, STATIC, K, N, assert_unchanged, quantized, snapshot
from tritonq.nn.linear import QuantizedLinear
from tritonq.numerics import checkpoint_layout, config, int32_words

# --- moving and copying -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_casting_leaves_the_quantized_weight_alone(scheme: str, device: str) -> None:
    layer = quantized(scheme, device)
    before = snapshot(layer)
    for cast, dtype in (
        (nn.Module.half, torch.float16),
        (nn.Module.bfloat16, torch.bfloat16),
        (nn.Module.double, torch.float64),
        (lambda module: module.to(torch.float16), torch.float16),
        (nn.Module.float, torch.float32),
    ):
        cast(layer)
        assert layer.dtype == dtype
        assert layer.weight.dtype == dtype
        assert layer.bias is not None
        assert layer.bias.dtype == dtype
        assert_unchanged(layer, before, but=("bias",))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_autocast_casts_the_input_as_for_linear(scheme: str, device: str) -> None:
    layer = quantized(scheme, device)
    before, x = snapshot(layer), torch.randn(5, K, device=device)
    plain = layer(x.bfloat16())
    cache = torch.zeros(5, N, dtype=torch.bfloat16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_same(layer(x), plain)
        cache.index_copy_(0, torch.arange(5, device=device), layer(x))  # refuses another dtype
        with torch.autocast(device, enabled=False):
            assert layer(x).dtype == torch.float32
    assert_same(cache, plain)
    assert plain.dtype == torch.bfloat16
    assert_unchanged(layer, before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies(scheme: str, device: str) -> None:
    layer = quantized(scheme, device).eval()
    x = torch.randn(5, K, device=device)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    with torch.no_grad():
        layer.packed_weight.zero_()
    for twin in copies:
        assert_same(twin(x), expected)
        assert twin.config == layer.config
        assert not twin.training


def test_the_float_layer_is_not_changed(device: str) -> None:
    linear = nn.Linear(K, N, device=device).eval()
    before = linear.weight.detach().clone()
    layer = QuantizedLinear.from_float(linear, config.W8A16())
    assert layer.bias is linear.bias
    assert not layer.training
    with torch.no_grad():
        linear.weight.zero_()
    torch.testing.assert_close(layer.dequantize(), before, rtol=0, atol=0.001)


# --- state_dict -------------------------------------------------------------------------------------------------------


def expected_tensors(scheme: str, dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """name → (dtype, shape) as the layouts of compressed-tensors say (pack-quantized, int-quantized)."""
    made = SCHEMES[scheme]
    bits, granularity = made.weight.bits, made.weight.granularity
    groups = math.ceil(K / made.weight.resolve_group_size(K))
    per_tensor = granularity == "tensor"
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"bias": (dtype, (N,))}
    tensors["weight_scale"] = (dtype, (1,) if per_tensor else (N, groups))
    if made.weight_only or bits == 4:
        tensors["weight_packed"] = (torch.int32, (N, math.ceil(K * bits / 32)))
        tensors["weight_shape"] = (torch.int64, (2,))
        if not made.weight.symmetric:
            packed = (torch.int32, (math.ceil(N * bits / 32), groups))
            tensors["weight_zero_point"] = (torch.int8, (1,)) if per_tensor else packed
    else:
        tensors["weight"] = (torch.int8, (N, K))
        if not made.weight.symmetric:
            tensors["weight_zero_point"] = (torch.int8, (1,) if per_tensor else (N, 1))
    if made.static:
        tensors["input_scale"] = (torch.float32, (1,))
        if not scheme.endswith("static symmetric"):
            tensors["input_zero_point"] = (torch.int8, (1,))
    return tensors


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_is_the_layout_of_files(scheme: str, dtype: torch.dtype, device: str) -> None:
    layer = quantized(scheme, device, dtype)
    layer(torch.randn(3, K, device=device))  # having run must not show
    state = layer.state_dict()
    assert {name: (t.dtype, tuple(t.shape)) for name, t in state.items()} == expected_tensors(scheme, dtype)
    assert all(tensor.is_contiguous() and tensor.device.type == device for tensor in state.values())
    codes = layer.int_weight()
    if "weight" in state:
        assert_same(state["weight"], codes)
    else:
        assert state["weight_shape"].tolist() == [N, K]
        assert_same(int32_words.unpack_int32(state["weight_packed"], SCHEMES[scheme].weight.bits, K), codes)
    if layer.zero_points is not None:
        zeros = state["weight_zero_point"]
        if zeros.dtype == torch.int32:
            zeros = int32_words.unpack_int32(zeros.t(), SCHEMES[scheme].weight.bits, N)
        assert_same(
            zeros.reshape(-1, 1 if zeros.numel() == 1 else N).expand_as(layer.zero_points), layer.zero_points
        )


def fresh(scheme: str, device: str, dtype: torch.dtype = torch.float32, **options: Any) -> QuantizedLinear:
    made = SCHEMES[scheme]
    return QuantizedLinear(K, N, made, dtype=dtype, device=device, has_input_qparams=made.static, **options)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_fresh_layer_takes_it_and_computes_the_same_bits(scheme: str, assign: bool, device: str) -> None:
    layer = quantized(scheme, device, torch.bfloat16)
    twin = fresh(scheme, "meta" if assign else device, torch.bfloat16)
    twin.load_state_dict(layer.state_dict(), assign=assign)
    x = torch.randn(5, K, device=device).bfloat16()
    assert_same(twin(x), layer(x))
    assert_unchanged(twin, snapshot(layer))


def test_output_qparams_travel_too(device: str) -> None:
    out = (torch.tensor([0.5]), torch.tensor([3], dtype=torch.int8))
    layer = quantized("w8a8_static", device, output_qparams=out)
    twin = fresh("w8a8_static", device, has_output_qparams=True)
    twin.load_state_dict(layer.state_dict())
    assert_unchanged(twin, snapshot(layer))
    assert (layer.state_dict()["output_scale"].item(), layer.state_dict()["output_zero_point"].item()) == (
        0.5,
        3,
    )


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w8a8 affine"])
def test_files_may_hold_the_code_minus_128(scheme: str, device: str) -> None:
    layer = quantized(scheme, device)
    zero = None if layer.zero_points is None else layer.zero_points.t()
    codes = torch.full((N, K), -128, dtype=torch.int8, device=device)
    state = checkpoint_layout.weight_state(SCHEMES[scheme], codes, layer.scales.t(), zero)
    layer.load_state_dict({**layer.state_dict(), **state})
    assert_same(layer.int_weight(), codes)
    assert layer.code_sums is None or (layer.code_sums == -128 * K).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_packed_in_blocks(scheme: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 rows, the last of 2, and of one row where a row is larger than a block."""
    expected = quantized(scheme, device)
    for values in (7 * K + 5, K - 1):
        monkeypatch.setattr("tritonq.nn.packed_weight._BLOCK_VALUES", values)
        twin = fresh(scheme, device)
        twin.load_state_dict(expected.state_dict())
        for name, tensor in expected.named_buffers():
            assert_same(twin.get_buffer(name), tensor)


def test_layers_load_inside_a_model(device: str) -> None:
    model = nn.Sequential(quantized("w4a16", device), nn.ReLU(), nn.Linear(N, 4, device=device))
    twin = nn.Sequential(fresh("w4a16", device), nn.ReLU(), nn.Linear(N, 4, device=device))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(3, K, device=device)
    assert_same(twin(x), model(x))
    assert "0.weight_packed" in model.state_dict()


BROKEN: dict[str, tuple[str, str, Any]] = {
    "missing": ("w4a16", "weight_packed", None),
    "missing bias": ("w4a16", "bias", None),
    "missing scale": ("w8a8", "weight_scale", None),
    "missing input scale": ("w8a8_static", "input_scale", None),
    "unknown": ("w8a16", "weight_codebook", lambda _: torch.zeros(K, dtype=torch.int32)),
    "rows": ("w4a16", "weight_packed", lambda t: t[:-1]),
    "columns": ("w8a8", "weight", lambda t: t[:, :-1]),
    "dtype of codes": ("w8a8", "weight", lambda t: t.int()),
    "dtype of words": ("w4a16", "weight_packed", lambda t: t.long()),
    "dtype of scale": ("w8a16", "weight_scale", lambda t: t.double()),
    "shape of scale": ("w8a16", "weight_scale", lambda t: t.squeeze(1)),
    "groups of scale": ("w4a16", "weight_scale", lambda t: t[:, :1]),
    "scale NaN": ("w4a16", "weight_scale", lambda t: t * math.nan),
    "scale Inf": ("w8a8", "weight_scale", lambda t: t * math.inf),
    "shape": ("w4a16", "weight_shape", lambda t: t.flip(0)),
    "zero points": ("w8a8 affine", "weight_zero_point", lambda t: t.short()),
    "packed zero points": ("w4a16 g24 affine", "weight_zero_point", lambda t: t.t()),
    "input scale 0": ("w8a8_static", "input_scale", lambda t: t * 0),
    "input scale NaN": ("w8a8_static", "input_scale", lambda t: t * math.nan),
    "input zero point": ("w8a8_static", "input_zero_point", lambda t: t.int()),
    "shape of bias": ("w8a8", "bias", lambda t: t[:-1]),
    "dtype of bias": ("w8a8", "bias", lambda t: t.int()),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_loaded_leaves_the_layer_as_it_was(case: str, assign: bool, device: str) -> None:
    scheme, name, change = BROKEN[case]
    layer, other = quantized(scheme, device), quantized(scheme, device)
    state: dict[str, Tensor] = dict(other.state_dict())
    if change is None:
        del state[name]
    else:
        state[name] = change(state.get(name))
    before, x = snapshot(layer), torch.randn(3, K, device=device)
    expected = layer(x)
    with pytest.raises(RuntimeError, match=name):
        layer.load_state_dict(state, assign=assign)
    if case != "unknown":  # torch loads what it knows before it complains of the rest
        assert_unchanged(layer, before)
        assert_same(layer(x), expected)


@pytest.mark.parametrize("scheme", STATIC)
def test_another_schemes_file_is_refused(scheme: str, device: str) -> None:
    layer, other = quantized(scheme, device), quantized("w4a16", device)
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match="weight_packed"):
        layer.load_state_dict(other.state_dict())
    assert_unchanged(layer, before)
