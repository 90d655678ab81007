"""What an INT8 product is given, by name, and in the order in which its kernels take it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..launch.operands import Operand

#: A tensor, where a launcher is called; an `Operand`, where it plans.
Given = Any


class Int8Activation(NamedTuple):
    """x: int8 codes [M, K], and scale float32 and zero point int8, one per row or one for all; None is 0."""

    codes: Given
    scale: Given
    zero: Given | None = None


class FloatActivation(NamedTuple):
    """x: float values [M, K], to be quantized per token on the way."""

    values: Given
    symmetric: bool


class Int8Weight(NamedTuple):
    """A weight: codes int8 [N, ≥ K] in layout `int8`; scale float [N]; zero int8 [N] or None for 0; sums int32 [N] of
    each row's codes; bias float [N] or None. All but the codes contiguous.
    """

    codes: Given
    scale: Given
    zero: Given | None
    sums: Given
    bias: Given | None = None


class Residual(NamedTuple):
    """What is added: values float [M, N]; or int8 with scale float32 [1] and zero int8 [1] or None for 0."""

    values: Given
    scale: Given | None = None
    zero: Given | None = None


class Grid(NamedTuple):
    """Where int8 results lie: scale float32 [1], zero int8 [1]; symmetric: codes in [-127, 127]."""

    scale: Given
    zero: Given
    symmetric: bool


class Int8Product(NamedTuple):
    """One product, out included."""

    x: Int8Activation | FloatActivation
    w: Int8Weight
    up: Int8Weight | None
    activation: str
    residual: Residual | None
    grid: Grid | None
    out: Operand

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, N, K)."""
        rows, columns = self.x[0].shape
        return rows, self.w.codes.shape[0], columns

    @property
    def is_affine(self) -> bool:
        """True if a weight has zero points, which want the sums of x's rows."""
        return self.w.zero is not None or (self.up is not None and self.up.zero is not None)

    def operands(self, x: Any, w: Any) -> tuple[Any, ...]:
        """x, the weight and what belongs to them, the matrices as a kernel takes them."""
        x_grid = (None, None) if isinstance(self.x, FloatActivation) else self.x[1:]
        return (x, *x_grid, w, *self.w[1:])

    def second(self, up: Any) -> tuple[Any, ...]:
        """The second weight alike, or as many Nones."""
        return (None,) * len(Int8Weight._fields) if self.up is None else (up, *self.up[1:])

    def results(self, out: Any) -> tuple[Any, ...]:
        """What is added, and where results go."""
        residual = (None, None, None) if self.residual is None else self.residual
        return (*residual, out, *((None, None) if self.grid is None else self.grid[:2]))

    @property
    def stride_residual(self) -> int:
        """Of a row of what is added."""
        return 0 if self.residual is None else self.residual.values.stride(0)

    @property
    def constants(self) -> dict[str, Any]:
        """The constexprs that all kernels share."""
        per_token = isinstance(self.x, FloatActivation) or self.x.scale.numel() > 1
        return {
            "ACTIVATION": self.activation,
            "X_QPARAM_STRIDE": int(per_token),
            "OUT_QMIN": -127.0 if self.grid is not None and self.grid.symmetric else -128.0,
        }


def out_of(x: Operand, w: Int8Weight, dtype: torch.dtype, grid: Grid | None) -> Operand:
    """Memory for the result: int8 on a grid, else of dtype."""
    dtype = dtype if grid is None else torch.int8
    return x.new_empty(x.shape[0], w.codes.shape[0], dtype=dtype)
