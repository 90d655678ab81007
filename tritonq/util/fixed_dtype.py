"""Buffers that move between devices but never change dtype.

`model.half()` and `model.to(torch.bfloat16)` cast every floating-point buffer. Calibrated scales and observed extremes
must stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class FixedDtypeModule(nn.Module):
    """An nn.Module whose direct buffers keep their dtype under `.half()`, `.to(dtype)` and the like."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedDtypeModule:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self
