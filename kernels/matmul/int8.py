"""INT8 activations × INT8 weights, exact in int32, with everything around the product in the epilogue:

    zero points   Σ(x - zx)(w - zw) = Σxw - zw·Σx - zx·(Σw - K·zw)
    float out     y = activation((float(acc) · s_x) · s_w + b + residual)
    int8 out      v = y · (1 / s_y);  code = clamp(rint v + z_y)
    and with neither a residual nor an activation but relu
                  v = acc · m + b',  m = (s_x · s_w) / s_y,  b' = b / s_y
    a second weight, the middle of a gated MLP
                  y = activation(y of the first) · (y of the second)

Weights are stored in the layout `int8`: rows padded with code 0 to a multiple of 16 columns.
"""

from __future__ import annotations

import torch

from ..blocks.int8_product import (
    FloatActivation,
    Grid,
    Int8Activation,
    Int8Product,
    Int8Weight,
    Residual,
    out_of,
)
from ..config import int8_rule
from ..config.choose import configured
from ..config.problem import Epilogue, Int8, Int8Gated, Problem
from ..config.tile import TileConfig
from ..launch.descriptors import is_addressable
from ..launch.plans import Plan, launcher
from ..launch.target import Target, target_of
from .int8_descriptors import descriptors_launch
from .int8_pointers import pointers_launch


@launcher
def int8_matmul(
    x: Int8Activation | FloatActivation,
    w: Int8Weight,
    out_dtype: torch.dtype,
    activation: str = "none",
    residual: Residual | None = None,
    grid: Grid | None = None,
    up: Int8Weight | None = None,
    config: TileConfig | None = None,
) -> Plan:
    """x [M, K] · wᵀ → [M, N].

    Args:
        x: int8; or float, with a configuration of the path "quantizing".
        w: the weight.
        out_dtype: float dtype of the result; ignored with a grid.
        activation: as `epilogue.activate`.
        residual: added before the activation; None with a second weight.
        grid: of an int8 result.
        up: a second weight of the same shape, whose product the activation is multiplied by.
        config: tile shape, block_n being rows of each weight; None chooses.
    """
    matrix = x[0]
    if matrix.stride(-1) != 1:
        matrix = matrix.contiguous()
        x = x._replace(codes=matrix) if isinstance(x, Int8Activation) else x._replace(values=matrix)
    if residual is not None and residual.values.stride(-1) != 1:
        residual = residual._replace(values=residual.values.contiguous())
    out = out_of(matrix, w, out_dtype, grid)
    if matrix.shape[0] == 0:
        return Plan(out)
    product, target = Int8Product(x, w, up, activation, residual, grid, out), target_of(matrix)
    if config is None:
        config = _config(product, target)
    if config.path == "hopper":
        from ..hopper.int8 import hopper_launch

        return Plan(out, hopper_launch(product, config, target))
    if config.path == "descriptors":
        return Plan(out, descriptors_launch(product, config, target))
    return Plan(out, pointers_launch(product, config))


def _config(product: Int8Product, target: Target) -> TileConfig:
    matrices = (product.x[0], product.w.codes, *([] if product.up is None else [product.up.codes]))
    addressable = all(map(is_addressable, matrices))
    variant = Int8Gated(addressable) if product.up is not None else Int8(epilogue_of(product), addressable)
    problem = Problem(variant, *product.shape)
    return configured(problem, target, lambda: int8_rule.choose(problem, target))


def epilogue_of(product: Int8Product) -> Epilogue:
    """How much follows a product of one weight."""
    if product.residual is not None or product.is_affine:
        return "long"
    return "short" if product.activation in ("none", "relu") else "smooth"
