"""Recipes: how to quantize a float model, written in one word.

float                                   not at all
w8a8_static                             a scheme of tritonq/numerics/config.py
w8a8_static+observer=mse                with another observer for activations
w8a8_static+smooth=0.5                  after SmoothQuant with α = 0.5; `smooth` alone searches α for each group
w8a8_static+smooth+down_proj=w8a8       with another scheme for layers of this name (or pattern)
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

import tritonq
from tritonq.numerics.config import PRESETS, QuantConfig

SMOOTH, OBSERVER, FLOAT = "smooth", "observer", "float"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to quantize a model.

    Attributes:
        name: as it was written.
        config: for most layers; None leaves the model in float.
        alpha: SmoothQuant's, None for none.
        exceptions: pattern → the config of layers that it fits.
    """

    name: str
    config: QuantConfig | None
    alpha: float | str | None
    exceptions: dict[str, QuantConfig | None]

    @property
    def smoothing(self) -> tuple[object, ...]:
        """Everything that smoothing depends on: recipes with equal values can share a smoothed model."""
        return (self.alpha, self.config if self.alpha == "search" else None)

    def smooth(self, model: Any, calibration: Sequence[Any]) -> Any:
        """A smoothed copy of a float model; the model itself if this recipe does not smooth."""
        if self.alpha is None:
            return model
        model = copy.deepcopy(model)
        return tritonq.smooth_(model, calibration, alpha=self.alpha, config=self.config or "w8a8_static")

    def quantize(self, smoothed: nn.Module, calibration: Sequence[Any]) -> nn.Module:
        """A quantized copy of `smooth`'s result; the result itself if the recipe is float."""
        if self.config is None:
            return smoothed
        return tritonq.quantize_(
            copy.deepcopy(smoothed), {**self.exceptions, "_default": self.config}, calibration=calibration
        )


def parse(name: str) -> Recipe:
    """A recipe from its name; see the module's docstring.

    Raises:
        ValueError: a part of it is unknown.
    """
    base, *parts = name.split("+")
    config = None if base == FLOAT else _scheme(base, name)
    alpha: float | str | None = None
    exceptions: dict[str, QuantConfig | None] = {}
    for part in parts:
        word, given, value = part.rpartition("=")
        if part == SMOOTH:
            alpha = "search"
        elif word == SMOOTH:
            alpha = _number(value, name)
        elif word == OBSERVER:
            if config is None or not config.static:
                raise ValueError(f"{name!r}: observer={value} needs a static scheme, found {base}")
            assert config.activation is not None
            config = dataclasses.replace(
                config, activation=dataclasses.replace(config.activation, observer=value)
            )
        elif given and config is not None:
            exceptions[word] = None if value == FLOAT else _scheme(value, name)
        else:
            raise ValueError(
                f"{name!r}: a part must be {SMOOTH}, {SMOOTH}=α, {OBSERVER}=NAME or LAYERS=SCHEME, found {part!r}"
            )
    return Recipe(name, config, alpha, exceptions)


def _scheme(word: str, name: str) -> QuantConfig:
    if word not in PRESETS:
        raise ValueError(f"{name!r}: a scheme must be one of {FLOAT}, {', '.join(PRESETS)}, found {word!r}")
    return PRESETS[word]()


def _number(word: str, name: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{name!r}: {SMOOTH} needs a number in [0, 1], found {word!r}") from None
