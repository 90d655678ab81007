"""Small models of transformers' architectures, with random weights, made on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed", exc_type=ImportError)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers import AutoModelForCausalLM, PreTrainedModel

transformers.utils.logging.disable_progress_bar()

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "llama-tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),  # biases
    "qwen3": ("Qwen3Config", GROUPED),
    "gemma2": ("Gemma2Config", {**GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "phi": ("PhiConfig", {}),  # biases, also at the head
    "phi3": ("Phi3Config", {"num_key_value_heads": 2}),  # query, key and value in one Linear
    "bert": ("BertConfig", {"is_decoder": True}),  # biases, and a head called cls.predictions.decoder
    "gpt-neox": ("GPTNeoXConfig", {}),  # the same, and a head that files call embed_out
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3MoeConfig", {**GROUPED, **EXPERTS, "moe_intermediate_size": 32}),
}
TOKENS = torch.arange(3, 21).reshape(2, 9)


def build(architecture: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A float model with weights that differ from layer to layer, and biases and norms that are not trivial."""
    name, own = ARCHITECTURES[architecture]
    config = getattr(transformers, name)(**{**SIZES, **own})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "norm" in key:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    return model


def save_float(architecture: str, directory: Path) -> Path:
    """Write a float model in bfloat16; returns the directory."""
    build(architecture).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """architecture → the directory of its float model in bfloat16, written once."""
    written: dict[str, Path] = {}

    def directory(architecture: str) -> Path:
        if architecture not in written:
            torch.manual_seed(0)
            written[architecture] = save_float(architecture, tmp_path_factory.mktemp(architecture))
        return written[architecture]

    return directory


def load(directory: Path, config: Any = None, **options: Any) -> Any:
    """`from_pretrained`, ready to be compared."""
    if config is not None:
        options["quantization_config"] = config
    return AutoModelForCausalLM.from_pretrained(directory, **options).requires_grad_(False)


def head_name(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def logits(model: nn.Module) -> Tensor:
    result: Tensor = model(TOKENS).logits
    return result


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    """The same tensors under the same names, bit for bit."""
    left, right = found.state_dict(), expected.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name
