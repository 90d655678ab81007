"""Runs calibration batches through a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from tritonq.util.progress import track


def check_calibration(batches: object, argument: str = "calibration") -> None:
    """Raise a TypeError, naming the argument, unless `batches` is an iterable of batches rather than one batch."""
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{argument} must be an iterable of batches (a tensor, tuple or dictionary each), found "
            f"{type(batches).__name__}"
        )


def calibrate(model: nn.Module, batches: Iterable[Any], argument: str = "calibration") -> None:
    """Run every batch through the model: a tensor as m(x), a tuple or list as m(*x), a dictionary as m(**x).

    The model runs in eval mode and without gradients; its training flags are restored. `argument` names the batches in
    messages.

    Raises:
        TypeError: `batches` is not iterable, or a batch has another type.
        ValueError: there is no batch.
    """
    check_calibration(batches, argument)
    count = 0
    with evaluation(model):
        for batch in track(batches, "Calibrating"):
            run_batch(model, batch, count, argument)
            count += 1
    check_not_empty(count, argument)


def check_not_empty(count: int, argument: str = "calibration") -> None:
    """Raise a ValueError, naming the argument, if there was no batch."""
    if count == 0:
        raise ValueError(f"{argument} must have at least one batch, found none")


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Inside the block: eval mode and no gradients. Afterwards the training flags are restored."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


def run_batch(model: nn.Module, batch: Any, index: int = 0, argument: str = "calibration") -> Any:
    """The model's output for a batch; `index` is the batch's number, for messages.

    Raises:
        TypeError: the batch is no tensor, tuple, list or dictionary.
        ValueError: the model fails, and the batch is on another device than the whole model.
    """
    try:
        if isinstance(batch, Tensor):
            return model(batch)
        if isinstance(batch, (tuple, list)):
            return model(*batch)
        if isinstance(batch, Mapping):
            return model(**batch)
    except (RuntimeError, NotImplementedError) as error:
        # Check devices only after a failure: some models move their input themselves.
        homes = {parameter.device for parameter in model.parameters()}
        found = {leaf.device for leaf in tree_iter(batch) if isinstance(leaf, Tensor)}
        if len(homes) == 1 and found - homes:
            raise ValueError(
                f"{argument} batch {index} must be on {', '.join(map(str, homes))}, where the model is, found "
                f"{', '.join(sorted(map(str, found - homes)))}"
            ) from error
        raise
    except TypeError as error:
        if isinstance(batch, (tuple, list)) and "positional argument" in str(error):
            raise TypeError(
                f"{argument} batch {index} is a {type(batch).__name__} of {len(batch)}, which the model takes as so "
                f"many arguments, found {error}: leave labels out, as in [inputs for inputs, labels in loader]"
            ) from error
        raise
    raise TypeError(
        f"{argument} batch {index} must be a tensor, tuple, list or dictionary, found {type(batch).__name__}"
    )
