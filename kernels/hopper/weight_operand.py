"""Unpacks codes from shared memory to the left operand of a 16-bit matrix instruction, in registers.

Each warp must hold 16 rows of 16 columns: lane 4 · g + t has columns 2t, 2t + 1, 2t + 8 and 2t + 9 of rows g and g + 8.
`ldmatrix` loads 16-bit words from shared memory in exactly this layout. Nibble j of word c is the code of column
j · S + c (numerics/slabs.py). So nibble j of all words, unpacked in place, is the operand for columns
j · S … j · S + S - 1, and no lane needs values of another:

    a register of two words      | word 2t + 1: nibbles 3 2 1 0         | word 2t: nibbles 3 2 1 0         |
    shifted by 4j, masked        | 0 0 0 code of column j · S + 2t + 1  | 0 0 0 code of column j · S + 2t  |
    exponent bits set, - 136     | 128 + field - 136, in bfloat16       | 128 + field - 136                |

Bytes do not work with `ldmatrix`: a lane would get four neighbours. They are loaded in the operand's layout, two
neighbours at a time, and each lane widens its bytes to 16 bits.

The subtracted offset, 136 for a bfloat16 word, also includes the zero point, if there is one. The result is an integer
below 256 and so exact, and code - zero point needs no extra instruction (bfloat16 bytes: one).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def word_assembly(position, is_bfloat16):
    """$0, two floats = code `position` of the two words in $1, + $2 (two negative offsets)."""
    exponents = "0x43004300" if is_bfloat16 else "0x64006400"
    add = "fma.rn.bf16x2 $0, fields, one, $2;" if is_bfloat16 else "add.rn.f16x2 $0, fields, $2;"
    return f"""{{
        .reg .b32 fields, one;
        shr.u32 fields, $1, {4 * position};
        lop3.b32 fields, fields, 0x000f000f, {exponents}, 0xea;
        mov.b32 one, 0x3f803f80;
        {add}
    }}"""


@gluon.constexpr_function
def byte_assembly(is_bfloat16, has_zero):
    """$0, two floats = the two int8 codes in $1, + $2 (two negative offsets).

    bfloat16: (128 + low seven bits) - (128, or 256 where the sign bit is set); float16: 1024 + (code + 128) + $2.
    """
    if not is_bfloat16:
        return """{
            .reg .b32 spread;
            cvt.u32.u16 spread, $1;
            prmt.b32 spread, spread, 0, 0x4140;
            lop3.b32 spread, spread, 0x00800080, 0x64006400, 0xbe;
            add.rn.f16x2 $0, spread, $2;
        }"""
    subtract_zero = "fma.rn.bf16x2 $0, low, one, $2;" if has_zero else "mov.b32 $0, low;"
    return f"""{{
        .reg .b32 spread, low, sign, one, minus_one;
        mov.b32 one, 0x3f803f80;
        mov.b32 minus_one, 0xbf80bf80;
        cvt.u32.u16 spread, $1;
        prmt.b32 spread, spread, 0, 0x4140;
        lop3.b32 low, spread, 0x007f007f, 0x43004300, 0xea;
        lop3.b32 sign, spread, 0x00800080, 0x43004300, 0xea;
        fma.rn.bf16x2 low, sign, minus_one, low;
        {subtract_zero}
    }}"""


@gluon.constexpr_function
def _offset_without_zero(is_word, is_bfloat16):
    """The sum of the exponent bits' value and the stored offset, which are added to a code."""
    if is_word:
        return 136.0 if is_bfloat16 else 1032.0
    return 0.0 if is_bfloat16 else 1152.0


@gluon.jit
def negative_offsets(zero, OPERAND: gl.constexpr, CODES: gl.constexpr):
    """The offsets that `operand_of` adds to rows with these zero points, as OPERAND; CODES: int16 or int8."""
    OFFSET: gl.constexpr = _offset_without_zero(CODES == gl.int16, OPERAND == gl.bfloat16)
    return (-OFFSET - zero.to(gl.float32)).to(OPERAND)


@gluon.jit
def operand_of(codes, POSITION: gl.constexpr, offsets, HAS_ZERO: gl.constexpr):
    """Codes in the operand's layout → offsets' dtype, same shape: int16 words' code POSITION, or int8 codes.

    offsets: bfloat16 or float16, broadcast to that shape, from `negative_offsets`.
    """
    IS_BFLOAT16: gl.constexpr = offsets.dtype == gl.bfloat16
    if codes.dtype == gl.int16:
        return gl.inline_asm_elementwise(
            word_assembly(POSITION, IS_BFLOAT16),
            "=r,r,r",
            [codes, offsets],
            dtype=offsets.dtype,
            is_pure=True,
            pack=2,
        )
    else:
        return gl.inline_asm_elementwise(
            byte_assembly(IS_BFLOAT16, HAS_ZERO),
            "=r,h,r",
            [codes, offsets],
            dtype=offsets.dtype,
            is_pure=True,
            pack=2,
        )
