"""How weights lie in memory while they are used: in slabs, for the kernels on a GPU as for the reference on a CPU.

A row of K codes is cut into slabs of S consecutive columns; a block is `SLABS` slabs packed into S words, so that one
load of S words feeds SLABS matrix products, each with S consecutive columns of x, and nothing is ever shuffled:

    int4_words  int16, 4 slabs a block    word c = | code 3S+c | code 2S+c | code S+c | code c |   stored as code + 8
    int4_bytes  int8,  2 slabs a block    byte c =                         | code S+c | code c |   two's complement
    int8        int8,  1 slab a block     byte c = code c

`int4_words` serves float activations (a nibble turns into a float by setting exponent bits), `int4_bytes` int8
activations (a nibble in the upper half of a byte is 16 times its value), `int8` both.

A slab lies in one group, so that its partial product has one scale: each group is padded to a whole number of slabs
(nothing to pad for the usual 32, 64, 128), and a row to a whole number of blocks, with code 0.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from tritonq.numerics.config import QuantConfig

_SLABS = {"int4_words": 4, "int4_bytes": 2, "int8": 1}
#: Widths in order of preference; 16 and 32 are the least depths of the matrix instructions (16-bit and 8-bit).
_WIDTHS = {"int4_words": (64, 32, 16), "int4_bytes": (64, 32), "int8": (16,)}
_DTYPES = {"int4_words": torch.int16, "int4_bytes": torch.int8, "int8": torch.int8}
#: A wider slab is preferred as long as it costs no more padding than this.
_ACCEPTED_PADDING = 1.05


@dataclasses.dataclass(frozen=True)
class SlabLayout:
    """The numbers of one weight's layout.

    Attributes:
        form: "int4_words", "int4_bytes" or "int8".
        in_features: K.
        group_size: columns of K that share a scale, ≤ K.
        slab_width: S.
        padded_group: columns that a group takes, a multiple of S.
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
        """Of a stored element."""
        return _DTYPES[self.form]


@functools.lru_cache(maxsize=4096)
def slab_layout(form: str, in_features: int, group_size: int) -> SlabLayout:
    """The layout of a weight of `in_features` columns whose scales serve `group_size` columns each."""

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
    for position in range(layout.slabs_per_block):  # slab by slab: a whole weight is never wider than int8
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
    # Always a copy: what is packed must not change when the codes given do.
    return torch.nn.functional.pad(padded, (0, layout.columns - padded.shape[1])).clone(
        memory_format=torch.contiguous_format
    )


def _drop_padding(padded: Tensor, layout: SlabLayout) -> Tensor:
    rows = padded.shape[0]
    groups = padded[:, : layout.groups * layout.padded_group].reshape(
        rows, layout.groups, layout.padded_group
    )
    return groups[:, :, : layout.group_size].reshape(rows, -1)[:, : layout.in_features]
