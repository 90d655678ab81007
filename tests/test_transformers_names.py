"""Models that name or initialize their parts in ways of their own: quantized, saved, loaded packed, equal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tritonq
from tests.support.hosts import transformers
from tritonq import TritonQConfig
from tritonq.integrations.transformers.survey import default_ignore
from tritonq.nn import QuantizedLinear

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}
TEXT = {
    "d_model": 32,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "d_kv": 8,
    "vocab_size": 64,
}
#: name → (class, config's class, its words)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", VISION),
    "beit": ("BeitForImageClassification", "BeitConfig", VISION),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "t5": ("T5ForConditionalGeneration", "T5Config", TEXT),
    "umt5": ("UMT5ForConditionalGeneration", "UMT5Config", TEXT),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**SMALL, "vocab_size": 64, "pad_token_id": 0, "global_attn_every_n_layers": 2},
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64},
    ),
}


def build(name: str) -> Any:
    cls, config, words = MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, cls)(getattr(transformers, config)(**words)).eval()


def inputs(model: Any) -> dict[str, torch.Tensor]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
    tokens = torch.arange(3, 21).reshape(2, 9)
    words = {"input_ids": tokens}
    return {**words, "decoder_input_ids": tokens} if model.config.is_encoder_decoder else words


def quantized_layers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_round(name: str, scheme: str, tmp_path: Path) -> None:
    """quantize_, on the fly, saved and loaded: the same logits, bit for bit."""
    model = build(name)
    model.save_pretrained(tmp_path / "float")
    ignore = default_ignore(model)
    if name == "siglip":
        # In a model of transformers it is quantized only if it is named, and said to stay in float.
        ignore = ("MultiheadAttention",)
    tritonq.quantize_(model, scheme, ignore=ignore)
    with torch.no_grad():
        expected = model(**inputs(model))[0]
    model.save_pretrained(tmp_path / "quantized")
    for directory, config in (("quantized", None), ("float", TritonQConfig(scheme))):
        again = type(model).from_pretrained(tmp_path / directory, quantization_config=config)
        assert quantized_layers(again) == quantized_layers(model)
        with torch.no_grad():
            found = again(**inputs(again))[0]
        assert torch.equal(found, expected)
