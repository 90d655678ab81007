"""What kernel tests feed and compare: odd shapes, strides with poison in the gaps, packed weights, exact comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.poison import poison_of
from tritonq.numerics import config, qparams, slabs

ROWS = (33, 1, 3, 17, 0)
COLUMNS = (1000, 1, 31, 314, 576)
FEATURES = (314, 1, 7, 64, 192)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
STRIDES = ("contiguous", "wide rows", "transposed", "expanded", "sliced")


def with_strides(x: Tensor, strides: str) -> Tensor:
    """The values of x [M, K] (for "expanded": its first row, M times), laid out otherwise, gaps filled with poison."""
    rows, columns = x.shape
    if strides == "contiguous":
        return x.contiguous()
    if strides == "transposed":
        return x.t().contiguous().t()
    if strides == "expanded":
        return x[:1].contiguous().expand(rows, columns)
    gaps = poison_of(2 * rows + 1, columns + 5, dtype=x.dtype, device=x.device)
    view = gaps[:rows, :columns] if strides == "wide rows" else gaps[1::2, 3 : columns + 3]
    view.copy_(x)
    return view


def addressable(x: Tensor) -> Tensor:
    """The codes [M, K] in rows that start at multiples of 16 bytes, as the copy engine wants them."""
    wide = poison_of(x.shape[0], -(-x.shape[1] // 16) * 16, dtype=x.dtype, device=x.device)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def random_codes(*shape: int, device: str, low: int = -128, high: int = 127) -> Tensor:
    """int8 codes; a good part of them at the two ends of the range, -128 included by default."""
    codes = torch.randint(low, high + 1, shape, device=device)
    extreme = torch.where(torch.rand(shape, device=device) < 0.5, low, high)
    return torch.where(torch.rand(shape, device=device) < 0.2, extreme, codes).to(torch.int8)


@dataclasses.dataclass
class Weight:
    """A quantized weight, in the form of files and in that of kernels."""

    codes: Tensor  # int8 [N, K]
    scale: Tensor  # [N, G]
    zero: Tensor | None  # int8 [N, G]
    layout: slabs.SlabLayout
    packed: Tensor  # [N, words]

    @property
    def kernel_scale(self) -> Tensor:
        return self.scale.t().contiguous()

    @property
    def kernel_zero(self) -> Tensor | None:
        return None if self.zero is None else self.zero.t().contiguous()

    def int8(self, bias: Tensor | None = None) -> Any:
        """As the int8 kernels take it, bias [N] included."""
        from tritonq.kernels.blocks.int8_product import Int8Weight

        sums = self.codes.sum(dim=1, dtype=torch.int32)
        return Int8Weight(self.packed, self.kernel_scale, self.kernel_zero, sums, bias)

    def dequantized(self) -> Tensor:
        """float32 [N, K]."""
        columns, size = self.layout.in_features, self.layout.group_size
        zero = None if self.zero is None else qparams.expand_groups(self.zero, columns, size)
        return qparams.dequantize(
            self.codes, qparams.expand_groups(self.scale, columns, size), zero, torch.float32
        )


def random_weight(
    made: config.QuantConfig, features: int, columns: int, dtype: torch.dtype, device: str
) -> Weight:
    """Codes of the whole range (-128 too, which only files hold), zero points of the whole range, scales near 1/100."""
    spec = made.weight
    size = spec.resolve_group_size(columns)
    layout = slabs.slab_layout(slabs.weight_form(made), columns, size)
    low, high = (-8, 7) if spec.bits == 4 else (-128, 127)
    codes = random_codes(features, columns, device=device, low=low, high=high)
    scale = (torch.rand(features, layout.groups, device=device) / 100 + 0.005).to(dtype)
    zero = None
    if not spec.symmetric:
        zero = random_codes(features, layout.groups, device=device, low=low, high=high)
    return Weight(codes, scale, zero, layout, slabs.pack(codes, layout))


def readable(x: Tensor) -> Tensor:
    """x; where kernels are interpreted, with zeros for subnormal bfloat16 numbers: the interpreter misreads those."""
    from tritonq.kernels.launch.target import INTERPRETED

    if INTERPRETED and x.dtype == torch.bfloat16:
        return torch.where(x.abs() < torch.finfo(x.dtype).smallest_normal, torch.zeros_like(x), x)
    return x


def as_stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values as a kernel stores them: rounded to nearest, but bfloat16 is truncated by Triton's interpreter."""
    from tritonq.kernels.launch.target import INTERPRETED

    if INTERPRETED and dtype == torch.bfloat16:
        return (values.view(torch.int32) & ~0xFFFF).view(torch.float32).to(dtype)
    return values.to(dtype)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Same shape, dtype and bits (0.0 and -0.0, and all NaNs, count as the same)."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_close_to_float32(
    found: Tensor,
    exact: Tensor,
    magnitude: Tensor,
    stored: Callable[[Tensor, torch.dtype], Tensor] = as_stored,
) -> None:
    """A float product in its dtype against the float32 one.

    Args:
        found: [M, N].
        exact: float32 [M, N].
        magnitude: float32 [M, N], Σ |x| · |w| + |b|: what rounding errors of the accumulation scale with.
        stored: how results are rounded to found's dtype.
    """
    assert found.shape == exact.shape
    if exact.numel() == 0:
        return
    expected = stored(exact, found.dtype).float()
    whole = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}[found.dtype]
    error = ((found.float() - expected).norm() / exact.norm()).item()
    assert error <= whole, f"relative error {error:.2e} of the whole, allowed {whole}"
    # One element: the rounding of the result, and that of the float32 sums, which run in another order.
    one_ulp = torch.finfo(found.dtype).eps * exact.abs()
    excess = ((found.float() - exact).abs() - one_ulp - 2e-6 * magnitude).max().item()
    assert excess <= 0, f"an element is off by {excess:.2e} more than rounding explains"


def assert_codes_close(found: Tensor, expected: Tensor) -> None:
    """int8 codes behind an elementary function, or a sum in another order: one off on at most 0.1 % of the elements."""
    assert (found.shape, found.dtype, expected.dtype) == (expected.shape, torch.int8, torch.int8)
    off = (found.int() - expected.int()).abs()
    assert off.sum() <= max(1.0, off.numel() / 1000), f"{(off > 0).sum()} of {off.numel()} codes differ"
    assert not (off > 1).any(), "a code is off by more than one"


def random_grid(device: str, scale: float, affine: bool) -> tuple[Tensor, Tensor, bool]:
    """(scale float32 [1] near a number, zero point int8 [1], symmetric): a grid for a result."""
    zero = random_codes(1, device=device, low=-50, high=50) if affine else torch.zeros(1, dtype=torch.int8)
    return (torch.rand(1, device=device) + 0.5) * scale, zero.to(device), not affine
