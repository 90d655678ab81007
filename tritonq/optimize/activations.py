"""`fuse_activations_`: dynamic INT8 from layer to layer, if a recorded run of the model proves that it is safe.

A dynamic layer (w8a8, w4a8) quantizes its input row by row. After a norm, q, k and v each do this in a separate pass;
after an activation, the next layer does too. A kernel that quantizes the values it computes saves these passes:

    norm → q, k, v                     the norm writes codes and one scale per row, once for all readers
    silu(gate(x)) · up(x) → down       one kernel reads two products and writes codes and scales
    gelu(fc1(x)) → fc2                 the same for one product

The proof is that of static models (tritonq/flow/prove.py): nothing else may read the value in float. Codes and scales
equal those that each layer would compute from the same float32 values.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tritonq.flow.prove import Chaining, find_edges
from tritonq.flow.record import Dataflow, recording
from tritonq.nn.handover import Edge
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.norm import QuantizedNorm
from tritonq.nn.norm_kinds import norm_of
from tritonq.select.calibrate import check_calibration, check_not_empty, evaluation, run_batch
from tritonq.select.patterns import Model, Place, places
from tritonq.select.replace import move_hooks


def fuse_activations_(model: Model, inputs: Iterable[Any]) -> Model:
    """Quantize the inputs of dynamic layers in the kernels that compute them, in place.

        tritonq.quantize_(model, "w8a8")
        tritonq.fuse_activations_(model, [batch])

    In float32 the results stay the same, except for the order in which a norm sums a row. In bfloat16 and float16 they
    differ slightly, because values are no longer rounded between the fused steps.

    Args:
        model: has dynamic INT8 layers (w8a8, w4a8). Unproven edges and all other layers stay unchanged.
        inputs: batches that take every path that the model will take later; one per path is enough. A tensor is run as
            m(x), a tuple or list as m(*x), a dictionary as m(**x).

    Returns:
        The model. `tritonq.summary` lists the fused edges; `tritonq.save` keeps them.

    Raises:
        TypeError, ValueError: bad inputs, or no dynamic layer. The model is then unchanged, as it is if its forward
            raises.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    check_calibration(inputs, "inputs")
    everything = places(model)
    layers = {
        place.name: place.module
        for place in everything
        if isinstance(place.module, QuantizedLinear) and place.module.config.dynamic
    }
    if not layers:
        raise ValueError("model must hold dynamic INT8 layers (w8a8, w4a8), found none: quantize it first")
    norms = {place.name: place for place in everything if norm_of(place.module) is not None}
    chaining = _proven(layers, list(norms), _record(model, inputs))
    for edge in chaining.edges.values():
        _apply(edge, layers, norms)
    if not chaining.edges and all(layer.edge is None for layer in layers.values()):
        reasons = "; ".join(f"{name}: {why}" for name, why in list(chaining.reasons.items())[:3])
        warnings.warn(f"fuse_activations_ found nothing to fuse: {reasons}", UserWarning, stacklevel=2)
    return model


def _record(model: nn.Module, inputs: Iterable[Any]) -> list[Dataflow]:
    """The different runs of all batches, uncompiled."""
    flows: list[Dataflow] = []
    count = 0
    with evaluation(model), torch.compiler.set_stance("force_eager"):
        for batch in inputs:
            with recording(model, per_token=True) as recorder:
                flow = recorder.finish(run_batch(model, batch, count, "inputs"))
            if flow not in flows:
                flows.append(flow)
            count += 1
    check_not_empty(count, "inputs")
    return flows


def _proven(
    layers: Mapping[str, QuantizedLinear], norms: Sequence[str], flows: Sequence[Dataflow]
) -> Chaining:
    """The edges whose layers are all symmetric or all affine in their activations."""
    refused = {name: "it already hands over int8" for name, layer in layers.items() if layer.edge is not None}
    while True:
        chaining = find_edges(flows, list(layers), norms, refused, dynamic=True)
        further = {
            name: f"of it and {' and '.join(edge.consumers)} some are symmetric and some affine"
            for name, edge in chaining.edges.items()
            if len({layers[end].activation_symmetric for end in (name, *edge.consumers) if end in layers}) > 1
        }
        if not further:
            return chaining
        refused.update(further)


def _apply(edge: Edge, layers: Mapping[str, QuantizedLinear], norms: Mapping[str, Place]) -> None:
    """Make an edge's producer hand over int8."""

    def known(name: str) -> str:
        """A layer's name in edges, which is that from the time of quantization."""
        if name not in layers:
            return name
        layers[name].module_name = layers[name].module_name or name
        return layers[name].module_name

    renamed = dataclasses.replace(
        edge,
        producer=known(edge.producer),
        consumers=tuple(map(known, edge.consumers)),
        partner=None if edge.partner is None else known(edge.partner),
    )
    if edge.producer in layers:
        layers[edge.producer].hand_over(renamed, None)
        return
    place, symmetric = norms[edge.producer], layers[edge.consumers[0]].activation_symmetric
    new = QuantizedNorm.from_float(place.module, None, None, symmetric, renamed, place.name)
    move_hooks(place.module, new, place)
