"""Puts Linears in the place of layers that are quantized as several Linears (tritonq/nn/split.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from torch import nn

from tritonq.nn.split import is_splittable, is_table, split
from tritonq.select.patterns import Place, places
from tritonq.select.replace import move_hooks
from tritonq.select.select import Selected, tied_head


@contextlib.contextmanager
def split_selected(selected: list[Selected]) -> Iterator[list[Selected]]:
    """Split the selected layers that are no Linears; yields what is then selected. A failure puts them back."""
    wanted = [
        (layer.place, None if (head := tied_head(layer, selected)) is None else head.place.module)
        for layer in selected
        if is_splittable(layer.place.module)
    ]
    with split_places(wanted) as parts:
        found: dict[int, Selected] = {}
        for layer in selected:
            for place in parts.get(id(layer.place), [layer.place]):
                known = found.get(id(place.module))
                if known is not None:  # a head and its embedding
                    names, parents = known.place.names + place.names, known.place.parents + place.parents
                    place = Place(place.module, names, parents)
                found[id(place.module)] = Selected(place, layer.config)
        yield list(found.values())


@contextlib.contextmanager
def split_where(model: nn.Module, stored_as: Callable[[str], str]) -> Iterator[None]:
    """Split the layers of a model whose parts are stored. A failure puts them back.

    Args:
        stored_as: the name of a quantized Linear → the name under which its weight is stored, "" if it is not.
    """
    everything = places(model)
    heads = {
        key: place.module
        for place in everything
        if type(place.module) is nn.Linear
        for name in place.names
        if (key := stored_as(name))
    }
    wanted = []
    for place in everything:
        if is_splittable(place.module):
            parts = [part for part, _ in split(place.module, place.name).named_children()]
            stored = [
                found for part in parts for name in place.names if (found := stored_as(f"{name}.{part}"))
            ]
            if stored:
                wanted.append((place, heads.get(stored[0]) if is_table(place.module) else None))
    with split_places(wanted):
        yield


@contextlib.contextmanager
def split_places(wanted: Iterable[tuple[Place, nn.Module | None]]) -> Iterator[dict[int, list[Place]]]:
    """Split layers; yields the places of their Linears, by the id of each layer's place. A failure puts them back.

    Args:
        wanted: each layer's place, and for an embedding the head with which it shares a weight.
    """
    replacements = [(place, place.module, split(place.module, place.name, head)) for place, head in wanted]
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
