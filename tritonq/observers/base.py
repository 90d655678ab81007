"""The base of all observers: constructor arguments, code range, and scales from a range of values.

An observer is a module whose forward returns its input unchanged and keeps statistics of it. Its code range is always
signed: torch.quint8 with 0 … 255 becomes -128 … 127, and 128 is subtracted from codes and zero point.

    dtype, qscheme                    default code range
    any, symmetric                    -127 … 127
    any, affine                       -128 … 127
    quant_min, quant_max given        as given, less 128 for torch.quint8
    reduce_range=True                 one bit less: -64 … 63 (torch.qint8), -128 … -1 (torch.quint8)

A symmetric observer's zero point is always code 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tritonq.numerics.qparams import affine_qparams, symmetric_scale
from tritonq.observers.processes import Processes
from tritonq.util.fixed_dtype import FixedDtypeModule

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
QSCHEMES = (
    torch.per_tensor_affine,
    torch.per_tensor_symmetric,
    torch.per_channel_affine,
    torch.per_channel_symmetric,
)
#: dtype → (smallest, largest, what to subtract to make codes signed)
_CODE_RANGES = {torch.qint8: (-128, 127, 0), torch.quint8: (0, 255, 128)}


@dataclasses.dataclass(frozen=True)
class ObserverFactory:
    """An observer class and some of its constructor arguments; a call makes an observer. Compares, hashes, pickles."""

    observer: type[ObserverBase]
    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(self, **arguments: Any) -> ObserverBase:
        return self.observer(**{**dict(self.arguments), **arguments})

    def with_args(self, **arguments: Any) -> ObserverFactory:
        """A factory with these arguments added; they replace earlier ones of the same name."""
        return ObserverFactory(self.observer, tuple(sorted({**dict(self.arguments), **arguments}.items())))

    @property
    def __name__(self) -> str:
        return self.observer.__name__


class ObserverBase(FixedDtypeModule):
    """Base of all observers.

    A subclass defines `observe`, `data_range`, `has_data`, `reset_min_max_vals`, and, if it can be merged, `take_over`
    and `share`.

    Args:
        dtype: torch.qint8 or torch.quint8; decides only how quant_min and quant_max are read.
        qscheme: torch.per_tensor_affine, per_tensor_symmetric, per_channel_affine or per_channel_symmetric.
        reduce_range: use one bit less.
        quant_min, quant_max: the code range, both or neither.
        factory_kwargs: accepted for torch's sake and ignored: statistics are float32, on the data's device.
        eps: the smallest scale; None leaves only the floor that keeps scales normal numbers.

    `name` is the observed module's name, for messages. Set it when you attach the observer.

    Raises:
        TypeError, ValueError: the message names the argument, the value found and the values allowed.
    """

    per_channel = False

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,
        eps: float | None = None,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        if factory_kwargs is not None and not isinstance(factory_kwargs, Mapping):
            raise TypeError(f"{kind}: factory_kwargs must be a dictionary or None, found {factory_kwargs!r}")
        allowed = [scheme for scheme in QSCHEMES if ("channel" in str(scheme)) == self.per_channel]
        if qscheme not in allowed:
            raise ValueError(f"{kind}: qscheme must be {allowed[0]} or {allowed[1]}, found {qscheme!r}")
        if eps is not None and not _is_number_in(eps, 0, math.inf):
            raise ValueError(f"{kind}: eps must be None or a finite number ≥ 0, found {eps!r}")
        self.name = ""
        self.dtype = dtype
        self.qscheme = qscheme
        self.eps = eps
        self.qmin, self.qmax = signed_range(kind, dtype, self.symmetric, reduce_range, quant_min, quant_max)

    @classmethod
    def with_args(cls, **arguments: Any) -> ObserverFactory:
        """A factory of this observer with these constructor arguments."""
        return ObserverFactory(cls).with_args(**arguments)

    @property
    def symmetric(self) -> bool:
        """True where the zero point is code 0."""
        return self.qscheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)

    @property
    def title(self) -> str:
        """The observer's name in messages: the observed module's name, if known, and the class."""
        return f"{self.name}: {type(self).__name__}" if self.name else type(self).__name__

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x` (float, any shape; an empty tensor is ignored) and return it unchanged.

        Raises:
            TypeError: x is not a floating-point tensor.
            ValueError: x holds NaN or Inf. On a GPU `calculate_qparams` raises it later, so that the host does not
                wait for the device.
        """
        self._check_input(x)
        if x.numel():
            with torch.no_grad():
                self.observe(x.detach())
        return x

    def _check_input(self, x: object) -> None:
        if not isinstance(x, Tensor) or x.dtype not in FLOATING:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{self.title} observes floating-point tensors, found {found}")

    def observe(self, x: Tensor) -> None:
        """Update the statistics with a floating-point tensor of at least one element."""
        raise NotImplementedError

    def data_range(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """float32 (low, high): the range to cover; scalars, or [channels] each for a per-channel observer.

        The scale will be rounded to `dtype`: a search must measure errors with the rounded scale.
        """
        raise NotImplementedError

    def has_data(self) -> bool:
        """True once something has been observed."""
        raise NotImplementedError

    def reset_min_max_vals(self) -> None:
        """Forget everything observed."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget everything observed; torch calls this `reset_min_max_vals`."""
        self.reset_min_max_vals()

    def merge(self, other: ObserverBase) -> None:
        """Add the statistics of `other`, as if this observer had seen its data too; `other` stays as it is.

        Extremes, histograms and kept values become those of one observer of all data. A moving average depends on the
        order of the batches, which two observers do not have, so it becomes the mean of both.

        Raises:
            TypeError: `other` is not of the same class.
            ValueError: `other` has another number of bins or channels.
        """
        if type(other) is not type(self):
            raise TypeError(f"{self.title} merges with its own class, found {type(other).__name__}")
        with torch.no_grad():
            self.take_over(other)

    def all_reduce(self, group: Any = None) -> None:
        """Merge this observer over all processes; afterwards all hold the same. All processes must call it.

        Args:
            group: a torch.distributed process group; None for all processes.

        Raises:
            ValueError: torch.distributed is not initialized; or the processes observed different channels.
        """
        with torch.no_grad():
            self.share(Processes(group, self.title))

    def take_over(self, other: Any) -> None:
        """`merge` without the check: `other` must be of the same class."""
        raise NotImplementedError(f"{type(self).__name__} does not merge")

    def share(self, processes: Processes) -> None:
        """`all_reduce` within `processes`."""
        raise NotImplementedError(f"{type(self).__name__} does not merge across processes")

    def calculate_qparams(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the grid that covers the observed data.

        Args:
            dtype: the scale is rounded to it. Scales of weights are stored in the model's dtype.

        Returns:
            (scale of `dtype`, zero point int8, in the signed range): [1], or [channels] for a per-channel
            observer.

        Raises:
            ValueError: no data was observed, or it held NaN or Inf.
        """
        if not self.has_data():
            raise ValueError(
                f"{self.title} has observed no data; run calibration batches through the model first"
            )
        low, high = self.data_range(dtype)
        self.check_finite(low, high)
        return self.range_qparams(low, high, dtype)

    def range_qparams(
        self, low: Tensor, high: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """`calculate_qparams` for a given float32 range, without checks and without waiting for the device."""
        low, high = low.reshape(-1).clamp(max=0.0), high.reshape(-1).clamp(min=0.0)
        levels = self.qmax - self.qmin
        if self.symmetric:
            amax = torch.maximum(-low, high)
            if self.eps is not None:
                amax = amax.clamp(min=self.eps * levels / 2)
            scale = symmetric_scale(amax, self.qmin, self.qmax, dtype)
            return scale, torch.zeros_like(scale, dtype=torch.int8)
        if self.eps is not None:
            high = torch.maximum(high, low + self.eps * levels)
        return affine_qparams(low, high, self.qmin, self.qmax, dtype)

    def check_finite(self, low: Tensor, high: Tensor) -> None:
        """Raise a ValueError unless all extremes are finite. Waits for the device."""
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise ValueError(f"{self.title} needs finite data, found NaN or Inf")

    def extra_repr(self) -> str:
        return f"{self.qscheme}, codes {self.qmin} … {self.qmax}"


def number_between(observer: ObserverBase, word: str, value: Any, low: float, high: float) -> float:
    """Return the constructor argument `word`, or raise a ValueError unless it is a number in (low, high]."""
    if isinstance(value, (int, float)) and low < value <= high:
        return float(value)
    kind = type(observer).__name__
    raise ValueError(f"{kind}: {word} must be a number in ({low:g}, {high:g}], found {value!r}")


def answers_at_once(x: Tensor) -> bool:
    """True if reading a tensor's value is free: a GPU would make the host wait, and compiled code has no value yet."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _is_number_in(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and low <= value < high


def signed_range(
    kind: str,
    dtype: torch.dtype,
    symmetric: bool,
    reduce_range: bool,
    quant_min: int | None,
    quant_max: int | None,
) -> tuple[int, int]:
    """The signed (smallest, largest) code; see the module's docstring."""
    if dtype not in _CODE_RANGES:
        raise ValueError(f"{kind}: dtype must be torch.qint8 or torch.quint8, found {dtype!r}")
    if not isinstance(reduce_range, bool):
        raise TypeError(f"{kind}: reduce_range must be True or False, found {reduce_range!r}")
    smallest, largest, offset = _CODE_RANGES[dtype]
    if quant_min is None and quant_max is None:
        if reduce_range:
            return (-64, 63) if dtype == torch.qint8 else (-128, -1)
        return (-127, 127) if symmetric else (-128, 127)
    found = f"found {quant_min!r} and {quant_max!r}"
    if type(quant_min) is not int or type(quant_max) is not int:
        raise TypeError(f"{kind}: quant_min and quant_max must both be ints or both None, {found}")
    if not (smallest <= quant_min < quant_max <= largest and quant_min <= 0 <= quant_max):
        raise ValueError(
            f"{kind}: quant_min and quant_max must lie in {smallest} … {largest} and hold 0, for {dtype}, "
            f"{found}"
        )
    return quant_min - offset, quant_max - offset
