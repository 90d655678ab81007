"""Makes the observer that a QuantSpec names, and finds a weight's scales with it.

    "minmax", "mse", …                  the class for activations or the one for weights: `OBSERVERS`
    "MinMaxObserver", … or the class    that class
    MinMaxObserver.with_args(…)         that class with these arguments
    any callable without arguments      its result

A weight's per-channel observer sees rows: one per channel, one per group, or one for the whole tensor.

Arguments that are not given come from the spec. Observers of torch.ao.quantization are accepted as classes and as
factories, and are converted to the ones here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.numerics.config import QuantSpec
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

#: name → (observer of activations, of weights); a histogram or entropy observer of a weight is per tensor only.
OBSERVERS: dict[str, tuple[type[ObserverBase], type[ObserverBase]]] = {
    "minmax": (MinMaxObserver, PerChannelMinMaxObserver),
    "moving_average_minmax": (MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver),
    "histogram": (HistogramObserver, HistogramObserver),
    "percentile": (PercentileObserver, PerChannelPercentileObserver),
    "mse": (MSEObserver, PerChannelMSEObserver),
    "entropy": (EntropyObserver, EntropyObserver),
}
_QSCHEMES = {
    # (per channel, symmetric)
    (False, False): torch.per_tensor_affine,
    (False, True): torch.per_tensor_symmetric,
    (True, False): torch.per_channel_affine,
    (True, True): torch.per_channel_symmetric,
}
_TORCH_MODULES = ("torch.ao.quantization", "torch.quantization")


def make_observer(spec: QuantSpec, for_weight: bool, name: str = "") -> ObserverBase:
    """A fresh observer of one tensor.

    Args:
        spec: names the observer; None means "minmax".
        for_weight: the tensor is a weight; only weights may have several scales.
        name: the module's name, for messages.

    Raises:
        TypeError, ValueError: an unknown observer, or one that contradicts the spec.
    """
    where = f"{name}: " if name else ""
    factory = as_observer_factory(_by_name(spec.observer or "minmax", for_weight, where), where)
    if isinstance(factory, ObserverFactory):
        words: dict[str, Any] = {"qscheme": _QSCHEMES[factory.observer.per_channel, spec.symmetric]}
        if spec.bits == 4:
            words.update(dtype=torch.qint8, quant_min=spec.qmin, quant_max=spec.qmax)
        observer = factory(**{**words, **dict(factory.arguments)})
    else:
        observer = factory()
    kind = type(observer).__name__
    if isinstance(observer, PlaceholderObserver):
        raise ValueError(
            f"{where}{kind} observes nothing; a calibrated tensor needs an observer such as MinMaxObserver"
        )
    if observer.per_channel and not for_weight:
        raise ValueError(f"{where}an activation needs a per-tensor observer, found {kind}")
    if for_weight and spec.granularity != "tensor" and not observer.per_channel:
        raise ValueError(
            f"{where}granularity {spec.granularity!r} needs a per-channel observer, found {kind}"
        )
    if observer.symmetric != spec.symmetric:
        raise ValueError(
            f"{where}symmetric={spec.symmetric} contradicts {kind} with qscheme {observer.qscheme}"
        )
    if observer.per_channel and getattr(observer, "ch_axis", 0) != 0:
        raise ValueError(
            f"{where}a weight's observer needs ch_axis=0, found {getattr(observer, 'ch_axis', 0)}"
        )
    observer.name = name
    return observer


def observed_weight_qparams(
    weight: Tensor, spec: QuantSpec, name: str = ""
) -> tuple[Tensor, Tensor | None] | None:
    """Scale and zero point that the spec's observer finds for a weight; None if the plain extremes are enough.

    Args:
        weight: [N, K], finite.
        spec: granularity tensor, channel or group, and the observer.
        name: the module's name, for messages.

    Returns:
        None if spec.observer is None or "minmax"; else as `qparams.weight_qparams`.
    """
    if spec.observer is None or spec.observer == "minmax":
        return None
    observer = make_observer(spec, for_weight=True, name=name).to(weight.device)
    rows, columns = weight.shape
    if spec.granularity == "tensor":
        observer(weight.detach().reshape(1, -1))
        rows = 1
    else:
        group_size = spec.resolve_group_size(columns)
        # One row per scale; zeros fill a shorter last group, because they are on every grid.
        padded = nn.functional.pad(weight.detach(), (0, -columns % group_size))
        observer(padded.reshape(-1, group_size))
    scale, zero_point = observer.calculate_qparams(weight.dtype)
    return scale.reshape(rows, -1), None if spec.symmetric else zero_point.reshape(rows, -1)


def as_observer_factory(observer: Any, where: str = "") -> Callable[..., ObserverBase]:
    """An observer class, factory or callable of tritonq or torch.ao.quantization → a callable that makes tritonq's.

    Raises:
        TypeError: it makes no observer.
        ValueError: tritonq has no counterpart of torch's observer.
    """
    if isinstance(observer, ObserverFactory):
        return observer
    if isinstance(observer, type) and issubclass(observer, ObserverBase):
        return ObserverFactory(observer)
    if isinstance(observer, nn.Module) or not callable(observer):
        raise TypeError(
            f"{where}an observer class or what .with_args(…) returns is needed, found {observer!r}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its own API is deprecated
        made = observer()
    if isinstance(made, ObserverBase):
        return observer
    if is_from_torch(made):
        return _counterpart(made, where)
    raise TypeError(f"{where}an observer class or what .with_args(…) returns is needed, found {observer!r}")


def is_from_torch(module: object, *names: str) -> bool:
    """True if torch's quantization defines an object's class, or a base of it, with one of these names."""
    return any(
        cls.__module__.startswith(_TORCH_MODULES) and (not names or cls.__name__ in names)
        for cls in type(module).__mro__
    )


def _by_name(observer: Any, for_weight: bool, where: str) -> Any:
    if not isinstance(observer, str):
        return observer
    if observer in OBSERVERS:
        return OBSERVERS[observer][for_weight]
    classes = _classes()
    if observer in classes:
        return classes[observer]
    allowed = ", ".join([*OBSERVERS, *classes])
    raise ValueError(f"{where}observer must be one of {allowed}, found {observer!r}")


def _classes() -> dict[str, type[ObserverBase]]:
    """Class name → class, of all observers but the placeholder."""
    return {cls.__name__: cls for pair in OBSERVERS.values() for cls in pair}


def _counterpart(observer: Any, where: str) -> ObserverFactory:
    """An observer of torch.ao.quantization, or a FakeQuantize that holds one → the factory of tritonq's observer."""
    observer = getattr(observer, "activation_post_process", observer)
    kind = type(observer).__name__
    classes: dict[str, type[ObserverBase]] = {**_classes(), "PlaceholderObserver": PlaceholderObserver}
    if kind not in classes:
        raise ValueError(f"{where}torch's {kind} has no counterpart, allowed are {', '.join(classes)}")
    words = {"dtype": observer.dtype, "qscheme": observer.qscheme}
    if kind == "PlaceholderObserver":
        words["is_dynamic"] = observer.is_dynamic
    else:
        for word in ("reduce_range", "averaging_constant", "ch_axis", "bins"):
            if hasattr(observer, word):
                words[word] = getattr(observer, word)
        if observer.has_customized_qrange:
            words.update(quant_min=observer.quant_min, quant_max=observer.quant_max)
    factory = classes[kind].with_args(**words)
    factory()  # raises now if the dtype is not an 8-bit integer
    return factory
