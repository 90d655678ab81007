"""Models and helpers of the checkpoint tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tritonq
from tritonq import checkpoint
from tritonq.checkpoint import files


class Block(nn.Module):
    """Linears with and without bias, a Linear that stays float, a norm, a buffer that is saved and one that is not."""

    saved: Tensor
    unsaved: Tensor

    def __init__(self, columns: int = 64) -> None:
        super().__init__()
        self.fc1 = nn.Linear(columns, 96)
        self.fc2 = nn.Linear(96, 33, bias=False)
        self.norm = nn.LayerNorm(33)
        self.lm_head = nn.Linear(33, 8)
        self.register_buffer("saved", torch.full((3,), 0.5))
        self.register_buffer("unsaved", torch.ones(1), persistent=False)
        self.register_buffer("counter", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(x))
        return self.lm_head(self.norm(self.fc2(hidden))) * self.saved[0] * self.unsaved


class Stubbed(nn.Module):
    """Two layers that hand int8 to each other between stubs, as users of torch.ao.quantization write them."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = tritonq.QuantStub()
        self.fc1 = nn.Linear(16, 24)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(24, 5)
        self.dequant = tritonq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.fc2(self.relu(self.fc1(self.quant(x)))))


class Language(nn.Module):
    """An embedding whose weight is the output layer's too."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.fc = nn.Linear(32, 32)
        self.lm_head = nn.Linear(32, 20, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(torch.relu(self.fc(self.embed(tokens))))


def quantized(model: nn.Module, config: Any, calibration: Tensor | None = None, **words: Any) -> Any:
    """A quantized copy."""
    batches = None if calibration is None else [calibration]
    return tritonq.quantize_(copy.deepcopy(model), config, calibration=batches, **words)


def load(directory: Path | str, model: Any) -> Any:
    """`checkpoint.load`, whose result has whatever attributes the model has."""
    return checkpoint.load(directory, model)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a failed load must leave as it is: which modules there are, and every tensor."""
    modules = {name: id(module) for name, module in model.named_modules()}
    tensors = {
        name: (id(tensor), tensor.dtype, tensor.device, None if tensor.is_meta else tensor.detach().clone())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    return {"modules": modules, "tensors": tensors}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """True if two snapshots agree."""
    if before["modules"] != after["modules"] or before["tensors"].keys() != after["tensors"].keys():
        return False
    for name, (*what, values) in before["tensors"].items():
        *what_now, values_now = after["tensors"][name]
        if what != what_now or (values is not None and not torch.equal(values, values_now)):
            return False
    return True


def read_config(directory: Path) -> dict[str, Any]:
    fields = json.loads((directory / files.CONFIG).read_text(encoding="utf-8"))
    assert isinstance(fields, dict)
    return fields


def write_config(directory: Path, fields: Any) -> None:
    (directory / files.CONFIG).write_text(json.dumps(fields), encoding="utf-8")


def read_tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / files.SINGLE)


def write_tensors(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Replace the tensors; what was read before stays valid, since the old file is replaced and not overwritten."""
    copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    (directory / files.SINGLE).unlink(missing_ok=True)
    save_file(copies, directory / files.SINGLE, metadata={"format": "pt"})


def refuse(directory: Path, *fragments: str, model: nn.Module | None = None, kind: type = ValueError) -> None:
    """Loading fails with one sentence that holds the fragments, and the model is as it was; so it is on meta."""
    with torch.device("meta"):
        empty = Block()
    empty.unsaved = torch.ones(1)
    for target in (Block(), empty) if model is None else (model,):
        before = snapshot(target)
        with pytest.raises(kind) as caught:
            checkpoint.load(directory, target)
        message = str(caught.value)
        assert type(caught.value) is kind
        assert "\n" not in message
        assert len(message) < 1500
        for fragment in fragments:
            assert fragment in message, message
        assert same(before, snapshot(target))
