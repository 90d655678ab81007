"""A model of transformers that `quantize_` has quantized knows so: it carries its quantizer, and can be saved."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tritonq.integrations.transformers.config import METHOD, TritonQConfig
from tritonq.integrations.transformers.quantizer import TritonQuantizer
from tritonq.integrations.transformers.survey import untie
from tritonq.nn.linear import QuantizedLinear


def attach(model: nn.Module) -> None:
    """Give every model of transformers in `model` that holds quantized layers, and no quantizer yet, ours."""
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        layers = {name for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}
        if not layers:
            continue
        untie(module, layers)
        if getattr(module, "hf_quantizer", None) is not None:
            continue
        config = getattr(module.config, "quantization_config", None)  # a model's base has the same config
        if not isinstance(config, TritonQConfig):
            config = TritonQConfig()
        module.hf_quantizer = TritonQuantizer(config)
        module.hf_quantizer.pre_quantized = True
        module.hf_quantizer.look_at(module)
        module.config.quantization_config = config
        module.is_quantized, module.quantization_method = True, METHOD
