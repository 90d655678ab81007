"""Adapters of PEFT on quantized layers: LoRA on weight-only ones, through which gradients pass.

PEFT chooses what adapts a layer by functions of (layer, adapter name, config); ours is asked first. The adapter's layer
computes what PEFT's own does; the base is dequantized only to be merged with it, into a float layer.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import utils as peft_utils
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from tritonq.nn.linear import QuantizedLinear

_PREPARE = peft_utils.other.prepare_model_for_kbit_training
_DISPATCH = lora_model.LoraModel._create_new_module


class QuantizedLoraLinear(nn.Module, LoraLayer):
    """y = base(x) + scaling · B(A(dropout(x))) for every active adapter."""

    # what LoraLayer has, which mypy does not follow
    base_layer: Any
    lora_A: Any
    lora_B: Any
    lora_dropout: Any
    scaling: Any
    merged: Any
    merged_adapters: Any
    active_adapters: Any
    disable_adapters: Any
    get_base_layer: Any
    update_layer: Any
    _cast_input_dtype: Any

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: Any,
        r: int = 0,
        lora_alpha: int = 1,
        **words: Any,
    ) -> None:
        super().__init__()
        self._quantized: list[QuantizedLinear] = []
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Unsupported layer type"
            )  # PEFT takes the features that it finds
            LoraLayer.__init__(self, base_layer)
        layer = self.get_base_layer()
        if not layer.config.weight_only:
            raise ValueError(
                f"{layer.module_name}: gradients pass weight-only layers (w8a16, w4a16) alone, found "
                f"{layer.config.scheme}: quantize with one of these, or leave the layer out of target_modules"
            )
        for word in ("use_dora", "velora_config"):
            if getattr(config, word, None):
                raise ValueError(f"{layer.module_name}: LoRA on a quantized layer takes no {word}, found one")
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.lora_A:
                low = self._cast_input_dtype(x, self.lora_A[name].weight.dtype)
                low = self.lora_B[name](self.lora_A[name](self.lora_dropout[name](low)))
                result = result + (low * self.scaling[name]).to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put a float layer with base and adapters in the base's place: a grid would round the adapters away."""
        names = check_adapters_to_merge(self, adapter_names)
        layer = self.get_base_layer()
        if not names:
            return
        with torch.no_grad():
            if isinstance(layer, QuantizedLinear):
                self._quantized = [layer]  # a list, or it would be a child
                layer = layer.to_float()
            for name in names:
                delta = self.scaling[name] * (
                    self.lora_B[name].weight.float() @ self.lora_A[name].weight.float()
                )
                merged = (layer.weight.float() + delta).to(layer.weight.dtype)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(f"NaNs or Infs in the merged weight of adapter {name}")
                layer.weight.data = merged
                self.merged_adapters.append(name)
        self.base_layer = layer

    def unmerge(self) -> None:
        """Put the quantized layer back, whose codes merging has not changed."""
        if self.merged:
            self.base_layer = self._quantized.pop()
            self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "lora." + super().__repr__()


def create_new_module(lora_config: Any, adapter_name: str, target: Any, **words: Any) -> Any:
    """As PEFT's own of this name, with ours on quantized layers."""
    base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
    if isinstance(base, QuantizedLinear):
        return QuantizedLoraLinear(target, adapter_name, config=lora_config, **words)
    return _DISPATCH(lora_config, adapter_name, target, **words)


def prepare_model_for_kbit_training(model: Any, *args: Any, **words: Any) -> Any:
    """As PEFT's own, which knows quantized models by methods of a list: scales keep their dtype then."""
    method = getattr(model, "quantization_method", None)
    if method != "tritonq":
        return _PREPARE(model, *args, **words)
    model.quantization_method = "torchao"  # packed, and not to be cast
    try:
        return _PREPARE(model, *args, **words)
    finally:
        model.quantization_method = method


def register() -> None:
    """Make PEFT take quantized layers."""
    import peft

    lora_model.LoraModel._create_new_module = staticmethod(create_new_module)
    for place in (peft, peft_utils, peft_utils.other):
        place.prepare_model_for_kbit_training = prepare_model_for_kbit_training
