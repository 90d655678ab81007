"""Contenders: the float model, every scheme of tritonq, and Linears of other libraries in the model's blocks."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

import tritonq
from benchmarks.linear.contender import FLOAT, LINEAR, OURS, Built
from benchmarks.linear.contender import Contender as LinearContender
from benchmarks.linear.peers import PEERS as LINEAR_PEERS
from tritonq.numerics.config import PRESETS

_CHECKED_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to compute the Linears of a model's blocks; its head stays in float.

    Attributes:
        by: tritonq, float, or the name of a peer of benchmarks.linear.
        scheme: one of tritonq's presets, or float.
        peer: builds the peer's Linear.
    """

    by: str
    scheme: str
    peer: LinearContender | None = None

    @property
    def name(self) -> str:
        return self.scheme if self.by in (OURS, FLOAT) else self.by

    @property
    def calibrates(self) -> bool:
        """True if it needs a run of the whole float model."""
        return self.by == OURS and PRESETS[self.scheme]().static

    @property
    def quantizes_rows(self) -> bool:
        """True if activations get a scale per token on the fly."""
        return self.by == OURS and PRESETS[self.scheme]().dynamic

    def apply(self, block: nn.Module) -> None:
        """Replace a block's float Linears."""
        if self.by == OURS:
            tritonq.quantize_(block, self.scheme, ignore=())
        elif self.peer is not None:
            for parent in list(block.modules()):
                for name, layer in list(parent.named_children()):
                    if isinstance(layer, nn.Linear):
                        setattr(parent, name, PeerLinear(layer, self.peer))


OURS_AND_FLOAT = (Contender(FLOAT, FLOAT), *(Contender(OURS, scheme) for scheme in PRESETS))
PEERS = tuple(
    Contender(peer.by, peer.scheme, peer)
    for peer in LINEAR_PEERS
    if peer.measures == LINEAR and peer.by != FLOAT
)


class PeerLinear(nn.Module):
    """A Linear of another library, built as in benchmarks.linear. Its result is checked once, when it is built.

    Raises:
        ArithmeticError: the result is wrong.
    """

    def __init__(self, linear: nn.Linear, peer: LinearContender) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.built: Built = peer.build(linear)
        x = torch.randn(
            _CHECKED_ROWS, self.in_features, device=linear.weight.device, dtype=linear.weight.dtype
        )
        expected = nn.functional.linear(x.float(), linear.weight.float())
        error = ((self(x).float() - expected).norm() / expected.norm()).item()
        if not error <= peer.tolerance:
            raise ArithmeticError(f"relative error {error:.1e}, allowed {peer.tolerance:.1e}")

    def forward(self, x: Tensor) -> Tensor:
        prepared = self.built.prepare(x.reshape(-1, self.in_features))
        out = self.built.finish(self.built.call(prepared), prepared)
        return out.reshape(*x.shape[:-1], self.out_features)


@functools.cache
def named(name: str) -> Contender:
    """A contender by its name."""
    return next(found for found in (*OURS_AND_FLOAT, *PEERS) if found.name == name)
