"""Unpacks the codes of a slab to matrix operands in registers. tritonq/numerics/slabs.py draws the layouts.

Each conversion is written twice. The version with shifts and casts works on every target and in the interpreter. The
PTX version converts several codes per instruction: it sets the exponent bits of 128 (bfloat16) or 1024 (float16) above
the code's bits, and subtracts the offset. Both are exact and give the same values.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def _ptx_words_to_bfloat16(position):
    """Nibble `position` of two 16-bit words → two bfloat16: (128 + field) - 136."""
    return f"""{{
        .reg .b32 fields, one, offset;
        shr.u32 fields, $1, {4 * position};
        lop3.b32 fields, fields, 0x000f000f, 0x43004300, 0xea;
        mov.b32 one, 0x3f803f80;
        mov.b32 offset, 0xc308c308;
        fma.rn.bf16x2 $0, fields, one, offset;
    }}"""


@triton.constexpr_function
def _ptx_words_to_float16(position):
    """Nibble `position` of two 16-bit words → two float16: (1024 + field) - 1032."""
    return f"""{{
        .reg .b32 fields, offset;
        shr.u32 fields, $1, {4 * position};
        lop3.b32 fields, fields, 0x000f000f, 0x64006400, 0xea;
        mov.b32 offset, 0x64086408;
        sub.rn.f16x2 $0, fields, offset;
    }}"""


@triton.constexpr_function
def _ptx_bytes_to_bfloat16():
    """Four bytes → four bfloat16: (128 + low seven bits) - (128, or 256 if the sign bit is set)."""
    return """{
        .reg .b32 spread, low, sign, minus_one;
        mov.b32 minus_one, 0xbf80bf80;
        prmt.b32 spread, $2, 0, 0x4140;
        lop3.b32 low, spread, 0x007f007f, 0x43004300, 0xea;
        lop3.b32 sign, spread, 0x00800080, 0x43004300, 0xea;
        fma.rn.bf16x2 $0, sign, minus_one, low;
        prmt.b32 spread, $2, 0, 0x4342;
        lop3.b32 low, spread, 0x007f007f, 0x43004300, 0xea;
        lop3.b32 sign, spread, 0x00800080, 0x43004300, 0xea;
        fma.rn.bf16x2 $1, sign, minus_one, low;
    }"""


@triton.constexpr_function
def _ptx_bytes_to_float16():
    """Four bytes → four float16: flipping the sign bit gives code + 128; (1024 + that) - 1152."""
    return """{
        .reg .b32 spread, offset;
        mov.b32 offset, 0x64806480;
        prmt.b32 spread, $2, 0, 0x4140;
        lop3.b32 spread, spread, 0x00800080, 0x64006400, 0xbe;
        sub.rn.f16x2 $0, spread, offset;
        prmt.b32 spread, $2, 0, 0x4342;
        lop3.b32 spread, spread, 0x00800080, 0x64006400, 0xbe;
        sub.rn.f16x2 $1, spread, offset;
    }"""


@triton.jit
def word_to_float(words, POSITION: tl.constexpr, OPERAND: tl.constexpr, PTX: tl.constexpr):
    """int16 words of layout `int4_words` → OPERAND, same shape: code POSITION of each word."""
    if PTX and OPERAND == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _ptx_words_to_bfloat16(POSITION), "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    if PTX and OPERAND == tl.float16:
        return tl.inline_asm_elementwise(
            _ptx_words_to_float16(POSITION), "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2
        )
    return (((words >> (4 * POSITION)) & 0xF) - 8).to(OPERAND)


@triton.jit
def byte_to_float(words, OPERAND: tl.constexpr, PTX: tl.constexpr):
    """int8 codes of layout `int8` → OPERAND, same shape."""
    if PTX and OPERAND == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _ptx_bytes_to_bfloat16(), "=r,=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    if PTX and OPERAND == tl.float16:
        return tl.inline_asm_elementwise(
            _ptx_bytes_to_float16(), "=r,=r,r", [words], dtype=tl.float16, is_pure=True, pack=4
        )
    return words.to(OPERAND)


@triton.jit
def byte_to_int8(words, POSITION: tl.constexpr):
    """int8 bytes of layout `int4_bytes` → int8, same shape: 16 × code POSITION of each byte."""
    if POSITION == 0:
        return words << 4
    return words & -16
