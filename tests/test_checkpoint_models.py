"""Checkpoints of models that tie, share and slice their tensors, have hooks, or bring a configuration of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.checkpoints import (
    Block,
    Language,
    load,
    quantized,
    read_config,
    read_tensors,
    write_config,
)
from tritonq import checkpoint
from tritonq.nn import QuantizedLinear
from tritonq.numerics.config import W8A8Static


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    tokens = torch.arange(20)
    q = quantized(Language(), "w8a16")
    checkpoint.save(q, tmp_path)
    assert "lm_head.weight" not in read_tensors(tmp_path)
    assert read_config(tmp_path)["tritonq"]["tied"] == {"lm_head.weight": "embed.weight"}
    with torch.device("meta"):
        empty = Language(tied=False)
    target: Any
    for target in (Language(), Language(tied=False), empty):
        embedding = target.embed.weight
        loaded = load(tmp_path, target)
        assert torch.equal(loaded(tokens), q(tokens))
        assert loaded.lm_head.weight is loaded.embed.weight
        assert loaded.embed.weight is embedding or target is empty


def test_a_host_that_ties_by_itself_needs_no_key(tmp_path: Path) -> None:
    q = quantized(Language(), "w8a16")
    checkpoint.save(q, tmp_path)
    write_config(tmp_path, {"quantization_config": read_config(tmp_path)["quantization_config"]})
    tokens = torch.arange(20)
    assert torch.equal(load(tmp_path, Language())(tokens), q(tokens))
    with pytest.raises(ValueError, match=r"needs lm_head\.weight"):
        load(tmp_path, Language(tied=False))


def test_a_quantized_head_is_no_longer_tied(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="tied"):
        q = quantized(Language(), "w8a8", ignore=())
    checkpoint.save(q, tmp_path)
    loaded = load(tmp_path, Language())
    assert isinstance(loaded.lm_head, QuantizedLinear)
    assert torch.equal(loaded(torch.arange(20)), q(torch.arange(20)))


def test_a_shared_module_is_stored_once(tmp_path: Path) -> None:
    def build() -> Any:
        shared = nn.Linear(16, 16)
        return nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm1d(16))

    model = build()
    q = quantized(model, "w8a8").eval()
    checkpoint.save(q, tmp_path)
    assert not any(name.startswith("2.") for name in read_tensors(tmp_path))
    x = torch.randn(3, 16)
    for target in (model, nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16))):
        assert torch.equal(load(tmp_path, target.eval())(x), q(x))
    assert model[0] is model[2]


def test_views_and_strides(tmp_path: Path) -> None:
    """Tensors that overlap, that are not contiguous or empty: each is stored as what it is."""
    q = quantized(Block(), "w8a16")
    memory = torch.arange(12.0)
    q.register_buffer("front", memory[:8])
    q.register_buffer("overlap", memory[4:])
    q.register_buffer("turned", memory.reshape(3, 4).t())
    q.register_buffer("empty", torch.zeros(0, 3))
    q.register_buffer("void", torch.zeros(0, 3))
    checkpoint.save(q, tmp_path)
    stored = read_tensors(tmp_path)
    for name in ("front", "overlap", "turned", "empty", "void"):
        assert torch.equal(stored[name], q.get_buffer(name)), name


def test_a_host_config_is_kept(tmp_path: Path) -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            private = {"_name_or_path": "/home/somebody/float-model"}
            return {"model_type": "block", "hidden_size": 64, "architectures": None, **private}

    q = quantized(Block(), "w8a16")
    q.config = Config()
    checkpoint.save(q, tmp_path)
    fields = read_config(tmp_path)
    assert (fields["model_type"], fields["hidden_size"], fields["architectures"]) == ("block", 64, ["Block"])
    assert fields["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "_name_or_path" not in fields


def test_what_load_leaves_alone(tmp_path: Path) -> None:
    """Hooks, training flags, parameters' identity and requires_grad; and what torch.compile has wrapped."""
    model = Block()
    checkpoint.save(quantized(model, "w8a8"), tmp_path)
    calls: list[str] = []
    handle = model.fc1.register_forward_hook(lambda *_: calls.append("fc1"))
    model.fc1.eval()
    model.fc1.bias.requires_grad_(False)
    scale = model.norm.weight
    loaded = load(tmp_path, model)
    assert loaded is model
    assert (model.fc1.training, model.fc2.training) == (False, True)
    assert (model.fc1.bias.requires_grad, model.lm_head.bias.requires_grad) == (False, True)
    assert model.norm.weight is scale
    model(torch.randn(2, 64))
    assert calls == ["fc1"]
    handle.remove()
    assert not model.fc1._forward_hooks

    compiled: Any = torch.compile(Block(), backend="eager")
    assert load(tmp_path, compiled) is compiled
    assert isinstance(compiled._orig_mod.fc1, QuantizedLinear)


def test_loaded_tensors_do_not_need_the_file(tmp_path: Path) -> None:
    q = quantized(Block(), W8A8Static(), torch.randn(4, 64))
    checkpoint.save(q, tmp_path)
    loaded = load(tmp_path, Block())
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)  # in place: a memory map would see it
    x = torch.randn(3, 64)
    assert torch.equal(loaded(x), q(x))
