"""Checkpoints of other programs, and what they make of ours: compressed_tensors itself where it is installed."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.checkpoints import (
    Block,
    load,
    quantized,
    read_config,
    read_tensors,
    refuse,
    write_config,
    write_tensors,
)
from tritonq import checkpoint
from tritonq.nn import QuantizedLinear
from tritonq.numerics import int32_words, qparams
from tritonq.numerics.config import W4A8, W4A16, W8A8, W8A16, QuantConfig, QuantSpec, W8A8Static

needs_compressed_tensors = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed_tensors is not installed"
)
TOKEN = QuantSpec(8, True, "token", dynamic=True)
READABLE: dict[str, Any] = {
    "w8a16": W8A16(),
    "w8a16-affine": W8A16(symmetric=False),
    "w8a16-group": W8A16(group_size=32),
    "w8a16-tensor": QuantConfig(QuantSpec(8, True, "tensor")),
    "w8a16-tensor-affine": QuantConfig(QuantSpec(8, False, "tensor")),
    "w4a16-tensor-affine": QuantConfig(QuantSpec(4, False, "tensor")),
    "w4a16": W4A16(),
    "w4a16-affine": W4A16(group_size=32, symmetric=False),
    "w4a16-channel-affine": W4A16(group_size=None, symmetric=False),
    "w8a8": W8A8(),
    "w8a8-affine": W8A8(symmetric=False, activation_symmetric=False),
    "w8a8-tensor-affine": QuantConfig(QuantSpec(8, False, "tensor"), TOKEN),
    "w8a8-static": W8A8Static(),
    "w8a8-static-symmetric": W8A8Static(activation_symmetric=True),
    "w4a8": W4A8(),
    "mixed": {"fc1": W4A8(), "fc2": W8A8Static()},
}


def rewrite(directory: Path, tensors: dict[str, Tensor], **group: Any) -> None:
    """Change a checkpoint's tensors and its groups, and take our own key away."""
    fields = read_config(directory)
    for fields_of_group in fields["quantization_config"]["config_groups"].values():
        fields_of_group.update(group)
    write_config(directory, {"quantization_config": fields["quantization_config"]})
    write_tensors(directory, tensors)


@pytest.mark.parametrize("scheme", ["w4a16", "w4a16-affine", "w8a16-affine", "w4a8"])
def test_one_int8_a_code(scheme: str, tmp_path: Path) -> None:
    """Weight-only and int4 layers whose codes are not packed: what compressed-tensors infers for W4A8."""
    q = quantized(Block(), READABLE[scheme])
    checkpoint.save(q, tmp_path)
    tensors = read_tensors(tmp_path)
    for name in ("fc1", "fc2"):
        layer = q.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        del tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_shape"]
        tensors[f"{name}.weight"] = layer.int_weight()
        if layer.zero_points is not None:
            tensors[f"{name}.weight_zero_point"] = layer.zero_points.t()
    rewrite(tmp_path, tensors, format="int-quantized")
    x = torch.randn(3, 64)
    assert torch.equal(load(tmp_path, Block())(x), q(x))


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-affine", "w8a8-tensor-affine"])
def test_packed_int8_by_int8(scheme: str, tmp_path: Path) -> None:
    q = quantized(Block(), READABLE[scheme])
    checkpoint.save(q, tmp_path)
    tensors = read_tensors(tmp_path)
    for name in ("fc1", "fc2"):
        codes = tensors.pop(f"{name}.weight")
        tensors[f"{name}.weight_packed"] = int32_words.pack_int32(codes, 8)
        tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape)
        zero_point = tensors.get(f"{name}.weight_zero_point")
        if zero_point is not None and zero_point.dim() == 2:
            tensors[f"{name}.weight_zero_point"] = int32_words.pack_int32(zero_point.t(), 8).t()
    rewrite(tmp_path, tensors, format="pack-quantized")
    x = torch.randn(3, 64)
    assert torch.equal(load(tmp_path, Block())(x), q(x))
    tensors["fc1.weight_shape"] = torch.tensor([64, 96])
    write_tensors(tmp_path, tensors)
    refuse(tmp_path, "fc1.weight_shape must be [96, 64], found [64, 96]")


def test_needless_zero_points_and_scalars(tmp_path: Path) -> None:
    """Zero points of symmetric tensors, stored by older writers, and scales without a dimension."""
    q = quantized(Block(), W8A8Static(activation_symmetric=True), torch.randn(4, 64))
    checkpoint.save(q, tmp_path)
    tensors = read_tensors(tmp_path)
    tensors["fc1.weight_zero_point"] = torch.zeros(96, 1, dtype=torch.int8)
    tensors["fc1.input_zero_point"] = torch.zeros((), dtype=torch.int8)
    tensors["fc1.input_scale"] = tensors["fc1.input_scale"].reshape(())
    rewrite(tmp_path, tensors)
    x = torch.randn(3, 64)
    assert torch.equal(load(tmp_path, Block())(x), q(x))
    tensors["fc1.input_zero_point"].fill_(1)
    write_tensors(tmp_path, tensors)
    refuse(tmp_path, "fc1.input_zero_point must be absent or zero in a symmetric scheme")


def test_targets(tmp_path: Path) -> None:
    """Names come before expressions, expressions before classes; what is ignored belongs to no group."""
    model = Block()
    q = quantized(model, {"fc1": W8A16(), "fc2": W4A16(group_size=32)})
    checkpoint.save(q, tmp_path)
    fields = read_config(tmp_path)["quantization_config"]
    groups = fields["config_groups"]
    x = torch.randn(3, 64)
    for first, second, ignore in (
        (["fc1"], ["Linear"], ["lm_head"]),
        (["re:.*1$"], ["Linear"], ["re:lm.*"]),
        (["Linear"], ["re:fc2"], ["lm_head"]),
        (["re:fc.*", "absent"], ["fc2"], []),
        (["re:fc[1]"], ["Module"], ["lm_head"]),
    ):
        groups["group_0"]["targets"], groups["group_1"]["targets"], fields["ignore"] = first, second, ignore
        write_config(tmp_path, {"quantization_config": fields})
        assert torch.equal(load(tmp_path, Block())(x), q(x)), (first, second)
        assert checkpoint.info(tmp_path).layers == 2


# --- the real package -------------------------------------------------------------------------------------------------


def apply(model: nn.Module, fields: dict[str, Any]) -> Any:
    """Give a float model the package's quantized layers; returns what compresses and decompresses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressed_tensors.compressors.model_compressors.model_compressor import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    config = QuantizationConfig.model_validate(fields)
    apply_quantization_config(model, config, show_progress=False)
    return ModelCompressor(quantization_config=config)


@needs_compressed_tensors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", READABLE)
def test_compressed_tensors_reads_what_we_write(scheme: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """It parses our config, takes our tensors by name and shape, and unpacks them to the same weights, bit for bit."""
    model: Any = Block().to(dtype)
    q = quantized(model, READABLE[scheme], torch.randn(4, 64, dtype=dtype))
    checkpoint.save(q, tmp_path)
    compressor = apply(model, read_config(tmp_path)["quantization_config"])
    compressor.compress_model(model)
    model.load_state_dict(read_tensors(tmp_path), strict=True, assign=True)
    compressor.decompress_model(model)
    for name in ("fc1", "fc2"):
        theirs, ours = model.get_submodule(name), q.get_submodule(name)
        assert isinstance(ours, QuantizedLinear)
        assert torch.equal(theirs.weight, ours.dequantize(dtype))
        if ours.input_scale is not None:
            assert torch.equal(theirs.input_scale, ours.input_scale)
    assert not hasattr(model.lm_head, "quantization_scheme")


@needs_compressed_tensors
@pytest.mark.parametrize("form", [None, "pack-quantized", "int-quantized", "naive-quantized"])
@pytest.mark.parametrize("scheme", [name for name in READABLE if name != "mixed"])
def test_we_read_what_compressed_tensors_writes(scheme: str, form: str | None, tmp_path: Path) -> None:
    config = READABLE[scheme]
    q = quantized(Block(), config, torch.randn(4, 64))
    checkpoint.save(q, tmp_path)
    fields = read_config(tmp_path)["quantization_config"]
    for group in fields["config_groups"].values():
        group.pop("format", None)
        if form is not None:
            group["format"] = form
    fields["quantization_status"] = "initialized"
    theirs: Any = Block()
    compressor = apply(theirs, fields)
    for name in ("fc1", "fc2"):
        layer, ours = theirs.get_submodule(name), q.get_submodule(name)
        with torch.no_grad():
            layer.weight.copy_(ours.dequantize())
            spec = ours.config.weight
            scale, zero_point = qparams.weight_qparams(copy.deepcopy(layer.weight), spec)
            layer.weight_scale.copy_(scale.reshape(layer.weight_scale.shape))
            if zero_point is not None:
                layer.weight_zero_point.copy_(zero_point.reshape(layer.weight_zero_point.shape))
            if ours.config.static:
                layer.input_scale.fill_(0.03)
                if not ours.config.activation.symmetric:
                    layer.input_zero_point.fill_(-5)
    compressor = type(compressor).from_pretrained_model(theirs)
    compressor.compress_model(theirs)
    write_tensors(tmp_path, theirs.state_dict())
    compressor.update_config(tmp_path)
    loaded = load(tmp_path, Block())
    compressor.decompress_model(theirs)
    for name in ("fc1", "fc2"):
        layer = loaded.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        assert torch.equal(layer.dequantize(), theirs.get_submodule(name).weight)
        assert layer.config.scheme == q.get_submodule(name).config.scheme
    loaded(torch.randn(3, 64))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("compressed_tensors", "transformers")),
    reason="compressed_tensors and transformers are not installed",
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w8a8", "w4a8", "mixed"])
def test_transformers_reads_what_we_write(scheme: str, tied: bool, tmp_path: Path) -> None:
    """`from_pretrained` takes the directory as it is, and unpacks the same weights on its first forward."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    architecture = LlamaConfig(**sizes, vocab_size=128, tie_word_embeddings=tied)
    host = LlamaForCausalLM(architecture).to(torch.bfloat16).eval().requires_grad_(False)
    config = {"re:.*self_attn": W8A8(), "re:.*mlp": W4A16()} if scheme == "mixed" else READABLE[scheme]
    q = quantized(host, config)
    checkpoint.save(q, tmp_path)
    tokens = torch.arange(9)[None]
    expected = q(tokens).logits
    assert torch.equal(load(tmp_path, host)(tokens).logits, expected)

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    logits = theirs.requires_grad_(False)(tokens).logits
    # Not equal: products are rounded elsewhere, and in other orders.
    assert torch.allclose(logits.float(), expected.float(), atol=0.05 * float(expected.abs().max()))
    for name, layer in q.named_modules():
        if isinstance(layer, QuantizedLinear):
            assert torch.equal(theirs.get_submodule(name).weight, layer.dequantize())
