"""What to quantize and how: one `QuantSpec` for a tensor, one `QuantConfig` for a Linear layer, and the presets.

A scheme is written W<bits of the weight>A<bits of the activation>:

    preset        weight                           activation
    w8a16         int8, one scale per channel      stays float
    w4a16         int4, one scale per group of K   stays float
    w8a8          int8, one scale per channel      int8, one scale per token, computed on the fly
    w8a8_static   int8, one scale per channel      int8, one calibrated scale and zero point per tensor
    w4a8          int4, one scale per group of K   int8, one scale per token, computed on the fly

Granularity, for a weight of N rows (output channels) and K columns (input features) and activations of M rows:

    "tensor"   one scale for everything            scale shape [1]
    "channel"  one per output row of the weight    [N, 1]
    "group"    one per `group_size` columns        [N, ceil(K / group_size)]
    "token"    one per row of the activation       [M, 1]

Both classes are frozen and plain data: they compare, hash, pickle, and turn into dictionaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

GRANULARITIES = ("tensor", "channel", "group", "token")
AUTO_GROUP_SIZES = (128, 64, 32)
#: An int32 accumulator holds this many products of two signed 8-bit codes: (2^31 - 1) // (128 * 128).
MAX_GROUP_SIZE = 131_071


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized.

    Args:
        bits: 8 or 4.
        symmetric: True puts the zero point at code 0; False gives an integer zero point (affine).
        granularity: `"tensor"`, `"channel"`, `"group"` (weights) or `"token"` (activations).
        group_size: columns that share a scale, 1 … 131,071, or `"auto"`: the largest of 128, 64, 32 that divides
            the layer's K, else 128 with a shorter last group. Only with granularity `"group"`.
        dynamic: True computes the scale from each input; False needs calibration. For activations only.
        observer: finds the scales: a name from `tritonq.observers` (`"minmax"`), an observer class, or the result
            of its `.with_args(…)`; None takes the default for the tensor.

    Raises:
        TypeError, ValueError: the message names the field, the value found and the values allowed.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: str = "tensor"
    group_size: int | str | None = None
    dynamic: bool = False
    observer: str | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise ValueError(f"QuantSpec: bits must be 4 or 8, found {self.bits!r}")
        for field in ("symmetric", "dynamic"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(f"QuantSpec: {field} must be True or False, found {getattr(self, field)!r}")
        if self.granularity not in GRANULARITIES:
            allowed = ", ".join(GRANULARITIES)
            raise ValueError(f"QuantSpec: granularity must be one of {allowed}, found {self.granularity!r}")
        if self.granularity == "group":
            check_group_size(self.group_size)
        elif self.group_size is not None:
            raise ValueError(
                f"QuantSpec: group_size must be None with granularity {self.granularity!r}, found {self.group_size!r}"
            )
        if self.observer is not None and not isinstance(self.observer, str) and not callable(self.observer):
            raise TypeError(
                f"QuantSpec: observer must be a name, an observer class or None, found {self.observer!r}"
            )

    @property
    def qmin(self) -> int:
        """The smallest code: -8 (int4), -127 (int8 symmetric) or -128 (int8 affine)."""
        if self.bits == 4:
            return -8
        return -127 if self.symmetric else -128

    @property
    def qmax(self) -> int:
        """The largest code: 7 or 127."""
        return 7 if self.bits == 4 else 127

    def resolve_group_size(self, in_features: int) -> int:
        """Columns that share one scale in a layer of `in_features` columns: K itself for tensor and channel."""
        if self.granularity != "group":
            return in_features
        size = self.group_size
        if size == "auto":
            size = next((g for g in AUTO_GROUP_SIZES if in_features % g == 0), AUTO_GROUP_SIZES[0])
        assert isinstance(size, int)
        return min(size, in_features)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; an observer class becomes its name."""
        fields = dataclasses.asdict(self)
        if self.observer is not None and not isinstance(self.observer, str):
            fields["observer"] = getattr(self.observer, "__name__", type(self.observer).__name__)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> QuantSpec:
        """The inverse of `to_dict`; unknown keys raise a ValueError."""
        return cls(**_known_fields(cls, fields))


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """How one Linear layer is quantized: its weight, and its input activation if that is quantized too.

    Args:
        weight: the weight's spec; granularity tensor, channel or group; never dynamic.
        activation: None keeps activations in float. Otherwise int8: per token when dynamic, per tensor when static.
        algorithm: chooses the codes of a weight; only None, round to nearest, exists.

    Raises:
        TypeError, ValueError: no kernel computes this combination; the message names what is allowed.
    """

    weight: QuantSpec
    activation: QuantSpec | None = None
    algorithm: str | None = None

    def __post_init__(self) -> None:
        weight, activation = self.weight, self.activation
        if not isinstance(weight, QuantSpec):
            raise TypeError(f"QuantConfig: weight must be a QuantSpec, found {weight!r}")
        if weight.granularity == "token":
            raise ValueError(
                "QuantConfig: a weight's granularity must be tensor, channel or group, found 'token'"
            )
        if weight.dynamic:
            raise ValueError("QuantConfig: a weight's spec must have dynamic=False, found True")
        if self.algorithm is not None:
            raise ValueError(
                f"QuantConfig: algorithm must be None (round to nearest), found {self.algorithm!r}"
            )
        if activation is None:
            return
        if not isinstance(activation, QuantSpec):
            raise TypeError(f"QuantConfig: activation must be a QuantSpec or None, found {activation!r}")
        if activation.bits != 8:
            raise ValueError(f"QuantConfig: activations must have 8 bits, found {activation.bits}")
        wanted = "token" if activation.dynamic else "tensor"
        if activation.granularity != wanted:
            kind = "dynamic" if activation.dynamic else "static"
            raise ValueError(
                f"QuantConfig: a {kind} activation's granularity must be {wanted!r}, found {activation.granularity!r}"
            )
        if weight.bits == 8 and weight.granularity == "group":
            raise ValueError(
                "QuantConfig: int8 weights with int8 activations need granularity 'channel' or 'tensor', found 'group'"
            )
        if weight.bits == 4 and not (weight.symmetric and activation.symmetric and activation.dynamic):
            raise ValueError(
                "QuantConfig: int4 weights with int8 activations need a symmetric weight and a symmetric, dynamic "
                f"activation, found symmetric={weight.symmetric} and symmetric={activation.symmetric}, "
                f"dynamic={activation.dynamic}"
            )

    @property
    def weight_only(self) -> bool:
        """True when activations stay in float."""
        return self.activation is None

    @property
    def dynamic(self) -> bool:
        """True when activations are quantized with scales computed on the fly."""
        return self.activation is not None and self.activation.dynamic

    @property
    def static(self) -> bool:
        """True when activations are quantized with calibrated scales."""
        return self.activation is not None and not self.activation.dynamic

    @property
    def scheme(self) -> str:
        """The name of the preset that this config varies: w8a16, w4a16, w8a8, w8a8_static or w4a8."""
        return f"w{self.weight.bits}a{'16' if self.activation is None else '8'}{'_static' if self.static else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Nested plain JSON values: {"weight": …, "activation": … or None, "algorithm": …}."""
        return {
            "weight": self.weight.to_dict(),
            "activation": None if self.activation is None else self.activation.to_dict(),
            "algorithm": self.algorithm,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> QuantConfig:
        """The inverse of `to_dict`; unknown keys and a missing weight raise a ValueError."""
        known = _known_fields(cls, fields)
        for key in ("weight", "activation"):
            if known.get(key) is not None:
                known[key] = QuantSpec.from_dict(known[key])
        return cls(**known)


def W8A16(*, group_size: int | str | None = None, symmetric: bool = True) -> QuantConfig:
    """INT8 weights, float activations; one scale per channel unless `group_size` is given."""
    return QuantConfig(_weight_spec(8, group_size, symmetric))


def W4A16(*, group_size: int | str | None = "auto", symmetric: bool = True) -> QuantConfig:
    """INT4 weights, float activations; `group_size` "auto", an int, or None / -1 for one scale per channel."""
    return QuantConfig(_weight_spec(4, group_size, symmetric))


def W8A8(*, symmetric: bool = True, activation_symmetric: bool = True) -> QuantConfig:
    """INT8 weights per channel, INT8 activations per token with scales computed on the fly."""
    activation = QuantSpec(8, activation_symmetric, "token", dynamic=True)
    return QuantConfig(_weight_spec(8, None, symmetric), activation)


def W8A8Static(
    *,
    symmetric: bool = True,
    activation_symmetric: bool = False,
    observer: str | Callable[..., Any] | None = None,
) -> QuantConfig:
    """INT8 weights per channel, INT8 activations with one calibrated scale and zero point per tensor."""
    activation = QuantSpec(8, activation_symmetric, "tensor", observer=observer)
    return QuantConfig(_weight_spec(8, None, symmetric), activation)


def W4A8(*, group_size: int | str | None = "auto") -> QuantConfig:
    """INT4 symmetric weights, INT8 activations per token with scales computed on the fly."""
    return QuantConfig(_weight_spec(4, group_size, True), QuantSpec(8, True, "token", dynamic=True))


PRESETS: dict[str, Callable[[], QuantConfig]] = {
    "w8a16": W8A16,
    "w4a16": W4A16,
    "w8a8": W8A8,
    "w8a8_static": W8A8Static,
    "w4a8": W4A8,
}


def as_config(config: QuantConfig | str, where: str = "") -> QuantConfig:
    """A preset's name (any case) or a QuantConfig → the QuantConfig; `where` begins the message of an error."""
    if isinstance(config, QuantConfig):
        return config
    if not isinstance(config, str):
        raise TypeError(
            f"{where}config must be a QuantConfig or one of {', '.join(PRESETS)}, found {config!r}"
        )
    if config.lower() not in PRESETS:
        raise ValueError(
            f"{where}config must be a QuantConfig or one of {', '.join(PRESETS)}, found {config!r}"
        )
    return PRESETS[config.lower()]()


def check_group_size(group_size: object) -> None:
    """Raise unless `group_size` is "auto" or an int in 1 … 131,071."""
    allowed = f"'auto' or an int in 1 … {MAX_GROUP_SIZE:,} with granularity 'group'"
    if group_size == "auto":
        return
    if type(group_size) is not int:
        raise TypeError(f"group_size must be {allowed}, found {group_size!r}")
    if not 1 <= group_size <= MAX_GROUP_SIZE:
        raise ValueError(f"group_size must be {allowed}, found {group_size!r}")


def _weight_spec(bits: int, group_size: int | str | None, symmetric: bool) -> QuantSpec:
    if group_size is None or (type(group_size) is int and group_size == -1):
        return QuantSpec(bits, symmetric, "channel")
    return QuantSpec(bits, symmetric, "group", group_size)


def _known_fields(cls: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise TypeError(f"{cls.__name__}.from_dict needs a dictionary, found {fields!r}")
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(map(str, fields)) - known)
    if unknown:
        raise ValueError(
            f"{cls.__name__}.from_dict knows {', '.join(sorted(known))}, found {', '.join(unknown)}"
        )
    needed = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
    missing = [name for name in needed if name not in fields]
    if missing:
        raise ValueError(
            f"{cls.__name__}.from_dict needs {', '.join(missing)}, found {', '.join(map(str, fields)) or 'no key'}"
        )
    return dict(fields)
