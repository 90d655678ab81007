"""The state of a grid that does not depend on its input: scale and zero point, observed or learned.

An optimizer does not know which scales are valid. A learned scale below 2^-10 of its initial value has collapsed, and
is reset to that bound. A scale that is not finite is reset to its initial value. Resets are counted, and reported once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

#: A learned scale below this fraction of its initial value has collapsed.
SMALLEST_SHARE = 2.0**-10
#: On a GPU, reading the counter waits for the device, so it is read once in this many training steps.
REPORT_EVERY = 100


class Grid(nn.Module):
    """Holds scale and zero point, if there are any, in dtypes that `.half()` and `.to(dtype)` do not change.

    Args:
        qmin, qmax: the code range.
        name: the module's name, for messages.
    """

    scale: Tensor
    zero_point: Tensor
    initial_scale: Tensor
    clamped_scales: Tensor

    def __init__(self, qmin: int, qmax: int, name: str) -> None:
        super().__init__()
        self.qmin, self.qmax, self.module_name = qmin, qmax, name
        self.learnable_scale = self.learnable_zero_point = False
        self._warned = False
        self._forwards = 0

    @property
    def title(self) -> str:
        """The name in messages."""
        return f"{self.module_name}: {type(self).__name__}" if self.module_name else type(self).__name__

    def hold(
        self, scale: Tensor, zero_point: Tensor | None, learn_scale: bool, learn_zero_point: bool
    ) -> None:
        """Register scale float32 and zero point int8 or None: as float32 parameters if learned, else as buffers."""
        scale = scale.contiguous()
        self.learnable_scale, self.learnable_zero_point = learn_scale, learn_zero_point
        if learn_scale:
            self.scale = nn.Parameter(scale)
            self.register_buffer("initial_scale", scale.clone())
            counter = torch.zeros((), dtype=torch.int64, device=scale.device)
            self.register_buffer("clamped_scales", counter)
        else:
            self.register_buffer("scale", scale)
        if learn_zero_point and zero_point is not None:
            self.zero_point = nn.Parameter(zero_point.float().contiguous())
        else:
            self.register_buffer("zero_point", zero_point)

    def valid_scale(self) -> Tensor:
        """The scale without gradient; values out of range are reset."""
        scale = self.scale.detach()
        if not self.learnable_scale:
            return scale
        raised = torch.maximum(scale, self.initial_scale * SMALLEST_SHARE)
        return torch.where(torch.isfinite(scale), raised, self.initial_scale)

    def rounded_zero(self) -> Tensor:
        """The zero point without gradient, float32 holding a code; 0 if it is not finite."""
        zero = torch.nan_to_num(self.zero_point.detach().float(), 0.0, 0.0, 0.0)
        return torch.round(zero).clamp(self.qmin, self.qmax)

    def restore_invalid(self) -> None:
        """In training: write resets back to the parameters, count and report them."""
        if not self.training or in_backward():
            return
        with torch.no_grad():
            valid = self.valid_scale()
            self.clamped_scales.add_((valid != self.scale).sum())
            self.scale.copy_(valid)
            if self.learnable_zero_point:
                self.clamped_scales.add_((~torch.isfinite(self.zero_point)).sum())
                self.zero_point.copy_(torch.nan_to_num(self.zero_point, 0.0, 0.0, 0.0))
        if torch.compiler.is_compiling():
            return
        if self.scale.device.type == "cpu" or self._forwards % REPORT_EVERY == 0:
            self.report_clamped()
        self._forwards += 1

    def report_clamped(self) -> int:
        """The number of resets so far; warns the first time it is not zero."""
        count = int(self.clamped_scales) if self.learnable_scale else 0
        if count and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.title}: {count} learned scales or zero points became non-positive, vanishing or non-finite "
                "and were put back; lower the learning rate of the scales",
                UserWarning,
                stacklevel=2,
            )
        return count

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Grid:
        if recurse:
            for child in self.children():
                child._apply(fn)
        super()._apply(keeping_dtype(fn), recurse=False)
        return self


def straight_through(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` exactly, with a gradient of one for `parameter`, of the same shape."""
    finite = torch.where(torch.isfinite(parameter), parameter, torch.zeros_like(parameter))
    return value.detach() + (finite - finite.detach())


def keeping_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `nn.Module._apply`, limited to moving tensors: a cast is replaced by a move."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


def in_backward() -> bool:
    """True while gradient checkpointing repeats a forward, whose values were already observed."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
