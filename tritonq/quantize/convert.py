"""From a prepared model to a quantized one: every planned layer replaced by its quantized counterpart.

All scales are computed, and everything that can be wrong is found, before the first layer is replaced. Then
layers go one by one, each float weight being freed as its quantized layer takes its place.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.norm import QuantizedNorm
from tritonq.nn.stubs import DeQuantize, Quantize, is_dequant_stub
from tritonq.quantize import hosts
from tritonq.quantize.chain.grids import with_proven_edges
from tritonq.quantize.chain.watch import recorded, unwatch
from tritonq.quantize.conversions import Conversion, NormConversion, conversions
from tritonq.quantize.prepare import OUTPUT, PREPARED, check_inplace, detach
from tritonq.select.encoder_layer import leave_fast_path
from tritonq.select.patterns import Model, named_modules, places
from tritonq.select.replace import move_hooks
from tritonq.select.select import PLAN
from tritonq.util.progress import track


def convert(
    model: Model,
    mapping: None = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    *,
    unobserved: str = "error",
    chain: bool = True,
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
        chain: without stubs, hand over int8 from layer to layer wherever calibration's runs prove that nothing
            else reads it (tritonq/quantize/chain/); False: every layer takes and returns float.

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
    if not isinstance(chain, bool):
        raise TypeError(f"convert: chain must be True or False, found {chain!r}")
    check_unobserved(unobserved)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if not inplace:
        model = copy.deepcopy(model)
    pending: list[Conversion | NormConversion] = [*conversions(model, unobserved, check_weights=True)]
    if chain:
        pending = with_proven_edges(model, pending, recorded(model))
    _warn_of_missing(model)
    replace_all(model, pending)
    hosts.tell(model)
    if remove_qconfig:
        for module in model.modules():
            vars(module).pop("qconfig", None)
    return model


def check_unobserved(unobserved: object) -> None:
    """Raise unless it is a word that `convert` takes."""
    if unobserved not in ("error", "dynamic"):
        raise ValueError(f"unobserved must be 'error' or 'dynamic', found {unobserved!r}")


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


def replace_all(model: nn.Module, pending: list[Conversion | NormConversion]) -> None:
    """Replace the modules one by one, emptying `pending`, so that each float weight is freed as it goes."""
    is_static = any(
        isinstance(conversion, Conversion) and conversion.plan.observes is not None for conversion in pending
    )
    unwatch(model)
    pending.reverse()
    with torch.no_grad():
        for _ in track(range(len(pending)), "Quantizing"):
            _replace(pending.pop())
    if is_static:
        for place in places(model):
            if is_dequant_stub(place.module):
                move_hooks(place.module, DeQuantize(), place)
    leave_fast_path(model)


def _replace(conversion: Conversion | NormConversion) -> None:
    if isinstance(conversion, NormConversion):
        old = conversion.place.module
        grid = (conversion.qparams, conversion.symmetric)
        new = QuantizedNorm.from_float(old, conversion.norm, *grid, conversion.edge, conversion.place.name)
        move_hooks(old, new, conversion.place)
        return
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
    layer = QuantizedLinear.from_float(
        place.module,
        plan.config,
        weight_qparams=conversion.weight_qparams,
        input_qparams=None if plan.observes == OUTPUT else qparams,
        output_qparams=qparams if plan.observes == OUTPUT else None,
        name=place.name,
        checked=True,  # by `prepare` or `conversions`
    )
    if conversion.edge is not None:
        layer.hand_over(conversion.edge, conversion.output_qparams)
    layer.why_float = conversion.why_float
    return layer
