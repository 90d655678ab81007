"""PEFT on quantized layers: adapters are trained, merged and left in float."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tests.support.hosts import TOKENS, directories, load, logits
from tritonq import TritonQConfig
from tritonq.nn import QuantizedLinear

peft = pytest.importorskip("peft", reason="peft is not installed")

__all__ = ["directories"]
#: PEFT 0.21 calls what transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")


def lora(model: nn.Module, **words: Any) -> Any:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **words)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return adapted


def delta(layer: Any) -> torch.Tensor:
    found: torch.Tensor = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2
    return found.detach()


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_adapters_train_and_merge(scheme: str, directories: Any, tmp_path: Path) -> None:
    model = load(directories("llama"), TritonQConfig(scheme), dtype=torch.float32)
    model = peft.prepare_model_for_kbit_training(model)
    base = model.model.layers[0].self_attn.q_proj
    scale, codes = next(base.parameters()).clone(), base.int_weight().clone()
    adapted = lora(model)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert len(trained) == 8
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = adapted(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.base_layer.int_weight(), codes)
    assert torch.equal(next(layer.base_layer.parameters()), scale)

    adapted.eval()
    expected = logits(adapted)
    weight = layer.base_layer.dequantize() + delta(layer)
    adapted.merge_adapter()
    assert torch.allclose(layer.base_layer.weight, weight, atol=1e-6)
    assert torch.allclose(logits(adapted), expected, atol=1e-4)
    adapted.unmerge_adapter()
    assert torch.equal(logits(adapted), expected)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        load(directories("llama"), TritonQConfig(scheme), dtype=torch.float32), tmp_path
    )
    assert torch.equal(logits(again), expected)
    whole = adapted.merge_and_unload()
    assert type(whole.model.layers[0].self_attn.q_proj) is nn.Linear
    assert isinstance(whole.model.layers[0].mlp.up_proj, QuantizedLinear)
    assert torch.allclose(logits(whole), expected, atol=1e-4)


def test_adapters_stay_in_float(directories: Any) -> None:
    adapted = lora(load(directories("llama")))
    before = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    expected = copy.deepcopy(adapted)
    tritonq.quantize_(adapted, "w4a16")
    assert [name for name, parameter in adapted.named_parameters() if parameter.requires_grad] == before
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer.base_layer, QuantizedLinear)
    assert type(layer.lora_A["default"]) is nn.Linear
    error = (logits(adapted) - logits(expected)).norm() / logits(expected).norm()
    assert 0 < error < 0.3
    with pytest.raises(ValueError, match=r"a write to it .* would vanish"):
        adapted.merge_and_unload()  # PEFT's own layer, of before the base was quantized


def test_quantized_activations_are_refused(directories: Any) -> None:
    model = load(directories("llama"), TritonQConfig("w8a8"))
    assert not model.hf_quantizer.is_trainable
    with pytest.raises(ValueError, match=r"gradients pass weight-only layers .* found w8a8"):
        lora(model)


def test_trainer_takes_it(directories: Any, tmp_path: Path) -> None:
    from transformers.trainer_utils import validate_quantization_for_training

    model = tritonq.quantize_(load(directories("llama")), "w4a16")
    with pytest.raises(ValueError, match="purely quantized"):
        validate_quantization_for_training(model)
    validate_quantization_for_training(lora(model))
