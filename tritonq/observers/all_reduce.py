"""`all_reduce`: the observers of all processes merged, so that each process gets the same scales.

Call it after calibration, in which each process has seen its own part of the data.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tritonq.observers.base import ObserverBase


def all_reduce(model: nn.Module, group: Any = None) -> None:
    """Merge each observer of a prepared model with the same observer of the other processes. All of them must call it.

    In a model prepared for training the observers are merged too; the scale of a `FakeQuantize` follows its
    observer with the next batch that it observes.

    Args:
        model: holds observers, the same ones in every process.
        group: a torch.distributed process group; None for all processes.

    Raises:
        ValueError: the model holds no observer; or as `ObserverBase.all_reduce`.
    """
    observers = [module for module in model.modules() if isinstance(module, ObserverBase)]
    if not observers:
        raise ValueError(f"all_reduce needs a prepared model, found no observer in {type(model).__name__}")
    for observer in observers:
        observer.all_reduce(group)
