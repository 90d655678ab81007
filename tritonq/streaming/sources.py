"""Finds the stored tensor of each parameter and buffer of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tritonq.checkpoint.files import TensorFiles
from tritonq.select.patterns import named_modules

_NAMES_IN_MESSAGES = 3


class UnfitModelError(ValueError):
    """The tensors of the files do not match those of the model one to one."""


def find_sources(model: nn.Module, tensors: TensorFiles) -> dict[int, str]:
    """id of a parameter or persistent buffer → the stored tensor's name.

    A tied tensor has several names in the model and may be stored under any of them.

    Args:
        model: on the meta device. Other tensors in the files are ignored.

    Raises:
        UnfitModelError: a tensor is missing, or is tied in the model but stored with two different values.
        ValueError: a tensor has another shape, or a dtype of another kind.
    """
    missing: list[str] = []
    found: dict[int, str] = {}
    for tensor, names in _named_tensors(model):
        stored = [name for name in names if name in tensors]
        if not stored:
            missing.append(names[0])
            continue
        _check(tensor, stored, tensors)
        found[id(tensor)] = stored[0]
    if missing:
        shown = ", ".join(missing[:_NAMES_IN_MESSAGES])
        rest = len(missing) - _NAMES_IN_MESSAGES
        raise UnfitModelError(
            f"the model's tensors must be in the files under the model's names, found no {shown}"
            f"{f' and {rest} more' if rest > 0 else ''}"
        )
    return found


def _named_tensors(model: nn.Module) -> list[tuple[Tensor, list[str]]]:
    """Every parameter and persistent buffer with all its names."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for module_name, module in named_modules(model):
        prefix = f"{module_name}." if module_name else ""
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and attribute not in module._non_persistent_buffers_set:
                found.setdefault(id(tensor), (tensor, []))[1].append(prefix + attribute)
    return list(found.values())


def _check(tensor: Tensor, stored: list[str], tensors: TensorFiles) -> None:
    for name in stored:
        dtype = tensors.dtypes[name]
        same_kind = dtype is not None and dtype.is_floating_point == tensor.is_floating_point()
        if tensors.shapes[name] != tuple(tensor.shape) or not same_kind:
            wanted = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise ValueError(
                f"{tensors.file_of[name]}: {name} must be {wanted}, found {tensors.describe(name)}"
            )
    for name in stored[1:]:
        if not torch.equal(tensors.get(name), tensors.get(stored[0])):
            raise UnfitModelError(
                f"{stored[0]} and {name} are one tensor in the model, found two with different values"
            )
