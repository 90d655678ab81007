"""Models of transformers after `quantize_`: saved, loaded, dequantized and compiled as hosts do it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tests.support.checkpoints import read_config
from tests.support.hosts import TOKENS, assert_same_state, directories, load, logits
from tritonq import TritonQConfig
from tritonq.nn import QuantizedLinear
from tritonq.quantize.qat import add_lora_, merge_lora_

__all__ = ["directories"]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w8a8_static"])
def test_saved_and_loaded_packed(scheme: str, directories: Any, tmp_path: Path) -> None:
    """By a plain from_pretrained and with TritonQConfig(), in a process that has imported tritonq."""
    calibration = [{"input_ids": TOKENS}] if "static" in scheme else None
    model = tritonq.quantize_(load(directories("qwen2")), scheme, calibration=calibration)
    model.save_pretrained(tmp_path)
    assert read_config(tmp_path)["quantization_config"]["quant_method"] == "compressed-tensors"
    for config in (None, TritonQConfig()):
        again = load(tmp_path, config)
        assert isinstance(again.model.layers[0].mlp.up_proj, QuantizedLinear)
        assert_same_state(again, model)
        assert torch.equal(logits(again), logits(model))


def test_a_copy_and_a_converted_model_know_too(directories: Any, tmp_path: Path) -> None:
    dynamic = tritonq.quantize_dynamic(load(directories("llama-tied")))
    converted = tritonq.convert(tritonq.prepare(load(directories("llama-tied")), "w4a16"))
    for index, model in enumerate((dynamic, converted)):
        model.save_pretrained(tmp_path / str(index))
        assert torch.equal(logits(load(tmp_path / str(index))), logits(model))


def test_tied_head_quantized_on_request(directories: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the weight of lm_head is tied"):
        model = tritonq.quantize_(load(directories("llama-tied")), "w8a16", ignore=[])
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert_same_state(again, model)
    assert torch.equal(logits(again), logits(model))


def test_whichever_is_imported_first(directories: Any, tmp_path: Path) -> None:
    model = tritonq.quantize_(load(directories("llama")), "w8a8")
    model.save_pretrained(tmp_path)
    for first, second in (("tritonq", "transformers"), ("transformers", "tritonq")):
        program = (
            f"import sys; sys.path.insert(0, {str(Path(tritonq.__file__).parents[1])!r})\n"
            f"import {first}; import {second}\n"
            f"model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
            "assert isinstance(model.model.layers[0].mlp.up_proj, tritonq.QuantizedLinear), model\n"
        )
        subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True)


def test_dequantized(directories: Any, tmp_path: Path) -> None:
    model = tritonq.quantize_(load(directories("qwen2")), "w4a16")
    expected, weight = logits(model), model.model.layers[1].mlp.up_proj.dequantize()
    model.dequantize()
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, weight)
    assert torch.allclose(logits(model), expected, atol=0.02)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in read_config(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_adapters_are_not_saved_where_nothing_could_load_them(directories: Any, tmp_path: Path) -> None:
    model = add_lora_(tritonq.quantize_(load(directories("llama")), "w4a16"), targets=["q_proj"])
    with pytest.raises(
        ValueError, match="q_proj has an adapter on its quantized layer, which from_pretrained"
    ):
        model.save_pretrained(tmp_path)
    merge_lora_(model, requantize=True)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_everything_quantized_still_has_dtype_and_device() -> None:
    model = tritonq.quantize_(nn.Sequential(nn.Linear(64, 32, bias=False)).bfloat16(), "w4a16")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_compiled_children_are_replaced(scheme: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    model = nn.Sequential(*plain)
    model[0] = torch.compile(nn.Linear(64, 32), backend="eager")  # type: ignore[assignment]
    model[0].load_state_dict({f"_orig_mod.{key}": value for key, value in plain[0].state_dict().items()})
    x = torch.randn(3, 64)
    model(x)
    tritonq.quantize_(model, scheme)
    assert torch.equal(model(x), tritonq.quantize_(plain, scheme)(x))
    compiled: Any = torch.compile(nn.Linear(64, 32), backend="eager")
    head = nn.ModuleDict({"lm_head": compiled})
    with pytest.raises(ValueError, match="nothing to quantize"):
        tritonq.quantize_(head, scheme)


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_a_dispatched_float_model_is_quantized(scheme: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    model = accelerate.dispatch_model(
        nn.Sequential(*plain), device_map={"0": "cpu", "1": "cpu"}, main_device="cpu", force_hooks=True
    )
    tritonq.quantize_(model, scheme)
    assert isinstance(model[0], QuantizedLinear)
    assert hasattr(model[0], "_hf_hook")
    x = torch.randn(3, 64)
    found = model(x)
    expected = tritonq.quantize_(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8)), scheme)
    expected.load_state_dict(model.state_dict())
    assert torch.equal(found, expected(x))


@pytest.mark.parametrize("directory", ["llama-tied", "qwen2"])
def test_embeddings_are_saved_by_tritonq_alone(directory: str, directories: Any, tmp_path: Path) -> None:
    config = {nn.Embedding: "w8a16", "_default": "w8a16"}
    model = tritonq.quantize_(load(directories(directory)), config, ignore=())
    with pytest.raises(
        ValueError, match=r"model\.embed_tokens is a tritonq\.nn\.Embedding, which .*tritonq\.save"
    ):
        model.save_pretrained(tmp_path / "theirs")
    tritonq.save(model, tmp_path / "ours")
    again = tritonq.load(tmp_path / "ours", load(directories(directory)))
    assert torch.equal(logits(again), logits(model))
