"""Observers watch the values of a tensor and compute a scale and zero point that cover them.

Names and constructor arguments are those of torch.ao.quantization. `QuantSpec(observer=…)` takes a name ("minmax"), a
class, or the result of `.with_args(…)`; `make_observer` turns any of these into a module.

    minmax                  the whole range; nothing saturates
    moving_average_minmax   the range of a typical batch
    histogram, mse          the range with the least squared error
    percentile              the range of a given percentage of the values
    entropy                 the range that keeps most of the distribution's information
"""

import torch

from tritonq.observers.all_reduce import all_reduce
from tritonq.observers.base import ObserverBase, ObserverFactory
from tritonq.observers.entropy import EntropyObserver
from tritonq.observers.histogram import HistogramObserver
from tritonq.observers.minmax import MinMaxObserver, PerChannelMinMaxObserver
from tritonq.observers.moving_average import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from tritonq.observers.mse import MSEObserver, PerChannelMSEObserver
from tritonq.observers.percentile import PercentileObserver, PerChannelPercentileObserver
from tritonq.observers.placeholder import PlaceholderObserver
from tritonq.observers.registry import OBSERVERS, as_observer_factory, make_observer, observed_weight_qparams

__all__ = [
    "OBSERVERS",
    "EntropyObserver",
    "HistogramObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
    "ObserverFactory",
    "PerChannelMSEObserver",
    "PerChannelMinMaxObserver",
    "PerChannelPercentileObserver",
    "PercentileObserver",
    "PlaceholderObserver",
    "all_reduce",
    "as_observer_factory",
    "default_dynamic_quant_observer",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_weight_observer",
    "default_weight_observer",
    "make_observer",
    "observed_weight_qparams",
]

# torch's ready-made factories. They use all 8 bits, because no kernel here saturates.
default_observer = MinMaxObserver.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
default_histogram_observer = HistogramObserver.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
default_weight_observer = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=torch.per_channel_symmetric
)
default_dynamic_quant_observer = PlaceholderObserver.with_args(dtype=torch.qint8, is_dynamic=True)
