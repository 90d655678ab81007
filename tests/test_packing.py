"""Packed words and slabs: golden words, drawings read back by hand, and inverses for every shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.kernel_inputs import random_codes
from tritonq.numerics import config, int32_words
from tritonq.numerics import slabs as layouts

FORMS = ("int4_words", "int4_bytes", "int8")


def unsigned(words: torch.Tensor) -> list[int]:
    """Words of any integer dtype as the bit patterns they are."""
    mask = (1 << 8 * words.element_size()) - 1
    return [word & mask for word in words.flatten().tolist()]


def codes_of(form: str, *shape: int) -> torch.Tensor:
    low, high = (-128, 127) if form == "int8" else (-8, 7)
    return random_codes(*shape, device="cpu", low=low, high=high)


@pytest.mark.parametrize(
    ("codes", "bits", "word"),
    [
        (range(-8, 0), 4, 0x76543210),  # the fields 0 … 7: what compressed-tensors writes for them
        (range(8), 4, 0xFEDCBA98),
        ([-8], 4, 0x00000000),
        ([7], 4, 0x0000000F),
        ([0] * 8, 4, 0x88888888),
        ([-1, 3], 4, 0x000000B7),
        ([-128, -127, 126, 127], 8, 0xFFFE0100),
        ([0, 1], 8, 0x00008180),
    ],
)
def test_golden_words(codes: Any, bits: int, word: int) -> None:
    packed = int32_words.pack_int32(torch.tensor([list(codes)], dtype=torch.int8), bits)
    assert packed.dtype == torch.int32
    assert unsigned(packed) == [word]


@given(
    st.sampled_from([4, 8]),
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 70),
    st.randoms(use_true_random=False),
)
def test_unpacking_undoes_packing(bits: int, leading: list[int], count: int, random: Any) -> None:
    torch.manual_seed(random.randrange(1 << 30))
    low = -(1 << (bits - 1))
    codes = torch.randint(low, -low, (*leading, count), dtype=torch.int8)
    words = int32_words.pack_int32(codes, bits)
    assert words.shape == (*leading, int32_words.packed_width(count, bits))
    assert torch.equal(int32_words.unpack_int32(words, bits, count), codes)
    # Value k sits in word k // F at bit bits · (k mod F), plus half the range: read with plain integers.
    per_word = 32 // bits
    for row, packed_row in zip(
        codes.reshape(-1, count).tolist(), words.reshape(-1, words.shape[-1]), strict=True
    ):
        patterns = unsigned(packed_row)
        fields = [patterns[k // per_word] >> bits * (k % per_word) & (1 << bits) - 1 for k in range(count)]
        assert [field + low for field in fields] == row
        assert sum(pattern.bit_count() for pattern in patterns) == sum(field.bit_count() for field in fields)


def test_packing_reads_any_strides() -> None:
    codes = codes_of("int4_words", 13, 6)
    assert torch.equal(
        int32_words.pack_int32(codes.t(), 4), int32_words.pack_int32(codes.t().contiguous(), 4)
    )


def test_what_cannot_be_unpacked() -> None:
    with pytest.raises(
        ValueError, match=r"9 packed int4 values need int32 \[\.\.\., 2\], found torch.int32 \[3, 1\]"
    ):
        int32_words.unpack_int32(torch.zeros(3, 1, dtype=torch.int32), 4, 9)
    with pytest.raises(ValueError, match=r"found torch\.int64"):
        int32_words.unpack_int32(torch.zeros(3, 2, dtype=torch.int64), 4, 9)
    for bits in (2, 16):
        with pytest.raises(ValueError, match=f"bits must be 4 or 8, found {bits}"):
            int32_words.pack_int32(torch.zeros(1, 8, dtype=torch.int8), bits)


def test_slabs_of_words_by_hand() -> None:
    """K = 256, one block of four slabs of 64: word c holds codes c, 64 + c, 128 + c, 192 + c, lowest nibble first."""
    layout = layouts.slab_layout("int4_words", 256, 128)
    assert (layout.slab_width, layout.padded_group, layout.words) == (64, 128, 64)
    codes = torch.zeros(1, 256, dtype=torch.int8)
    codes[0, [0, 64, 128, 192]] = torch.tensor([1, 2, -8, 7], dtype=torch.int8)
    codes[0, [63, 255]] = torch.tensor([-1, -2], dtype=torch.int8)
    expected = [0x8888] * 64
    expected[0] = 0xF0A9  # 7 + 8, -8 + 8, 2 + 8, 1 + 8
    expected[63] = 0x6887  # -2 + 8, 0 + 8, 0 + 8, -1 + 8
    packed = layouts.pack(codes, layout)
    assert packed.dtype == torch.int16
    assert unsigned(packed) == expected


def test_slabs_of_bytes_by_hand() -> None:
    """K = 64 in groups of 32: byte c holds codes c and 32 + c in two's complement."""
    layout = layouts.slab_layout("int4_bytes", 64, 32)
    assert (layout.slab_width, layout.padded_group, layout.words) == (32, 32, 32)
    codes = torch.zeros(1, 64, dtype=torch.int8)
    codes[0, [0, 32, 33, 63, 30]] = torch.tensor([1, 2, -1, -8, -3], dtype=torch.int8)
    expected = [0x00] * 32
    expected[0], expected[1], expected[30], expected[31] = 0x21, 0xF0, 0x0D, 0x80
    packed = layouts.pack(codes, layout)
    assert packed.dtype == torch.int8
    assert unsigned(packed) == expected


def test_groups_are_padded_to_whole_slabs() -> None:
    """K = 5 in groups of 3, slabs of 16: codes 0 … 2 stand at columns 0 … 2, codes 3 and 4 at columns 16 and 17."""
    layout = layouts.slab_layout("int8", 5, 3)
    assert (layout.slab_width, layout.padded_group, layout.groups, layout.columns) == (16, 16, 2, 32)
    packed = layouts.pack(torch.tensor([[1, 2, 3, 4, 5]], dtype=torch.int8), layout)
    assert packed.tolist() == [[1, 2, 3, *[0] * 13, 4, 5, *[0] * 14]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", [1, 2, 7, 31, 63, 64, 65, 100, 128, 255, 314, 576, 1000])
@pytest.mark.parametrize("group_size", [1, 7, 24, 32, 64, 100, 128, 2000])
def test_slabs_hold_every_code_at_its_place(form: str, columns: int, group_size: int) -> None:
    group_size = min(group_size, columns)
    layout = layouts.slab_layout(form, columns, group_size)
    assert layout.padded_group % layout.slab_width == 0  # a slab lies in one group
    assert layout.slab_width & (layout.slab_width - 1) == 0
    codes = codes_of(form, 3, columns)
    packed = layouts.pack(codes, layout)
    assert packed.shape == (3, layout.words)
    assert packed.dtype == layout.dtype
    assert torch.equal(layouts.unpack(packed, layout), codes)

    # Read as the drawing says, padding included: it must hold code 0.
    bits, offset = {"int4_words": (4, 8), "int4_bytes": (4, 0), "int8": (8, 0)}[form]
    width, slabs = layout.slab_width, layout.slabs_per_block
    column = torch.arange(layout.columns)
    word = column // (width * slabs) * width + column % width
    place = column // width % slabs
    fields = (packed.long()[:, word] >> bits * place & (1 << bits) - 1) - offset
    fields = torch.where(fields >= 1 << (bits - 1), fields - (1 << bits), fields)
    group, within = column // layout.padded_group, column % layout.padded_group
    k = group * group_size + within
    real = (within < group_size) & (k < columns)
    assert real.sum() == columns
    assert torch.equal(fields[:, real], codes.long())
    assert not fields[:, ~real].any()


def test_a_packed_weight_is_a_copy() -> None:
    codes = torch.ones(2, 64, dtype=torch.int8)
    packed = layouts.pack(codes, layouts.slab_layout("int8", 64, 64))
    codes.fill_(5)
    assert (packed == 1).all()


def test_usual_groups_cost_no_padding() -> None:
    for columns in (512, 4096, 14336):
        for group_size in (32, 64, 128, columns):
            for form in FORMS:
                assert layouts.slab_layout(form, columns, group_size).columns == columns


def test_each_scheme_has_its_form() -> None:
    forms = {name: layouts.weight_form(make()) for name, make in config.PRESETS.items()}
    assert forms == {
        "w8a16": "int8",
        "w4a16": "int4_words",
        "w8a8": "int8",
        "w8a8_static": "int8",
        "w4a8": "int4_bytes",
    }
