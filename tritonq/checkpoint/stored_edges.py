"""The edges in a checkpoint, along which layers hand over int8 (tritonq/nn/handover.py).

An edge has no separate tensors. Its grid is the input grid of the layers that read it; between dynamic layers there is
no grid. So other programs can read the model too, and compute the same with float between the layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from tritonq.nn.epilogue_steps import DYNAMIC_SEQUENCES
from tritonq.nn.handover import Edge
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.norm import QuantizedNorm
from tritonq.nn.norm_kinds import norm_of
from tritonq.numerics.config import QuantConfig
from tritonq.select.patterns import Place
from tritonq.select.replace import move_hooks

_OUTPUT = ("output_scale", "output_zero_point")


def tensors_of_others(module: nn.Module) -> tuple[str, ...]:
    """Names of a module's tensors that are stored with its consumers instead."""
    has_edge = isinstance(module, (QuantizedLinear, QuantizedNorm)) and module.edge is not None
    return _OUTPUT if has_edge else ()


def check_ends(edges: list[Edge], layers: Mapping[str, QuantizedLinear]) -> None:
    """Raise unless all layers that read an edge are in the model to save."""
    for edge in edges:
        for name in (*edge.consumers, *([] if edge.partner is None else [edge.partner])):
            if name not in layers:
                raise ValueError(
                    f"{edge.producer} hands int8 to {name}, which the model does not hold: convert(…, chain=False) "
                    "makes independent layers"
                )


def check_grids(edges: list[Edge], layers: Mapping[str, QuantizedLinear]) -> None:
    """Raise unless the static layers of an edge have the same input grid.

    Args:
        layers: the loaded layers, under all their names.
    """
    for edge in edges:
        if edge.consumers and layers[edge.consumers[0]].config.dynamic:
            continue
        for names in (edge.consumers, () if edge.partner is None else (edge.producer, edge.partner)):
            grids = {_input_grid(layers[name]) for name in names}
            if len(grids) > 1:
                raise ValueError(
                    f"tritonq.edges[{edge.producer!r}]: {' and '.join(names)} must have one input_scale and "
                    f"input_zero_point, found {' and '.join(map(str, sorted(grids)))}"
                )
    for edge in edges:
        if edge.partner is not None:
            sizes = {
                (layers[name].in_features, layers[name].out_features)
                for name in (edge.producer, edge.partner)
            }
            if len(sizes) > 1:
                raise ValueError(
                    f"tritonq.edges[{edge.producer!r}]: it and {edge.partner} must be of one size, found "
                    f"{' and '.join(map(str, sorted(sizes)))}"
                )


def _input_grid(layer: QuantizedLinear) -> tuple[float, int]:
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    return layer.input_scale.item(), int(layer.input_zero_point.item())


def check_edges(
    edges: list[Edge],
    everything: list[Place],
    configs: Mapping[str, QuantConfig],
    has_grid: Collection[str],
) -> None:
    """Raise unless the layers of every edge are all static, or all dynamic.

    Args:
        everything: the model's modules.
        configs: of the checkpoint's Linears.
        has_grid: the Linears with input qparams in the files.
    """
    symmetric = {
        name: made.activation.symmetric for name, made in configs.items() if made.activation is not None
    }
    dynamic = {name for name, made in configs.items() if made.dynamic}
    modules = {name: place.module for place in everything for name in place.names}
    by_producer = {edge.producer: edge for edge in edges}
    for edge in edges:
        where = f"tritonq.edges[{edge.producer!r}]"
        ends = (*edge.consumers, *(() if edge.partner is None else (edge.producer, edge.partner)))
        if edge.producer in dynamic or dynamic.intersection(ends):
            _check_dynamic(edge, where, ends, dynamic, symmetric)
        else:
            for name in ends:
                if name not in has_grid:
                    raise ValueError(
                        f"{where}: {name!r} must be a static layer with an input_scale, found none"
                    )
        if edge.producer not in symmetric and (
            edge.steps or edge.producer not in modules or not _may_hand_over(modules[edge.producer])
        ):
            raise ValueError(f"{where} must be an INT8 layer or a norm of the model, found neither")
        grids = {symmetric[name] for name in (edge.producer, *edge.consumers) if name in symmetric}
        if len(grids) > 1:
            raise ValueError(f"{where}: all its layers must be symmetric, or all affine, found both")
        if edge.partner is not None:
            other = by_producer.get(edge.partner)
            if other is None or other.partner != edge.producer or other.lead == edge.lead:
                raise ValueError(
                    f"{where}: its partner must have an edge that names it in return, found {edge.partner!r}"
                )
    for name, module in modules.items():
        if isinstance(module, QuantizedNorm) and not module.dynamic and name not in by_producer:
            raise ValueError(
                f"{name} hands over int8 in the model but not in the checkpoint: load into the float model"
            )


def _check_dynamic(
    edge: Edge, where: str, ends: Collection[str], dynamic: Collection[str], symmetric: Collection[str]
) -> None:
    """Raise unless all layers of the edge are dynamic and its steps have no sum."""
    is_norm = edge.producer not in symmetric
    for name in (*ends, *([] if is_norm else [edge.producer])):
        if name not in dynamic:
            raise ValueError(f"{where}: {name!r} must be a dynamic INT8 layer as the others, found none")
    if edge.steps not in ({()} if is_norm else DYNAMIC_SEQUENCES):
        raise ValueError(f"{where}: steps must be those between dynamic layers, found {list(edge.steps)}")


def _may_hand_over(module: nn.Module) -> bool:
    return isinstance(module, QuantizedNorm) or norm_of(module) is not None


def apply_edges(edges: list[Edge], everything: list[Place]) -> None:
    """Make the loaded layers of a model hand over int8.

    Args:
        edges: the checked edges.
        everything: the model's modules, with the loaded Linears.
    """
    by_name = {name: place for place in everything for name in place.names}
    for edge in edges:
        place = by_name[edge.producer]
        if not edge.consumers:
            assert isinstance(place.module, QuantizedLinear)
            place.module.hand_over(edge, None)
            continue
        consumer = by_name[edge.consumers[0]].module
        assert isinstance(consumer, QuantizedLinear)
        grid = None
        if not consumer.config.dynamic:
            assert consumer.input_scale is not None
            assert consumer.input_zero_point is not None
            grid = consumer.input_scale, consumer.input_zero_point
        if isinstance(place.module, QuantizedLinear):
            place.module.hand_over(edge, grid if edge.lead else None)
            continue
        old, symmetric = place.module, consumer.activation_symmetric
        move_hooks(old, QuantizedNorm.from_float(old, None, grid, symmetric, edge, place.name), place)
