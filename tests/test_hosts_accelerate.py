"""accelerate moves quantized layers by the names of their tensors: packed bytes, and the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tritonq
from tritonq.nn import QuantizedLinear

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

SCHEMES: dict[str, Any] = {
    "w4a16": "w4a16",
    "w4a16 affine": tritonq.W4A16(group_size=24, symmetric=False),
    "w8a16": "w8a16",
    "w8a8": "w8a8",
    "w8a8 affine": tritonq.W8A8(symmetric=False, activation_symmetric=False),
    "w4a8": "w4a8",
    "w8a8_static": "w8a8_static",
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(70, 33), nn.Linear(33, 5, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()))


def build(scheme: str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    calibration = [torch.randn(4, 70)] if "static" in scheme else None
    model = Model()
    return tritonq.quantize_(
        model, SCHEMES[scheme], ignore=["head"], calibration=calibration, chain=False
    ).requires_grad_(False)


def assert_as_before(model: nn.Module, expected: Model, x: Tensor) -> None:
    assert torch.equal(model(x), expected(x))
    state = model.state_dict()
    for name, tensor in expected.state_dict().items():
        if not state[name].is_meta:
            assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cpu_offload(scheme: str) -> None:
    expected, model, x = build(scheme), build(scheme), torch.randn(6, 70)
    model(x)
    packed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    layer: Any = model.first
    assert all(parameter.is_meta for parameter in layer._parameters.values())
    moved = layer._hf_hook.weights_map
    for name in layer._parameters:
        assert torch.equal(moved[name], packed[f"first.{name}"])
        assert moved[name].dtype == packed[f"first.{name}"].dtype
    for _ in range(2):
        assert torch.equal(model(x), expected(x))
        assert all(parameter.is_meta for parameter in layer._parameters.values())
    accelerate.hooks.remove_hook_from_submodules(model)
    assert_as_before(model, expected, x)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_disk_offload(scheme: str, tmp_path: Path) -> None:
    expected, model, x = build(scheme), build(scheme), torch.randn(6, 70)
    accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    codes = next(name for name in ("weight_packed", "weight") if name in model.first._parameters)
    bytes_of_codes = expected.first.state_dict()[codes].nbytes
    assert (tmp_path / f"first.{codes}.dat").stat().st_size == bytes_of_codes
    assert torch.equal(model(x), expected(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dispatched_without_offload(scheme: str) -> None:
    """As over several GPUs: each layer has a hook, and computes with packed weights after its first call."""
    expected, model, x = build(scheme), build(scheme), torch.randn(6, 70)
    device_map = {"first": "cpu", "second": "cpu", "head": "cpu"}
    accelerate.dispatch_model(model, device_map=device_map, main_device="cpu", force_hooks=True)
    assert_as_before(model, expected, x)
    assert model.first.in_kernel_layout
    assert model.first.weight.dtype == torch.float32


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if "static" not in name])
def test_checkpoint_into_an_empty_model(scheme: str, offload: bool, tmp_path: Path) -> None:
    expected, x = build(scheme), torch.randn(6, 70)
    save_file(dict(expected.state_dict()), tmp_path / "model.safetensors")
    empty = build(scheme, seed=1)
    for name in ("first", "second"):
        layer = getattr(empty, name)
        words: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta", "name": name}
        setattr(empty, name, QuantizedLinear(layer.in_features, layer.out_features, layer.config, **words))
    empty.head.to("meta")
    place = {"first": "disk" if offload else "cpu", "second": "cpu", "head": "cpu"}
    model = accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model.safetensors"), device_map=place, offload_folder=str(tmp_path)
    )
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))
