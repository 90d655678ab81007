"""The top-level key `tritonq` of config.json, for everything that compressed-tensors cannot express.

    "tritonq": {"version": 1,
      "tied": {"lm_head.weight": "embed.weight"},                    alias → stored tensor
      "dtypes": {"float16": ["fc1"]},                                layers whose dtype is not that of bias or scales
      "stubs": {"quant": {"symmetric": false}},                      modules that turn float into int8
      "hands_over": ["fc1", "fc2"],                                  layers whose output grid is in the file
      "edges": [{"producer": "fc1", "steps": ["gelu"],               layers that hand over int8, on the input grid of
                 "consumers": ["fc2"]}],                             their consumers
      "observers": [{"weight": "mse", "activation": null, "layers": ["fc1"]}]}

All but the version may be missing. A file without the key is read too; everything then follows from its tensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch

from tritonq.nn.epilogue_steps import SEQUENCES
from tritonq.nn.handover import Edge
from tritonq.numerics.qparams import FLOAT_DTYPES

KEY = "tritonq"
VERSION = 1
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES}
Observers = tuple[str | None, str | None]


@dataclasses.dataclass
class Extras:
    """The contents of the key.

    Attributes:
        tied: tensor name → name of the stored tensor that shares its memory.
        dtypes: layer → its dtype.
        stubs: name of a Quantize module → True if symmetric.
        hands_over: layers with output qparams in the file; None if the file does not say.
        edges: see tritonq/nn/handover.py; their grids are their consumers' input qparams.
        observers: layer → names of the observers of weight and activation.
    """

    tied: dict[str, str] = dataclasses.field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = dataclasses.field(default_factory=dict)
    stubs: dict[str, bool] = dataclasses.field(default_factory=dict)
    hands_over: list[str] | None = None
    edges: list[Edge] = dataclasses.field(default_factory=list)
    observers: dict[str, Observers] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The key's value, without empty parts."""
        fields: dict[str, Any] = {"version": VERSION}
        if self.tied:
            fields["tied"] = dict(self.tied)
        if self.dtypes:
            fields["dtypes"] = {
                word: [name for name, own in self.dtypes.items() if own == dtype]
                for word, dtype in DTYPES.items()
                if dtype in self.dtypes.values()
            }
        if self.stubs:
            fields["stubs"] = {name: {"symmetric": symmetric} for name, symmetric in self.stubs.items()}
        if self.hands_over:
            fields["hands_over"] = list(self.hands_over)
        if self.edges:
            fields["edges"] = [_edge_to_dict(edge) for edge in self.edges]
        if self.observers:
            pairs = dict.fromkeys(self.observers.values())
            fields["observers"] = [
                {
                    "weight": pair[0],
                    "activation": pair[1],
                    "layers": [name for name, own in self.observers.items() if own == pair],
                }
                for pair in pairs
            ]
        return fields


def read_extras(fields: Any) -> Extras:
    """The inverse of `Extras.to_dict`; None, a missing key, gives empty extras.

    Raises:
        ValueError: the message names the part, what was found and what is allowed.
    """
    if fields is None:
        return Extras()
    known = ("version", "tied", "dtypes", "stubs", "hands_over", "edges", "observers")
    _check(isinstance(fields, Mapping), KEY, "a dictionary", fields)
    unknown = sorted(set(fields) - set(known))
    _check(not unknown, KEY, f"a dictionary of {', '.join(known)}", unknown)
    version = fields.get("version")
    _check(type(version) is int and version == VERSION, f"{KEY}.version", str(VERSION), version)

    tied = fields.get("tied", {})
    is_map = isinstance(tied, Mapping) and all(isinstance(name, str) for name in tied.values())
    _check(is_map, f"{KEY}.tied", "a dictionary of names", tied)
    extras = Extras(tied=dict(tied), hands_over=None)

    dtypes = fields.get("dtypes", {})
    _check(isinstance(dtypes, Mapping), f"{KEY}.dtypes", "a dictionary", dtypes)
    for word, names in dtypes.items():
        _check(word in DTYPES, f"{KEY}.dtypes", f"keyed by {', '.join(DTYPES)}", word)
        extras.dtypes.update(dict.fromkeys(_names(names, f"{KEY}.dtypes"), DTYPES[word]))

    stubs = fields.get("stubs", {})
    _check(isinstance(stubs, Mapping), f"{KEY}.stubs", "a dictionary", stubs)
    for name, stub in stubs.items():
        fits = (
            isinstance(stub, Mapping) and set(stub) == {"symmetric"} and isinstance(stub["symmetric"], bool)
        )
        _check(fits, f"{KEY}.stubs[{name!r}]", '{"symmetric": true or false}', stub)
        extras.stubs[name] = stub["symmetric"]

    extras.hands_over = _names(fields.get("hands_over", []), f"{KEY}.hands_over")

    edges = fields.get("edges", [])
    _check(isinstance(edges, list), f"{KEY}.edges", "a list", edges)
    extras.edges = [_read_edge(edge) for edge in edges]

    entries = fields.get("observers", [])
    _check(isinstance(entries, list), f"{KEY}.observers", "a list", entries)
    for entry in entries:
        fits = isinstance(entry, Mapping) and set(entry) == {"weight", "activation", "layers"}
        fits = fits and all(
            entry[key] is None or isinstance(entry[key], str) for key in ("weight", "activation")
        )
        _check(fits, f"{KEY}.observers", "a list of {weight, activation, layers}", entry)
        names = _names(entry["layers"], f"{KEY}.observers")
        extras.observers.update(dict.fromkeys(names, (entry["weight"], entry["activation"])))
    return extras


def _edge_to_dict(edge: Edge) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "producer": edge.producer,
        "steps": list(edge.steps),
        "consumers": list(edge.consumers),
    }
    if edge.partner is not None:
        fields.update(partner=edge.partner, lead=edge.lead)
    return fields


def _read_edge(fields: Any) -> Edge:
    where = f"{KEY}.edges"
    allowed = {"producer", "steps", "consumers", "partner", "lead"}
    fits = isinstance(fields, Mapping) and set(fields) <= allowed and isinstance(fields.get("producer"), str)
    _check(fits, where, f"a list of {{{', '.join(sorted(allowed))}}}", fields)
    where = f"{where}[{fields['producer']!r}]"
    steps = tuple(_names(fields.get("steps"), f"{where}.steps"))
    _check(steps in SEQUENCES, f"{where}.steps", "steps that an epilogue computes", fields["steps"])
    consumers = tuple(_names(fields.get("consumers"), f"{where}.consumers"))
    fits = bool(consumers) or steps == ("add",)
    _check(fits, f"{where}.consumers", "names of layers, or none behind one add", fields["consumers"])
    partner, lead = fields.get("partner"), fields.get("lead", True)
    fits = isinstance(partner, str) if "mul" in steps else partner is None
    _check(fits, f"{where}.partner", "a name for a product, absent otherwise", partner)
    _check(isinstance(lead, bool), f"{where}.lead", "true or false", lead)
    return Edge(fields["producer"], steps, consumers, partner, lead)


def _names(names: Any, where: str) -> list[str]:
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    _check(is_list, where, "a list of names", names)
    return list(names)


def _check(fits: bool, where: str, allowed: str, found: Any) -> None:
    if not fits:
        text = json.dumps(found, ensure_ascii=False, default=repr)
        raise ValueError(f"{where} must be {allowed}, found {text[:200]}")
