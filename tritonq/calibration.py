"""Running calibration batches through a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.progress import track


def check_calibration(batches: object) -> None:
    """Raise a TypeError unless `batches` is an iterable of batches rather than one batch."""
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not isinstance(batches, Iterable):
        raise TypeError(
            "calibration must be an iterable of batches (a tensor, tuple or dictionary each), found "
            f"{type(batches).__name__}"
        )


def calibrate(model: nn.Module, batches: Iterable[Any]) -> None:
    """Run every batch through the model: a tensor as m(x), a tuple or list as m(*x), a dictionary as m(**x).

    In eval mode and without gradients; training flags are as before afterwards.

    Raises:
        TypeError: `batches` is not iterable or one batch is of another type.
        ValueError: there is no batch.
    """
    check_calibration(batches)
    flags = [(module, module.training) for module in model.modules()]
    count = 0
    try:
        model.eval()
        with torch.no_grad():
            for batch in track(batches, "Calibrating"):
                run_batch(model, batch, count)
                count += 1
    finally:
        for module, training in flags:
            module.training = training
    if count == 0:
        raise ValueError("calibration must have at least one batch, found none")


def run_batch(model: nn.Module, batch: Any, index: int = 0) -> Any:
    """What the model returns for a batch; `index` is the batch's place, for the error.

    Raises:
        TypeError: the batch is no tensor, tuple, list or dictionary.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    raise TypeError(
        f"calibration batch {index} must be a tensor, tuple, list or dictionary, found {type(batch).__name__}"
    )
