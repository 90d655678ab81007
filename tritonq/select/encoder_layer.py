"""torch's fused encoder layer, which reads the weights of Linears instead of calling them.

In eval mode and without gradients nn.TransformerEncoderLayer hands `linear1.weight` and `linear2.weight` to one fused
float operator. A QuantizedLinear dequantizes its weight for anyone who reads it, so results would stay nearly right,
but its forward would never run: activations would not be quantized, and every call would dequantize both weights. A
model in quantization-aware training would be evaluated without any rounding.

The layer takes its ordinary path, which calls `linear1` and `linear2`, where `activation_relu_or_gelu` is 0 (any
activation but these two); nothing else reads that attribute at run time. nn.TransformerEncoder turns padded inputs into
nested tensors, which only the fused operator takes, where its `use_nested_tensor` is set.
"""

from __future__ import annotations

from torch import nn

from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.qat_linear import QATLinear


def leave_fast_path(model: nn.Module) -> None:
    """Make encoder layers that hold a QuantizedLinear or QATLinear call it."""
    bypassed = {
        module
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        and any(isinstance(layer, (QuantizedLinear, QATLinear)) for layer in (module.linear1, module.linear2))
    }
    for module in model.modules():
        if module in bypassed:
            vars(module)["activation_relu_or_gelu"] = 0
        elif isinstance(module, nn.TransformerEncoder) and bypassed & set(module.layers):
            vars(module)["use_nested_tensor"] = False
