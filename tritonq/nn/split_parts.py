"""What layers that are made of Linears (split.py) have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def linear_of(weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Linear:
    """A Linear that holds the given Parameters; there must be a weight."""
    assert weight is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear._parameters.update(weight=weight, bias=bias)
    return linear


def check_input(where: str, x: object, features: int, dims: Sequence[int], word: str = "input") -> None:
    """Raise unless `x`, called `word`, is a float tensor of `dims` dimensions with `features` last."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{where}: {word} must be a floating-point tensor, found {found}")
    if x.dim() not in dims or x.shape[-1] != features:
        allowed = " or ".join(str(dim) for dim in dims)
        raise ValueError(
            f"{where}: {word} must have {allowed} dimensions with {features} features last, found shape {list(x.shape)}"
        )
