"""What a matmul's epilogue computes besides scales and bias, by name, and the torch functions that mean it.

relu  gelu  gelu_tanh  silu      activation
mul                              the product with a sibling layer's output: act(gate(x)) · up(x)
add                              a residual: layer(x) + r
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
#: Orders in which an epilogue takes its steps; a `mul` ends in the kernel of two weights.
SEQUENCES = frozenset(
    {(), ("add",), ("mul",)}
    | {(activation,) for activation in ACTIVATIONS}
    | {("add", activation) for activation in ACTIVATIONS}
    | {(activation, "mul") for activation in ACTIVATIONS}
)
#: What is computed between two dynamic layers as it is quantized per token: elements alone, no sum.
DYNAMIC_SEQUENCES = frozenset(
    {("mul",)}
    | {(activation,) for activation in ACTIVATIONS}
    | {(activation, "mul") for activation in ACTIVATIONS}
)

_STEPS: dict[Callable[..., Any], str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    functional.relu: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    functional.gelu: "gelu",
    functional.silu: "silu",
    torch.mul: "mul",
    Tensor.mul: "mul",
    Tensor.__mul__: "mul",
    Tensor.__rmul__: "mul",
    torch.add: "add",
    Tensor.add: "add",
    Tensor.__add__: "add",
    Tensor.__radd__: "add",
}


def step_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The step that a call of a torch function is, None if it is none."""
    step = _STEPS.get(func)
    if step == "gelu":
        return "gelu_tanh" if kwargs.get("approximate", "none") == "tanh" else "gelu"
    if step in ("mul", "add") and (len(args) != 2 or kwargs):  # torch.add(…, alpha=2), out=…
        return None
    return step
