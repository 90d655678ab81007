"""The memory layout of weights in a layer: slabs, the same for GPU kernels and for the CPU.

Each row of K codes is cut into slabs of S consecutive columns. A block packs one, two or four slabs into S words. One
load of S words then feeds one matrix product a slab, each with S consecutive columns of x. No kernel shuffles codes:

    int4_words  int16, 4 slabs a block    word c = | code 3S+c | code 2S+c | code S+c | code c |   stored as code + 8
    int4_bytes  int8,  2 slabs a block    byte c =                         | code S+c | code c |   two's complement
    int8        int8,  1 slab a block     byte c = code c

`int4_words` serves float activations: setting exponent bits turns a nibble into a float. `int4_bytes` serves int8
activations: a nibble in the upper half of a byte is 16 times its value. `int8` serves both.

A slab never spans two groups, so its partial product has one scale. Code 0 pads each group to a whole number of slabs
(the usual groups of 32, 64 and 128 need none) and each row to a whole number of blocks.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from tritonq.numerics.config import QuantConfig

_SLABS = {"int4_words": 4, "int4_bytes": 2, "int8": 1}
#: Widths S in order of preference. Matrix instructions need a depth of at least 16 (16-bit) or 32 (8-bit).
_WIDTHS = {"int4_words": (64, 32, 16), "int4_bytes": (64, 32), "int8": (16,)}
_DTYPES = {"int4_words": torch.int16, "int4_bytes": torch.int8, "int8": torch.int8}
#: A wider slab is preferred if the padded row is at most this many times as long as K.
_ACCEPTED_PADDING = 1.05


@dataclasses.dataclass(frozen=True)
class SlabLayout:
    """The layout of one weight.

    Attributes:
        form: "int4_words", "int4_bytes" or "int8".
        in_features: K.
        group_size: columns of K that share a scale, ≤ K.
        slab_width: S.
        padded_group: columns of a group, padding included: a multiple of S.
    """

    form: str
    in_features: int
    group_size: int
    slab_width: int
    padded_group: int

    @property
    def groups(self) -> int:
        """Scales per row."""
        return -(-self.in_features // self.group_size)

    @property
    def slabs_per_block(self) -> int:
        """Values per word."""
        return _SLABS[self.form]

    @property
    def columns(self) -> int:
        """Columns of a row, padding included: a whole number of blocks."""
        block = self.slab_width * self.slabs_per_block
        return -(-self.groups * self.padded_group // block) * block

    @property
    def words(self) -> int:
        """Stored elements per row."""
        return self.columns // self.slabs_per_block

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a stored element."""
        return _DTYPES[self.form]


@functools.lru_cache(maxsize=4096)
def slab_layout(form: str, in_features: int, group_size: int) -> SlabLayout:
    """The layout of a weight with `in_features` columns and one scale per `group_size` columns."""

    def with_width(width: int) -> SlabLayout:
        padded_group = -(-group_size // width) * width
        return SlabLayout(form, in_features, group_size, width, padded_group)

    candidates = [with_width(width) for width in _WIDTHS[form]]
    for layout in candidates:
        if layout.columns <= _ACCEPTED_PADDING * in_features:
            return layout
    return min(candidates, key=lambda layout: layout.columns)


def weight_form(config: QuantConfig) -> str:
    """The form that a config's kernel reads."""
    if config.weight.bits == 8:
        return "int8"
    return "int4_words" if config.weight_only else "int4_bytes"


def pack(codes: Tensor, layout: SlabLayout) -> Tensor:
    """int8 codes [N, K] → stored words [N, layout.words] of layout.dtype."""
    rows = codes.shape[0]
    padded = _pad_groups(codes, layout)
    if layout.form == "int8":
        return padded
    slabs = padded.reshape(rows, -1, layout.slabs_per_block, layout.slab_width)
    offset = 8 if layout.form == "int4_words" else 0
    words = torch.zeros_like(slabs[:, :, 0], dtype=layout.dtype)
    for position in range(layout.slabs_per_block):  # slab by slab, to widen only one slab at a time
        words |= (slabs[:, :, position].to(layout.dtype) + offset & 0xF) << (4 * position)
    return words.reshape(rows, layout.words)


def unpack(words: Tensor, layout: SlabLayout) -> Tensor:
    """The inverse of `pack`: int8 codes [N, K]."""
    rows = words.shape[0]
    if layout.form == "int8":
        return _drop_padding(words, layout)
    nibbles = [words >> (4 * position) & 0xF for position in range(layout.slabs_per_block)]
    slabs = torch.stack(nibbles, dim=1).reshape(rows, layout.slabs_per_block, -1, layout.slab_width)
    fields = slabs.transpose(1, 2).reshape(rows, layout.columns).to(torch.int8)
    codes = fields - 8 if layout.form == "int4_words" else (fields ^ 8) - 8
    return _drop_padding(codes, layout)


def _pad_groups(codes: Tensor, layout: SlabLayout) -> Tensor:
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, layout.groups * layout.group_size - columns))
    padded = padded.reshape(rows, layout.groups, layout.group_size)
    padded = torch.nn.functional.pad(padded, (0, layout.padded_group - layout.group_size)).reshape(rows, -1)
    # Always a copy: a later change of `codes` must not change the packed weight.
    return torch.nn.functional.pad(padded, (0, layout.columns - padded.shape[1])).clone(
        memory_format=torch.contiguous_format
    )


def _drop_padding(padded: Tensor, layout: SlabLayout) -> Tensor:
    rows = padded.shape[0]
    groups = padded[:, : layout.groups * layout.padded_group].reshape(
        rows, layout.groups, layout.padded_group
    )
    return groups[:, :, : layout.group_size].reshape(rows, -1)[:, : layout.in_features]
