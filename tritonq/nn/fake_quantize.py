"""Fake quantization: rounds to the grid and converts back to float, so that training sees the deployed results.

    forward    (clamp(rint(x / scale) + zero) - zero) · scale      the deployed rounding, code for code
    backward   straight through inside the grid, zero outside

The source of scale and zero point:

    dynamic activation   each row of x; no state
    static activation    an observer, in training mode only; as with batch norm, evaluation changes nothing
    weight               the weight in every forward, like in deployment, rounded to the weight's dtype
    either, learned      parameters, initialized from the observer or the weight

Learned scales: Esser et al., "Learned Step Size Quantization" (LSQ), 2020; the gradient is scaled by
1 / sqrt(elements per scale · qmax). Learned zero points: Bhalgat et al., "LSQ+", 2020.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from tritonq import ops
from tritonq.nn.grid import Grid, in_backward, straight_through
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec
from tritonq.observers import (
    MovingAverageMinMaxObserver,
    ObserverBase,
    ObserverFactory,
    as_observer_factory,
    make_observer,
    observed_weight_qparams,
)

#: The observer of static activations in training, if the spec names none.
DEFAULT_OBSERVER = "moving_average_minmax"


class FakeQuantize(Grid):
    """Rounds to the grid of a QuantSpec, with gradients.

    Args:
        spec: how to quantize.
        weight: the weight [N, K]; None for activations.
        learnable_scale: make the scale a parameter (LSQ). That of a static activation follows the observer while it
            observes: for the first batch, unless `freeze_observer_after` is called.
        learnable_zero_point: make the zero point a parameter too (LSQ+); needs learnable_scale and an affine spec.
        device: of the state; None takes the weight's, or the CPU.
        name: the module's name, for messages.

    Attributes:
        scale, zero_point: float32 and int8 [1] of a static activation; float32 parameters if learned, for a weight
            [1, 1], [N, 1] or [N, G]. `.half()` and `.to(dtype)` do not change their dtype.
        observed_batches: int64, the number of batches that the scale of a static activation has seen.
        clamped_scales: int64, how many learned scales and zero points were below the smallest allowed scale (1/1024 of
            the initial one) or not finite, and were reset; a warning is given once.

    Raises:
        TypeError, ValueError: a learnable argument that does not fit the spec.
    """

    observed_batches: Tensor
    switches: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        weight: Tensor | None = None,
        *,
        learnable_scale: bool = False,
        learnable_zero_point: bool = False,
        device: torch.device | str | None = None,
        name: str = "",
    ) -> None:
        _check_words(spec, weight, learnable_scale, learnable_zero_point, name)
        super().__init__(spec.qmin, spec.qmax, name)
        self.spec = spec
        self.for_weight = weight is not None or spec.granularity in ("channel", "group")
        self.learnable_scale, self.learnable_zero_point = learnable_scale, learnable_zero_point
        self.observer_enabled = self.fake_quant_enabled = True
        self.observer_limit: int | None = 1 if learnable_scale else None
        self.observer: ObserverBase | None = None
        self._has_data = False
        device = weight.device if weight is not None and device is None else device
        # The switches for the state_dict. `forward` reads the Python ones, without waiting for the device.
        self.register_buffer("switches", torch.ones(2, dtype=torch.uint8, device=device))
        if self.for_weight:
            if weight is not None and learnable_scale:
                scale, zero = self._extremes_of(weight)
                self.hold(scale.float(), zero, True, learnable_zero_point)
        elif not spec.dynamic:
            observed = dataclasses.replace(spec, observer=spec.observer or DEFAULT_OBSERVER)
            self.observer = make_observer(observed, for_weight=False, name=name).to(device)
            self.register_buffer("observed_batches", torch.zeros((), dtype=torch.int64, device=device))
            zero = torch.zeros(1, dtype=torch.int8, device=device)
            self.hold(torch.ones(1, device=device), zero, learnable_scale, learnable_zero_point)

    @classmethod
    def with_args(cls, observer: Any = MovingAverageMinMaxObserver, **words: Any) -> ObserverFactory:
        """For a QConfig, as in torch: with_args(observer=…, quant_min=…, quant_max=…, …).

        It returns the observer's factory, because the observer's arguments define the fake quantization.
        """
        factory = as_observer_factory(observer, "FakeQuantize: ")
        if not isinstance(factory, ObserverFactory):
            raise TypeError(f"FakeQuantize: observer must be an observer class, found {observer!r}")
        return factory.with_args(**words)

    # --- switches --------------------------------------------------------------------------------------------------

    def enable_observer(self, enabled: bool = True) -> None:
        """Let a static activation's scale follow the data, in training mode."""
        self.observer_enabled = bool(enabled)
        self.switches[0] = self.observer_enabled

    def disable_observer(self) -> None:
        """Keep scale and zero point of a static activation as they are."""
        self.enable_observer(False)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round."""
        self.fake_quant_enabled = bool(enabled)
        self.switches[1] = self.fake_quant_enabled

    def disable_fake_quant(self) -> None:
        """Return the input unrounded, but keep observing."""
        self.enable_fake_quant(False)

    def freeze_observer_after(self, batches: int | None) -> None:
        """Keep scale and zero point after this many observed batches; None never stops observing.

        Raises:
            ValueError: not an int ≥ 1 or None; or None where the scale is learned.
        """
        if batches is None and self.learnable_scale:
            raise ValueError(f"{self.title}: a learned scale's observer must stop, found batches=None")
        if batches is not None and (type(batches) is not int or batches < 1):
            raise ValueError(f"{self.title}: batches must be an int ≥ 1 or None, found {batches!r}")
        self.observer_limit = batches

    # --- forward ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """x float, activations [..., K] or a weight [N, K] → the same shape and dtype, on the grid.

        Raises:
            ValueError: a static activation's scale is needed and nothing was observed; a learned scale does not fit.
        """
        if self.observer is not None and x.numel():
            self._observe(x)
        if not self.fake_quant_enabled:
            return x
        spec = self.spec
        rows = x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)  # [M, K]
        if spec.dynamic:
            return ops.fake_quantize_per_token(rows, spec.symmetric).reshape(x.shape)
        if self.learnable_scale:
            self.restore_invalid()
        scale, zero = self._grid(x)
        columns = rows.shape[1]
        # Elements per scale: for a weight all that share it, for an activation the features without the batch.
        per_scale = max(1.0, x.numel() / scale.numel() if self.for_weight else columns)
        rounded = ops.fake_quantize(
            rows,
            scale,
            zero,
            spec.resolve_group_size(columns) if self.for_weight else max(1, columns),
            spec.qmin,
            spec.qmax,
            1.0 / math.sqrt(per_scale * spec.qmax),
        )
        return rounded.reshape(x.shape)

    def quantize(self, x: Tensor) -> Tensor:
        """The int8 codes that `forward` rounds x to, of x's shape."""
        spec, columns = self.spec, x.shape[-1]
        with torch.no_grad():
            if spec.dynamic:
                codes = ops.quantize_per_token(x.reshape(-1, columns), spec.symmetric)[0]
                return codes.reshape(x.shape)
            if self.for_weight:
                return qparams.quantize_weight(x, spec, self.weight_qparams(x))[0]
            scale, zero = self.calculate_qparams()
            return ops.quantize_per_tensor(x, scale, zero, spec.symmetric)

    def weight_qparams(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scale, of the weight's dtype, and zero point int8 or None that `forward` uses; shapes as in `qparams`."""
        with torch.no_grad():
            if not self.learnable_scale:
                return self._extremes_of(weight)
            self._check_shape(weight)
            zero = None if self.spec.symmetric else self.rounded_zero().to(torch.int8)
            return qparams.storable(self.valid_scale(), weight.dtype), zero

    def has_data(self) -> bool:
        """True once the scale of a static activation is known."""
        if self.observer is not None and not self._has_data:
            self._has_data = bool(self.observed_batches > 0)
        return self._has_data

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale float32 [1] and zero point int8 [1] of a static activation.

        Raises:
            ValueError: nothing was observed, or NaN or Inf was; or it is not a static activation's.
        """
        if self.observer is None:
            raise ValueError(f"{self.title} has no fixed scale: it is computed from each input")
        if not self.has_data():
            raise ValueError(self._no_data())
        with torch.no_grad():
            scale = self.valid_scale() if self.learnable_scale else self.scale
            if not bool(torch.isfinite(scale).all()):
                raise ValueError(f"{self.title} needs finite data, found NaN or Inf")
            return scale.detach().clone(), self.rounded_zero().to(torch.int8)

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point for the operator, [R or 1, G], gradients attached where learned."""
        if self.for_weight and not self.learnable_scale:
            return self.weight_qparams(x)
        if self.for_weight:
            self._check_shape(x)
        elif not self._has_data and not self.has_data():
            raise ValueError(self._no_data())
        # Copies: the state changes in place, and this module may run again before its backward pass.
        scale, zero = self.scale.clone(), None
        if self.learnable_scale:
            scale = self.valid_scale()
            if self.for_weight:
                scale = qparams.storable(scale, x.dtype).float()
            scale = straight_through(scale, self.scale)
        if not self.spec.symmetric:
            zero = self.rounded_zero()
            if self.learnable_zero_point:
                zero = straight_through(zero, self.zero_point)
        if self.for_weight:
            return scale, zero
        return scale.reshape(1, 1), None if zero is None else zero.reshape(1, 1)

    def _no_data(self) -> str:
        return f"{self.title} has observed no data; run a batch through the model in training mode first"

    # --- observing and guarding ------------------------------------------------------------------------------------

    def _observe(self, x: Tensor) -> None:
        assert self.observer is not None
        if not (self.training and self.observer_enabled) or in_backward():
            return
        with torch.no_grad():
            self.observer(x.detach())
            scale, zero = self.observer.range_qparams(*self.observer.data_range())
            if self.observer_limit is None:
                follows = torch.ones_like(self.observed_batches, dtype=torch.bool)
            else:
                follows = self.observed_batches < self.observer_limit
            self.scale.copy_(torch.where(follows, scale, self.scale))
            self.zero_point.copy_(torch.where(follows, zero.to(self.zero_point.dtype), self.zero_point))
            if self.learnable_scale:
                self.initial_scale.copy_(torch.where(follows, scale, self.initial_scale))
            self.observed_batches.add_(follows)
        self._has_data = True

    def _extremes_of(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            weight = weight.detach()
            found = observed_weight_qparams(weight, self.spec, self.module_name)
            if found is not None:
                return found
            rows, columns = weight.shape
            group_size = self.spec.resolve_group_size(columns)
            if columns % group_size:
                return qparams.weight_qparams(weight, self.spec)
            # One pass is enough if the elements of a scale are contiguous.
            shape = (1, 1) if self.spec.granularity == "tensor" else (rows, columns // group_size)
            low, high = (found.reshape(shape) for found in ops.extremes(weight, math.prod(shape)))
            return qparams.grid_of_extremes(low.clamp(max=0.0), high.clamp(min=0.0), self.spec, weight.dtype)

    def _check_shape(self, weight: Tensor) -> None:
        groups = -(-weight.shape[1] // self.spec.resolve_group_size(weight.shape[1]))
        per_tensor = self.spec.granularity == "tensor"
        wanted = (1, 1) if per_tensor else (weight.shape[0], groups)
        if tuple(self.scale.shape) != wanted:
            raise ValueError(
                f"{self.title}: a weight of shape {list(weight.shape)} needs scales of shape {list(wanted)}, found "
                f"{list(self.scale.shape)}: it is not the weight that was prepared"
            )

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if not self.switches.is_meta:
            self.observer_enabled, self.fake_quant_enabled = map(bool, self.switches.tolist())
        self._has_data = False

    def extra_repr(self) -> str:
        spec = self.spec
        words = f"bits={spec.bits}, granularity={spec.granularity}, symmetric={spec.symmetric}"
        if spec.dynamic:
            words += ", dynamic=True"
        return words + (", learnable_scale=True" if self.learnable_scale else "")


def _check_words(spec: Any, weight: Any, scale: Any, zero_point: Any, name: str) -> None:
    where = f"{name}: FakeQuantize" if name else "FakeQuantize"
    if not isinstance(spec, QuantSpec):
        raise TypeError(f"{where}: spec must be a QuantSpec, found {spec!r}")
    for word, value in (("learnable_scale", scale), ("learnable_zero_point", zero_point)):
        if not isinstance(value, bool):
            raise TypeError(f"{where}: {word} must be True or False, found {value!r}")
    if scale and spec.dynamic:
        raise ValueError(f"{where}: learnable_scale must be False for a dynamic activation, found True")
    if scale and weight is None and spec.granularity != "tensor":
        raise ValueError(f"{where}: learnable_scale of a weight needs the weight, found weight=None")
    if zero_point and (spec.symmetric or not scale):
        raise ValueError(
            f"{where}: learnable_zero_point needs an affine spec and learnable_scale=True, found "
            f"symmetric={spec.symmetric} and learnable_scale={scale}"
        )
