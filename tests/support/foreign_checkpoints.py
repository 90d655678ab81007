"""GPTQ and AWQ checkpoints written from the formats' description, with plain loops over plain integers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

#: Field i of an AWQ word holds the column that stands here.
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclasses.dataclass
class Weight:
    """A weight of N × K unsigned codes, its zero points and scales [N, G], and the group of each column."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor
    bits: int

    def dequantized(self) -> Tensor:
        """w = s · (q - z), in float32."""
        columns = self.groups.long()
        return (self.codes - self.zeros[:, columns]).float() * self.scales[:, columns].float()


def random_weight(
    rows: int, columns: int, bits: int, group_size: int, symmetric: bool, ordered: bool = False
) -> Weight:
    """Any codes; zero points of every value, 0 and the largest included, unless symmetric."""
    size = columns if group_size == -1 else group_size
    groups = torch.arange(columns, dtype=torch.int32) // size
    count = int(groups[-1]) + 1
    if ordered:
        groups = groups[torch.randperm(columns)]
    levels = 1 << bits
    zeros = torch.randint(levels, (rows, count))
    zeros[:2, 0] = torch.tensor([0, levels - 1])
    return Weight(
        codes=torch.randint(levels, (rows, columns)),
        zeros=torch.full_like(zeros, levels // 2) if symmetric else zeros,
        scales=torch.rand(rows, count).half() / levels + 1e-3,
        groups=groups,
        bits=bits,
    )


def words(rows: list[list[int]], bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Rows of values → int32 words: field i of a word holds its value `order[i]`, lowest bits first."""
    per_word = 32 // bits
    order = tuple(range(per_word)) if order is None else order
    packed = []
    for row in rows:
        padded = row + [0] * (-len(row) % per_word)
        starts = range(0, len(padded), per_word)
        packed.append(
            [sum(padded[start + order[i]] << bits * i for i in range(per_word)) for start in starts]
        )
    return torch.tensor(packed, dtype=torch.int64).to(torch.uint32).view(torch.int32)


def gptq_tensors(weight: Weight, zeros: str = "field") -> dict[str, Tensor]:
    """A layer's tensors; zero points stored as z ("true"), less one field by field, or as a word less all ones."""
    bits, mask = weight.bits, (1 << weight.bits) - 1
    stored = weight.zeros.t().tolist()
    if zeros == "field":
        stored = [[(z - 1) & mask for z in row] for row in stored]
    qzeros = words(stored, bits)
    if zeros == "word":
        qzeros = qzeros - (0x11111111 if bits == 4 else 0x01010101)
    return {
        "qweight": words(weight.codes.tolist(), bits).t().contiguous(),
        "qzeros": qzeros,
        "scales": weight.scales.t().contiguous(),
        "g_idx": weight.groups.clone(),
    }


def awq_tensors(weight: Weight) -> dict[str, Tensor]:
    """A layer's tensors in the layout "gemm"."""
    return {
        "qweight": words(weight.codes.t().tolist(), 4, AWQ_COLUMNS),
        "qzeros": words(weight.zeros.t().tolist(), 4, AWQ_COLUMNS),
        "scales": weight.scales.t().contiguous(),
    }


def write(
    directory: Path,
    config: dict[str, Any] | None,
    tensors: dict[str, Tensor],
    shards: int = 1,
    **config_json: Any,
) -> None:
    """config.json with the quantization_config (None leaves it out), and the tensors in so many files."""
    directory.mkdir(exist_ok=True)
    fields = {**config_json, **({} if config is None else {"quantization_config": config})}
    (directory / "config.json").write_text(json.dumps(fields))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        own = names[len(names) * index // shards : len(names) * (index + 1) // shards]
        save_file({name: tensors[name] for name in own}, directory / file)
        weight_map.update(dict.fromkeys(own, file))
    index_fields = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_fields))
