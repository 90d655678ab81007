"""Observers watch the values of a tensor go by and say which scale and zero point cover them.

They carry torch.ao.quantization's names and constructor words. `QuantSpec(observer=…)` takes a name
("minmax"), a class, or what `.with_args(…)` returns; `make_observer` turns any of these into a module.
"""

import torch

from tritonq.observers.base import ObserverBase, ObserverFactory, PlaceholderObserver
from tritonq.observers.minmax import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from tritonq.observers.registry import OBSERVERS, as_observer_factory, make_observer, observed_weight_qparams

__all__ = [
    "OBSERVERS",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
    "ObserverFactory",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "as_observer_factory",
    "default_dynamic_quant_observer",
    "default_observer",
    "default_per_channel_weight_observer",
    "default_weight_observer",
    "make_observer",
    "observed_weight_qparams",
]

# torch's ready-made factories. They use all 8 bits: no kernel here needs one held back.
default_observer = MinMaxObserver.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
default_weight_observer = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=torch.per_channel_symmetric
)
default_dynamic_quant_observer = PlaceholderObserver.with_args(dtype=torch.qint8, is_dynamic=True)
