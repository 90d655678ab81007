"""`all_reduce` merges the observers of all processes, so that each process gets the same scales.

Call it after calibration, when each process has seen its part of the data.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tritonq.observers.base import ObserverBase


def all_reduce(model: nn.Module, group: Any = None) -> None:
    """Merge each observer of a prepared model with the same observer in all processes, which must all call this.

    It works on a model prepared for training too: a `FakeQuantize` updates its scale with the next batch it observes.

    Args:
        model: a prepared model with the same observers in every process.
        group: a torch.distributed process group; None for all processes.

    Raises:
        ValueError: the model holds no observer; or as `ObserverBase.all_reduce`.
    """
    observers = [module for module in model.modules() if isinstance(module, ObserverBase)]
    if not observers:
        raise ValueError(f"all_reduce needs a prepared model, found no observer in {type(model).__name__}")
    for observer in observers:
        observer.all_reduce(group)
