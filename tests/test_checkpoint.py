"""What `save` writes and `load` makes of it: the same bits, for every scheme, dtype and kind of target."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.checkpoints import (
    Block,
    Stubbed,
    load,
    quantized,
    read_config,
    write_config,
)
from tritonq import checkpoint
from tritonq.nn import DeQuantize, Quantize, QuantizedLinear
from tritonq.numerics.config import W4A8, W4A16, W8A8, W8A16, QuantConfig, QuantSpec, W8A8Static

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOKEN = QuantSpec(8, True, "token", dynamic=True)
SCHEMES: dict[str, Any] = {
    "w8a16": W8A16(),
    "w8a16-affine": W8A16(symmetric=False),
    "w8a16-group": W8A16(group_size=16),
    "w8a16-tensor": QuantConfig(QuantSpec(8, True, "tensor")),
    "w4a16": W4A16(),
    "w4a16-affine": W4A16(group_size=32, symmetric=False),
    "w4a16-channel-affine": W4A16(group_size=None, symmetric=False),
    "w4a16-short-group": W4A16(group_size=24),
    "w4a16-tensor-affine": QuantConfig(QuantSpec(4, False, "tensor")),
    "w8a8": W8A8(),
    "w8a8-affine": W8A8(symmetric=False, activation_symmetric=False),
    "w8a8-tensor-affine": QuantConfig(QuantSpec(8, False, "tensor"), TOKEN),
    "w8a8-static": W8A8Static(),
    "w8a8-static-symmetric": W8A8Static(activation_symmetric=True),
    "w4a8": W4A8(),
    "w4a8-channel": W4A8(group_size=None),
    "mixed": {"fc1": W8A8(), "fc2": W4A16(group_size=32), "lm_head": W8A8Static()},
}


def save_quietly(model: nn.Module, directory: Path, **words: Any) -> list[str]:
    """Save, and return what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint.save(model, directory, **words)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_loaded_model_gives_the_same_bits(
    scheme: str, dtype: torch.dtype, tmp_path: Path, device: str
) -> None:
    x = torch.randn(5, 50, dtype=dtype, device=device)  # K = 50: no word, no group of 16, 24 or 32 ends there
    model = Block(columns=50).to(device, dtype)
    q = quantized(model, SCHEMES[scheme], x, ignore=[] if scheme == "mixed" else ["lm_head"])
    save_quietly(q, tmp_path / "q")
    expected = q(x)
    with torch.device("meta"):
        empty = Block(columns=50)
    empty.unsaved = torch.ones(1, dtype=dtype)

    assert torch.equal(load(tmp_path / "q", model)(x), expected)
    assert torch.equal(load(tmp_path / "q", model)(x), expected), "into a model that is converted already"
    assert torch.equal(load(tmp_path / "q", empty).to(device)(x), expected), "from the meta device"

    want = q.state_dict()
    loaded: Any
    for loaded in (model, empty):
        assert loaded.state_dict().keys() == want.keys()
        for name, tensor in loaded.state_dict().items():
            assert tensor.dtype == want[name].dtype, name
            assert torch.equal(tensor, want[name]), name
        for name, layer in q.named_modules():
            if isinstance(layer, QuantizedLinear):
                assert loaded.get_submodule(name).dtype == layer.dtype
                assert torch.equal(loaded.get_submodule(name).int_weight(), layer.int_weight())


@pytest.mark.parametrize("keep_key", [True, False], ids=["", "without-our-key"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_stubs_and_hand_over(symmetric: bool, keep_key: bool, tmp_path: Path) -> None:
    x = torch.randn(9, 16)
    model = Stubbed().eval()
    q = quantized(model, W8A8Static(activation_symmetric=symmetric), x)
    checkpoint.save(q, tmp_path)
    fields = read_config(tmp_path)
    assert fields["tritonq"]["stubs"] == {"quant": {"symmetric": symmetric}}
    assert fields["tritonq"]["hands_over"] == ["fc1", "fc2"]
    assert "output_activations" in fields["quantization_config"]["config_groups"]["group_0"]
    assert fields["quantization_config"]["config_groups"]["group_0"]["output_activations"] is None
    if not keep_key:
        del fields["tritonq"]
        write_config(tmp_path, fields)

    for target in (model, quantized(model, W8A8Static(), x)):
        loaded = load(tmp_path, target)
        assert torch.equal(loaded(x), q(x))
        assert isinstance(loaded.quant, Quantize)
        assert loaded.quant.symmetric == symmetric
        assert isinstance(loaded.dequant, DeQuantize)


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8-static", "mixed"])
def test_a_file_without_our_key_is_read(scheme: str, tmp_path: Path) -> None:
    x = torch.randn(5, 64)
    model = Block()
    q = quantized(model, SCHEMES[scheme], x, ignore=[] if scheme == "mixed" else ["lm_head"])
    checkpoint.save(q, tmp_path)
    fields = read_config(tmp_path)
    fields_had_edges = "edges" in fields.pop("tritonq")
    write_config(tmp_path, fields)
    # Without the key nothing says that int8 is handed over: the same grids, in float between the layers.
    atol, rtol = (2e-3, 1e-2) if fields_had_edges else (0.0, 0.0)
    torch.testing.assert_close(load(tmp_path, model)(x), q(x), atol=atol, rtol=rtol)


def test_config_json_is_what_compressed_tensors_writes(tmp_path: Path) -> None:
    q = quantized(nn.ModuleDict({"fc": nn.Linear(256, 8), "lm_head": nn.Linear(8, 8)}), "w4a16")
    checkpoint.save(q, tmp_path)
    assert read_config(tmp_path) == {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": 128,
                        "dynamic": False,
                    },
                    "input_activations": None,
                    "output_activations": None,
                }
            },
        },
        "tritonq": {"version": 1},
    }


def test_config_groups(tmp_path: Path) -> None:
    """One group per resolved config, its format where readers would guess another, names where there are several."""
    model = nn.ModuleDict(
        {"a": nn.Linear(256, 8), "b": nn.Linear(96, 8), "c": nn.Linear(256, 8), "d": nn.Linear(7, 8)}
    )
    checkpoint.save(quantized(model, {"a": "w4a16", "b": "w4a16", "c": "w4a16"}), tmp_path / "groups")
    fields = read_config(tmp_path / "groups")["quantization_config"]
    groups = fields["config_groups"]
    assert [(group["targets"], group["weights"]["group_size"]) for group in groups.values()] == [
        (["a", "c"], 128),
        (["b"], 32),
    ]
    assert (fields["format"], fields["ignore"]) == ("pack-quantized", ["d"])
    assert not any("format" in group for group in groups.values())

    checkpoint.save(quantized(model, {"a": "w8a8", "b": "w4a8", "d": "w8a16"}), tmp_path / "formats")
    fields = read_config(tmp_path / "formats")["quantization_config"]
    assert fields["format"] == "mixed-precision"
    formats = {group["targets"][0]: group["format"] for group in fields["config_groups"].values()}
    assert formats == {"a": "int-quantized", "b": "pack-quantized", "d": "pack-quantized"}

    checkpoint.save(quantized(model, "w4a8"), tmp_path / "w4a8")
    assert all(
        group["format"] == "pack-quantized"
        for group in read_config(tmp_path / "w4a8")["quantization_config"]["config_groups"].values()
    )


def test_save_names_the_layers_that_other_readers_refuse(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(100, 8), "b": nn.Linear(64, 8), "c": nn.Linear(8, 8)})
    config = {"c": QuantConfig(QuantSpec(8, False, "tensor")), "_default": W4A16(group_size=32)}
    messages = save_quietly(quantized(model, config), tmp_path)
    assert len(messages) == 1
    assert "refuse a (K = 100, group 32): their last group is shorter" in messages[0]


def test_dtype_and_observers_survive(tmp_path: Path) -> None:
    x = torch.randn(4, 64)
    config = W8A8Static(observer="moving_average_minmax")
    q = quantized(Block(), {"fc1": config, "fc2": "w8a8_static"}, x).half()
    checkpoint.save(q, tmp_path)
    fields = read_config(tmp_path)["tritonq"]
    assert fields["dtypes"] == {"float16": ["fc2"]}  # fc1 has a bias in float16, which says so
    loaded = load(tmp_path, Block())
    assert (loaded.fc1.dtype, loaded.fc2.dtype, loaded.fc2.scales.dtype) == (
        torch.float16,
        torch.float16,
        torch.float32,
    )
    assert loaded.fc1.config == q.fc1.config
    assert loaded.fc2.config == q.fc2.config


def test_a_loaded_model_saves_the_same_bytes(tmp_path: Path) -> None:
    q = quantized(Stubbed(), W8A8Static(observer="moving_average_minmax"), torch.randn(4, 16))
    checkpoint.save(q, tmp_path / "one")
    checkpoint.save(load(tmp_path / "one", Stubbed()), tmp_path / "two")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    copy.deepcopy(load(tmp_path / "one", Stubbed()))


def test_floats_take_the_dtype_they_were_saved_in(tmp_path: Path) -> None:
    q = quantized(Block().to(torch.bfloat16), "w4a16")
    checkpoint.save(q, tmp_path)
    loaded = load(tmp_path, Block())
    assert {p.dtype for p in loaded.parameters() if p.is_floating_point()} == {torch.bfloat16}
