"""Reads the edges of a quantized model from its layers."""

from __future__ import annotations

import dataclasses
import itertools

from tritonq.nn.handover import Edge
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.norm import QuantizedNorm
from tritonq.select.patterns import Place


def edges_of(everything: list[Place]) -> list[Edge]:
    """The edges of a model, with the current names of its modules.

    An edge holds names from the time of quantization. They change if the model becomes a part of another one, or is
    taken apart. The name of a layer that no longer exists stays as it was.
    """
    found: list[tuple[Edge, str]] = []
    names_now: dict[str, list[str]] = {}
    for place in everything:
        module = place.module
        if isinstance(module, (QuantizedLinear, QuantizedNorm)):
            names_now.setdefault(module.module_name, []).append(place.name)
            if module.edge is not None:
                found.append((module.edge, place.name))

    def renamed(old: str, beside: str) -> str:
        """The current name of a layer; of several copies, the one closest to `beside`."""
        return max(names_now.get(old, [old]), key=lambda name: _shared_parts(name, beside))

    return [
        dataclasses.replace(
            edge,
            producer=now,
            consumers=tuple(renamed(name, now) for name in edge.consumers),
            partner=None if edge.partner is None else renamed(edge.partner, now),
        )
        for edge, now in found
    ]


def _shared_parts(name: str, other: str) -> int:
    """The number of leading parts that two names share."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
