"""Builds models with random weights block by block. Memory holds one float block, or all if calibration runs.

Every contender gets the same float weights: normally distributed with variance 1 / K, seed 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import tritonq
from benchmarks.llm.contenders import Contender
from benchmarks.llm.lean_decoder import Cache, LeanBlock, LeanDecoder, use_fused_norms_
from benchmarks.llm.sessions import LEAN, on_meta
from benchmarks.llm.shapes import ModelShape
from tritonq.util.progress import track

_CALIBRATION_TOKENS = 64


@torch.no_grad()
def build(
    decoder: str, contender: Contender, shape: ModelShape, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A model on `device`, in eval mode.

    Args:
        decoder: "lean" or "transformers".
        contender: computes the Linears of its blocks.
        dtype: of parameters and activations.
    """
    torch.manual_seed(0)
    model, blocks = on_meta(decoder, shape, dtype)
    model.eval().requires_grad_(False)
    in_blocks = {module for block in blocks for module in block.modules()}
    _fill((module for module in model.modules() if module not in in_blocks), device)
    for block in track(blocks, f"{decoder}, {contender.name}"):
        _fill(block.modules(), device)
        if not contender.calibrates:
            contender.apply(block)
            if isinstance(block, LeanBlock):
                use_fused_norms_(block)
    if contender.calibrates or contender.quantizes_rows:
        batches = [_batch(model, shape, device, dtype)]
        if contender.calibrates:
            tritonq.quantize_(model, contender.scheme, calibration=batches)
        elif decoder != LEAN:
            tritonq.fuse_activations_(model, batches)
    if decoder != LEAN and any(isinstance(module, tritonq.QuantizedLinear) for module in model.modules()):
        tritonq.fuse_siblings_(model)
    return model


def _fill(modules: Iterator[nn.Module], device: torch.device) -> None:
    for module in modules:
        if any(tensor.is_meta for tensor in module.parameters(recurse=False)):
            module.to_empty(device=device, recurse=False)
        else:
            module._apply(lambda tensor: tensor.to(device), recurse=False)
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_()
        else:  # norms
            for parameter in module.parameters(recurse=False):
                parameter.fill_(1)


def _batch(model: nn.Module, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> Any:
    """A calibration batch for `quantize_`."""
    ids = torch.randint(shape.vocabulary, (1, _CALIBRATION_TOKENS), device=device)
    if isinstance(model, LeanDecoder):
        return (ids, Cache(shape, 1, _CALIBRATION_TOKENS, device, dtype))
    return {"input_ids": ids, "use_cache": False}
