"""`summary`: a model's Linear layers as a table, with scheme, size and SQNR of each weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tritonq.flow.model_edges import edges_of
from tritonq.nn.handover import Edge
from tritonq.nn.linear import QuantizedLinear
from tritonq.optimize.fuse_siblings import siblings_of
from tritonq.select.patterns import places
from tritonq.util.table import aligned

HEADINGS = ("layer", "scheme", "in", "out", "group", "bytes", "fp16 bytes", "SQNR dB")


@dataclasses.dataclass(frozen=True)
class Row:
    """One Linear layer.

    Attributes:
        name: in the model; a module with several names is listed once, under the first.
        kind: the class.
        scheme: a preset's name such as "w4a16", or "float".
        in_features, out_features: K and N.
        group_size: columns of the weight that share a scale; None without groups.
        weight_bytes: current bytes of the weight, with scales and zero points, without the bias.
        float_bytes: bytes of the weight in float16.
        weight_sqnr: signal to quantization noise of the weight in dB; None for float, or if unknown.
    """

    name: str
    kind: str
    scheme: str
    in_features: int
    out_features: int
    group_size: int | None
    weight_bytes: int
    float_bytes: int
    weight_sqnr: float | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of `summary`; `str()` prints the table, `to_dict()` returns plain values.

    Attributes:
        rows: one per Linear.
        edges: the edges along which int8 goes from layer to layer.
        float_outputs: static layer → why its output stays float.
        siblings: the groups of layers that `fuse_siblings_` runs in one launch.
        others: every other parameter → its bytes: biases, norms, embeddings, what no layer here covers.
    """

    rows: tuple[Row, ...]
    edges: tuple[Edge, ...] = ()
    float_outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    siblings: tuple[tuple[str, ...], ...] = ()
    others: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def model_bytes(self) -> int:
        """Current bytes of all parameters."""
        return self.weight_bytes + sum(self.others.values())

    @property
    def weight_bytes(self) -> int:
        """Current bytes of all Linear weights."""
        return sum(row.weight_bytes for row in self.rows)

    @property
    def float_bytes(self) -> int:
        """Bytes of all Linear weights in float16."""
        return sum(row.float_bytes for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """{"layers": [fields of each row], "weight_bytes", "float_bytes", "edges": […], "float_outputs": {…},
        "siblings": [names of each group], "others": {…}, "model_bytes"}."""
        return {
            "layers": [dataclasses.asdict(row) for row in self.rows],
            "weight_bytes": self.weight_bytes,
            "float_bytes": self.float_bytes,
            "edges": [dataclasses.asdict(edge) for edge in self.edges],
            "float_outputs": dict(self.float_outputs),
            "siblings": [list(names) for names in self.siblings],
            "others": dict(self.others),
            "model_bytes": self.model_bytes,
        }

    def __str__(self) -> str:
        saved = f"{self.float_bytes / self.weight_bytes:.2f} x smaller" if self.weight_bytes else ""
        total = ("total", saved, "", "", "", f"{self.weight_bytes:,}", f"{self.float_bytes:,}", "")
        header, *rows, last = aligned(HEADINGS, [*map(_cells, self.rows), total], numbers=len(HEADINGS) - 2)
        rule = "-" * max(map(len, (header, *rows, last)))
        lines = [header, rule, *rows, rule, last]
        if self.edges:
            lines += ["", "int8 from layer to layer:", *(f"  {edge}" for edge in self.edges if edge.lead)]
        if self.float_outputs:
            lines += ["", "float outputs of static layers:"]
            lines += [f"  {name}: {reason}" for name, reason in self.float_outputs.items()]
        if self.siblings:
            lines += ["", "one launch each:", *(f"  {' + '.join(names)}" for names in self.siblings)]
        if self.others:
            lines += ["", "other parameters:"]
            lines += [f"  {name}: {count:,} bytes" for name, count in self.others.items()]
            total_bytes = f"total of the model: {self.model_bytes:,} bytes"
            lines += ["", f"{total_bytes}, {self.weight_bytes:,} of them in the layers above"]
        return "\n".join(lines)


def summary(model: nn.Module) -> Summary:
    """List the Linear layers of a model, quantized or float.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, QuantizedLinear))
    ]
    static = {name: module for name, module in layers if isinstance(module, QuantizedLinear)}
    everything = places(model)
    return Summary(
        tuple(_row(name, module) for name, module in layers),
        tuple(edges_of(everything)),
        {name: module.why_float for name, module in static.items() if module.why_float},
        tuple(siblings_of(everything)),
        _others(model, [module for _, module in layers]),
    )


def _others(model: nn.Module, layers: Sequence[nn.Module]) -> dict[str, int]:
    """Every parameter that is no listed layer's weight → its bytes; a tied one under its first name."""
    covered = {
        id(parameter)
        for layer in layers
        for name, parameter in layer._parameters.items()
        if name == "weight" or (isinstance(layer, QuantizedLinear) and name != "bias")
    }
    return {
        name: parameter.nbytes for name, parameter in model.named_parameters() if id(parameter) not in covered
    }


def _row(name: str, module: nn.Linear | QuantizedLinear) -> Row:
    if isinstance(module, QuantizedLinear):
        scheme, weight_bytes, sqnr = module.config.scheme, module.weight_bytes, module.weight_sqnr
        group_size = module.group_size if module.config.weight.granularity == "group" else None
    else:
        scheme, weight_bytes, sqnr, group_size = "float", module.weight.nbytes, None, None
    float_bytes = 2 * module.in_features * module.out_features
    return Row(
        name or "(model)",
        type(module).__name__,
        scheme,
        module.in_features,
        module.out_features,
        group_size,
        weight_bytes,
        float_bytes,
        sqnr,
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.scheme,
        f"{row.in_features:,}",
        f"{row.out_features:,}",
        "" if row.group_size is None else str(row.group_size),
        f"{row.weight_bytes:,}",
        f"{row.float_bytes:,}",
        "" if row.weight_sqnr is None else f"{row.weight_sqnr:.1f}",
    )
