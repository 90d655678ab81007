"""Whether what a kernel computed agrees with the reference."""

from __future__ import annotations

import torch
from torch import Tensor

#: Of the result's root mean square: float32 sums of up to 10⁵ products that run in another order, rounded to 16 bits;
#: and not rounded, where products in tf32, which float32 must never become, would be ten times worse.
_OTHER_ORDER, _OTHER_ORDER_FLOAT32 = 1e-3, 5e-5
#: Part of the codes that may be one off, behind an elementary function or a sum in another order.
_CODES_ONE_OFF = 1e-3


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape, 0 where both hold NaN; inf where one does."""
    if found.numel() == 0:
        return 0.0
    difference = (found.float() - expected.float()).abs()
    same = (found == expected) | (found.isnan() & expected.isnan() if found.is_floating_point() else False)
    difference = torch.where(same, torch.zeros_like(difference), difference)
    return difference.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()


def disagreement(found: Tensor, expected: Tensor, exact: bool) -> str | None:
    """What is wrong with a result, in words; None where nothing is.

    Args:
        found: what a kernel computed.
        expected: what the reference computed: in found's dtype if `exact`; else float32, not rounded, or codes.
        exact: every bit must be the same (NaNs alike, and zeros of either sign); else each element must be right but
            for one rounding to found's dtype and the order of float32 sums.
    """
    if found.shape != expected.shape or (exact and found.dtype != expected.dtype):
        return f"{list(found.shape)} of {found.dtype} instead of {list(expected.shape)} of {expected.dtype}"
    if exact:
        difference = largest_difference(found, expected)
        return None if difference == 0 else f"off by {difference:.3g} where every bit is prescribed"
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
