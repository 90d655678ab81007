"""The only door to the kernels: `torch.library` operators; Triton computes them on a GPU, the reference elsewhere."""

from tritonq.ops.backends import backend
from tritonq.ops.fake_quantize import fake_quantize, fake_quantize_per_token
from tritonq.ops.int4 import int4_int8_linear, int4_int8_linear_dynamic
from tritonq.ops.int8 import int8_linear, int8_linear_dynamic, int8_linear_requantize
from tritonq.ops.int8_gated import int8_gated_linear_requantize
from tritonq.ops.norm_quantize import (
    add_rms_norm_quantize_per_tensor,
    add_rms_norm_quantize_per_token,
    gated_quantize_per_token,
    layer_norm_quantize_per_tensor,
    layer_norm_quantize_per_token,
    rms_norm_quantize_per_tensor,
    rms_norm_quantize_per_token,
)
from tritonq.ops.observe import extremes, histogram
from tritonq.ops.quantize import quantize_per_tensor, quantize_per_token, scale_of_codes, scale_with_history
from tritonq.ops.tensor_version import traced_version
from tritonq.ops.weight_only import weight_only_input_gradient, weight_only_linear

__all__ = [
    "add_rms_norm_quantize_per_tensor",
    "add_rms_norm_quantize_per_token",
    "backend",
    "extremes",
    "fake_quantize",
    "fake_quantize_per_token",
    "gated_quantize_per_token",
    "histogram",
    "int4_int8_linear",
    "int4_int8_linear_dynamic",
    "int8_gated_linear_requantize",
    "int8_linear",
    "int8_linear_dynamic",
    "int8_linear_requantize",
    "layer_norm_quantize_per_tensor",
    "layer_norm_quantize_per_token",
    "quantize_per_tensor",
    "quantize_per_token",
    "rms_norm_quantize_per_tensor",
    "rms_norm_quantize_per_token",
    "scale_of_codes",
    "scale_with_history",
    "traced_version",
    "weight_only_input_gradient",
    "weight_only_linear",
]
