"""Operators that round floats to a grid and let gradients pass; the mathematics is in `reference/fake_quantize.py`.

What the backward pass needs is chosen by what learns. With a learned scale or zero point, x itself is kept: its
distance to the grid is part of the gradient. Else one bit per element is kept, and x is not: in bfloat16 forward and
backward then move 2 + 2 + 1/8 and 2 + 1/8 + 2 bytes an element, against 4 and 6 when the mask is computed again from x
(and 5 and 5 for a byte mask), and an activation need not stay in memory.

Per token nothing is kept at all: the grid is made from the row, so that every element lies inside, and the gradient
passes as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonq.ops.backends import uses_kernels
from tritonq.ops.declare import operator
from tritonq.reference import fake_quantize as straight_through


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int,
    qmin: int,
    qmax: int,
    gradient_factor: float = 1.0,
) -> Tensor:
    """Round x to the grid of the deployed codes; straight-through gradients for x, scale and zero point.

    Args:
        x: float [R, C].
        scale: float [R or 1, G], G = ceil(C / group_size), > 0. Learns (LSQ) where it requires a gradient.
        zero_point: int8, or float32 that is rounded and clamped to [qmin, qmax] here, of scale's shape; None for 0.
            A float one learns (LSQ+) where it requires a gradient.
        group_size: columns per scale; C for one scale per row or per tensor.
        qmin, qmax: the code range, within [-128, 127].
        gradient_factor: multiplies the gradients of scale and zero point: 1/√(elements per scale · qmax) in LSQ.

    Returns:
        [R, C] of x's dtype, contiguous: (code - zero) · scale. NaN in x takes the zero point's code and becomes 0.

    Raises:
        ValueError: for shapes that do not fit.
        NotImplementedError: in a backward pass through the backward pass.
    """
    _check(x, scale, zero_point, group_size, qmin, qmax)
    grid = (scale, zero_point, group_size, qmin, qmax)
    if torch.is_grad_enabled() and x.requires_grad and not _learns(scale) and not _learns(zero_point):
        return _fake_quantize_with_mask(x, *grid)[0]
    return _fake_quantize(x, *grid, gradient_factor)


def _learns(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _check(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, qmin: int, qmax: int
) -> None:
    if x.dim() != 2:
        raise ValueError(f"fake_quantize: x must be [rows, columns], found shape {tuple(x.shape)}")
    if group_size < 1:
        raise ValueError(f"fake_quantize: group_size must be at least 1, found {group_size}")
    if not -128 <= qmin < qmax <= 127:
        raise ValueError(f"fake_quantize: -128 ≤ qmin < qmax ≤ 127 is wanted, found {qmin} and {qmax}")
    groups = max(1, -(-x.shape[1] // group_size))
    if scale.dim() != 2 or scale.shape[1] != groups or (scale.shape[0] != 1 and scale.shape[0] != x.shape[0]):
        raise ValueError(
            f"fake_quantize: scale must be [{x.shape[0]} or 1, {groups}] for x of shape {tuple(x.shape)} and "
            f"group_size {group_size}, found {tuple(scale.shape)}"
        )
    if zero_point is not None and zero_point.shape != scale.shape:
        raise ValueError(
            f"fake_quantize: zero_point must have scale's shape {tuple(scale.shape)}, found "
            f"{tuple(zero_point.shape)}"
        )


# --- gradients ------------------------------------------------------------------------------------------------------


def _refuse_second(ctx: Any, *gradients: Tensor | None) -> Any:
    raise NotImplementedError(
        "fake quantization has no second derivative: its straight-through gradient is not the derivative of what it "
        "computes, so create_graph=True (gradient penalties, second-order optimizers) cannot go through it"
    )


_FIRST_DERIVATIVE_ONLY = (lambda ctx, inputs, output: None, _refuse_second)


@operator(
    "fake_quantize_gradients(Tensor dy, Tensor x, Tensor scale, Tensor? zero_point, int group_size, int qmin, "
    "int qmax, float gradient_factor, bool x_learns, bool scale_learns, bool zero_learns) -> (Tensor, Tensor, Tensor)",
    lambda dy, x, scale, zero_point, group_size, qmin, qmax, gradient_factor, *learns: tuple(
        torch.empty(like.shape if wanted else (0,), dtype=like.dtype, device=like.device)
        for like, wanted in zip((x, scale, scale if zero_point is None else zero_point), learns, strict=True)
    ),
    _FIRST_DERIVATIVE_ONLY,
)
def _gradients(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int,
    qmin: int,
    qmax: int,
    gradient_factor: float,
    x_learns: bool,
    scale_learns: bool,
    zero_learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dscale, dzero, each in the dtype of what it belongs to; [0] where not wanted."""
    grid = (scale, zero_point, group_size, qmin, qmax)
    wanted = (x_learns, scale_learns, zero_learns)
    if uses_kernels(x):
        from tritonq.kernels.rows import fake_quantize_gradients as kernels

        tile_columns = straight_through.tile_columns(group_size)
        return kernels.gradients(dy, x, *grid, tile_columns, gradient_factor, wanted)
    found = straight_through.gradients(dy, x, *grid, gradient_factor)
    likes = (x, scale, scale if zero_point is None else zero_point)
    dx, dscale, dzero = (
        gradient.to(like.dtype).contiguous() if want and gradient is not None else like.new_empty(0)
        for gradient, like, want in zip(found, likes, wanted, strict=True)
    )
    return dx, dscale, dzero


@operator(
    "fake_quantize_masked(Tensor dy, Tensor mask, int groups, int group_size) -> Tensor",
    lambda dy, mask, groups, group_size: torch.empty(dy.shape, dtype=dy.dtype, device=dy.device),
    _FIRST_DERIVATIVE_ONLY,
)
def _masked(dy: Tensor, mask: Tensor, groups: int, group_size: int) -> Tensor:
    """dy [R, C] where the packed mask has ones, else 0."""
    if uses_kernels(dy):
        from tritonq.kernels.rows import fake_quantize as kernels

        return kernels.masked(dy, mask, groups, group_size, straight_through.tile_columns(group_size))
    inside = straight_through.unpack_mask(mask, dy.shape[1], groups, group_size)
    return torch.where(inside, dy, 0.0).to(dy.dtype).contiguous()


@operator(
    "straight_through_once(Tensor dy) -> Tensor",
    lambda dy: torch.empty_like(dy),
    _FIRST_DERIVATIVE_ONLY,
    torch_only=True,
)
def _straight_through_once(dy: Tensor) -> Tensor:
    """A copy of dy that refuses to be differentiated."""
    return dy.clone()


# --- forward, with given grids --------------------------------------------------------------------------------------


def _save_input(ctx: Any, inputs: Any, output: Any) -> None:
    x, scale, zero_point, *ctx.rest = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _backward_of_input(ctx: Any, dy: Tensor) -> Any:
    learns = ctx.needs_input_grad[:3]
    gradients = _gradients(dy, *ctx.saved_tensors, *ctx.rest, *learns)
    kept = (gradient if learn else None for gradient, learn in zip(gradients, learns, strict=True))
    return (*kept, *[None] * len(ctx.rest))


@operator(
    "fake_quantize(Tensor x, Tensor scale, Tensor? zero_point, int group_size, int qmin, int qmax, "
    "float gradient_factor) -> Tensor",
    lambda x, *grid: torch.empty(x.shape, dtype=x.dtype, device=x.device),
    (_save_input, _backward_of_input),
)
def _fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int,
    qmin: int,
    qmax: int,
    gradient_factor: float,
) -> Tensor:
    """y alone."""
    if uses_kernels(x):
        from tritonq.kernels.rows import fake_quantize as kernels

        tile_columns = straight_through.tile_columns(group_size)
        return kernels.fake_quantize(x, scale, zero_point, group_size, qmin, qmax, tile_columns)
    return straight_through.fake_quantize(x, scale, zero_point, group_size, qmin, qmax).contiguous()


def _with_mask_fake(x: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, *_: int) -> Any:
    shape = straight_through.mask_shape(x.shape[0], scale.shape[1], group_size)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, torch.empty(shape, dtype=torch.uint8, device=x.device)


def _save_mask(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1])
    ctx.groups, ctx.group_size = inputs[1].shape[1], inputs[3]
    ctx.arguments = len(inputs)


def _backward_of_mask(ctx: Any, dy: Tensor, _: Tensor | None) -> Any:
    (mask,) = ctx.saved_tensors
    return _masked(dy, mask, ctx.groups, ctx.group_size), *[None] * (ctx.arguments - 1)


@operator(
    "fake_quantize_with_mask(Tensor x, Tensor scale, Tensor? zero_point, int group_size, int qmin, int qmax) "
    "-> (Tensor, Tensor)",
    _with_mask_fake,
    (_save_mask, _backward_of_mask),
)
def _fake_quantize_with_mask(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """y, and the packed mask of the elements inside the range."""
    grid = (scale, zero_point, group_size, qmin, qmax)
    if uses_kernels(x):
        from tritonq.kernels.rows import fake_quantize as kernels

        return kernels.fake_quantize_with_mask(x, *grid, straight_through.tile_columns(group_size))
    y, inside = straight_through.fake_quantize_with_mask(x, *grid)
    return y.contiguous(), straight_through.pack_mask(inside, scale.shape[1], group_size)


# --- forward, with a grid per token ---------------------------------------------------------------------------------


def _pass_gradient(ctx: Any, dy: Tensor) -> Any:
    if torch.is_grad_enabled() and dy.requires_grad:  # create_graph=True
        dy = _straight_through_once(dy)
    return dy, None


@operator(
    "fake_quantize_per_token(Tensor x, bool symmetric) -> Tensor",
    lambda x, symmetric: torch.empty(x.shape, dtype=x.dtype, device=x.device),
    (lambda ctx, inputs, output: None, _pass_gradient),
)
def fake_quantize_per_token(x: Tensor, symmetric: bool) -> Tensor:
    """float [M, K] → each row on the grid that `quantize_per_token` finds for it; the gradient passes unchanged.

    A row that holds NaN or Inf becomes NaN, and touches no other. The row's scale counts as a constant.
    """
    if uses_kernels(x):
        from tritonq.kernels.rows import quantize as kernels

        return kernels.fake_quantize_per_token(x, symmetric)
    return straight_through.fake_quantize_per_token(x, symmetric).contiguous()
