"""tritonq as a quantization method of Hugging Face transformers.

    from_pretrained(path, quantization_config=tritonq.TritonQConfig("w4a16"))    float weights, quantized as they come
    from_pretrained(path, quantization_config=tritonq.TritonQConfig())           a quantized checkpoint, kept packed

config.py       TritonQConfig: what users write, and what stands in config.json
quantizer.py    the hooks that from_pretrained and save_pretrained call
survey.py       heads, tied weights, experts
stored.py       layers as a checkpoint stores them, on their way to a QuantizedLinear

What `save_pretrained` writes is a compressed-tensors checkpoint. transformers has a method of that name, which unpacks
such weights on the first forward; passing a TritonQConfig is what makes them stay packed. That takes one change in
transformers: its rule that the config passed and the one in config.json are of one class, which it lifts for its own
AutoRoundConfig, is lifted for TritonQConfig as well.

Importing this module registers the method; `tritonq.TritonQConfig` imports it.
"""

from __future__ import annotations

from typing import Any

try:
    from transformers import __version__ as found
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "tritonq.TritonQConfig needs transformers 5: pip install 'tritonq[hf]'", name=error.name
    ) from None

try:
    from transformers import modeling_utils
    from transformers.quantizers import auto

    from tritonq.checkpoint.extras import KEY
    from tritonq.integrations.transformers.config import METHOD, TritonQConfig
    from tritonq.integrations.transformers.quantizer import TritonQuantizer

    merge_quantization_configs = auto.AutoHfQuantizer.merge_quantization_configs
    get_hf_quantizer = auto.get_hf_quantizer
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"tritonq.TritonQConfig is made for transformers 5 (tested with 5.23), found {found}, which differs: {error}"
    ) from error

__all__ = ["TritonQConfig"]


def merge(quantization_config: Any, quantization_config_from_args: Any) -> Any:
    """transformers' rule for a checkpoint with a quantization_config and a caller with another."""
    if isinstance(quantization_config_from_args, TritonQConfig):
        return quantization_config_from_args.for_checkpoint(quantization_config)
    return merge_quantization_configs(quantization_config, quantization_config_from_args)


def get_quantizer(config: Any, quantization_config: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' choice of a quantizer, which is ours for directories that tritonq wrote."""
    stored = getattr(config, "quantization_config", None)
    if quantization_config is None and hasattr(config, KEY) and isinstance(stored, dict):
        quantization_config = TritonQConfig()
    return get_hf_quantizer(config, quantization_config, *args, **kwargs)


auto.register_quantization_config(METHOD)(TritonQConfig)
auto.register_quantizer(METHOD)(TritonQuantizer)
auto.AutoHfQuantizer.merge_quantization_configs = staticmethod(merge)
auto.get_hf_quantizer = modeling_utils.get_hf_quantizer = get_quantizer
