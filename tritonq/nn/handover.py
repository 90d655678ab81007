"""An edge: a layer's output, and the layers that read it as int8."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Edge:
    """A hand-over of int8 to other layers.

    Attributes:
        producer: name of the Linear or norm.
        steps: the steps that its epilogue computes, in order (tritonq/nn/epilogue_steps.py).
        consumers: names of the Linears that read the result; none for a residual sum that stays float, which the
            epilogue still computes.
        partner: name of the other Linear of a product of two; None for any other edge.
        lead: False for the factor of a product whose partner holds the grid.
    """

    producer: str
    steps: tuple[str, ...]
    consumers: tuple[str, ...]
    partner: str | None = None
    lead: bool = True

    def __str__(self) -> str:
        way = "".join(f" → {step}" + (f" {self.partner}" if step == "mul" else "") for step in self.steps)
        return f"{self.producer}{way} → {', '.join(self.consumers) or 'float'}"
