"""`load`: reads a directory into a model.

    read config.json → plan by names and shapes → build every new layer and tensor → swap them in

All errors show before the last step, which only assigns. Tensors are read through a memory map, one layer at a time.
Memory holds the new layers and one stored layer, with codes as int8 and never as float.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tritonq.checkpoint import files
from tritonq.checkpoint.build import build_layer, build_stub, owned
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.plan import Slot, make_plan
from tritonq.checkpoint.source import Checkpoint, open_checkpoint
from tritonq.checkpoint.stored_edges import apply_edges, check_grids
from tritonq.checkpoint.writer import unwrapped
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.stubs import DeQuantize
from tritonq.select.encoder_layer import leave_fast_path
from tritonq.select.patterns import places
from tritonq.select.replace import move_hooks
from tritonq.select.select import check_root
from tritonq.select.split import split_where
from tritonq.util.progress import track


def load(directory: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Fill a model with a checkpoint, in place, replacing its Linear layers by quantized ones.

    Args:
        directory: written by `save`, or by any other program in compressed-tensors' pack-quantized or int-quantized
            format, as GPTQ (4 or 8 bits) or as AWQ ("gemm").
        model: the architecture that was saved: the float model (it may be on the meta device) or a quantized one. Its
            hooks and training flags stay. Tensors go to the device of the tensors they replace; the CPU replaces
            the meta device. Floating-point tensors keep their stored dtype.

    Returns:
        The model.

    Raises:
        TypeError: the directory is no path, or the model no module.
        FileNotFoundError: the directory or one of its files is missing.
        ValueError: a file is damaged, needs something that no kernel computes, or does not fit the model; the message
            names the file or the tensor, what was found and what is allowed. In all cases the model is unchanged.
    """
    inner = unwrapped(model)
    check_root(inner)
    files.check_path(directory)
    path = files.check_directory(os.fspath(directory))
    with open_checkpoint(path) as checkpoint, split_where(inner, _stored_in(checkpoint)):
        extras, tensors = checkpoint.extras, checkpoint.tensors
        try:
            plan = make_plan(inner, checkpoint.scheme, extras, tensors)
            layers = [
                (layer.place, build_layer(layer, extras, tensors)) for layer in track(plan.layers, "loading")
            ]
            by_name = {name: layer for place, layer in layers for name in place.names}
            check_grids(extras.edges, by_name)
            home = next(
                (tensor.device for tensor in inner.parameters() if not tensor.is_meta), torch.device("cpu")
            )
            stubs = [(stub.place, build_stub(stub, tensors, home)) for stub in plan.stubs]
            values = [(slot, _read_slot(slot, tensors)) for slot in plan.slots]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    for place, new in (*layers, *stubs, *((place, DeQuantize()) for place in plan.dequant_stubs)):
        move_hooks(place.module, new, place)
    for place, layer in layers:
        if isinstance(place.module, QuantizedLinear) and place.module.siblings is not None:
            place.module.siblings.enter(place.module.sibling_index, layer)
    for slot, value in values:
        _fill(slot, value)
    apply_edges(extras.edges, places(inner))
    leave_fast_path(inner)
    return model


def _stored_in(checkpoint: Checkpoint) -> Callable[[str], str]:
    """The name of a Linear → the stored scale of its weight, "" if there is none."""

    def stored_as(name: str) -> str:
        scale = f"{name}.weight_scale"
        scale = checkpoint.extras.tied.get(scale, scale)
        return scale if scale in checkpoint.tensors else ""

    return stored_as


def _read_slot(slot: Slot, tensors: TensorFiles) -> Tensor:
    """The new value; checks that the files hold the same value under the slot's other names."""
    for name in slot.names:
        if (
            name in tensors
            and name != slot.stored
            and not torch.equal(tensors.get(name), tensors.get(slot.stored))
        ):
            raise ValueError(
                f"{name} and {slot.stored} are one tensor in the model, found two with different values"
            )
    device = torch.device("cpu") if slot.tensor.is_meta else slot.tensor.device
    return owned(tensors.get(slot.stored), device)


def _fill(slot: Slot, value: Tensor) -> None:
    """Assign the value to a parameter, which stays the same object if possible, or to a buffer."""
    old = slot.tensor
    if not isinstance(old, nn.Parameter):
        for module, attribute in slot.owners:
            module._buffers[attribute] = value
        return
    if old.is_meta or old.is_inference():
        old = nn.Parameter(value, requires_grad=old.requires_grad)
    else:
        old.data = value
    for module, attribute in slot.owners:
        module._parameters[attribute] = old
