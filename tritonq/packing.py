"""INT4 and INT8 codes in int32 words: the form that files and `state_dict` hold (compressed-tensors, pack-quantized).

Value k of a row sits in word k // F, F = 32 / bits, lowest bits first, stored as code + 2^(bits - 1):

    word c, int4   [ k=8c+7 | k=8c+6 | … | k=8c+1 | k=8c ]        codes 0…7 pack to 0xFEDCBA98
                     31…28                  7…4     3…0            (the same fields without offset: 0x76543210)

A shorter last word is filled with zero bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    per_word = _values_per_word(bits)
    fields = codes.to(torch.int32) + (1 << (bits - 1))
    fields = torch.nn.functional.pad(fields, (0, -codes.shape[-1] % per_word))
    fields = fields.reshape(*codes.shape[:-1], -1, per_word)
    words = torch.zeros(fields.shape[:-1], dtype=torch.int32, device=codes.device)
    for position in range(per_word):
        words |= fields[..., position] << (bits * position)
    return words


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
    if words.dtype != torch.int32 or words.shape[-1] != packed_width(count, bits):
        raise ValueError(
            f"{count} packed int{bits} values need int32 [..., {packed_width(count, bits)}], "
            f"found {words.dtype} {list(words.shape)}"
        )
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    fields = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    codes = fields.flatten(-2)[..., :count] - (1 << (bits - 1))
    return codes.to(torch.int8)


def _values_per_word(bits: int) -> int:
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, found {bits!r}")
    return 32 // bits
