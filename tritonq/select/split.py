"""Puts Linears in the place of layers that are quantized as several Linears (tritonq/nn/split.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from torch import nn

from tritonq.nn.split import is_splittable, split
from tritonq.select.patterns import Place, places
from tritonq.select.replace import move_hooks
from tritonq.select.select import Selected


@contextlib.contextmanager
def split_selected(selected: list[Selected]) -> Iterator[list[Selected]]:
    """Split the selected layers that are no Linears; yields what is then selected. A failure puts them back."""
    with split_places([layer.place for layer in selected if is_splittable(layer.place.module)]) as parts:
        yield [
            Selected(part, layer.config)
            for layer in selected
            for part in parts.get(id(layer.place), [layer.place])
        ]


@contextlib.contextmanager
def split_where(model: nn.Module, wanted: Callable[[str], bool]) -> Iterator[None]:
    """Split the layers of a model of which the name of a part is `wanted`. A failure puts them back."""
    found = []
    for place in places(model):
        if is_splittable(place.module):
            parts = split(place.module, place.name).named_children()
            if any(wanted(f"{name}.{part}") for part, _ in parts for name in place.names):
                found.append(place)
    with split_places(found):
        yield


@contextlib.contextmanager
def split_places(found: Iterable[Place]) -> Iterator[dict[int, list[Place]]]:
    """Split layers; yields the places of their Linears, by the id of each layer's place. A failure puts them back."""
    replacements = [(place, place.module, split(place.module, place.name)) for place in found]
    for place, old, new in replacements:
        move_hooks(old, new, place)
    try:
        yield {
            id(place): [
                Place(linear, tuple(f"{name}.{part}" for name in place.names), ((new, part),))
                for part, linear in new.named_children()
            ]
            for place, _, new in replacements
        }
    except BaseException:
        for place, old, _ in replacements:
            place.put(old)
        raise
