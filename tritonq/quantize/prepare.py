"""Marks layers for quantization, and attaches observers to those that need calibration.

Torch's rule decides which value a static layer observes:

    the model has QuantStubs     the stubs and every static Linear observe their OUTPUT: int8 flows between them
    it has none                  every static Linear observes its INPUT, which it will quantize itself; it returns float

A prepared module has the attribute `quantization_plan`. If it needs an observer, that is the submodule
`activation_post_process`, called by a hook. `convert` removes both.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import nn

from tritonq.nn.check import check_linear
from tritonq.nn.stubs import is_quant_stub
from tritonq.numerics.config import QuantConfig
from tritonq.observers import ObserverBase, make_observer
from tritonq.quantize.chain.watch import watch
from tritonq.select.encoder_layer import leave_fast_path
from tritonq.select.patterns import Model, Pattern
from tritonq.select.select import DEFAULT_IGNORE, PLAN, Filter, Selected, check_root, select, select_inherited
from tritonq.select.split import split_selected

OBSERVER = "activation_post_process"
PREPARED = "prepared_layers"  # on the root: the names of what was prepared
INPUT, OUTPUT = "input", "output"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `convert` makes of a prepared module.

    Attributes:
        config: how it is quantized.
        observes: "input", "output", or None without calibration.
    """

    config: QuantConfig
    observes: str | None


def prepare(
    model: Model,
    config: Any = None,
    *,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
    filter_fn: Filter | None = None,
    inplace: bool = False,
) -> Model:
    """Mark the layers to quantize and attach observers to those that need calibration.

    Run data through the returned model, then `convert` it.

    Args:
        model: a float model, not changed unless `inplace`. Its training flag stays.
        config: as for `quantize_`. None reads `qconfig` attributes: that of a module also applies to all modules in it,
            and a qconfig of None turns quantization off. Then nothing is ignored by default.
        ignore: patterns of layers to leave in float, instead of the default.
        filter_fn: (module, name) → whether to quantize that layer.
        inplace: change `model` instead of a copy.

    Returns:
        The prepared model.

    Raises:
        TypeError, ValueError: as `quantize_`; also if a layer is already prepared. The model is then unchanged.
    """
    check_inplace(inplace)
    model, ignore = start("prepare", model, config, ignore, inplace)
    if config is None:
        selected = select_inherited(model, own_qconfig, ignore, filter_fn)
    else:
        selected = select(model, config, ignore, filter_fn, splittable=True)
    with split_selected(selected) as layers:
        attach(layers)
    leave_fast_path(model)
    remember(model, layers)
    if any(layer.config.static for layer in layers) and observed_side(layers) == INPUT:
        watch(model)
    return model


def start(
    caller: str, model: Model, config: Any, ignore: Iterable[Pattern], inplace: bool
) -> tuple[Model, Iterable[Pattern]]:
    """(the model to prepare, a copy unless `inplace`; the patterns to ignore). Messages name `caller`."""
    check_root(model)
    if config is None:
        if not any(hasattr(module, "qconfig") for module in model.modules()):
            raise ValueError(f"{caller} needs a config, or a model with qconfig attributes, found neither")
        ignore = () if ignore is DEFAULT_IGNORE else ignore
    return model if inplace else copy.deepcopy(model), ignore


def own_qconfig(module: nn.Module, name: str) -> Any:
    """A module's `qconfig` attribute; NotImplemented if it has none and inherits."""
    return getattr(module, "qconfig", NotImplemented)


def remember(model: nn.Module, selected: list[Selected]) -> None:
    """Record the prepared modules on the root, so that `convert` can warn about missing ones."""
    vars(model)[PREPARED] = tuple(layer.place.name for layer in selected)


def observed_side(selected: list[Selected]) -> str:
    """OUTPUT if QuantStubs are selected, else INPUT."""
    return OUTPUT if any(is_quant_stub(layer.place.module) for layer in selected) else INPUT


def check_layers(selected: list[Selected]) -> None:
    """Raise a TypeError or ValueError if a selected layer cannot be quantized with its config."""
    for layer in selected:
        module, config, name = layer.place.module, layer.config, layer.place.name
        if isinstance(module, nn.Linear):
            check_linear(module, config, name)
            if config.weight.observer is not None:
                make_observer(config.weight, for_weight=True, name=name)


def attach(selected: list[Selected]) -> None:
    """Check every selected layer, then mark them all and attach their observers.

    Raises:
        TypeError, ValueError: a layer cannot be quantized with its config; nothing is then attached.
    """
    check_layers(selected)
    side = observed_side(selected)
    observers: list[ObserverBase | None] = []
    for layer in selected:
        config, observer = layer.config, None
        if config.static:
            assert config.activation is not None
            observer = make_observer(config.activation, for_weight=False, name=layer.place.name)
        observers.append(observer)
    for layer, observer in zip(selected, observers, strict=True):
        module = layer.place.module
        setattr(module, PLAN, Plan(layer.config, None if observer is None else side))
        if observer is not None:
            module.add_module(OBSERVER, observer)
            # Observe an output before the user's hooks, an input after them, because the quantized layer's forward
            # runs between them too.
            if side == OUTPUT:
                module.register_forward_hook(observe_output, prepend=True)
            else:
                module.register_forward_pre_hook(observe_input, with_kwargs=True)


def detach(module: nn.Module) -> None:
    """Remove plan, observer and hook from a module, if it has them."""
    if hasattr(module, PLAN):
        delattr(module, PLAN)
    module._modules.pop(OBSERVER, None)
    for hooks, own in (
        (module._forward_hooks, observe_output),
        (module._forward_hooks, fake_quantize_output),
        (module._forward_pre_hooks, observe_input),
    ):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def observe_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of a stub or Linear whose output is calibrated."""
    module.get_submodule(OBSERVER)(output)


def fake_quantize_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of a stub in quantization-aware training: its output is rounded to the grid it will have."""
    return module.get_submodule(OBSERVER)(output)


def observe_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a Linear whose input is calibrated."""
    module.get_submodule(OBSERVER)(args[0] if args else kwargs["input"])


def check_inplace(inplace: object) -> None:
    """Raise a TypeError unless `inplace` is True or False."""
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace must be True or False, found {inplace!r}")
