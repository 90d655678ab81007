"""The conversion of each prepared module: its plan, and its scales from calibration or training.

All conversions are computed, and all errors raised, before the first module is replaced (convert.py).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from tritonq.nn.check import check_linear
from tritonq.nn.fake_quantize import FakeQuantize
from tritonq.nn.handover import Edge
from tritonq.nn.norm_kinds import Norm
from tritonq.nn.qat_linear import QATLinear
from tritonq.numerics.config import QuantConfig
from tritonq.observers import ObserverBase, observed_weight_qparams
from tritonq.quantize.prepare import OBSERVER, Plan
from tritonq.select.patterns import Place, places
from tritonq.select.select import PLAN


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One module to replace.

    Attributes:
        place, plan: its place, and what it becomes.
        qparams: from its activation's observer, if it has one.
        weight_qparams: from its weight's observer or from training; None if the plain extremes are enough.
        output_qparams: the grid on which it hands over int8, if calibration proved that it can.
        edge, why_float: the edge along which it hands over int8, or the reason why it does not.
    """

    place: Place
    plan: Plan
    qparams: tuple[Tensor, Tensor] | None
    weight_qparams: tuple[Tensor, Tensor | None] | None
    output_qparams: tuple[Tensor, Tensor] | None = None
    edge: Edge | None = None
    why_float: str = ""


@dataclasses.dataclass(frozen=True)
class NormConversion:
    """A norm to replace by one that hands over int8.

    Attributes:
        place, norm: its place, and what it computes.
        qparams, symmetric: the grid of its output.
        edge: the layers that read it.
    """

    place: Place
    norm: Norm
    qparams: tuple[Tensor, Tensor]
    symmetric: bool
    edge: Edge


def conversions(model: nn.Module, unobserved: str, check_weights: bool) -> list[Conversion]:
    """Every prepared module with the qparams of its observer.

    Args:
        unobserved: as for `convert`.
        check_weights: check that all weights can be quantized; False if that was just done.
    """
    prepared = [place for place in places(model) if hasattr(place.module, PLAN)]
    if not prepared:
        raise ValueError("convert needs a model from prepare, found one with no prepared layer")
    found: list[Conversion] = []
    silent: list[str] = []
    for place in prepared:
        plan: Plan = getattr(place.module, PLAN)
        qparams = None
        if plan.observes is not None:
            observer = getattr(place.module, OBSERVER)
            assert isinstance(observer, (ObserverBase, FakeQuantize))
            if observer.has_data():
                if isinstance(observer, ObserverBase):
                    observer.name = place.name
                qparams = observer.calculate_qparams()
                check_scale(qparams[0], f"{place.name}: the {plan.observes}'s")
            else:
                silent.append(place.name)
                plan = Plan(dynamic_config(plan.config), None)
        if check_weights and isinstance(place.module, nn.Linear):
            check_linear(place.module, plan.config, place.name)
        found.append(Conversion(place, plan, qparams, _weight_qparams(place, plan.config)))
    if silent and unobserved == "error":
        raise ValueError(
            f"{len(silent)} of {len(prepared)} layers have observed no data: {', '.join(silent)}; run calibration "
            "batches through the prepared model, or pass unobserved='dynamic'"
        )
    return found


def _weight_qparams(place: Place, config: QuantConfig) -> tuple[Tensor, Tensor | None] | None:
    """A weight's scale and zero point; None if they follow from its plain extremes.

    Raises:
        ValueError: the observer's scale is no positive number, or the weight is not the prepared one.
    """
    module = place.module
    if isinstance(module, QATLinear):
        found: tuple[Tensor, Tensor | None] | None = module.weight_qparams()
        module.weight_fake_quant.report_clamped()
    elif isinstance(module, nn.Linear):
        found = observed_weight_qparams(module.weight, config.weight, place.name)
    else:
        found = None
    if found is not None:
        check_scale(found[0], f"{place.name}: the weight's")
    return found


def check_scale(scale: Tensor, where: str) -> None:
    """Raise a ValueError unless all scales are finite and positive; `where` begins the message."""
    wrong = ~(torch.isfinite(scale) & (scale > 0))
    if wrong.any():
        raise ValueError(
            f"{where} observer must give finite, positive scales in {scale.dtype}, found {scale[wrong][0].item()}"
        )


def dynamic_config(config: QuantConfig) -> QuantConfig:
    """A static config changed to compute its activation's scales on the fly, per token."""
    assert config.activation is not None
    activation = dataclasses.replace(config.activation, granularity="token", dynamic=True, observer=None)
    return dataclasses.replace(config, activation=activation)
