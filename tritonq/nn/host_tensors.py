"""Detects what hosts do with a layer's tensors: split them over processes, or keep them elsewhere between calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """True if a tensor is one process's part of a larger one: a DTensor, from FSDP2 or tensor parallelism."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is split over processes (all of them must call this); another tensor unchanged."""
    whole: Any = tensor
    return whole.full_tensor() if is_sharded(tensor) else tensor


def is_offloaded(module: nn.Module) -> bool:
    """True if accelerate loads the module's tensors before each call and removes them after it."""
    hook = vars(module).get("_hf_hook")
    return any(getattr(each, "offload", False) for each in (hook, *getattr(hook, "hooks", ())))
