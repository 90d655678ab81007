"""Compares a kernel's result with the reference."""

from __future__ import annotations

import torch
from torch import Tensor

#: Error that another order of float32 sums (up to 10⁵ products) may cause, as a part of the result's root mean square:
#: in 16-bit results, and in float32. tf32 products, which a float32 kernel must not use, err ten times more than that.
_OTHER_ORDER, _OTHER_ORDER_FLOAT32 = 1e-3, 5e-5
#: Part of the codes that may be one off after an elementary function or a sum in another order.
_CODES_ONE_OFF = 1e-3


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape. NaN and NaN differ by 0, NaN and a number by inf."""
    if found.numel() == 0:
        return 0.0
    difference = (found.float() - expected.float()).abs()
    same = (found == expected) | (found.isnan() & expected.isnan() if found.is_floating_point() else False)
    difference = torch.where(same, torch.zeros_like(difference), difference)
    return difference.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()


def disagreement(found: Tensor, expected: Tensor, exact: bool) -> str | None:
    """What is wrong with a result, in words; None if it is right.

    Args:
        found: the kernel's result.
        expected: the reference's result: in found's dtype if `exact`, else codes or unrounded float32.
        exact: True: every bit must match, except NaN's and the sign of zero. False: elements may differ by one rounding
            to found's dtype and by another order of float32 sums.
    """
    if found.shape != expected.shape or (exact and found.dtype != expected.dtype):
        return f"{list(found.shape)} of {found.dtype} instead of {list(expected.shape)} of {expected.dtype}"
    if exact:
        difference = largest_difference(found, expected)
        return None if difference == 0 else f"off by {difference:.3g}, but every bit must match"
    if not found.is_floating_point():
        off = (found.int() - expected.int()).abs()
        few = int(off.sum()) <= max(1.0, _CODES_ONE_OFF * off.numel())
        return (
            None
            if few and int(off.max()) <= 1
            else f"{int((off > 0).sum())} codes differ, by up to {off.max()}"
        )
    rounding = torch.finfo(found.dtype).eps * expected.abs()
    order = _OTHER_ORDER_FLOAT32 if found.dtype == torch.float32 else _OTHER_ORDER
    allowed = rounding + order * expected.square().mean().sqrt()
    excess = (found.float() - expected).abs() - allowed
    if bool((excess <= 0).all()):
        return None
    return f"off by {largest_difference(found, expected):.3g}, more than rounding explains"
