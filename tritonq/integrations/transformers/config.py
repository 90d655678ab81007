"""`TritonQConfig`: tells `from_pretrained` how to quantize, and what `config.json` gets afterwards.

It has one of three forms:

    a recipe        TritonQConfig("w4a16"): float weights are quantized during loading
    empty           TritonQConfig(): the checkpoint says how it is quantized
    a checkpoint    the form of both after loading: the compressed-tensors dictionary of the model's layers

As a dictionary a recipe is {"quant_method": "tritonq", "config": … or "layers": {pattern: …}, "ignore": […]}. If a
float model's config.json has one under "quantization_config", every program that has imported tritonq.TritonQConfig
quantizes the model.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from tritonq.numerics.config import PRESETS, QuantConfig
from tritonq.observers.qconfig import resolve_config
from tritonq.select.patterns import Pattern, check_pattern
from tritonq.select.select import DEFAULT_KEY

METHOD = "tritonq"
_KEYS = ("quant_method", "config", "layers", "ignore")

Layers = dict[Pattern, QuantConfig | None]


class TritonQConfig(QuantizationConfigMixin):
    """The `quantization_config` of transformers' `from_pretrained`.

    Args:
        config: as for `tritonq.quantize_`: a preset's name, a QuantConfig or QConfig, or a dictionary {pattern: config
            or None, "_default": config}. Static configs are refused, because loading cannot calibrate. None loads a
            quantized checkpoint.
        ignore: patterns of layers to leave in float, instead of the default: `lm_head`, or the model's output embedding
            if it has another name.
        options: arguments of the preset: `TritonQConfig("w4a16", group_size=64, symmetric=False)`.

    Raises:
        TypeError, ValueError: the message names the argument, what was found and what is allowed.
    """

    quant_method = METHOD

    def __init__(
        self, config: Any = None, *, ignore: Iterable[Pattern] | None = None, **options: Any
    ) -> None:
        self.layers = None if config is None else _read_layers(_with_options(config, options))
        if config is None and (options or ignore is not None):
            given = ", ".join([*options, *(["ignore"] if ignore is not None else [])])
            raise TypeError(f"TritonQConfig: {given} needs a config, found config=None")
        self.ignore = None if ignore is None else _read_ignore(ignore)
        #: The quantization_config of the checkpoint during loading, then that of the loaded model.
        self.checkpoint: dict[str, Any] | None = None

    def for_checkpoint(self, fields: Any) -> TritonQConfig:
        """The config for loading a checkpoint whose config.json has `fields` under quantization_config.

        Raises:
            ValueError: the checkpoint is already quantized, but this config is a recipe.
        """
        fields = dict(fields if isinstance(fields, Mapping) else fields.to_dict())
        if fields.get("quant_method") == METHOD:
            return self if self.layers is not None else TritonQConfig.from_dict(fields)
        if self.layers is not None:
            raise ValueError(
                f"the checkpoint must hold float weights to be quantized by this TritonQConfig, found quant_method "
                f"{fields.get('quant_method')!r}: pass TritonQConfig() to load it as it is"
            )
        config = TritonQConfig()
        config.checkpoint = fields
        return config

    def to_dict(self) -> dict[str, Any]:
        """The quantization_config for config.json: the checkpoint's if there is one, else the recipe."""
        if self.checkpoint is not None:
            return copy.deepcopy(self.checkpoint)
        fields: dict[str, Any] = {"quant_method": METHOD}
        if self.layers is not None:
            fields["layers"] = {
                _name(pattern): None if config is None else config.to_dict()
                for pattern, config in self.layers.items()
            }
        if self.ignore is not None:
            fields["ignore"] = [_name(pattern) for pattern in self.ignore]
        return fields

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The inverse of `to_dict` for a recipe; "config" has one config for all layers, "layers" has patterns.

        Raises:
            ValueError: unknown or contradicting keys, or anything that the constructor refuses.
        """
        unknown = sorted(set(config_dict) - set(_KEYS))
        if unknown:
            raise ValueError(
                f"quantization_config: a tritonq one knows {', '.join(_KEYS)}, found {', '.join(unknown)}"
            )
        if len({"config", "layers"} & set(config_dict)) != 1:
            raise ValueError(
                f"quantization_config: a tritonq one must have config or layers, found {sorted(config_dict)}"
            )
        if "config" in config_dict:
            recipe = _from_json(config_dict["config"])
        elif isinstance(config_dict["layers"], Mapping):
            recipe = {pattern: _from_json(config) for pattern, config in config_dict["layers"].items()}
        else:
            raise ValueError(
                f"quantization_config: layers must be a dictionary, found {config_dict['layers']!r}"
            )
        config = cls(recipe, ignore=config_dict.get("ignore"))
        return (config, kwargs) if return_unused_kwargs else config


def _with_options(config: Any, options: dict[str, Any]) -> Any:
    """A preset's name and its arguments → the QuantConfig; anything else is returned unchanged."""
    if not options:
        return config
    preset = PRESETS.get(config.lower()) if isinstance(config, str) else None
    if preset is None:
        raise TypeError(
            f"TritonQConfig: {', '.join(options)} must go with one of {', '.join(PRESETS)}, found config={config!r}"
        )
    allowed = inspect.signature(preset).parameters
    for name in options:
        if name not in allowed:
            raise TypeError(f"TritonQConfig: {config} takes {', '.join(allowed)}, found {name}")
    return preset(**options)


def _read_layers(config: Any) -> Layers:
    """Any form of config → {pattern: config or None}; "_default" is for layers that no pattern matches."""
    if not isinstance(config, Mapping):
        return {DEFAULT_KEY: _read_config(config, "TritonQConfig: ")}
    layers: Layers = {}
    for pattern, value in config.items():
        check_pattern(pattern, "TritonQConfig: config")
        layers[pattern] = (
            None if value is None else _read_config(value, f"TritonQConfig: config[{pattern!r}]: ")
        )
    return layers


def _read_config(config: Any, where: str) -> QuantConfig:
    resolved = resolve_config(config, where)
    if resolved.static or resolved.algorithm is not None:
        raise ValueError(
            f"{where}config must need no calibration while a model is loaded, found "
            f"{resolved.scheme if resolved.static else resolved.algorithm}: load the float model, then "
            "tritonq.quantize_(model, config, calibration=batches)"
        )
    return resolved


def _read_ignore(ignore: Iterable[Pattern]) -> tuple[Pattern, ...]:
    if isinstance(ignore, (str, type)) or not isinstance(ignore, Iterable):
        raise TypeError(f"TritonQConfig: ignore must be a list of patterns, found {ignore!r}")
    patterns = tuple(ignore)
    for pattern in patterns:
        check_pattern(pattern, "TritonQConfig: ignore")
    return patterns


def _from_json(config: Any) -> Any:
    return QuantConfig.from_dict(config) if isinstance(config, Mapping) else config


def _name(pattern: Pattern) -> str:
    return pattern if isinstance(pattern, str) else pattern.__name__
