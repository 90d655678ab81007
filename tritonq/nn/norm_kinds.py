"""Recognizes layer normalizations by their results.

    RMSNorm     y = x / √(mean(x²) + ε) · (offset + weight)         offset 0, or 1 in Gemma's models
    LayerNorm   y = (x − mean(x)) / √(var(x) + ε) · weight + bias

nn.LayerNorm and nn.RMSNorm are known. Models define many other norm classes, which share little but the name. A module
is tested if its class is called …RMSNorm and it has one weight per feature and an ε, or if it derives from torch's
classes with another forward. It is run on random numbers, and counts as a norm if its results match the formula.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

#: Names of ε in models.
_EPSILON_NAMES = ("eps", "variance_epsilon", "epsilon", "norm_eps")
_TOLERANCE = 1e-5
#: Magnitudes of the test rows: only small ones reveal where ε is added.
_SIZES = (1.0, 1e-2, 1e-4)


@dataclasses.dataclass(frozen=True)
class Norm:
    """The formula of a norm.

    Attributes:
        kind: "rms_norm" or "layer_norm".
        features: K.
        eps: ε.
        weight_offset: added to the weight.
    """

    kind: str
    features: int
    eps: float
    weight_offset: float = 0.0

    def __call__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The formula in float32: x [..., K], weight and bias [K] or None."""
        x = x.float()
        if self.kind == "layer_norm":
            centred = x - x.mean(dim=-1, keepdim=True)
            y = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + self.eps)
        else:
            y = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        if weight is not None:
            y = y * (weight.float() + self.weight_offset)
        return y if bias is None else y + bias.float()


def is_norm(module: nn.Module) -> bool:
    """True if a module looks like a norm over the last dimension; `norm_of` tests it."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return len(module.normalized_shape) == 1
    return (
        type(module).__name__.endswith("RMSNorm") and _features(module) > 0 and _epsilon(module) is not None
    )


def norm_of(module: nn.Module) -> Norm | None:
    """The formula of a norm; None for any other module. It works on the meta device too."""
    if not is_norm(module) or "forward" in vars(module) or not _has_plain_parameters(module):
        return None
    if isinstance(module, nn.LayerNorm):
        candidates = [Norm("layer_norm", module.normalized_shape[0], module.eps)]
    else:
        features, epsilon = _features(module), _epsilon(module)
        if isinstance(module, nn.RMSNorm):
            features = module.normalized_shape[0]
            epsilon = torch.finfo(_dtype(module)).eps if module.eps is None else module.eps
        assert epsilon is not None
        candidates = [Norm("rms_norm", features, epsilon, offset) for offset in (0.0, 1.0)]
    if type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        return candidates[0]
    return next((norm for norm in candidates if _computes(module, norm)), None)


def _has_plain_parameters(module: nn.Module) -> bool:
    """True if weight and bias are in `_parameters`, not computed (torch's parametrizations)."""
    return all(getattr(module, name, None) is module._parameters.get(name) for name in ("weight", "bias"))


def _computes(module: nn.Module, norm: Norm) -> bool:
    """True if a copy of the module with random weights matches the formula on random rows."""
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            stand_in = copy.deepcopy(module).to_empty(device="cpu").float().eval()
            for hooks in (stand_in._forward_hooks, stand_in._forward_pre_hooks):
                hooks.clear()
            for parameter in stand_in.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            x = torch.randn(2, len(_SIZES), norm.features, generator=generator)
            x *= torch.tensor(_SIZES)[:, None]
            y, expected = (
                stand_in(x),
                norm(x, getattr(stand_in, "weight", None), getattr(stand_in, "bias", None)),
            )
            return bool(torch.allclose(y, expected, rtol=_TOLERANCE, atol=_TOLERANCE))
    except Exception:  # then it is no such norm
        return False


def _features(module: nn.Module) -> int:
    """K of a module whose only tensor is a weight [K]; 0 for any other."""
    tensors = [*module.parameters(), *module.buffers()]
    weight = module._parameters.get("weight")
    return weight.numel() if weight is not None and weight.dim() == 1 and len(tensors) == 1 else 0


def _epsilon(module: nn.Module) -> float | None:
    values = (getattr(module, name, None) for name in _EPSILON_NAMES)
    return next((value for value in values if isinstance(value, float) and value >= 0), None)


def _dtype(module: nn.RMSNorm) -> torch.dtype:
    weight = module._parameters.get("weight")
    return torch.float32 if weight is None else weight.dtype
