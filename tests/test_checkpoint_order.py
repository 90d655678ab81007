"""Activation order: groups whose columns do not lie side by side (weight_g_idx), in layers and in checkpoints."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.checkpoints import Block, load, quantized, read_config, read_tensors, refuse, write_tensors
from tests.support.kernel_inputs import assert_same
from tritonq import checkpoint
from tritonq.nn import QuantizedLinear
from tritonq.numerics import qparams
from tritonq.numerics.config import W4A8, W4A16, W8A16, QuantConfig

N, K = 30, 100
SCHEMES: dict[str, QuantConfig] = {
    "w4a16": W4A16(group_size=25),
    "w4a16 affine, shorter last group": W4A16(group_size=32, symmetric=False),
    "w8a16": W8A16(group_size=10),
    "w4a8": W4A8(group_size=20),
}


def shuffled(columns: int, group_size: int) -> Tensor:
    """A weight_g_idx: every group has its `group_size` columns, the last one the rest, anywhere."""
    return (torch.arange(columns, dtype=torch.int32) // group_size)[torch.randperm(columns)]


def ordered(layer: QuantizedLinear) -> tuple[QuantizedLinear, Tensor]:
    """The layer with the same codes, scales and zero points, and columns that belong to other groups."""
    groups = shuffled(layer.in_features, layer.group_size)
    state = {**layer.state_dict(), "weight_g_idx": groups}
    layer = copy.deepcopy(layer)
    layer.load_state_dict(state)
    return layer, groups


def make(scheme: str, device: str) -> tuple[QuantizedLinear, QuantizedLinear, Tensor]:
    """(a layer whose groups are runs of columns, the same with other groups, weight_g_idx)."""
    plain = QuantizedLinear.from_float(nn.Linear(K, N, device=device), SCHEMES[scheme])
    return (plain, *ordered(plain))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_column_has_its_groups_scale(scheme: str, device: str) -> None:
    plain, layer, groups = make(scheme, device)
    columns = groups.long()
    assert_same(layer.int_weight(), plain.int_weight())
    zero = None if layer.zero_points is None else layer.zero_points.t()[:, columns]
    expected = qparams.dequantize(plain.int_weight(), layer.scales.t()[:, columns], zero, torch.float32)
    assert_same(layer.dequantize(), expected)
    assert layer.weight_bytes == plain.weight_bytes + 4 * K
    assert "activation_order=True" in repr(layer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_is_that_of_the_dequantized_weight(scheme: str, device: str) -> None:
    _, layer, _ = make(scheme, device)
    x = torch.randn(2, 3, K, device=device, requires_grad=layer.config.weight_only)
    rows = x
    if not layer.config.weight_only:  # what is multiplied is the input on its int8 grid
        scale = qparams.symmetric_scale(x.abs().amax(-1, keepdim=True), -127, 127)
        rows = qparams.dequantize(qparams.quantize(x, scale, None, -127, 127), scale, None, torch.float32)
    out, expected = layer(x), functional.linear(rows, layer.dequantize(), layer.bias)
    assert torch.allclose(out, expected, atol=1e-5, rtol=1e-5)
    if x.requires_grad:
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert torch.allclose(gradient, layer.dequantize().sum(0).expand_as(x), atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_keeps_every_bit(scheme: str, device: str) -> None:
    plain, layer, groups = make(scheme, device)
    state = layer.state_dict()
    assert_same(state["weight_g_idx"], groups.to(device))
    for name, tensor in plain.state_dict().items():
        assert_same(state[name], tensor)
    x = torch.randn(4, K, device=device)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert_same(twin(x), layer(x))
    # In and out of activation order again: what is loaded says which.
    with pytest.raises(RuntimeError, match="weight_g_idx"):
        layer.load_state_dict(plain.state_dict())
    layer.load_state_dict({**plain.state_dict(), "weight_g_idx": torch.full_like(groups, -1)})
    assert layer.input_order is None
    assert_same(layer(x), plain(x))


def test_compile(device: str) -> None:
    _, layer, _ = make("w4a16", device)
    x = torch.randn(5, K, device=device)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert_same(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g + 1, "weight_g_idx must hold groups 0 … 3, found 1 … 4"),
        (lambda g: g - 1, "found -1 … 2"),
        (lambda g: g * 0, "each group 25 columns and the last one the rest, found 100, 0, 0, 0"),
        (lambda g: g[:-1], r"weight_g_idx must be int32 \[100\], found int32 \[99\]"),
        (lambda g: g.long(), r"int32 \[100\], found int64"),
    ],
)
def test_orders_that_are_refused(change: object, message: str, device: str) -> None:
    plain, layer, groups = make("w4a16", device)
    assert callable(change)
    before = layer.state_dict()
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**plain.state_dict(), "weight_g_idx": change(groups)})
    for name, tensor in layer.state_dict().items():
        assert_same(tensor, before[name])


@pytest.mark.parametrize("scheme", ["w4a16", "w4a8"])
def test_checkpoint(scheme: str, tmp_path: Path) -> None:
    """actorder is said for the layers that have it, and a group's word is not what decides."""
    q = quantized(Block(), W4A16(group_size=32) if scheme == "w4a16" else W4A8(group_size=32))
    q.fc1, groups = ordered(q.fc1)
    with pytest.warns(UserWarning, match=r"compressed-tensors 0\.20 refuses fc1: .*activation order"):
        checkpoint.save(q, tmp_path)
    config_groups = read_config(tmp_path)["quantization_config"]["config_groups"].values()
    assert {group["targets"][0]: group["weights"].get("actorder") for group in config_groups} == {
        "fc1": "group",
        "fc2": None,
    }
    tensors, x = read_tensors(tmp_path), torch.randn(3, 64)
    assert_same(tensors["fc1.weight_g_idx"], groups)
    assert_same(load(tmp_path, Block())(x), q(x))
    assert_same(load(tmp_path, q)(x), q(x))
    with torch.device("meta"):
        empty = Block()
    empty.unsaved = torch.ones(1)
    assert_same(load(tmp_path, empty)(x), q(x))

    tensors["fc2.weight_g_idx"] = shuffled(96, 32)  # although its group says nothing of it
    write_tensors(tmp_path, tensors)
    assert load(tmp_path, Block()).fc2.input_order is not None
    write_tensors(tmp_path, {**tensors, "fc1.weight_g_idx": groups + 1})
    refuse(tmp_path, "fc1.weight_g_idx must hold groups 0 … 1, found 1 … 2")
    del tensors["fc1.weight_g_idx"]
    write_tensors(tmp_path, tensors)
    assert load(tmp_path, Block()).fc1.input_order is None
