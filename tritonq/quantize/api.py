"""`quantize_`: a model's layers to int8 or int4 in one line; `quantize_dynamic`: torch's line."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tritonq.numerics.config import W8A8, W8A16, QuantConfig
from tritonq.observers.qconfig import resolve_config
from tritonq.quantize import hosts
from tritonq.quantize.chain.grids import with_proven_edges
from tritonq.quantize.chain.watch import recorded, unwatch, watch
from tritonq.quantize.conversions import Conversion, NormConversion, conversions
from tritonq.quantize.convert import check_unobserved, replace_all
from tritonq.quantize.prepare import INPUT, attach, check_inplace, detach, observed_side
from tritonq.select.calibrate import calibrate, check_calibration
from tritonq.select.left_in_float import warn_of_float_weights
from tritonq.select.patterns import Model, Pattern
from tritonq.select.select import DEFAULT_IGNORE, PLAN, Filter, Selected, check_root, select, select_inherited
from tritonq.select.split import split_selected


def quantize_(
    model: Model,
    config: Any,
    *,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
    filter_fn: Filter | None = None,
    calibration: Iterable[Any] | None = None,
    unobserved: str = "error",
    chain: bool = True,
) -> Model:
    """Quantize a model's Linear, recurrent and attention layers in place.

    Args:
        model: any module that holds nn.Linear layers, nn.LSTM, nn.GRU, their cells or nn.MultiheadAttention; nn.RNN,
            nn.Embedding and nn.EmbeddingBag are taken where `config` names them, by name or class. Static configs leave
            all but Linears in float. Layers quantized already are passed over.
        config: a preset's name, a QuantConfig or a QConfig; or a dictionary {pattern: config or None,
            "_default": config}, first match wins, None leaves a layer in float. Patterns:
            tritonq/select/patterns.py.
        ignore: patterns of layers to leave in float, instead of the default ("lm_head",).
        filter_fn: (module, name) → whether to quantize that layer.
        calibration: batches for static configs, others leave it untouched. A tensor is run as m(x), a tuple
            or list as m(*x), a dictionary as m(**x).
        unobserved: as for `convert`: what to do with static layers that calibration never reaches.
        chain: as for `convert`: hand over int8 between static layers wherever that is proven.

    Returns:
        The model.

    Warns:
        UserWarning: more than 1 % of the weights stay in float although neither config, ignore nor filter_fn says so.

    Raises:
        TypeError, ValueError: a bad argument, a layer that cannot be quantized, static layers without
            calibration data. The model is unchanged then; so it is if the model raises on a calibration
            batch.
    """
    check_unobserved(unobserved)
    selected = select(model, config, ignore, filter_fn, splittable=True)
    static = [layer.place.name for layer in selected if layer.config.static]
    if static and calibration is None:
        raise ValueError(
            f"{static[0]} has a static config and needs calibration batches, found calibration=None"
        )
    if static:
        check_calibration(calibration)
    if not isinstance(chain, bool):
        raise TypeError(f"chain must be True or False, found {chain!r}")
    if filter_fn is None:
        warn_of_float_weights(model, selected, config, ignore)
    _quantize(model, selected, calibration if static else None, chain, unobserved)
    hosts.tell(model)
    return model


def quantize_dynamic(
    model: Model,
    qconfig_spec: Any = None,
    dtype: torch.dtype = torch.qint8,
    *,
    inplace: bool = False,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
    filter_fn: Filter | None = None,
) -> Model:
    """Quantize weights to int8, and activations on the fly, per token.

    Args:
        model: stays as it is unless `inplace`.
        qconfig_spec: None for what torch takes (Linear, LSTM, GRU, LSTMCell, GRUCell, RNNCell) and
            nn.MultiheadAttention, but for those that `ignore` names, by default `lm_head`; nn.RNN has to be named. Or
            as torch takes it: a set of classes and module names, or a dictionary from these to QConfigs (or any other
            config, or None), each going for the module and all that is in it. Then nothing is ignored by default.
        dtype: torch.qint8; or as in torch torch.quint8 for embeddings, by default all: a scale and a zero point for
            each row.
        inplace: change `model` instead of a copy.
        ignore, filter_fn: as for `quantize_`; ignore=() with no spec quantizes `lm_head` too, as torch does.

    Returns:
        The quantized model.

    Raises:
        TypeError, ValueError: as `quantize_`; also for another dtype or a config that is not dynamic.
    """
    check_inplace(inplace)
    if dtype not in (torch.qint8, torch.quint8):
        raise ValueError(f"quantize_dynamic: dtype must be torch.qint8 or torch.quint8, found {dtype!r}")
    typed = qconfig_spec is not None
    spec: dict[Any, QuantConfig | None] | None
    if dtype is torch.quint8:
        default = W8A16(symmetric=False)
        spec = _dynamic_spec(qconfig_spec if typed else (nn.Embedding, nn.EmbeddingBag), default)
    else:
        spec = _dynamic_spec(qconfig_spec, W8A8()) if typed else None
    check_root(model)
    if not inplace:
        model = copy.deepcopy(model)
    if spec is None:
        _quantize(model, select(model, W8A8(), ignore, filter_fn, splittable=True), None)
        hosts.tell(model)
        return model
    prefixes: dict[Any, list[str]] = {key: [] for key in spec}  # of the names that an entry goes for

    def config_of(module: nn.Module, name: str) -> Any:
        for key in (name, type(module)):
            if key in spec:
                prefixes[key].append(f"{name}." if name else "")
                return spec[key]
        return NotImplemented

    selected = select_inherited(model, config_of, () if ignore is DEFAULT_IGNORE else ignore, filter_fn)
    for key, found in prefixes.items():
        taken = spec[key] is None or any(
            f"{layer.place.name}.".startswith(tuple(found)) for layer in selected
        )
        if typed and not (found and taken):
            warnings.warn(
                f"qconfig_spec: {key!r} matches no layer that can be quantized", UserWarning, stacklevel=2
            )
    _quantize(model, selected, None)
    hosts.tell(model)
    return model


def _quantize(
    model: nn.Module,
    selected: list[Selected],
    calibration: Iterable[Any] | None,
    chain: bool = False,
    unobserved: str = "error",
) -> None:
    """Prepare, calibrate, convert in place; after a failure before the first replacement all is as it was."""
    with split_selected(selected) as layers:
        attach(layers)
        if chain and calibration is not None and observed_side(layers) == INPUT:
            watch(model)
        # They hold every float layer, and each is to be freed as it is replaced.
        selected.clear()
        layers.clear()
        try:
            if calibration is not None:
                calibrate(model, calibration)
            pending: list[Conversion | NormConversion] = [
                *conversions(model, unobserved, check_weights=False)
            ]
            if chain:
                pending = with_proven_edges(model, pending, recorded(model))
        except BaseException:
            unwatch(model)
            for module in [module for module in model.modules() if hasattr(module, PLAN)]:
                detach(module)
            raise
    replace_all(model, pending)


def _dynamic_spec(qconfig_spec: Any, default: QuantConfig) -> dict[Any, QuantConfig | None]:
    """torch's qconfig_spec → {name or class: config or None}."""
    if isinstance(qconfig_spec, Mapping):
        entries = dict(qconfig_spec)
    elif isinstance(qconfig_spec, (set, frozenset, list, tuple)):
        entries = dict.fromkeys(qconfig_spec, default)
    else:
        raise TypeError(
            "qconfig_spec must be a set of classes and names, a dictionary from these to QConfigs, or None, "
            f"found {qconfig_spec!r}"
        )
    for key, value in entries.items():
        if not isinstance(key, (str, type)):
            raise TypeError(f"qconfig_spec: a key must be a module's class or name, found {key!r}")
        if value is None:
            continue
        config = resolve_config(value, f"qconfig_spec[{key!r}]: ")
        if config.dynamic != default.dynamic:
            wanted = "dynamic" if default.dynamic else "weight-only"
            raise ValueError(f"qconfig_spec[{key!r}] must be {wanted}, found {config.scheme}")
        entries[key] = config
    return entries
