"""Checks that a float Linear can be quantized. All layers are checked before the first one changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tritonq.numerics import qparams
from tritonq.numerics.config import QuantConfig

_INT32_MAX = 2**31 - 1
#: Largest |code - zero point|: of affine and of symmetric int8 (files hold -128 too).
_AFFINE_RANGE, _SYMMETRIC_RANGE = 255, 128


def check_linear(linear: nn.Linear, config: QuantConfig, name: str = "") -> None:
    """Raise unless `linear` can be quantized with `config`.

    Raises:
        TypeError: for a weight that is not float32, float16 or bfloat16.
        ValueError: for a weight that is not initialized yet (LazyLinear), on the meta device, empty or non-finite,
            or K too large for int32 accumulation.
    """
    weight = linear.weight
    where = f"Linear {name!r}" if name else "Linear"
    if is_lazy(weight):
        raise ValueError(
            f"{where}: weight must hold values, found {type(linear).__name__} before its first input: run one batch "
            "through the model first"
        )
    if weight.dtype not in qparams.FLOAT_DTYPES:
        raise TypeError(f"{where}: weight must be float32, float16 or bfloat16, found {weight.dtype}")
    if weight.is_meta:
        raise ValueError(f"{where}: weight must hold values, found one on the meta device")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"{where}: weight must be [N, K] with N and K ≥ 1, found {list(weight.shape)}")
    parts: dict[str, Tensor | None] = {"weight": weight, "bias": linear.bias}
    for part, tensor in parts.items():
        if tensor is not None and not torch.isfinite(tensor.detach()).all():
            count = int((~torch.isfinite(tensor.detach())).sum())
            raise ValueError(f"{where}: {part} must be finite, found {count} NaN or Inf values")
    limit = largest_in_features(config)
    if weight.shape[1] > limit:
        raise ValueError(
            f"{where}: in_features must be at most {limit:,} for {config.scheme}, which accumulates in int32, "
            f"found {weight.shape[1]:,}"
        )


def largest_in_features(config: QuantConfig) -> int:
    """The largest K whose exact int32 accumulation cannot overflow; no limit (int32's own) for float activations."""
    if config.activation is None:
        return _INT32_MAX
    ranges = [
        _SYMMETRIC_RANGE if spec.symmetric else _AFFINE_RANGE for spec in (config.weight, config.activation)
    ]
    return _INT32_MAX // (ranges[0] * ranges[1])
