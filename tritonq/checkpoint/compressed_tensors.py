"""Converts a QuantConfig to the dictionaries of compressed-tensors, and back.

A config.json describes groups of quantized layers, and lists the layers that are not quantized:

    "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized", …, "ignore": ["lm_head"],
      "config_groups": {"group_0": {"targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128, …},
        "input_activations": null, "output_activations": null}}}

A QuantSpec corresponds to one such dictionary; its granularity is called strategy there. The format says how a weight
is stored: `pack-quantized` in int32 words, `int-quantized` in one int8 per code. A group may have a separate format;
the format of the whole is then "mixed-precision".

Source: compressed_tensors 0.20, quantization/quant_args.py, quant_scheme.py, quant_config.py, utils/match.py.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tritonq.checkpoint.fields import check_keys, check_type, lowered, shortened, shown, warn_of_unknown
from tritonq.numerics import checkpoint_layout
from tritonq.numerics.config import QuantConfig, QuantSpec

METHOD = "compressed-tensors"
PATTERN = "re:"
#: Class names by which targets may mean an nn.Linear of the float model.
LINEAR_CLASSES = ("Linear", "Module")
PACKED, UNPACKED, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
#: Formats that are read, and whether codes are packed into int32 words; "naive-quantized" is an older name.
FORMATS = {PACKED: True, UNPACKED: False, "naive-quantized": False}

_KEYS = {
    "quant_method", "format", "quantization_status", "config_groups", "ignore", "global_compression_ratio", "version",
    "run_compressed",
}  # fmt: skip
_SCHEME_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}
_ARGUMENT_KEYS = {
    "num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype",
    "zp_dtype", "observer", "observer_kwargs",
}  # fmt: skip
#: The order in which columns were rounded. "weight" ("static") leaves no trace in the file. "group" ("dynamic") adds a
#: tensor weight_g_idx; compressed-tensors 0.20 no longer reads that, vLLM and older versions do.
ORDERED = "group"
_ORDERS = (None, False, "weight", "static", ORDERED, "dynamic")
#: Parts of quantization_config that change a layer's results in ways that tritonq does not support.
_UNSUPPORTED_PARTS = ("kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config")


@dataclasses.dataclass(frozen=True)
class Group:
    """One config group.

    Attributes:
        name: its key, "group_0".
        targets: module names, "re:…" patterns or class names.
        config: how its layers are quantized.
        packed: True if codes are packed into int32 words.
    """

    name: str
    targets: tuple[str, ...]
    config: QuantConfig
    packed: bool


@dataclasses.dataclass(frozen=True)
class Scheme:
    """All groups, and the modules to ignore although a target matches them."""

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]

    def group_of(self, names: Collection[str], classes: Collection[str]) -> Group | None:
        """The group of a module, or None. Names go before patterns, and patterns before classes.

        Args:
            names: all names of the module in its model.
            classes: the names of its class and its base classes.
        """
        if any(word in self._ignored for word in (*names, *classes)) or _fitting(
            self._ignored_patterns, names
        ):
            return None
        for target in names:
            if target in self._targets:
                return self._targets[target]
        fitting = _fitting(self._patterns, names) or next(
            (word for word in sorted(classes) if word in self._targets), None
        )
        return None if fitting is None else self._targets[fitting]

    @functools.cached_property
    def _targets(self) -> dict[str, Group]:
        return {target: group for group in self.groups for target in group.targets}

    @functools.cached_property
    def _patterns(self) -> list[str]:
        return sorted(target for target in self._targets if target.startswith(PATTERN))

    @functools.cached_property
    def _ignored(self) -> frozenset[str]:
        return frozenset(self.ignore)

    @functools.cached_property
    def _ignored_patterns(self) -> list[str]:
        return [target for target in self.ignore if target.startswith(PATTERN)]


# --- writing ---------------------------------------------------------------------------------------------------------


def plain_config(config: QuantConfig, in_features: int) -> QuantConfig:
    """The config as compressed-tensors can express it for a layer of K columns: group size a number, no observer."""
    weight = dataclasses.replace(config.weight, observer=None)
    if weight.granularity == "group":
        weight = dataclasses.replace(weight, group_size=weight.resolve_group_size(in_features))
    activation = config.activation
    if activation is not None:
        activation = dataclasses.replace(activation, observer=None)
    return dataclasses.replace(config, weight=weight, activation=activation)


def scheme_to_dict(
    layers: Mapping[str, QuantConfig], ordered: Collection[str], ignore: Iterable[str]
) -> dict[str, Any]:
    """The quantization_config of a model.

    Args:
        layers: module name → its `plain_config`; not empty.
        ordered: the modules among them that have a weight_g_idx.
        ignore: the names of Linear modules that are not quantized.
    """
    members: dict[tuple[QuantConfig, bool], list[str]] = {}
    for name, config in layers.items():
        members.setdefault((config, name in ordered), []).append(name)
    formats = {PACKED if checkpoint_layout.is_packed(config) else UNPACKED for config, _ in members}
    groups = {}
    for index, ((config, is_ordered), names) in enumerate(members.items()):
        order = {"actorder": ORDERED} if is_ordered else {}
        group: dict[str, Any] = {
            "targets": ["Linear"] if len(members) == 1 else names,
            "weights": {**_spec_to_dict(config.weight), **order},
            "input_activations": None if config.activation is None else _spec_to_dict(config.activation),
            "output_activations": None,
        }
        # Without a format here, readers infer int-quantized for every group with quantized activations.
        if len(formats) > 1 or (config.weight.bits == 4 and config.activation is not None):
            group["format"] = PACKED if checkpoint_layout.is_packed(config) else UNPACKED
        groups[f"group_{index}"] = group
    return {
        "quant_method": METHOD,
        "format": MIXED if len(formats) > 1 else formats.pop(),
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "config_groups": groups,
    }


def _spec_to_dict(spec: QuantSpec) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "num_bits": spec.bits,
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": spec.granularity,
    }
    if spec.granularity == "group":
        fields["group_size"] = spec.group_size
    fields["dynamic"] = spec.dynamic
    return fields


# --- reading ---------------------------------------------------------------------------------------------------------


def read_scheme(fields: Any) -> Scheme:
    """The inverse of `scheme_to_dict`, for files of any writer.

    Warns:
        UserWarning: names unknown keys, which are ignored.

    Raises:
        ValueError: the message begins with the path inside quantization_config, and says what was found and what is
            allowed.
    """
    where = "quantization_config"
    check_type(fields, Mapping, where, "a dictionary")
    method = fields.get("quant_method")
    if method != METHOD:
        raise ValueError(f"{where}: quant_method must be {METHOD!r}, found {shown(method)}")
    warn_of_unknown(fields, _KEYS.union(_UNSUPPORTED_PARTS))
    status = fields.get("quantization_status", "compressed")
    if status != "compressed":
        raise ValueError(f"{where}: quantization_status must be 'compressed', found {shown(status)}")
    for part in _UNSUPPORTED_PARTS:
        if fields.get(part):
            raise ValueError(f"{where}: {part} must be absent or null, found {shown(fields[part])}")
    overall = fields.get("format")
    if overall is not None and overall != MIXED:
        _check_format(overall, where)
    groups = fields.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"{where}: config_groups must be a dictionary of groups, found {shown(groups)}")
    read = tuple(_read_group(str(name), group, overall) for name, group in groups.items())
    ignore = fields.get("ignore") or []
    return Scheme(read, _read_targets(ignore, f"{where}: ignore"))


def _read_group(name: str, fields: Any, overall: str | None) -> Group:
    where = f"config_groups[{shown(name)}]"
    check_type(fields, Mapping, where, "a dictionary")
    check_keys(fields, _SCHEME_KEYS, where)
    if fields.get("output_activations") is not None:
        found = shown(fields["output_activations"])
        raise ValueError(f"{where}: output_activations must be null, found {found}")
    try:
        weight = _read_spec(fields.get("weights"), f"{where}: weights")
        inputs = fields.get("input_activations")
        activation = None if inputs is None else _read_spec(inputs, f"{where}: input_activations")
        config = QuantConfig(weight, activation)
    except (TypeError, ValueError) as error:
        message = str(error)
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from None
    form = fields.get("format") or overall
    if form is None or (form == MIXED and fields.get("format") is None):
        form = PACKED if activation is None else UNPACKED
    _check_format(form, where)
    targets = _read_targets(fields.get("targets"), f"{where}: targets")
    if not targets:
        raise ValueError(f"{where}: targets must name at least one module, found []")
    return Group(name, targets, config, FORMATS[form])


def _read_spec(fields: Any, where: str) -> QuantSpec:
    check_type(fields, Mapping, where, "a dictionary")
    check_keys(fields, _ARGUMENT_KEYS, where)
    bits = fields.get("num_bits", 8)
    if type(bits) is not int or bits not in (4, 8):
        raise ValueError(f"{where}: num_bits must be 4 or 8, found {shown(bits)}")
    kind = lowered(fields.get("type", "int"))
    if kind != "int":
        raise ValueError(f"{where}: type must be 'int', found {shown(kind)}")
    if fields.get("block_structure") is not None:
        raise ValueError(f"{where}: block_structure must be null, found {shown(fields['block_structure'])}")
    order = lowered(fields.get("actorder"))
    if order not in _ORDERS:
        raise ValueError(f"{where}: actorder must be null, 'weight' or 'group', found {shown(order)}")
    group_size = fields.get("group_size")
    if group_size is not None and type(group_size) is not int:
        raise ValueError(f"{where}: group_size must be an integer or null, found {shown(group_size)}")
    granularity = lowered(fields.get("strategy"))
    if granularity is None:
        granularity = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    if granularity not in ("tensor", "channel", "group", "token"):
        raise ValueError(
            f"{where}: strategy must be 'tensor', 'channel', 'group' or 'token', found {shown(granularity)}"
        )
    if granularity != "group" and group_size == -1:
        group_size = None
    symmetric, dynamic = fields.get("symmetric", True), fields.get("dynamic", False)
    try:
        return QuantSpec(bits, symmetric, granularity, group_size, dynamic)
    except (TypeError, ValueError) as error:
        message = str(error).removeprefix("QuantSpec: ").replace("granularity", "strategy")
        raise ValueError(f"{where}: {shortened(message)}") from None


def _read_targets(targets: Any, where: str) -> tuple[str, ...]:
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"{where} must be a list of names, found {shown(targets)}")
    for target in targets:
        if target.startswith(PATTERN):
            try:
                re.compile(target[len(PATTERN) :])
            except (re.error, RecursionError, OverflowError) as error:
                message = f"{where}: must be a valid expression after 're:', found {shown(target)}: {error}"
                raise ValueError(message) from None
    return tuple(targets)


def _fitting(patterns: list[str], names: Collection[str]) -> str | None:
    """The first pattern that fits one of the names from its start, as compressed-tensors matches."""
    for pattern in patterns:
        if any(re.match(pattern[len(PATTERN) :], name) for name in names):
            return pattern
    return None


def _check_format(form: Any, where: str) -> None:
    if not isinstance(form, str) or form not in FORMATS:
        raise ValueError(f"{where}: format must be one of {', '.join(FORMATS)}, found {shown(form)}")
