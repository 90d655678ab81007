"""Adds the proven edges and their grids to the conversions of a model's layers.

An edge has one grid, which all its consumers share. So their observers are merged, also across edges with a common
consumer. The two factors of a product share the grid of their input, because one kernel computes both.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tritonq.flow.prove import find_edges
from tritonq.flow.record import Dataflow
from tritonq.nn.handover import Edge
from tritonq.nn.norm_kinds import norm_of
from tritonq.nn.qat_linear import QATLinear
from tritonq.observers import ObserverBase
from tritonq.quantize.conversions import Conversion, NormConversion, check_scale
from tritonq.quantize.prepare import INPUT, OBSERVER
from tritonq.select.patterns import places

Grid = tuple[Tensor, Tensor]
#: The reason for every layer if the whole model never ran, took too many paths, or was not to be chained.
UNRECORDED = "calibration proved nothing: the whole model never ran, or took too many different paths"


def with_proven_edges(
    model: nn.Module, found: Sequence[Conversion | NormConversion], flows: Sequence[Dataflow]
) -> list[Conversion | NormConversion]:
    """The conversions with the edges that the recorded runs prove, and conversions of norms that hand over int8.

    Args:
        model: prepared and calibrated; the recordings use its names.
        found: the conversions of all prepared modules.
        flows: recorded runs; without any, nothing is proven.
    """
    linears = {
        conversion.place.name: conversion
        for conversion in found
        if isinstance(conversion, Conversion) and _is_static_linear(conversion)
    }
    if not flows:
        unproven = {name: dataclasses.replace(each, why_float=UNRECORDED) for name, each in linears.items()}
        return [unproven.get(conversion.place.name, conversion) for conversion in found]
    norms = {
        place.name: (place, norm) for place in places(model) if (norm := norm_of(place.module)) is not None
    }
    edges, reasons, grids = _edges_with_grids(linears, flows, list(norms))
    updated: list[Conversion | NormConversion] = []
    for conversion in found:
        name = conversion.place.name
        if name in linears:
            edge = edges.get(name)
            conversion = dataclasses.replace(
                linears[name],
                qparams=grids.get(name, linears[name].qparams),
                output_qparams=grids[edge.consumers[0]] if edge and edge.lead and edge.consumers else None,
                edge=edge,
                why_float=reasons.get(name, ""),
            )
        updated.append(conversion)
    for name, (place, norm) in norms.items():
        if name in edges:
            reader = edges[name].consumers[0]
            symmetric = _is_symmetric(linears[reader])
            updated.append(NormConversion(place, norm, grids[reader], symmetric, edges[name]))
    return updated


def _is_static_linear(conversion: Conversion) -> bool:
    """True for a Linear that quantizes its input on a calibrated grid."""
    module = conversion.place.module
    return (
        conversion.plan.observes == INPUT
        and conversion.qparams is not None
        and isinstance(module, nn.Linear)
        and not isinstance(module, QATLinear)
    )


def _edges_with_grids(
    linears: Mapping[str, Conversion], flows: Sequence[Dataflow], norms: Sequence[str]
) -> tuple[Mapping[str, Edge], Mapping[str, str], dict[str, Grid]]:
    """(edges whose layers agree on a grid, why the other outputs stay float, the grid of each consumer's input)."""
    refused: dict[str, str] = {}
    while True:
        chaining = find_edges(flows, list(linears), norms, refused)
        grids: dict[str, Grid] = {}
        for names in _sharing(chaining.edges.values()):
            members = [linears[name] for name in names]
            if _agree(members):
                grids.update(dict.fromkeys(names, _merged_qparams(members)))
        further = {
            name: why
            for name, edge in chaining.edges.items()
            if (why := _why_no_grid(edge, linears, grids)) is not None
        }
        if not further:
            return chaining.edges, chaining.reasons, grids
        refused.update(further)


def _sharing(edges: Iterable[Edge]) -> list[list[str]]:
    """Names of the layers that share one input grid, group by group."""
    group_of: dict[str, list[str]] = {}
    for edge in edges:
        for together in (edge.consumers, () if edge.partner is None else (edge.producer, edge.partner)):
            members = list(
                dict.fromkeys(member for name in together for member in group_of.get(name, [name]))
            )
            group_of.update(dict.fromkeys(members, members))
    return list({id(members): members for members in group_of.values()}.values())


def _agree(members: Sequence[Conversion]) -> bool:
    """True if layers can share a grid: all symmetric or all affine, with the same kind of observer."""
    return len({(_is_symmetric(member), type(_observer(member))) for member in members}) == 1


def _why_no_grid(edge: Edge, linears: Mapping[str, Conversion], grids: Mapping[str, Grid]) -> str | None:
    if not all(consumer in grids for consumer in edge.consumers):
        return f"{' and '.join(edge.consumers)} do not share a grid: their observers or schemes differ"
    if edge.partner is not None and edge.producer not in grids:
        return f"it is multiplied by {edge.partner}, which reads another grid"
    ends = [linears[name] for name in (edge.producer, *edge.consumers) if name in linears]
    if edge.consumers and len({_is_symmetric(end) for end in ends}) > 1:
        return f"of it and {' and '.join(edge.consumers)} some are symmetric and some affine"
    return None


def _merged_qparams(members: Sequence[Conversion]) -> Grid:
    """The qparams of the merged observers of these layers."""
    found = [member.qparams for member in members if member.qparams is not None]
    if all(torch.equal(scale, found[0][0]) and torch.equal(zero, found[0][1]) for scale, zero in found):
        return found[0]
    observer = copy.deepcopy(_observer(members[0]))
    for member in members[1:]:
        observer.merge(_observer(member))
    qparams = observer.calculate_qparams()
    check_scale(qparams[0], f"{members[0].place.name}: the input's")
    return qparams


def _observer(conversion: Conversion) -> ObserverBase:
    observer = conversion.place.module.get_submodule(OBSERVER)
    assert isinstance(observer, ObserverBase)
    return observer


def _is_symmetric(conversion: Conversion) -> bool:
    activation = conversion.plan.config.activation
    assert activation is not None
    return activation.symmetric
