"""Proves where int8 can go from layer to layer, from the recorded runs of calibration. Such a way is an edge.

A static Linear or a norm hands over int8 if only static Linears read its output. Between them there may be only steps
that an epilogue computes (tritonq/nn/epilogue_steps.py) and calls that only move elements:

    fc1 → gelu → dropout → fc2                 one edge, gelu in fc1's epilogue
    norm → q, k, v                             one edge, three consumers, one grid
    silu(gate(x)) · up(x) → down               one edge of two producers, one kernel
    h = relu(r + fc2(…)) → fc1 and the next r  int8 residuals: the sum in fc2's epilogue
    x = x + down(…) → norm                     float, but down's epilogue adds: its own output is never written

An edge has one grid: the merged observers of its consumers give it. Values without a proof stay float, and the reason
is kept.

Dynamic layers need no grid: each row is quantized on its own. A norm hands over int8 rows, and so does an activation
between two layers. Sums stay in float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tritonq.flow.record import Call, Dataflow
from tritonq.nn.epilogue_steps import ACTIVATIONS, DYNAMIC_SEQUENCES, SEQUENCES
from tritonq.nn.handover import Edge


class Unproven(Exception):
    """Why a value stays float."""


@dataclasses.dataclass(frozen=True)
class _Route:
    """The steps between a value and the Linears that read it."""

    steps: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Chaining:
    """The result of `find_edges`.

    Attributes:
        edges: by producer; both factors of a product have an edge.
        reasons: why the output of each other layer stays float.
    """

    edges: Mapping[str, Edge]
    reasons: Mapping[str, str]


def find_edges(
    flows: Sequence[Dataflow],
    linears: Sequence[str],
    norms: Sequence[str],
    refused: Mapping[str, str] | None = None,
    dynamic: bool = False,
) -> Chaining:
    """The edges that all recorded runs agree on.

    Args:
        flows: recorded runs, not empty.
        linears: names of the static int8 Linears, or of the dynamic ones.
        norms: names of norms that may hand over int8.
        refused: producers that must stay float, with the reasons.
        dynamic: the Linears are dynamic; the runs must be recorded with the same `per_token`.
    """
    reasons = dict(refused or {})
    while True:
        # An edge may depend on another one, such as a residual on its sum: repeat until no more edges are lost.
        edges, further = _find(flows, linears, norms, reasons, dynamic)
        if not further:
            return Chaining(edges, reasons)
        reasons.update(further)


def _find(
    flows: Sequence[Dataflow],
    linears: Sequence[str],
    norms: Sequence[str],
    reasons: Mapping[str, str],
    dynamic: bool,
) -> tuple[dict[str, Edge], dict[str, str]]:
    """(edges, new reasons) of all producers without a reason yet."""
    edges: dict[str, Edge] = {}
    further: dict[str, str] = {}
    # A dynamic layer's epilogue computes no sum, so for sums all of them count as float.
    in_float = frozenset(linears) if dynamic else frozenset(reasons)
    tracers = [
        _Tracer(flow, frozenset(linears), in_float, DYNAMIC_SEQUENCES if dynamic else SEQUENCES)
        for flow in flows
    ]
    for name in (*linears, *norms):
        if name in reasons:
            continue
        try:
            found = {
                tracer.edge_of(name, call, name in norms)
                for tracer in tracers
                for call in tracer.flow.calls_of(name)
            }
            if len(found) != 1:
                raise Unproven(
                    "its calls are read in different ways"
                    if found
                    else "the calibration data never reaches it"
                )
            edges[name] = found.pop()
        except Unproven as reason:
            further[name] = str(reason)
    for name, edge in edges.items():  # both factors of a product hand over, or neither
        if edge.partner is not None and edge.partner not in edges:
            why = {**reasons, **further}[edge.partner]
            further[name] = f"it is multiplied by {edge.partner}, which stays float: {why}"
    return edges, further


class _Tracer:
    """Follows values through one run."""

    def __init__(
        self,
        flow: Dataflow,
        linears: frozenset[str],
        in_float: frozenset[str],
        sequences: frozenset[tuple[str, ...]],
    ) -> None:
        self.flow, self.linears, self.in_float, self.sequences = flow, linears, in_float, sequences
        self.maker = {value: call for call in flow.calls for value in call.makes}
        self.order = {call: place for place, call in enumerate(flow.calls)}
        # From the last sum to the first, because a sum depends only on later ones.
        self.int8_residuals: set[tuple[Call, int]] = set()
        for call in reversed(flow.calls):
            if call.step == "add":
                self.int8_residuals.update(
                    (call, value) for value in call.reads if self.is_residual(call, value)
                )

    def edge_of(self, name: str, call: Call, is_norm: bool) -> Edge:
        """The edge of one call of a module.

        Raises:
            Unproven: it has no edge.
        """
        if len(call.makes) != 1 or len(call.reads) != 1:
            raise Unproven("a call of it does not take one tensor and return one")
        (value,) = call.makes
        try:
            route = self.route(value, ())
        except Unproven:
            if is_norm or not self.is_absorbed(value):
                raise
            return Edge(name, ("add",), ())
        if is_norm and route.steps:
            raise Unproven(f"{route.steps[0]} reads its values")
        if not is_norm and route.steps not in self.sequences:
            steps = " and ".join(route.steps)
            raise Unproven(
                f"no epilogue computes {steps}" if steps else "no activation follows that could quantize it"
            )
        partner, lead = self.partner(value, call, route.steps) if "mul" in route.steps else (None, True)
        return Edge(name, route.steps, route.consumers, partner, lead)

    def route(self, value: int, taken: tuple[str, ...]) -> _Route:
        """The route of a value; `taken` are the steps of the epilogue so far.

        Raises:
            Unproven: something reads the value in float.
        """
        modules, functions, returned = self.flow.ends(value)
        if returned:
            raise Unproven("the model returns or keeps it")
        in_float = next((call.name for call in modules if call.name not in self.linears), None)
        if in_float is not None:
            raise Unproven(f"{in_float} reads it in float")
        if all((call, value) in self.int8_residuals for call in functions):
            if not modules:
                raise Unproven("no quantized layer reads it")
            return _Route((), tuple(dict.fromkeys(call.name for call in modules)))
        (reader, *others) = functions
        if modules or others or self.flow.readers[value] != [reader] or reader.step is None:
            call = next(call for call in functions if (call, value) not in self.int8_residuals)
            raise Unproven(f"{call.name} reads its values")
        if taken[-1:] == ("add",) and self.order[reader] != self.order[self.maker[value]] + 1:
            raise Unproven("calls between a sum and its activation could change an addend")
        if len(taken) == 2:
            raise Unproven(f"no epilogue computes {', '.join((*taken, reader.step))}")
        if reader.step == "add" and self.absorber(reader) != value:
            raise Unproven("no layer's epilogue can compute the sum that reads it")
        if reader.step == "mul" and len(set(reader.reads)) != 2:
            raise Unproven("it is multiplied by itself or by a number")
        rest = self.route(reader.makes[0], (*taken, reader.step))
        return _Route((reader.step, *rest.steps), rest.consumers)

    def absorber(self, addition: Call) -> int | None:
        """The addend that is a Linear's output and that nothing else reads; the later one if both are."""
        if addition.step != "add" or len(addition.reads) != 2 or len(set(addition.reads)) != 2:
            return None
        able = [value for value in addition.whole if self.may_absorb(value)]
        able = [value for value in able if self.flow.readers[value] == [addition]]
        return max(able, key=lambda value: self.order[self.maker[value]], default=None)

    def is_absorbed(self, value: int) -> bool:
        """True if only a sum reads a Linear's output, so that its epilogue can compute the sum in float."""
        readers = self.flow.readers.get(value, ())
        return len(readers) == 1 and self.absorber(readers[0]) == value and value not in self.flow.returned

    def may_absorb(self, value: int) -> bool:
        """True if a static Linear that may hand over int8 made the value."""
        maker = self.maker.get(value)
        return maker is not None and maker.is_module and maker.name in self.linears - self.in_float

    def is_residual(self, call: Call, value: int) -> bool:
        """True if `call` adds an int8 value to a Linear's output in the Linear's epilogue, and the sum is int8 too."""
        absorber = self.absorber(call)
        if absorber is None or absorber == value or value not in call.reads:
            return False
        try:
            self.route(absorber, ())
        except Unproven:
            return False
        return True

    def partner(self, value: int, call: Call, steps: tuple[str, ...]) -> tuple[str, bool]:
        """(the other Linear of a product, True if `call` is the lead).

        The lead is the factor with the activation, gate in act(gate) · up; without one it is the first factor.
        """
        product = self.flow.readers[value][0]
        own = value
        if product.step in ACTIVATIONS:
            own = product.makes[0]
            product = self.flow.readers[own][0]
        (other,) = (read for read in product.reads if read != own)
        if set(product.whole) != {own, other}:
            raise Unproven("it is multiplied by a tensor of another shape")
        has_activation = len(steps) == 2
        maker = self.maker.get(other)
        if maker is not None and maker.step in ACTIVATIONS and self.flow.readers[other] == [product]:
            if has_activation:
                raise Unproven("both factors of a product have an activation")
            lead = False
            maker = self.maker.get(maker.reads[0])
        else:
            lead = has_activation or product.reads[0] == own
        if maker is None or not maker.is_module or maker.name not in self.linears or maker.name == call.name:
            raise Unproven("it is multiplied by something else than a quantized layer's output")
        if maker.reads != call.reads:
            raise Unproven(f"it is multiplied by {maker.name}, which reads another input")
        return maker.name, lead
