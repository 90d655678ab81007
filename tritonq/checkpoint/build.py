"""Builds modules from a checkpoint's tensors, and checks every shape, dtype and value."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from tritonq.checkpoint import forms
from tritonq.checkpoint.extras import Extras
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.plan import LayerPlan, StubPlan
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.stubs import Quantize
from tritonq.numerics import checkpoint_layout
from tritonq.numerics.config import QuantConfig


def build_layer(plan: LayerPlan, extras: Extras, tensors: TensorFiles) -> QuantizedLinear:
    """The QuantizedLinear that replaces a layer, on that layer's device.

    Raises:
        ValueError: a tensor does not fit; the message names file, layer and tensor.
    """
    old = plan.place.module
    assert isinstance(old, (nn.Linear, QuantizedLinear))
    where = f"{tensors.file_of[plan.tensors['weight_scale']]}: {plan.place.name}"
    config = _with_observers(plan, extras)
    _check_sizes(plan, old.in_features * old.out_features, tensors)
    held = old.parameters() if isinstance(old, QuantizedLinear) else iter([old.weight])
    device = next(held).device
    device = torch.device("cpu") if device.type == "meta" else device
    state = {local: _read(local, tensors.get(stored), device) for local, stored in plan.tensors.items()}
    try:
        layer = QuantizedLinear.from_state(
            old.in_features,
            old.out_features,
            config,
            forms.to_canonical(config, plan.group.packed, old.in_features, old.out_features, state),
            bias=old.bias is not None,
            dtype=next((extras.dtypes[name] for name in plan.place.names if name in extras.dtypes), None),
            name=plan.place.name,
        )
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
    if layer.bias is not None and old.bias is not None:
        layer.bias.requires_grad_(old.bias.requires_grad)
    return layer


def build_stub(plan: StubPlan, tensors: TensorFiles, home: torch.device) -> Quantize:
    """The Quantize that replaces a stub: on the device of a Quantize that is replaced, else on `home`."""
    old = plan.place.module
    device = old.scale.device if isinstance(old, Quantize) and not old.scale.is_meta else home
    state = {f"input_{local}": owned(tensors.get(stored), device) for local, stored in plan.tensors.items()}
    try:
        scale, zero_point = checkpoint_layout.read_activation_qparams(state, "input", affine=True)
    except ValueError as error:
        where = f"{tensors.file_of[plan.tensors['scale']]}: {plan.place.name}"
        raise ValueError(f"{where}.{str(error).removeprefix('input_')}") from None
    return Quantize(scale, zero_point, plan.symmetric, plan.place.name)


def owned(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that does not depend on the file."""
    return tensor.to(device, copy=True)


def _read(local: str, tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a layer's tensor. Codes are not copied: they are repacked block by block from the file's map."""
    return tensor.to(device) if local in ("weight", "weight_packed") else owned(tensor, device)


def _with_observers(plan: LayerPlan, extras: Extras) -> QuantConfig:
    """The group's config with the observers that the layer was calibrated with."""
    config = plan.group.config
    for name in plan.place.names:
        if name in extras.observers:
            weight, activation = extras.observers[name]
            config = dataclasses.replace(config, weight=dataclasses.replace(config.weight, observer=weight))
            if config.activation is not None:
                spec = dataclasses.replace(config.activation, observer=activation)
                config = dataclasses.replace(config, activation=spec)
    return config


def _check_sizes(plan: LayerPlan, limit: int, tensors: TensorFiles) -> None:
    """Raise if a tensor is too large for this layer, before it is copied."""
    for stored in plan.tensors.values():
        if math.prod(tensors.shapes[stored]) > max(limit, 2):
            where = f"{tensors.file_of[stored]}: {stored}"
            raise ValueError(
                f"{where} must have at most {limit:,} elements, found {tensors.describe(stored)}"
            )
