"""The edges of a quantized model, read off its layers."""

from __future__ import annotations

import dataclasses

from tritonq.chaining.edge import Edge
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.norm import QuantizedNorm
from tritonq.patterns import Place


def edges_of(everything: list[Place]) -> list[Edge]:
    """The edges of a model, under the names that its modules have now."""
    found = []
    for place in everything:
        if isinstance(place.module, (QuantizedLinear, QuantizedNorm)) and place.module.edge is not None:
            found.append(_renamed(place.module.edge, place.name))
    return found


def _renamed(edge: Edge, name: str) -> Edge:
    """An edge whose producer is called `name` now: the model was put into, or taken out of, another one."""
    old, new = edge.producer, name
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]

    def renamed(other: str) -> str:
        return new + other.removeprefix(old)

    return dataclasses.replace(
        edge,
        producer=name,
        consumers=tuple(map(renamed, edge.consumers)),
        partner=None if edge.partner is None else renamed(edge.partner),
    )
