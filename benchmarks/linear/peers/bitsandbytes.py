"""bitsandbytes: LLM.int8() without outlier columns (int8 per channel by int8 per token), and NF4 in blocks of 64.

Its layers quantize when they move to the GPU: int8 from a weight on the CPU, NF4 from any device.
"""

from __future__ import annotations

from torch import nn

from benchmarks.linear.contender import HALVES, Built, Contender


def build_int8(linear: nn.Linear) -> Built:
    """Linear8bitLt; it casts its input to float16 and computes in that."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    weight = linear.weight.detach()
    layer = Linear8bitLt(
        linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, device="meta"
    )
    layer.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    return Built(layer.to(weight.device).eval())


def build_nf4(linear: nn.Linear) -> Built:
    """Linear4bit with block scales in float32 ("no double quantization")."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = linear.weight.detach()
    words = {"quant_type": "nf4", "compress_statistics": False}
    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=weight.dtype,
        device="meta",
        **words,
    )
    layer.weight = Params4bit(weight.clone(), requires_grad=False, module=layer, **words)
    return Built(layer.to(weight.device).eval())


PEERS = (
    Contender("bnb_int8", "w8a8", build_int8, tolerance=3e-2, package="bitsandbytes", dtypes=HALVES),
    Contender("bnb_nf4", "w4a16", build_nf4, tolerance=0.15, package="bitsandbytes", dtypes=HALVES),
)
