"""Checks of what operators fuse: a wrong shape would be read beyond its end on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritonq import reference


def check_activation(name: str, activation: str) -> None:
    """Raise a ValueError for a name that is not one of `reference.ACTIVATIONS`."""
    if activation not in reference.ACTIVATIONS:
        raise ValueError(
            f"{name}: activation must be one of {', '.join(reference.ACTIVATIONS)}, found {activation!r}"
        )


def check_rows(name: str, what: str, tensor: Tensor) -> None:
    """Raise a ValueError for a tensor that is not two-dimensional."""
    if tensor.dim() != 2:
        raise ValueError(f"{name}: {what} must be [rows, columns], found shape {list(tensor.shape)}")


def check_shape(name: str, what: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """Raise a ValueError for a tensor, where there is one, of another shape."""
    if tensor is not None and tensor.shape != torch.Size(shape):
        raise ValueError(f"{name}: {what} must have shape {list(shape)}, found {list(tensor.shape)}")


def check_residual(name: str, residual: Tensor | None, scale: Tensor | None, shape: Sequence[int]) -> None:
    """Raise a ValueError unless a residual is float, or int8 with a scale, and of the given shape."""
    check_shape(name, "residual", residual, shape)
    if residual is None:
        wants_scale, found = False, "no residual"
    else:
        wants_scale, found = residual.dtype == torch.int8, f"a residual of {residual.dtype}"
        if not wants_scale and not residual.dtype.is_floating_point:
            raise ValueError(f"{name}: residual must be float or int8, found {residual.dtype}")
    if wants_scale != (scale is not None):
        raise ValueError(
            f"{name}: residual_scale belongs to an int8 residual, found {found} with"
            f"{'out' if scale is None else ''} residual_scale"
        )
