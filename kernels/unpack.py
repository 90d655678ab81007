"""Nibbles of a slab → matrix operands in registers. The layouts are drawn in tritonq/layouts.py."""

import triton
import triton.language as tl


@triton.jit
def word_to_float(words, zero, POSITION: tl.constexpr, OPERAND: tl.constexpr):
    """int16 words [R, S], zero points int16 [R, 1] or 0 → OPERAND [R, S]: code POSITION of each word, minus zero."""
    codes = ((words >> (4 * POSITION)) & 0xF) - 8
    return (codes - zero).to(OPERAND)


@triton.jit
def byte_to_int8(words, POSITION: tl.constexpr):
    """int8 bytes [R, S] → int8 [R, S]: 16 × code POSITION of each byte (its nibble moved to the upper half)."""
    if POSITION == 0:
        return words << 4
    return words & -16
