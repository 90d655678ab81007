"""Plain torch versions of every kernel: the oracle of the kernel tests, and the backend where there is no other.

M rows of activations, N output features, K input features, G groups of K; codes are signed and held in int8.

    quantize_per_token     x [M, K] → codes, one scale and zero point per row, computed from the row
    quantize_per_tensor    x → codes with a given scale and zero point
    int8_linear            int8 · int8ᵀ, exact in int32 → float, with a residual and an activation
    int8_linear_requantize the same → int8 on the consumer's grid
    int8_output, int8_output_requantize  the second half of these two: from the int32 sums to the result
    int8_gated_linear_requantize  activation(int8 · gateᵀ) · (int8 · upᵀ) → int8
    rms_norm, layer_norm, residual_sum, gated  the first half of the operators `…_quantize_per_…`
    weight_only_linear     float · dequantized weightᵀ
    weight_only_input_gradient  float · dequantized weight, for training through a frozen weight
    int4_int8_linear       int8 · int4ᵀ with scales per group → float
"""

from tritonq.reference.epilogue import ACTIVATIONS, activate
from tritonq.reference.int4 import int4_int8_linear
from tritonq.reference.int8 import (
    Int8Weight,
    int8_gated_linear_requantize,
    int8_linear,
    int8_linear_requantize,
    int8_output,
    int8_output_requantize,
)
from tritonq.reference.integers import int8_accumulate, int_matmul
from tritonq.reference.normalize import gated, layer_norm, residual_sum, rms_norm
from tritonq.reference.quantize import quantize_per_tensor, quantize_per_token
from tritonq.reference.weight_only import weight_only_input_gradient, weight_only_linear

__all__ = [
    "ACTIVATIONS",
    "Int8Weight",
    "activate",
    "gated",
    "int4_int8_linear",
    "int8_accumulate",
    "int8_gated_linear_requantize",
    "int8_linear",
    "int8_linear_requantize",
    "int8_output",
    "int8_output_requantize",
    "int_matmul",
    "layer_norm",
    "quantize_per_tensor",
    "quantize_per_token",
    "residual_sum",
    "rms_norm",
    "weight_only_input_gradient",
    "weight_only_linear",
]
