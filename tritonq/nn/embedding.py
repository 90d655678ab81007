"""Embeddings made of a Linear: what replaces nn.Embedding and nn.EmbeddingBag.

The table of an embedding [V, D] is laid out as the weight of a Linear of D inputs and V outputs. So it is held as one,
`rows`, and quantization replaces it as it does elsewhere: int8 or int4, a scale for each row or group of a row. What is
looked up is gathered packed, and only that is dequantized.

    embedding.rows is lm_head        where a head has the same weight: one module under two names, in files too

Products of `rows` are the head's; an embedding only gathers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.qat_linear import QATLinear
from tritonq.nn.split_parts import linear_of


class _Table(nn.Module):
    """What both have in common; attributes are torch's, `rows` and `module_name`."""

    def __init__(
        self, table: nn.Embedding | nn.EmbeddingBag, name: str = "", rows: nn.Linear | None = None
    ) -> None:
        """From a float layer, whose Parameter the new one holds; `rows` is a Linear that has that already."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx, self.module_name = table.padding_idx, name
        self.rows: nn.Module = linear_of(table._parameters["weight"], None) if rows is None else rows

    @property
    def weight(self) -> Any:
        """The table [V, D]: computed at each access where it is quantized."""
        return self.rows.weight

    def _gathered(self, indices: Tensor) -> Tensor:
        """[...] → [..., D].

        Raises:
            TypeError, IndexError: for other indices than integers in 0 … V − 1.
        """
        where = f"{type(self).__name__} {self.module_name!r}"
        found: Any = getattr(indices, "dtype", type(indices).__name__)
        if found not in (torch.int32, torch.int64):
            raise TypeError(f"{where}: indices must be int32 or int64, found {found}")
        if indices.device.type == "cpu" and indices.numel():  # elsewhere that would wait for the device
            low, high = int(indices.amin()), int(indices.amax())
            if low < 0 or high >= self.num_embeddings:
                raise IndexError(
                    f"{where}: indices must lie in 0 … {self.num_embeddings - 1}, found {low if low < 0 else high}"
                )
        rows: Any = self.rows
        if isinstance(rows, QuantizedLinear):
            return rows.dequantize_rows(indices.reshape(-1)).reshape(*indices.shape, self.embedding_dim)
        weight = rows.weight_fake_quant(rows.weight) if isinstance(rows, QATLinear) else rows.weight
        return functional.embedding(indices, weight, self.padding_idx)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Embedding(_Table):
    """nn.Embedding made of a Linear."""

    def forward(self, input: Tensor) -> Tensor:
        """Indices [...] → rows [..., D] in the table's dtype."""
        return self._gathered(input)


class EmbeddingBag(_Table):
    """nn.EmbeddingBag made of a Linear."""

    def __init__(self, table: nn.EmbeddingBag, name: str = "", rows: nn.Linear | None = None) -> None:
        super().__init__(table, name, rows)
        self.mode, self.include_last_offset = table.mode, table.include_last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Indices [B, L], or [L] with the offset of each bag → [B, D]; as torch's."""
        gathered = self._gathered(input).reshape(-1, self.embedding_dim)
        # torch sums bags of rows of a table: of what was gathered, and one more row that stands for padding.
        table = functional.pad(gathered, (0, 0, 0, 1))
        indices = torch.arange(len(gathered), device=input.device).reshape(input.shape)
        if self.padding_idx is not None:
            indices = indices.masked_fill(input == self.padding_idx, len(gathered))
        return functional.embedding_bag(
            indices,
            table,
            None if offsets is None else offsets.long(),
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=None if self.padding_idx is None else len(gathered),
        )
