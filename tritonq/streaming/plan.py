"""Lists the tensors of the result from shapes alone, before any weight is read.

The float model on the meta device is turned into the quantized model on the meta device. Its checkpoint's contents then
come from tritonq/checkpoint/contents.py, as for `save`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tritonq.checkpoint.contents import describe, stored_tensors
from tritonq.checkpoint.extras import KEY
from tritonq.checkpoint.files import TensorFiles
from tritonq.nn.linear import QuantizedLinear
from tritonq.numerics.config import QuantConfig
from tritonq.select.patterns import Pattern
from tritonq.select.select import Selected, select
from tritonq.streaming.sources import UnfitModelError, find_sources


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A Linear to quantize.

    Attributes:
        name, config, in_features, out_features: of the layer.
        dtype: of the model; stored weights of another dtype are first rounded to it.
        weight, bias: the names of its tensors in the source files.
    """

    name: str
    config: QuantConfig
    in_features: int
    out_features: int
    dtype: torch.dtype
    weight: str
    bias: str | None


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of the result.

    Attributes:
        name: its name in the result.
        local: its name in its module.
        shard: the index of its file.
        dtype: a float tensor is rounded to it.
        layer: the layer to quantize; None if the tensor is copied.
        source: the name of the source tensor to copy, if `layer` is None.
    """

    name: str
    local: str
    shard: int
    dtype: torch.dtype
    layer: Layer | None
    source: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole result.

    Attributes:
        pieces: in the order of the files; those of one layer are consecutive.
        shards: one dictionary per file, tensor name → bytes.
        config: the result's config.json.
    """

    pieces: list[Piece]
    shards: list[dict[str, int]]
    config: dict[str, Any]


def make_plan(
    model: nn.Module, config: Any, ignore: Iterable[Pattern], tensors: TensorFiles, max_shard_bytes: int
) -> Plan:
    """Replace the selected layers of a model on the meta device, and plan each tensor of the result.

    Raises:
        TypeError, ValueError: as `quantize_` and `save`; a static config.
        UnfitModelError: the tensors of the files do not match those of the model.
    """
    sources = find_sources(model, tensors)
    selected = select(model, config, ignore)
    for place_and_config in selected:
        if place_and_config.config.static:
            raise ValueError(
                f"{place_and_config.place.name} has a static config, which needs the model in memory for "
                "calibration: use quantize_"
            )
    layers = [_replace(chosen, sources) for chosen in selected]
    layer_of = dict(layers)
    fields, extras = describe(model)
    pieces: list[Piece] = []
    shards: list[dict[str, int]] = []
    size = 0
    for name, tensor, module, local in stored_tensors(model, extras.tied, identity=id):
        # As in `save`: begin a new file before this one exceeds the limit.
        if not shards or size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.nbytes
        size += tensor.nbytes
        layer = layer_of.get(module) if local != "bias" else None
        if layer is None and id(tensor) not in sources:
            raise UnfitModelError(
                f"{name} must be a parameter or buffer of {type(module).__name__}, found neither"
            )
        pieces.append(Piece(name, local, len(shards) - 1, tensor.dtype, layer, sources.get(id(tensor), "")))
    return Plan(pieces, shards, {**fields, KEY: extras.to_dict()})


def _replace(chosen: Selected, sources: dict[int, str]) -> tuple[nn.Module, Layer]:
    """Replace a Linear by a QuantizedLinear without values; returns that and the layer to compute its values from."""
    linear, name = chosen.place.module, chosen.place.name
    assert isinstance(linear, nn.Linear)
    dtype = linear.weight.dtype
    new = QuantizedLinear(
        linear.in_features,
        linear.out_features,
        chosen.config,
        bias=False,
        dtype=dtype,
        device="meta",
        name=name,
    )
    new.bias = linear.bias  # the same object: it may be tied
    chosen.place.put(new)
    return new, Layer(
        name,
        chosen.config,
        linear.in_features,
        linear.out_features,
        dtype,
        weight=sources[id(linear.weight)],
        bias=sources.get(id(linear.bias)),  # None without a bias
    )
