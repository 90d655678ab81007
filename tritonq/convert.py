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
from tritonq.nn.fake_quantize import FakeQuantize
from tritonq.nn.linear import QuantizedLinear, check_linear
from tritonq.nn.qat_linear import QATLinear
from tritonq.nn.stubs import DeQuantize, Quantize, is_dequant_stub
from tritonq.observers import ObserverBase, observed_weight_qparams
from tritonq.patterns import Place, places
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
    """One module about to be replaced: where it is, its plan, and the qparams its observer found, if any."""

    place: Place
    plan: Plan
    qparams: tuple[Tensor, Tensor] | None


def convert(model: Model, *, unobserved: str = "error", inplace: bool = False) -> Model:
    """Replace every prepared layer by its quantized counterpart.

    Args:
        model: from `prepare`, calibrated if its configs are static; stays as it is unless `inplace`.
        unobserved: what to do with static layers that calibration never reached: "error", or "dynamic" to
            compute their scales on the fly. Between QuantStub and DeQuantStub a dynamic layer takes int8 and
            returns float.
        inplace: change `model` instead of a copy.

    Returns:
        The quantized model.

    Raises:
        ValueError: the model is not prepared, or layers have observed nothing, or non-finite values.
        TypeError: bad arguments. The model is unchanged in all cases.
    """
    check_inplace(inplace)
    if unobserved not in ("error", "dynamic"):
        raise ValueError(f"unobserved must be 'error' or 'dynamic', found {unobserved!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if not inplace:
        model = copy.deepcopy(model)
    pending = conversions(model, unobserved, check_weights=True)
    _warn_of_missing(model)
    replace_all(model, pending)
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
            else:
                silent.append(place.name)
                plan = Plan(dynamic_config(plan.config), None)
        if check_weights and isinstance(place.module, nn.Linear):
            check_linear(place.module, plan.config, place.name)
        if isinstance(place.module, QATLinear):
            place.module.weight_qparams()  # raises where the weight is not the one that was prepared
            place.module.weight_fake_quant.report_clamped()
        found.append(Conversion(place, plan, qparams))
    if silent and unobserved == "error":
        raise ValueError(
            f"{len(silent)} of {len(prepared)} layers have observed no data: {', '.join(silent)}; run calibration "
            "batches through the prepared model, or pass unobserved='dynamic'"
        )
    return found


def _warn_of_missing(model: nn.Module) -> None:
    """Say which prepared modules have since been taken out or replaced, and forget the list."""
    for prefix, root in model.named_modules():
        names = vars(root).pop(PREPARED, ())
        modules = dict(root.named_modules(remove_duplicate=False))
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


def _replace(conversion: Conversion) -> None:
    place, plan, qparams = conversion.place, conversion.plan, conversion.qparams
    module, config = place.module, plan.config
    detach(module)
    if isinstance(module, nn.Linear):
        if isinstance(module, QATLinear):
            weight_qparams: tuple[Tensor, Tensor | None] | None = module.weight_qparams()
        else:
            weight_qparams = observed_weight_qparams(module.weight, config.weight, place.name)
        layer = QuantizedLinear.from_float(
            module,
            config,
            weight_qparams=weight_qparams,
            input_qparams=None if plan.observes == OUTPUT else qparams,
            output_qparams=qparams if plan.observes == OUTPUT else None,
            name=place.name,
        )
        move_hooks(module, layer, place)
    elif qparams is not None:
        assert config.activation is not None
        move_hooks(module, Quantize(*qparams, config.activation.symmetric), place)


def move_hooks(old: nn.Module, new: nn.Module, place: Place) -> None:
    """Put `new` in the place of `old`, with its hooks and training flag."""
    for name in HOOKS:
        state: Any = getattr(old, name)
        setattr(new, name, state)
    new.training = old.training
    place.put(new)
