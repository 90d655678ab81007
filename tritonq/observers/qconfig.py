"""`QConfig` as in torch.ao.quantization, and its conversion to a QuantConfig.

A `QConfig` is a pair of observer factories. Their dtype and qscheme define the scheme:

    weight      per_tensor_* or per_channel_*, affine or symmetric      → granularity, symmetric
    activation  an observer                                             → static, per tensor
                PlaceholderObserver(is_dynamic=True)                    → dynamic, per token
                None or nn.Identity                                     → stays float

torch's own QConfigs are converted in the same way, if tritonq has their observers.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tritonq.numerics.config import QuantConfig, QuantSpec, as_config
from tritonq.observers import (
    MovingAverageMinMaxObserver,
    ObserverBase,
    PlaceholderObserver,
    as_observer_factory,
    default_dynamic_quant_observer,
    default_histogram_observer,
    default_observer,
    default_per_channel_weight_observer,
)

BACKENDS = ("x86", "fbgemm", "onednn", "qnnpack")


class QConfig(namedtuple("QConfig", ["activation", "weight"])):
    """How to observe a layer's activation and weight.

    Args:
        activation, weight: an observer class, or the result of its `.with_args(…)`; each layer gets a new observer.

    Raises:
        ValueError: one of them is an observer instead of a class or factory.
    """

    __slots__ = ()

    def __new__(cls, activation: Any, weight: Any) -> QConfig:
        for word, value in (("activation", activation), ("weight", weight)):
            if isinstance(value, nn.Module):
                raise ValueError(
                    f"QConfig: {word} must be an observer class or what .with_args(…) returns, found an "
                    f"instance of {type(value).__name__}"
                )
        return super().__new__(cls, activation, weight)


#: Calibrated int8 activations, one affine range per tensor; int8 weights, one scale per channel.
default_qconfig = QConfig(activation=default_observer, weight=default_per_channel_weight_observer)
#: Int8 activations with scales computed on the fly; int8 weights, one scale per channel.
default_dynamic_qconfig = QConfig(
    activation=default_dynamic_quant_observer, weight=default_per_channel_weight_observer
)
#: The same two under torch's names for QConfigs with one scale per channel.
default_per_channel_qconfig = default_qconfig
per_channel_dynamic_qconfig = default_dynamic_qconfig
#: default_qconfig, with activations' ranges cut where the squared error is least.
_histogram_qconfig = QConfig(
    activation=default_histogram_observer, weight=default_per_channel_weight_observer
)
#: default_qconfig, with activations' ranges averaged over batches.
default_qat_qconfig = QConfig(
    activation=MovingAverageMinMaxObserver.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine),
    weight=default_per_channel_weight_observer,
)


def get_default_qconfig(backend: str = "x86") -> QConfig:
    """The static QConfig, with histograms for activations as in torch. All of torch's backends get the same one.

    torch uses 7 bits for x86 activations (`reduce_range=True`), because int8 products saturate on some CPUs. No product
    here saturates, so all 8 bits are used.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    return _histogram_qconfig


def get_default_qat_qconfig(backend: str = "x86") -> QConfig:
    """The QConfig for `prepare_qat`. It averages ranges over batches, because they move while weights learn."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    return default_qat_qconfig


def resolve_config(config: Any, where: str = "") -> QuantConfig:
    """QuantConfig, preset's name or QConfig (torch's too) → QuantConfig; `where` begins the message of an error."""
    if not (isinstance(config, tuple) and hasattr(config, "activation") and hasattr(config, "weight")):
        return as_config(config, where)
    weight_factory, weight = _observer(config.weight, f"{where}QConfig: weight: ")
    if isinstance(weight, PlaceholderObserver):
        raise ValueError(
            f"{where}QConfig: weight must be an observer that observes, found PlaceholderObserver"
        )
    spec = QuantSpec(
        4 if (weight.qmin, weight.qmax) == (-8, 7) else 8,
        weight.symmetric,
        "channel" if weight.per_channel else "tensor",
        observer=weight_factory,
    )
    if config.activation is None or config.activation is nn.Identity:
        return QuantConfig(spec)
    factory, activation = _observer(config.activation, f"{where}QConfig: activation: ")
    if isinstance(activation, PlaceholderObserver):
        return QuantConfig(spec, QuantSpec(8, activation.symmetric, "token", dynamic=True))
    if activation.per_channel:
        raise ValueError(
            f"{where}QConfig: activation must be a per-tensor observer, found {type(activation).__name__}"
        )
    return QuantConfig(spec, QuantSpec(8, activation.symmetric, "tensor", observer=factory))


def _observer(factory: Any, where: str) -> tuple[Callable[..., ObserverBase], ObserverBase]:
    known = as_observer_factory(factory, where)
    return known, known()
