"""torch's F.linear, which is cuBLAS on an NVIDIA GPU. Speed-ups are relative to it."""

from __future__ import annotations

import functools

from torch import nn
from torch.nn import functional

from benchmarks.linear.contender import FLOAT, Built, Contender


def build(linear: nn.Linear) -> Built:
    """A layer with a separate copy of the weight, because calls rotate through copies."""
    return Built(functools.partial(functional.linear, weight=linear.weight.detach().clone()))


PEERS = (Contender(FLOAT, FLOAT, build, tolerance=5e-3),)
