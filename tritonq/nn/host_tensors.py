"""What hosts do to a layer's tensors between two calls: split them over processes, or keep them elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's part of a larger one (a DTensor, as FSDP2 and tensor parallelism make them)."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is split over processes; any other as it is. All processes must ask for it."""
    whole: Any = tensor
    return whole.full_tensor() if is_sharded(tensor) else tensor


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings the module's tensors before each call and takes them away after it."""
    hook = vars(module).get("_hf_hook")
    return any(getattr(each, "offload", False) for each in (hook, *getattr(hook, "hooks", ())))
