"""Packs INT4 and INT8 codes into int32 words, the form of files and `state_dict` (compressed-tensors, pack-quantized).

Value k of a row sits in word k // F, F = 32 / bits, lowest bits first, stored as code + 2^(bits - 1):

    word c, int4   [ k=8c+7 | k=8c+6 | … | k=8c+1 | k=8c ]        codes 0…7 pack to 0xFEDCBA98
                     31…28                  7…4     3…0            (the same fields without offset: 0x76543210)

Zero bits fill the last word of a row. GPTQ packs fields in the same order, AWQ in another one (`AWQ_ORDER`).

The code reads and writes words as bytes, which hold the fields in order on little-endian machines (PyTorch's GPU
builds run on no others). Unpacking then takes one byte of memory a value; shifting whole words would take four.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Field i of an AWQ word is its column AWQ_ORDER[i]: fields 0…7 pack to 0x75316420. casper-hansen/AutoAWQ,
#: awq/modules/linear/gemm.py.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed_width(count: int, bits: int) -> int:
    """Words that `count` values of `bits` bits take: ceil(count · bits / 32)."""
    return -(-count * bits // 32)


def pack_int32(codes: Tensor, bits: int) -> Tensor:
    """Pack signed codes along the last dimension.

    Args:
        codes: int8 [..., K], in [-2^(bits-1), 2^(bits-1) - 1].
        bits: 4 or 8.

    Returns:
        int32 [..., ceil(K · bits / 32)].
    """
    return pack_fields(codes.contiguous().view(torch.uint8) + _offset(bits), bits)


def unpack_int32(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_int32`.

    Args:
        words: int32 [..., ceil(count · bits / 32)].
        bits: 4 or 8.
        count: K, the values per row.

    Returns:
        int8 codes [..., count].

    Raises:
        ValueError: if the words are not int32 or their number does not fit `count`.
    """
    return (unpack_fields(words, bits, count) - _offset(bits)).view(torch.int8)


def pack_fields(fields: Tensor, bits: int) -> Tensor:
    """Pack unsigned values: uint8 [..., K] below 2^bits → int32 [..., ceil(K · bits / 32)]."""
    padded = torch.nn.functional.pad(fields, (0, -fields.shape[-1] % _values_per_word(bits)))
    if bits == 4:
        padded = padded[..., 0::2] | padded[..., 1::2] << 4
    words = padded.reshape(-1).view(torch.int32)  # flat: view(dtype) checks the strides of every dimension
    return words.reshape(*fields.shape[:-1], packed_width(fields.shape[-1], bits))


def unpack_fields(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_fields`, with the errors of `unpack_int32`."""
    width = packed_width(count, bits)
    if words.dtype != torch.int32 or words.shape[-1] != width:
        raise ValueError(
            f"{count} packed int{bits} values need int32 [..., {width}], found {words.dtype} {list(words.shape)}"
        )
    fields = words.reshape(-1).view(torch.uint8)
    if _values_per_word(bits) == 8:
        fields = torch.stack((fields & 0xF, fields >> 4), dim=-1)
    return fields.reshape(*words.shape[:-1], width * _values_per_word(bits))[..., :count]


def unpack_awq(words: Tensor) -> Tensor:
    """AWQ's int4 words int32 [R, C] → unsigned values uint8 [R, 8C]."""
    fields = unpack_fields(words, 4, 8 * words.shape[-1]).unflatten(-1, (-1, 8))
    column_of_field = torch.tensor(AWQ_ORDER, device=words.device)
    return fields.index_select(-1, column_of_field.argsort()).flatten(-2)


def _offset(bits: int) -> int:
    """Added to a code before it is stored."""
    return 1 << (bits - 1)


def _values_per_word(bits: int) -> int:
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, found {bits!r}")
    return 32 // bits
