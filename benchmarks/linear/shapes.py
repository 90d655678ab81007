"""Shapes (N, K) by name: the Linear layers of current models as inference code runs them.

    qkv      q, k and v in one    N = (heads + 2 · key heads) · head size    K = hidden
    o                             N = hidden                                 K = heads · head size
    gate_up  gate and up in one   N = 2 · intermediate                       K = hidden
    down                          N = hidden                                 K = intermediate

The sizes are those of the models' own config.json: meta-llama/Meta-Llama-3-8B and -70B, Qwen/Qwen3-8B and Qwen3-32B.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Linear of N outputs and K inputs."""

    name: str
    N: int
    K: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes in a config.json: hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim."""

    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int = 128

    def shapes(self, prefix: str) -> tuple[Shape, ...]:
        """The four layers of a block."""
        queries = self.heads * self.head_size
        return (
            Shape(f"{prefix}.qkv", queries + 2 * self.key_heads * self.head_size, self.hidden),
            Shape(f"{prefix}.o", self.hidden, queries),
            Shape(f"{prefix}.gate_up", 2 * self.intermediate, self.hidden),
            Shape(f"{prefix}.down", self.hidden, self.intermediate),
        )


MODELS = {
    "llama-3-8b": Sizes(4096, 14336, 32, 8).shapes("8b"),
    "llama-3-70b": Sizes(8192, 28672, 64, 8).shapes("70b"),
    "qwen3-8b": Sizes(4096, 12288, 32, 8).shapes("qwen3-8b"),
    "qwen3-32b": Sizes(5120, 25600, 64, 8).shapes("qwen3-32b"),
}
ALL = "all"


def shape_of(text: str) -> tuple[int, int]:
    """(N, K) of "NxK"."""
    features, _, columns = text.partition("x")
    if features.isdecimal() and columns.isdecimal() and int(features) > 0 and int(columns) > 0:
        return int(features), int(columns)
    raise argparse.ArgumentTypeError(f"a shape is NxK, such as 4096x14336, found {text!r}")


def named(text: str) -> Shape:
    """A shape from "NxK" or from one of the names above."""
    for shapes in MODELS.values():
        for shape in shapes:
            if shape.name == text:
                return shape
    try:
        return Shape(text, *shape_of(text))
    except argparse.ArgumentTypeError:
        names = ", ".join(shape.name for shapes in MODELS.values() for shape in shapes)
        raise argparse.ArgumentTypeError(f"a shape is NxK or one of {names}, found {text!r}") from None


def of_models(names: Iterable[str]) -> tuple[Shape, ...]:
    """The layers of these models ("all" for every one)."""
    names = list(names)
    return tuple(
        shape for name, shapes in MODELS.items() if name in names or ALL in names for shape in shapes
    )


def distinct(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """The shapes without later ones of the same N and K."""
    first: dict[tuple[int, int], Shape] = {}
    for shape in shapes:
        first.setdefault((shape.N, shape.K), shape)
    return tuple(first.values())
