"""Smoothing models of transformers: what is found in each architecture, and that what they compute stays."""

from __future__ import annotations

import pytest
import torch

import tritonq
from tests.support import hosts
from tests.support.equalize_models import relative_error

#: Groups a layer: norms, value to output projection, up to down projection.
FOUND = {
    "llama": {"input_layernorm", "post_attention_layernorm", "up_proj"},
    "llama-tied": {"input_layernorm", "post_attention_layernorm", "up_proj"},
    "qwen2": {"input_layernorm", "post_attention_layernorm", "up_proj"},
    "qwen3": {"input_layernorm", "post_attention_layernorm", "up_proj"},
    "gemma2": {"input_layernorm", "pre_feedforward_layernorm", "up_proj"},
    "gemma3": {"input_layernorm", "pre_feedforward_layernorm", "up_proj"},
    "phi": {"input_layernorm", "v_proj"},
    "phi3": {"input_layernorm", "post_attention_layernorm"},
    "gpt-neox": {"input_layernorm", "post_attention_layernorm"},
}


@pytest.mark.parametrize("architecture", FOUND)
def test_the_function_stays(architecture):
    model = hosts.build(architecture, torch.float32).eval()
    groups = tritonq.equalize.smoothing_groups(model, hosts.TOKENS)
    for layer in ("layers.0.", "layers.1."):
        assert {group.source.rpartition(".")[2] for group in groups if layer in group.source} == FOUND[
            architecture
        ]
    with torch.no_grad():
        expected = model(hosts.TOKENS).logits
        tritonq.smooth_(model, [hosts.TOKENS])
        assert relative_error(model(hosts.TOKENS).logits, expected) < 1e-5
