"""Siblings in transformers' own models: found, the same logits, and saved as if they were not fused."""

from __future__ import annotations

import pytest
import torch

import tritonq
from tests.support.hosts import TOKENS, build, head_name, logits

LAYERS = 2
GROUPS = {
    "llama": 2,  # q, k, v; gate, up
    "qwen2": 2,  # with biases
    "bert": 1,
    "phi3": 0,  # in one Linear already
    "qwen3-moe": 1,  # its experts are no Linears
}


@pytest.mark.parametrize("architecture", [name for name, groups in GROUPS.items() if groups])
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.* of the weights stay in float:UserWarning")
def test_logits_and_files_stay(architecture, tmp_path):
    model = build(architecture).eval()
    tritonq.quantize_(model, "w8a8", ignore=[head_name(model)])
    expected = logits(model)
    model.save_pretrained(tmp_path / "plain")
    tritonq.fuse_siblings_(model)
    groups = tritonq.summary(model).siblings
    assert len(groups) == LAYERS * GROUPS[architecture]
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "fused")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "fused" / file.name).read_bytes()
    tritonq.fuse_siblings_(model, [{"input_ids": TOKENS}])
    assert tritonq.summary(model).siblings == groups  # a run finds those that names do
    assert torch.equal(logits(model), expected)


def test_one_linear_for_all_has_no_siblings():
    model = tritonq.quantize_(build("phi3"), "w8a8")
    with pytest.warns(UserWarning, match="none of the 8 quantized layers has siblings"):
        tritonq.fuse_siblings_(model)
