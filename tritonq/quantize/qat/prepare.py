"""`prepare_qat`: replaces the layers to quantize by layers that round like the deployed ones and keep learning.

The rule of `prepare` (quantize/prepare.py) decides which activations are rounded. So training observes and rounds the
same values as the deployed model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tritonq.nn.fake_quantize import FakeQuantize
from tritonq.nn.qat_linear import QATLinear, activation_fake_quantize
from tritonq.quantize.prepare import (
    OBSERVER,
    Plan,
    check_inplace,
    check_layers,
    fake_quantize_output,
    observed_side,
    own_qconfig,
    remember,
    start,
)
from tritonq.select.encoder_layer import leave_fast_path
from tritonq.select.patterns import Model, Pattern
from tritonq.select.replace import move_hooks
from tritonq.select.select import DEFAULT_IGNORE, PLAN, Filter, Selected, check_root, select, select_inherited
from tritonq.select.split import split_selected


def prepare_qat(
    model: Model,
    config: Any = None,
    *,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
    filter_fn: Filter | None = None,
    inplace: bool = False,
    learnable_scale: bool = False,
    learnable_zero_point: bool = False,
) -> Model:
    """Replace the layers to quantize by layers that round like the quantized ones. Train the result, then `convert` it.

    Args:
        model: a float model in training mode, not changed unless `inplace`. The layers keep their Parameter objects, so
            with `inplace` an existing optimizer stays valid.
        config: as for `quantize_`. None reads `qconfig` attributes, like `prepare`.
        ignore, filter_fn: as for `quantize_`.
        inplace: change `model` instead of a copy.
        learnable_scale: make scales of weights and static activations parameters (LSQ). Create the optimizer later.
        learnable_zero_point: also make zero points of affine grids parameters (LSQ+).

    Returns:
        The model to train.

    Raises:
        TypeError, ValueError: as `prepare`; also if the model is in eval mode, or if nothing could learn. The model is
            then unchanged.
    """
    check_inplace(inplace)
    for word, value in (("learnable_scale", learnable_scale), ("learnable_zero_point", learnable_zero_point)):
        if not isinstance(value, bool):
            raise TypeError(f"prepare_qat: {word} must be True or False, found {value!r}")
    if learnable_zero_point and not learnable_scale:
        raise ValueError("prepare_qat: learnable_zero_point needs learnable_scale=True, found False")
    check_root(model)
    if not model.training:
        raise ValueError(
            "prepare_qat needs a model in training mode, found one in eval mode: call model.train() first"
        )
    model, ignore = start("prepare_qat", model, config, ignore, inplace)
    if config is None:
        selected = select_inherited(model, own_qconfig, ignore, filter_fn)
    else:
        selected = select(model, config, ignore, filter_fn, splittable=True)
    specs = [
        spec
        for layer in selected
        for spec in (layer.config.weight, layer.config.activation)
        if spec is not None
    ]
    if learnable_zero_point and all(spec.symmetric or spec.dynamic for spec in specs):
        raise ValueError(
            "prepare_qat: learnable_zero_point needs an affine weight or static activation, found none"
        )
    with split_selected(selected) as layers:
        check_layers(layers)
        _attach(layers, learnable_scale, learnable_zero_point)
    remember(model, layers)
    leave_fast_path(model)
    return model


def _attach(selected: list[Selected], learnable_scale: bool, learnable_zero_point: bool) -> None:
    """Build all new layers, then put them in place."""
    side = observed_side(selected)
    device = next(
        layer.place.module.weight.device for layer in selected if isinstance(layer.place.module, nn.Linear)
    )
    built: list[nn.Module] = []
    for layer in selected:
        module, config, name = layer.place.module, layer.config, layer.place.name
        learns = (learnable_scale, learnable_zero_point)
        if isinstance(module, nn.Linear):
            built.append(
                QATLinear.from_float(
                    module,
                    config,
                    fakes=side,
                    learnable_scale=learns[0],
                    learnable_zero_point=learns[1],
                    name=name,
                )
            )
        else:
            built.append(activation_fake_quantize(config, device, *learns, name).train(module.training))
    for layer, new in zip(selected, built, strict=True):
        module = layer.place.module
        plan = Plan(layer.config, side if layer.config.static else None)
        if isinstance(new, QATLinear):
            setattr(new, PLAN, plan)
            move_hooks(module, new, layer.place)
        else:
            setattr(module, PLAN, plan)
            module.add_module(OBSERVER, new)
            module.register_forward_hook(fake_quantize_output, prepend=True)


def scale_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The learned scales and zero points. Give them a smaller learning rate in optimizers like Adam.

    A scale of int8 weights is about a thousandth of the weights' size, while a step of Adam is about the learning rate.
    """
    fakes = [module for module in model.modules() if isinstance(module, FakeQuantize)]
    return [parameter for fake in fakes for parameter in fake.parameters(recurse=False)]


# torch's functions for model.apply(…)


def enable_observer(module: nn.Module) -> None:
    """For `model.apply`: let static activations' scales follow the data."""
    if isinstance(module, FakeQuantize):
        module.enable_observer()


def disable_observer(module: nn.Module) -> None:
    """For `model.apply`: keep static activations' scales as they are."""
    if isinstance(module, FakeQuantize):
        module.disable_observer()


def enable_fake_quant(module: nn.Module) -> None:
    """For `model.apply`: round."""
    if isinstance(module, FakeQuantize):
        module.enable_fake_quant()


def disable_fake_quant(module: nn.Module) -> None:
    """For `model.apply`: train in float, but keep observing."""
    if isinstance(module, FakeQuantize):
        module.disable_fake_quant()
