"""GPTQ and AWQ checkpoints in transformers: packed, with the numbers that `tritonq.load` reads from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tests.support.checkpoints import read_config, read_tensors, write_config, write_tensors
from tests.support.foreign_checkpoints import Weight, awq_tensors, gptq_tensors, random_weight
from tests.support.hosts import assert_same_state, directories, load, logits
from tritonq import TritonQConfig

__all__ = ["directories"]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
UP = "model.layers.0.mlp.up_proj"


def write(directory: Path, source: Path, config: dict[str, Any], skipped: str = "") -> dict[str, Weight]:
    """The model in `source` with random quantized Linears but the head and those with `skipped` in their names."""
    tensors, weights = read_tensors(source), {}
    for name, linear in load(source).named_modules():
        if not isinstance(linear, nn.Linear) or name == "lm_head" or (skipped and skipped in name):
            continue
        rows, columns = linear.weight.shape
        flags = config.get("sym", False), config.get("desc_act", False)
        weight = random_weight(rows, columns, config["bits"], config["group_size"], *flags)
        weight.scales /= 8
        weights[name] = weight
        del tensors[f"{name}.weight"]
        own = awq_tensors(weight) if config["quant_method"] == "awq" else gptq_tensors(weight)
        tensors.update({f"{name}.{local}": tensor for local, tensor in own.items()})
    directory.mkdir(exist_ok=True)
    write_config(directory, {**read_config(source), "quantization_config": config})
    write_tensors(directory, tensors)
    return weights


@pytest.mark.parametrize(
    "config",
    [
        GPTQ,
        {**GPTQ, "bits": 8, "sym": True},
        {**GPTQ, "desc_act": True},
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    ],
    ids=["gptq", "gptq-int8", "gptq-ordered", "awq"],
)
@pytest.mark.filterwarnings("ignore:compressed-tensors 0.20 refuses")
def test_kept_packed(config: dict[str, Any], directories: Any, tmp_path: Path) -> None:
    weights = write(tmp_path, directories("qwen2"), config)
    expected = tritonq.load(tmp_path, load(directories("qwen2")))
    found = load(tmp_path, TritonQConfig())
    assert_same_state(found, expected)
    assert torch.equal(logits(found), logits(expected))
    for name, weight in weights.items():
        assert torch.equal(found.get_submodule(name).dequantize(torch.float32), weight.dequantized())

    found.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again")["quantization_config"]["quant_method"] == "compressed-tensors"
    assert_same_state(load(tmp_path / "again", TritonQConfig()), expected)


def test_layers_left_in_float(directories: Any, tmp_path: Path) -> None:
    """A layer without qweight is none of GPTQ's, whatever layers of the same last name are."""
    write(tmp_path, directories("llama"), {**GPTQ, "dynamic": {r"-:.*\.0\.mlp": {}}}, skipped=".0.mlp")
    found = load(tmp_path, TritonQConfig())
    assert_same_state(found, tritonq.load(tmp_path, load(directories("llama"))))
    assert isinstance(found.get_submodule(UP), nn.Linear)


@pytest.mark.parametrize(
    ("local", "change", "message"),
    [
        ("qweight", Tensor.long, f"^{UP}.qweight must be int32"),
        ("scales", torch.neg, f"^{UP}.scales must be finite and not negative"),
        ("qzeros", lambda tensor: tensor[:1], f"^{UP}.qzeros must be int32"),
        ("scales", None, f"found none for {UP}.scales$"),
        ("bias", lambda tensor: torch.ones(96), f"{UP}.bias must be zero"),
    ],
    ids=["dtype", "negative scale", "short", "missing", "bias"],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged(local: str, change: Any, message: str, directories: Any, tmp_path: Path) -> None:
    write(tmp_path, directories("llama"), GPTQ)
    tensors = read_tensors(tmp_path)
    tensor = tensors.pop(f"{UP}.{local}", None)
    if change is not None:
        tensors[f"{UP}.{local}"] = change(tensor)
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, TritonQConfig())
