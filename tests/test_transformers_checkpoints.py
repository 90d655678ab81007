"""Quantized checkpoints in transformers: kept packed whoever wrote them, and refused where they are wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonq
from tests.support import hosts
from tests.support.checkpoints import read_config, read_tensors, write_config, write_tensors
from tests.support.hosts import assert_same_state, directories, load, logits
from tritonq import TritonQConfig
from tritonq.nn import QuantizedLinear
from tritonq.numerics import int32_words

__all__ = ["directories"]
UP = "model.layers.0.mlp.up_proj"


def saved(directory: Path, float_directory: Path, config: Any, **options: Any) -> Any:
    """A model quantized by `quantize_` and written by `tritonq.save`."""
    model = tritonq.quantize_(load(float_directory), config, **options)
    tritonq.save(model, directory)
    return model


def test_static(directories: Any, tmp_path: Path) -> None:
    """Calibrated before, with a static INT8 grid in each layer, and INT8 between some."""
    batches = [{"input_ids": hosts.TOKENS}]
    for symmetric in (True, False):
        config = tritonq.W8A8Static(activation_symmetric=symmetric)
        expected = saved(tmp_path, directories("phi"), config, calibration=batches)
        assert read_config(tmp_path)["tritonq"]["edges"]
        found = load(tmp_path, TritonQConfig())
        assert_same_state(found, expected)
        assert torch.equal(logits(found), logits(expected))
        found.save_pretrained(tmp_path / "again")
        assert read_config(tmp_path / "again")["tritonq"] == read_config(tmp_path)["tritonq"]
        assert_same_state(load(tmp_path / "again", TritonQConfig()), expected)


def test_shards_and_names_of_another_prefix(directories: Any, tmp_path: Path) -> None:
    """The base model takes the checkpoint of the whole one, whose files have a prefix before each name."""
    model = load(directories("llama"), TritonQConfig("w4a16"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_state(load(tmp_path, TritonQConfig()), model)
    base = hosts.transformers.AutoModel.from_pretrained(tmp_path, quantization_config=TritonQConfig())
    assert_same_state(base, model.model)


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_other_layouts(scheme: str, directories: Any, tmp_path: Path) -> None:
    """int4 in one int8 a code, int8 in words, zero points of zero: as other writers have it."""
    expected = saved(tmp_path, directories("qwen2"), scheme)
    tensors = read_tensors(tmp_path)
    for name, layer in expected.named_modules():
        if not isinstance(layer, QuantizedLinear):
            continue
        codes = layer.int_weight()
        tensors[f"{name}.weight_zero_point"] = torch.zeros_like(layer.scales.t(), dtype=torch.int8)
        if scheme == "w4a16":
            del tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_shape"]
            tensors[f"{name}.weight"] = codes
        else:
            del tensors[f"{name}.weight"]
            tensors[f"{name}.weight_packed"] = int32_words.pack_int32(codes, 8)
            tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape)
    fields = read_config(tmp_path)
    form = "int-quantized" if scheme == "w4a16" else "pack-quantized"
    fields["quantization_config"]["format"] = form
    write_config(tmp_path, fields)
    write_tensors(tmp_path, tensors)
    found = load(tmp_path, TritonQConfig())
    assert_same_state(found, expected)
    tensors[f"{UP}.weight_zero_point"][0, 0] = 1
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=f"{UP}.weight_zero_point must be absent or zero"):
        load(tmp_path, TritonQConfig())


def without(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in names:
            del tensors[name]

    return change


def with_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def replace(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return replace


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{UP}.weight_scale"), f"must hold all weights, found none for {UP}.weight_scale$"),
        (without("model.norm.weight"), "must hold all weights, found none for model.norm.weight$"),
        (without("lm_head.weight"), "must hold all weights, found none for lm_head.weight$"),
        (with_tensor(f"{UP}.weight_scale", torch.neg), f"{UP}.weight_scale must be finite and not negative"),
        (
            with_tensor(f"{UP}.weight_packed", lambda t: t[:-1]),
            rf"{UP}.weight_packed must be int32 \[96, 8\]",
        ),
        (
            with_tensor(f"{UP}.weight_packed", Tensor.long),
            rf"{UP}.weight_packed must be int32 .* found int64",
        ),
        (with_tensor(f"{UP}.weight_shape", lambda t: t.flip(0)), rf"{UP}.weight_shape must be \[96, 64\]"),
    ],
    ids=["no scale", "no norm", "no head", "negative scale", "short", "dtype", "shape"],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_tensors(
    change: Callable[[dict[str, Tensor]], None], message: str, directories: Any, tmp_path: Path
) -> None:
    load(directories("llama"), TritonQConfig("w4a16")).save_pretrained(tmp_path)
    tensors = read_tensors(tmp_path)
    change(tensors)
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, TritonQConfig())


@pytest.mark.parametrize("what", ["ignored", "no scale", "embedding"])
@pytest.mark.filterwarnings("ignore")
def test_codes_are_never_taken_for_float_weights(what: str, directories: Any, tmp_path: Path) -> None:
    """int8 tensors of layers that are no quantized ones: transformers would compute with the codes as they stand."""
    load(directories("llama"), TritonQConfig("w8a8")).save_pretrained(tmp_path)
    tensors, fields = read_tensors(tmp_path), read_config(tmp_path)
    name = "model.embed_tokens" if what == "embedding" else UP
    if what == "ignored":
        fields["quantization_config"]["ignore"].append(name)
    elif what == "no scale":
        del tensors[f"{name}.weight_scale"]
    else:
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.int8)
    write_tensors(tmp_path, tensors)
    write_config(tmp_path, fields)
    with pytest.raises(ValueError, match=f"{name}.weight must be in float, .* found int8"):
        load(tmp_path, TritonQConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            'quant_method must be .*found "bitsandbytes"',
        ),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme must be absent or null"),
        ({"config_groups": {}}, "config_groups must be a dictionary of groups"),
        ({"ignore": ["re:.*"]}, "found no Linear of the model in a config group"),
    ],
    ids=["method", "key-value cache", "no groups", "all ignored"],
)
def test_wrong_config(change: dict[str, Any], message: str, directories: Any, tmp_path: Path) -> None:
    load(directories("llama"), TritonQConfig("w4a16")).save_pretrained(tmp_path)
    fields = read_config(tmp_path)
    fields["quantization_config"] |= change
    write_config(tmp_path, fields)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, TritonQConfig())


def test_config_and_checkpoint_must_go_together(directories: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name a scheme, as in TritonQConfig\('w4a16'\)"):
        load(directories("llama"), TritonQConfig())
    load(directories("llama"), TritonQConfig("w4a16")).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"must hold float weights .* found quant_method 'compressed-tensors': pass"
    ):
        load(tmp_path, TritonQConfig("w4a16"))


def test_layers_between_stubs_are_for_load(directories: Any, tmp_path: Path) -> None:
    load(directories("llama"), TritonQConfig("w8a8")).save_pretrained(tmp_path)
    fields = read_config(tmp_path)
    fields["tritonq"]["hands_over"] = [UP]
    write_config(tmp_path, fields)
    with pytest.raises(
        ValueError,
        match=r"between QuantStub and DeQuantStub, found some: use tritonq.load\(directory, model\)",
    ):
        load(tmp_path, TritonQConfig())


@pytest.mark.parametrize(
    ("config", "ignore", "message"),
    [
        ("w4a16", ["Linear"], "nothing to quantize: .* leave none of the 15 Linear layers"),
        ({"fc": "w8a8"}, None, "nothing"),
    ],
    ids=["all ignored", "no match"],
)
def test_nothing_to_quantize(config: Any, ignore: list[str] | None, message: str, directories: Any) -> None:
    with pytest.raises(ValueError, match=message):
        load(directories("llama"), TritonQConfig(config, ignore=ignore))


def test_bad_float_weights_are_named(directories: Any, tmp_path: Path) -> None:
    model = load(directories("llama"))
    model.get_submodule(UP).weight[3, 4] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"Linear '{UP}': weight must be finite, found 1 NaN or Inf values"):
        load(tmp_path, TritonQConfig("w4a16"))
    tensors = read_tensors(tmp_path)
    tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"][:7]
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=rf"{UP}.weight must be \[96, 64\], found \[7, 64\]"):
        load(tmp_path, TritonQConfig("w4a16"))


def test_experts_quantized_one_by_one_are_refused(directories: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="experts stay in float"):
        load(directories("mixtral"), TritonQConfig("w4a16")).save_pretrained(tmp_path)
    tensors = read_tensors(tmp_path)
    name = "model.layers.0.block_sparse_moe.experts.0.w1"
    weight = tensors.pop(f"{name}.weight")
    tensors[f"{name}.weight_packed"] = torch.zeros(weight.shape[0], weight.shape[1] // 8, dtype=torch.int32)
    tensors[f"{name}.weight_scale"] = torch.ones(weight.shape[0], 1)
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=f"experts must be in float, .* found {name}.weight_scale"):
        load(tmp_path, TritonQConfig())


def test_heads_under_other_names_stay_in_float(directories: Any, tmp_path: Path) -> None:
    """The files call GPT-NeoX's head embed_out, and so does the list of what another program left alone."""
    expected = load(directories("gpt-neox"), TritonQConfig("w8a8"))
    expected.save_pretrained(tmp_path)
    fields = read_config(tmp_path)
    fields["quantization_config"]["ignore"] = ["embed_out"]
    write_config(tmp_path, fields)
    assert_same_state(load(tmp_path, TritonQConfig()), expected)
