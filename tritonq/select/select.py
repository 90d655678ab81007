"""Selects the layers to quantize, each with its config.

There are two ways to choose. `select` takes one config, or a dictionary of patterns (tritonq/select/patterns.py); the
first pattern that matches decides. `select_inherited` follows torch: a module's config also applies to all modules in
it. Both select plain Linears, and for callers that can split them the layers of tritonq/nn/split.py. A subclass with
another forward computes something else, and so may a layer whose weight is recomputed before each forward
(weight_norm, pruning).

QuantStubs are selected if a static layer is.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.split import is_splittable, is_table, only_named
from tritonq.nn.stubs import is_quant_stub
from tritonq.numerics.config import QuantConfig
from tritonq.observers.qconfig import resolve_config
from tritonq.select.patterns import Pattern, Place, check_pattern, matches, matches_any, named_modules, places

#: Compared by identity: the warning about patterns that match nothing is only for patterns that the user typed.
DEFAULT_IGNORE = ("lm_head",)
DEFAULT_KEY = "_default"
PLAN = "quantization_plan"  # the attribute that marks a prepared module, see tritonq/quantize/prepare.py
Filter = Callable[[nn.Module, str], bool]


@dataclasses.dataclass(frozen=True)
class Selected:
    """A Linear, splittable layer or QuantStub, and its config."""

    place: Place
    config: QuantConfig


@dataclasses.dataclass(frozen=True)
class Choice:
    """The config for a module, None for float.

    Attributes:
        config: None for float.
        explicit: False if it is only the default config.
        named: True if the config was given for this module, by name or class, and not for what holds it.
    """

    config: QuantConfig | None
    explicit: bool
    named: bool


def select(
    model: nn.Module,
    config: Any,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
    filter_fn: Filter | None = None,
    *,
    splittable: bool = False,
) -> list[Selected]:
    """The Linears and QuantStubs to quantize, each with its config.

    Args:
        model: not itself a Linear; layers that are already quantized are skipped.
        config: a QuantConfig, a preset's name or a QConfig for all layers; or a dictionary {pattern: config or None,
            "_default": config}. None leaves a layer in float. So does no match, if there is no "_default".
        ignore: patterns of layers to leave in float.
        filter_fn: (module, name) → True to quantize that layer.
        splittable: select layers that are quantized as several Linears, too.

    Warns:
        UserWarning: a pattern matches no layer, or a selected weight is shared with another module.

    Raises:
        TypeError, ValueError: bad patterns or configs, a root that is a Linear, nothing selected.
    """
    patterns = [key for key in _config_table(config) if key != DEFAULT_KEY]
    return _select(model, choice_of(config), patterns, ignore, filter_fn, splittable)


def choice_of(config: Any) -> Callable[[Place], Choice]:
    """What `config`, as for `select`, says of each module."""
    table = _config_table(config)

    def choose(place: Place) -> Choice:
        for pattern, chosen in table.items():
            if pattern != DEFAULT_KEY and matches(pattern, place):
                by_pattern = isinstance(pattern, str) and pattern.startswith("re:")
                return Choice(chosen, explicit=True, named=not by_pattern)
        return Choice(table.get(DEFAULT_KEY), explicit=False, named=False)

    return choose


def select_inherited(
    model: nn.Module,
    config_of: Callable[[nn.Module, str], Any],
    ignore: Iterable[Pattern],
    filter_fn: Filter | None,
) -> list[Selected]:
    """Like `select` with `splittable`, but each module inherits the config of the module that holds it.

    Args:
        config_of: (module, name) → the module's config in any form, None for float, NotImplemented to inherit.
        model, ignore, filter_fn: as for `select`.
    """
    configs: dict[str, QuantConfig | None] = {}
    named: set[str] = set()
    for name, module in named_modules(model):
        own = config_of(module, name)
        if own is NotImplemented:
            configs[name] = configs[name.rpartition(".")[0]] if name else None
        else:
            configs[name] = None if own is None else resolve_config(own, f"{name or 'the model'}: ")
            named.add(name)

    def choose(place: Place) -> Choice:
        return Choice(configs[place.name], explicit=True, named=place.name in named)

    return _select(model, choose, [], ignore, filter_fn, splittable=True)


def is_plain_linear(module: nn.Module) -> bool:
    """True for an nn.Linear that computes x · Wᵀ + b with a parameter W and nothing else."""
    cls = type(module)
    return (
        isinstance(module, nn.Linear)
        and cls.forward is nn.Linear.forward
        and cls.__name__
        != "NonDynamicallyQuantizableLinear"  # nn.MultiheadAttention reads its weight, never calls it
        and ("forward" not in vars(module) or _is_dispatched(module))
        and module._parameters.get("weight") is not None
    )


def _is_dispatched(module: nn.Module) -> bool:
    """Whether the module's own forward is called by accelerate, which moves inputs to the module's device."""
    original = vars(module).get("_old_forward")
    return "_hf_hook" in vars(module) and getattr(original, "__func__", None) is nn.Linear.forward


def adapter_modules(everything: list[Place]) -> set[int]:
    """The modules of PEFT's adapters, which are trained: their layers name the children that hold them."""
    return {
        id(module)
        for place in everything
        for child in getattr(type(place.module), "adapter_layer_names", ())
        if isinstance(held := place.module._modules.get(child), nn.Module)
        for module in held.modules()
    }


def check_root(model: nn.Module) -> None:
    """Raise unless `model` is a module whose layers can be replaced."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if isinstance(model, QuantizedLinear):
        raise ValueError("model must hold Linear layers, found a QuantizedLinear: it is already quantized")
    if is_plain_linear(model):
        raise ValueError(
            "model must hold Linear layers, found a Linear, which cannot replace itself: use "
            "QuantizedLinear.from_float(linear, config), or wrap it in nn.Sequential"
        )
    if is_splittable(model):
        found = type(model).__name__
        raise ValueError(
            f"model must hold layers, found {found}, which cannot replace itself: wrap it in nn.Sequential"
        )


def _select(
    model: nn.Module,
    choose: Callable[[Place], Choice],
    patterns: list[Pattern],
    ignore: Iterable[Pattern],
    filter_fn: Filter | None,
    splittable: bool,
) -> list[Selected]:
    check_root(model)
    ignored = ignored_patterns(ignore)
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be a function of (module, name) or None, found {filter_fn!r}")
    everything = places(model)
    for place in everything:
        if hasattr(place.module, PLAN):
            raise ValueError(
                f"the model is already prepared ({place.name}, …): convert it, or start from the float model"
            )
    adapters = adapter_modules(everything)
    layers = [
        place
        for place in everything
        if id(place.module) not in adapters
        and (is_plain_linear(place.module) or (splittable and is_splittable(place.module)))
    ]
    needs_name = _initialized_by_name(model)
    stubs = [place for place in everything if is_quant_stub(place.module)]
    quantized = [place for place in everything if isinstance(place.module, QuantizedLinear)]
    kept = [place for place in layers if not matches_any(ignored, place)]
    kept_stubs = [place for place in stubs if not matches_any(ignored, place)]

    chosen = [(place, _fitting(choose(place), place, place.module in needs_name)) for place in kept]
    selected = [
        Selected(place, config)
        for place, config in chosen
        if config is not None and (filter_fn is None or filter_fn(place.module, place.name))
    ]
    _check_selected(selected, layers, quantized, everything)
    selected_stubs = _select_stubs(choose, kept_stubs, selected)

    others = [
        place for place in everything if _holds_matrices(place.module)
    ]  # named to say that they stay float
    if ignore is not DEFAULT_IGNORE:
        _warn_of_unused("ignore", ignored, [*layers, *stubs, *quantized, *others])
    nowhere = [place for place in others if choose(place).config is None]
    _warn_of_unused("config", patterns, [*kept, *kept_stubs, *quantized, *nowhere])
    _warn_of_tied_weights(model, selected)
    return selected + selected_stubs


def _initialized_by_name(model: nn.Module) -> set[nn.Module]:
    """Modules in models of transformers, which read weights by torch's names when they are built to be loaded."""
    return {
        child for module in model.modules() if hasattr(module, "_init_weights") for child in module.modules()
    }


def _fitting(choice: Choice, place: Place, needs_name: bool) -> QuantConfig | None:
    """The config of a Linear or splittable layer, None where it stays in float."""
    if choice.config is None or is_plain_linear(place.module):
        return choice.config
    if not choice.config.static:
        return choice.config if choice.named or not (needs_name or only_named(place.module)) else None
    if choice.named:
        raise ValueError(
            f"{type(place.module).__name__} {place.name!r} must have float or dynamic activations, found "
            f"{choice.config.scheme}"
        )
    return None


def _select_stubs(
    choose: Callable[[Place], Choice], stubs: list[Place], selected: list[Selected]
) -> list[Selected]:
    """The QuantStubs to quantize: with their own static config, else with the one that all static layers share."""
    static = [layer.config for layer in selected if layer.config.static]
    if not static:
        return []
    shared = {config.activation for config in static}
    found = []
    for stub in stubs:
        choice = choose(stub)
        config = choice.config
        if not choice.explicit and (config is None or not config.static):
            if len(shared) > 1:
                raise ValueError(
                    f"QuantStub {stub.name!r}: the static layers have {len(shared)} different activation "
                    "specs: name the stub in the config's dictionary to choose one"
                )
            config = static[0]
        if config is not None and config.static:
            found.append(Selected(stub, config))
    return found


def _check_selected(
    selected: list[Selected], layers: list[Place], quantized: list[Place], everything: list[Place]
) -> None:
    if selected:
        return
    transposed = [place.name for place in everything if type(place.module).__name__ == "Conv1D"]
    if transposed:
        raise ValueError(
            f"nothing to quantize: the model's weights are in {len(transposed)} Conv1D layers ({transposed[0]}, …), "
            "which store them transposed and are not taken: put nn.Linear layers in their places"
        )
    if layers:
        raise ValueError(
            f"nothing to quantize: config, ignore and filter_fn leave none of the {len(layers)} Linear layers "
            f"({layers[0].name}, …)"
        )
    if quantized:
        raise ValueError(
            f"nothing to quantize: all {len(quantized)} Linear layers are already quantized "
            f"({quantized[0].name}, …)"
        )
    raise ValueError("nothing to quantize: the model has no plain nn.Linear layer")


def _holds_matrices(module: nn.Module) -> bool:
    """Whether a module that is no Linear holds weights of matrix products itself."""
    held: dict[str, Any] = module._parameters  # None where there is none
    return not isinstance(module, nn.Linear) and any(
        tensor is not None and not is_lazy(tensor) and tensor.dim() in (2, 3) for tensor in held.values()
    )


def _warn_of_unused(where: str, patterns: Iterable[Pattern], known: list[Place]) -> None:
    for pattern in patterns:
        if not any(matches(pattern, place) for place in known):
            what = "no Linear layer" if where == "ignore" else "no Linear layer that is not ignored"
            warnings.warn(f"{where}: the pattern {pattern!r} matches {what}", UserWarning, stacklevel=5)


def tied_head(layer: Selected, selected: list[Selected]) -> Selected | None:
    """Of an embedding: the Linear with the same weight and config, with which it stays tied."""
    if not is_table(layer.place.module):
        return None
    weight = layer.place.module._parameters["weight"]
    return next(
        (
            other
            for other in selected
            if is_plain_linear(other.place.module)
            and other.place.module._parameters["weight"] is weight
            and other.config == layer.config
        ),
        None,
    )


def _warn_of_tied_weights(model: nn.Module, selected: list[Selected]) -> None:
    """Warn if quantizing a layer ends the sharing of its weight."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(name)
    together = [(layer, head) for layer in selected if (head := tied_head(layer, selected)) is not None]
    for layer in selected:
        name = layer.place.name
        kept = {own for pair in together if layer in pair for one in pair for own in one.place.names}
        parameters = layer.place.module._parameters.items()
        weights = [weight for key, weight in parameters if "weight" in key and weight is not None]
        others = sorted(
            {owner for weight in weights for owner in owners[id(weight)]} - {*layer.place.names} - kept
        )
        if others:
            warnings.warn(
                f"the weight of {name} is tied to {' and '.join(others)}: quantizing gives {name} a separate weight "
                f"(add {name} to ignore to keep them tied)",
                UserWarning,
                stacklevel=5,
            )


def _config_table(config: Any) -> dict[Pattern, QuantConfig | None]:
    """Any form of config → {pattern: config or None}; "_default" is for layers that no pattern matches."""
    if not isinstance(config, Mapping):
        return {DEFAULT_KEY: resolve_config(config)}
    for key in config:
        check_pattern(key, "config")
    return {
        key: None if value is None else resolve_config(value, f"config[{key!r}]: ")
        for key, value in config.items()
    }


def ignored_patterns(ignore: Iterable[Pattern]) -> tuple[Pattern, ...]:
    """The user's `ignore`, checked."""
    if isinstance(ignore, (str, type)) or not isinstance(ignore, Iterable):
        raise TypeError(f"ignore must be a list of patterns, found {ignore!r}")
    patterns = tuple(ignore)
    for pattern in patterns:
        check_pattern(pattern, "ignore")
    return patterns
