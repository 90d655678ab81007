"""Quantization-aware training: fake-quantized layers, adapters on a quantized base, distillation."""

from tritonq.quantize.qat.distill import distill_loss
from tritonq.quantize.qat.lora import LoRALinear, add_lora_, lora_parameters, merge_lora_
from tritonq.quantize.qat.prepare import (
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    prepare_qat,
    scale_parameters,
)

__all__ = [
    "LoRALinear",
    "add_lora_",
    "disable_fake_quant",
    "disable_observer",
    "distill_loss",
    "enable_fake_quant",
    "enable_observer",
    "lora_parameters",
    "merge_lora_",
    "prepare_qat",
    "scale_parameters",
]
