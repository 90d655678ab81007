"""From a prepared model to a quantized one: every planned layer replaced by its quantized counterpart.

All scales are computed, and everything that can be wrong is found, before the first layer is replaced. Then
layers go one by one, each float weight being freed as its quantized layer takes its place.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.config import QuantConfig
from tritonq.fast_path import leave_fast_path
from tritonq.nn.check import check_linear
from tritonq.nn.fake_quantize import FakeQuantize
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.qat_linear import QATLinear
from tritonq.nn.stubs import DeQuantize, Quantize, is_dequant_stub
from tritonq.observers import ObserverBase, observed_weight_qparams
from tritonq.patterns import Place, named_modules, places
from tritonq.prepare import OBSERVER, OUTPUT, PREPARED, Model, Plan, check_inplace, detach
from tritonq.progress import track
from tritonq.selection import PLAN

#: The user's hooks, which move on to the quantized layer together with the handles that remove them.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One module about to be replaced.

    Attributes:
        place, plan: where it is, and what it becomes.
        qparams: what its activation's observer found, if it has one.
        weight_qparams: what its weight's observer found or training left, None where the plain extremes do.
    """

    place: Place
    plan: Plan
    qparams: tuple[Tensor, Tensor] | None
    weight_qparams: tuple[Tensor, Tensor | None] | None


def convert(
    model: Model,
    mapping: None = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    *,
    unobserved: str = "error",
) -> Model:
    """Replace every prepared layer by its quantized counterpart.

    Args:
        model: from `prepare`, calibrated if its configs are static; stays as it is unless `inplace`.
        mapping: torch's place for other classes of layers; must be None.
        inplace: change `model` instead of a copy.
        remove_qconfig: take `qconfig` attributes off the result.
        unobserved: what to do with static layers that calibration never reached: "error", or "dynamic" to
            compute their scales on the fly. Between QuantStub and DeQuantStub a dynamic layer takes int8 and
            returns float.

    Returns:
        The quantized model.

    Raises:
        ValueError: the model is not prepared, or layers have observed nothing, or non-finite values, or what
            gives no finite scale.
        TypeError: bad arguments. The model is unchanged in all cases.
    """
    if mapping is not None:
        raise TypeError(f"convert: mapping must be None, found {mapping!r}")
    check_inplace(inplace)
    if not isinstance(remove_qconfig, bool):
        raise TypeError(f"convert: remove_qconfig must be True or False, found {remove_qconfig!r}")
    if unobserved not in ("error", "dynamic"):
        raise ValueError(f"unobserved must be 'error' or 'dynamic', found {unobserved!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if not inplace:
        model = copy.deepcopy(model)
    pending = conversions(model, unobserved, check_weights=True)
    _warn_of_missing(model)
    replace_all(model, pending)
    if remove_qconfig:
        for module in model.modules():
            vars(module).pop("qconfig", None)
    return model


def conversions(model: nn.Module, unobserved: str, check_weights: bool) -> list[Conversion]:
    """Every prepared module with the qparams its observer found.

    Args:
        unobserved: as for `convert`.
        check_weights: look for weights that cannot be quantized; False if that was just done.
    """
    prepared = [place for place in places(model) if hasattr(place.module, PLAN)]
    if not prepared:
        raise ValueError("convert needs a model from prepare, found one with no prepared layer")
    found: list[Conversion] = []
    silent: list[str] = []
    for place in prepared:
        plan: Plan = getattr(place.module, PLAN)
        qparams = None
        if plan.observes is not None:
            observer = getattr(place.module, OBSERVER)
            assert isinstance(observer, (ObserverBase, FakeQuantize))
            if observer.has_data():
                if isinstance(observer, ObserverBase):
                    observer.name = place.name
                qparams = observer.calculate_qparams()
                check_scale(qparams[0], f"{place.name}: the {plan.observes}'s")
            else:
                silent.append(place.name)
                plan = Plan(dynamic_config(plan.config), None)
        if check_weights and isinstance(place.module, nn.Linear):
            check_linear(place.module, plan.config, place.name)
        found.append(Conversion(place, plan, qparams, _weight_qparams(place, plan.config)))
    if silent and unobserved == "error":
        raise ValueError(
            f"{len(silent)} of {len(prepared)} layers have observed no data: {', '.join(silent)}; run calibration "
            "batches through the prepared model, or pass unobserved='dynamic'"
        )
    return found


def _weight_qparams(place: Place, config: QuantConfig) -> tuple[Tensor, Tensor | None] | None:
    """A weight's scale and zero point where they are not its plain extremes.

    Raises:
        ValueError: the observer's scale is no positive number, or the weight is not the one that was prepared.
    """
    module = place.module
    if isinstance(module, QATLinear):
        found: tuple[Tensor, Tensor | None] | None = module.weight_qparams()
        module.weight_fake_quant.report_clamped()
    elif isinstance(module, nn.Linear):
        found = observed_weight_qparams(module.weight, config.weight, place.name)
    else:
        found = None
    if found is not None:
        check_scale(found[0], f"{place.name}: the weight's")
    return found


def check_scale(scale: Tensor, where: str) -> None:
    """Raise a ValueError unless all scales are finite and positive; `where` begins the message."""
    wrong = ~(torch.isfinite(scale) & (scale > 0))
    if wrong.any():
        raise ValueError(
            f"{where} observer must give finite, positive scales in {scale.dtype}, found {scale[wrong][0].item()}"
        )


def _warn_of_missing(model: nn.Module) -> None:
    """Say which prepared modules have since been taken out or replaced, and forget the list."""
    for prefix, root in model.named_modules():
        names = vars(root).pop(PREPARED, ())
        modules = dict(named_modules(root))
        missing = [name for name in names if not hasattr(modules.get(name), PLAN)]
        if missing:
            warnings.warn(
                f"convert: {len(missing)} of {len(names)} modules prepared in {prefix or 'the model'} are no longer "
                f"there or were replaced, and stay as they are: {', '.join(missing)}",
                UserWarning,
                stacklevel=3,
            )


def dynamic_config(config: QuantConfig) -> QuantConfig:
    """A static config with its activation's scales computed on the fly instead, per token."""
    assert config.activation is not None
    activation = dataclasses.replace(config.activation, granularity="token", dynamic=True, observer=None)
    return dataclasses.replace(config, activation=activation)


def replace_all(model: nn.Module, pending: list[Conversion]) -> None:
    """Replace the modules one by one, emptying `pending`, so that each float weight is freed as it goes."""
    is_static = any(conversion.plan.observes is not None for conversion in pending)
    pending.reverse()
    with torch.no_grad():
        for _ in track(range(len(pending)), "Quantizing"):
            _replace(pending.pop())
    if is_static:
        for place in places(model):
            if is_dequant_stub(place.module):
                move_hooks(place.module, DeQuantize(), place)
    leave_fast_path(model)


def _replace(conversion: Conversion) -> None:
    place, plan, qparams = conversion.place, conversion.plan, conversion.qparams
    module, config = place.module, plan.config
    detach(module)
    if isinstance(module, nn.Linear):
        move_hooks(module, quantized_linear(conversion), place)
    elif qparams is not None:
        assert config.activation is not None
        move_hooks(module, Quantize(*qparams, config.activation.symmetric, place.name), place)


def quantized_linear(conversion: Conversion) -> QuantizedLinear:
    """What takes the place of a Linear; the model stays as it is."""
    place, plan, qparams = conversion.place, conversion.plan, conversion.qparams
    assert isinstance(place.module, nn.Linear)
    return QuantizedLinear.from_float(
        place.module,
        plan.config,
        weight_qparams=conversion.weight_qparams,
        input_qparams=None if plan.observes == OUTPUT else qparams,
        output_qparams=qparams if plan.observes == OUTPUT else None,
        name=place.name,
    )


def move_hooks(old: nn.Module, new: nn.Module, place: Place) -> None:
    """Put `new` in the place of `old`, with its hooks, its training flag and what users have attached to it.

    That is attributes (`layer.tag = …`) which no class declares and which mean nothing else in `new`. Hooks on state
    dictionaries stay behind: they were written for another layout.
    """
    declared = {name for cls in type(old).__mro__ for name in getattr(cls, "__annotations__", ())}
    for name, value in vars(old).items():
        if name not in declared and not hasattr(new, name):
            vars(new)[name] = value
    for name in HOOKS:
        state: Any = getattr(old, name)
        setattr(new, name, state)
    new.training = old.training
    place.put(new)
