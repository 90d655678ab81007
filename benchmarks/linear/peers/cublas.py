"""torch's own F.linear, cuBLAS on an NVIDIA GPU: what speed-ups are relative to."""

from __future__ import annotations

import functools

from torch import nn
from torch.nn import functional

from benchmarks.linear.contender import FLOAT, Built, Contender


def build(linear: nn.Linear) -> Built:
    """Its own copy of the weight, since copies are taken in turn."""
    return Built(functools.partial(functional.linear, weight=linear.weight.detach().clone()))


PEERS = (Contender(FLOAT, FLOAT, build, tolerance=5e-3),)
