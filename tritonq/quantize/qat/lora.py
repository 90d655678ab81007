"""Low-rank adapters on a quantized base, to fine-tune a model whose float weights do not fit into memory.

    y = base(x) + (alpha / rank) · (x · Aᵀ) · Bᵀ        A [rank, K], B [N, rank]

The base stays frozen and packed in int4 or int8. Gradients pass through its dequantizing product to earlier layers. B
starts at zero, so training starts from the base's output. Hu et al., "LoRA", 2021; Dettmers et al., "QLoRA", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonq.nn.linear import QuantizedLinear
from tritonq.select.patterns import Model, Pattern, Place, check_pattern, matches, places

_ADVICE = "gradients pass weight-only layers (w8a16, w4a16) alone"


class LoRALinear(nn.Module):
    """A frozen, weight-only QuantizedLinear and a trained low-rank correction.

    Args:
        base: the layer; its bias is frozen too.
        rank: the rank of the correction, ≥ 1.
        alpha: the correction is multiplied by alpha / rank.
        dropout: fraction of the correction's inputs dropped in training, in [0, 1).

    Attributes:
        lora_A, lora_B: Parameters [rank, K] and [N, rank], float32.

    Raises:
        TypeError, ValueError: the message names the argument, the value found and what is allowed.
    """

    def __init__(
        self, base: QuantizedLinear, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not isinstance(base, QuantizedLinear):
            raise TypeError(f"LoRALinear: base must be a QuantizedLinear, found {type(base).__name__}")
        if not base.config.weight_only:
            raise ValueError(f"LoRALinear {base.module_name!r}: {_ADVICE}, found {base.config.scheme}")
        _check_words(rank, alpha, dropout)
        self.base, self.rank, self.alpha, self.dropout = base, rank, float(alpha), float(dropout)
        base.requires_grad_(False)
        device = next(base.parameters()).device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(base.training)

    @property
    def in_features(self) -> int:
        """K."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """N."""
        return self.base.out_features

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """x float [..., K] → [..., N] of the same dtype."""
        y = self.base(x)
        low = functional.dropout(x.to(self.lora_A.dtype), self.dropout, self.training)
        low = functional.linear(low, self.lora_A)  # [..., K] @ [K, rank]
        correction = functional.linear(low, self.lora_B)  # [..., rank] @ [rank, N]
        return y + (self.scaling * correction).to(y.dtype)

    def merged(self, requantize: bool = False) -> nn.Linear | QuantizedLinear:
        """One layer with the same results: float, or quantized again with the base's config.

        Quantizing again loses corrections smaller than half a step of the grid; float loses nothing.
        """
        base = self.base
        weight = base.dequantize(torch.float32)
        with torch.no_grad():
            weight = weight + self.scaling * (self.lora_B.float() @ self.lora_A.float())
        linear = base.to_float(weight)
        linear.train(self.training)
        if requantize:
            return QuantizedLinear.from_float(linear, base.config, name=base.module_name)
        return linear

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, dropout={self.dropout:g}"


def add_lora_(
    model: Model,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Iterable[Pattern] | None = None,
    *,
    dropout: float = 0.0,
) -> Model:
    """Freeze a quantized model and add adapters to its weight-only layers, in place.

    Args:
        model: from `quantize_` or `load`; not itself a QuantizedLinear.
        rank, alpha, dropout: as for LoRALinear.
        targets: patterns (tritonq/select/patterns.py) of the layers to adapt; None takes every weight-only layer.

    Returns:
        The model. Only `lora_parameters(model)` require gradients.

    Raises:
        TypeError, ValueError: a bad argument, a pattern that matches nothing, a target that is not weight-only or
            already has an adapter, or nothing to adapt. The model is then unchanged.
    """
    _check_words(rank, alpha, dropout)
    if not isinstance(model, nn.Module):
        raise TypeError(f"add_lora_: model must be a torch.nn.Module, found {type(model).__name__}")
    adapted = [place.name for place in places(model) if isinstance(place.module, LoRALinear)]
    if adapted:
        raise ValueError(f"add_lora_: {adapted[0]} already has an adapter, call merge_lora_(model) first")
    layers = [place for place in places(model) if isinstance(place.module, QuantizedLinear)]
    chosen = _chosen(layers, targets)
    if not chosen:
        raise ValueError(
            f"add_lora_: nothing to adapt, {_ADVICE}, found none among {len(layers)} quantized layers"
        )
    adapters = [LoRALinear(_quantized(place), rank, alpha, dropout) for place in chosen]
    model.requires_grad_(False)
    for place, adapter in zip(chosen, adapters, strict=True):
        adapter.lora_A.requires_grad_(True)
        adapter.lora_B.requires_grad_(True)
        place.put(adapter)
    return model


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' parameters, for an optimizer."""
    adapters = [module for module in model.modules() if isinstance(module, LoRALinear)]
    return [parameter for adapter in adapters for parameter in (adapter.lora_A, adapter.lora_B)]


def merge_lora_(model: Model, requantize: bool = False) -> Model:
    """Replace every LoRALinear by one layer with the same results, in place; see `LoRALinear.merged`.

    Raises:
        ValueError: the model has no LoRALinear.
    """
    adapted = [place for place in places(model) if isinstance(place.module, LoRALinear)]
    if not adapted:
        raise ValueError("merge_lora_ needs a model with adapters, found none")
    for place in adapted:
        assert isinstance(place.module, LoRALinear)
        place.put(place.module.merged(requantize))
    return model


def _chosen(layers: list[Place], targets: Iterable[Pattern] | None) -> list[Place]:
    if targets is None:
        return [place for place in layers if _quantized(place).config.weight_only]
    if isinstance(targets, (str, type)) or not isinstance(targets, Iterable):
        raise TypeError(f"add_lora_: targets must be a list of patterns, found {targets!r}")
    patterns = list(targets)
    for pattern in patterns:
        check_pattern(pattern, "targets")
        if not any(matches(pattern, place) for place in layers):
            raise ValueError(f"add_lora_: the pattern {pattern!r} matches no quantized layer")
    return [place for place in layers if any(matches(pattern, place) for pattern in patterns)]


def _quantized(place: Place) -> QuantizedLinear:
    assert isinstance(place.module, QuantizedLinear)
    return place.module


def _check_words(rank: object, alpha: object, dropout: object) -> None:
    if type(rank) is not int or rank < 1:
        raise ValueError(f"LoRALinear: rank must be an int ≥ 1, found {rank!r}")
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ValueError(f"LoRALinear: alpha must be a finite number > 0, found {alpha!r}")
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"LoRALinear: dropout must be a number in [0, 1), found {dropout!r}")
