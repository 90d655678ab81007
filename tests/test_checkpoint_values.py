"""Values that `save` cannot write and `load` does not take, and tensors that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import Block, quantized, read_tensors, refuse, write_tensors
from tests.support.quantized_layers import SCHEMES, input_qparams
from tests.support.quantized_layers import quantized as layer_of
from tritonq import QuantizedLinear, checkpoint
from tritonq.numerics.config import W4A16, W8A8


@pytest.mark.parametrize("bias", [True, False])
def test_a_double_model_is_not_saved(bias: bool, tmp_path: Path) -> None:
    model = quantized(Block(), W8A8()).double()
    if not bias:
        model.fc1 = torch.nn.Identity()
    name, part = ("fc1", "dtype") if bias else ("fc2", "dtype")
    message = f"^{name}: {part} must be float32, float16 or bfloat16 to be saved, found torch.float64"
    with pytest.raises(TypeError, match=message):
        checkpoint.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    checkpoint.save(model.float(), tmp_path / "new")


@pytest.mark.parametrize("directory", [3, None, b"bytes", ["a"]], ids=str)
def test_what_is_no_path(directory: Any) -> None:
    model = quantized(Block(), W8A8())
    with pytest.raises(TypeError, match=r"directory must be a path .* found"):
        checkpoint.load(directory, model)
    with pytest.raises(TypeError, match=r"directory must be a path .* found"):
        checkpoint.save(model, directory)


def damage(directory: Path, name: str, value: float) -> None:
    tensors = read_tensors(directory)
    tensors[name].view(-1)[0] = value
    write_tensors(directory, tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bias_must_be_finite(value: float, tmp_path: Path) -> None:
    checkpoint.save(quantized(Block(), W8A8()), tmp_path)
    damage(tmp_path, "fc1.bias", value)
    refuse(tmp_path, "fc1.bias must be finite, found NaN or Inf")


@pytest.mark.parametrize("config", [W8A8(), W4A16(group_size=32)], ids=["w8a8", "w4a16"])
def test_a_weights_scale_must_not_be_negative_but_may_be_zero(config: Any, tmp_path: Path) -> None:
    checkpoint.save(quantized(Block(), config), tmp_path)
    damage(tmp_path, "fc1.weight_scale", -0.5)
    refuse(tmp_path, "fc1.weight_scale must be finite and not negative, found -0.5")
    damage(tmp_path, "fc1.weight_scale", 0.0)
    model: Any = checkpoint.load(tmp_path, Block())
    assert float(model.fc1.scales[0, 0]) == 0
    assert torch.isfinite(model(torch.randn(2, 64))).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("source", ["cpu", "meta"])
def test_state_dicts_and_the_meta_device(scheme: str, source: str) -> None:
    """As nn.Linear: values that have nowhere to go are dropped without a word."""
    state = {name: tensor.to(source) for name, tensor in layer_of(scheme).state_dict().items()}
    empty = layer_of(scheme).to("meta")
    empty.load_state_dict(state)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert isinstance(empty, QuantizedLinear)
    assert (input_qparams(scheme) is None) == (empty.input_scale is None)
