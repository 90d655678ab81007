"""What takes part: a way to compute a Linear, built from a float one."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: What is timed: the layer, from a float input to a float output, quantizing the input included; the product of
#: inputs that are int8 already, with its scales; a layer that takes int8 and hands over int8.
LINEAR, MATMUL, INT8_TO_INT8 = "linear", "matmul", "int8 to int8"
OURS = "tritonq"
#: The layer in the dtype of the run, as torch computes it, which speed-ups are relative to.
FLOAT = "float"
HALVES = (torch.bfloat16, torch.float16)


def _unchanged(x: Tensor) -> Any:
    return x


def _as_it_is(out: Any, prepared: Any) -> Tensor:
    return out


@dataclasses.dataclass(frozen=True)
class Built:
    """A layer that is ready to be timed.

    Attributes:
        call: what is timed, on what `prepare` returned.
        prepare: from x [M, K], before the clock runs.
        finish: from the output and what was prepared to float [M, N], after it.
        weight: the weight [N, K] in float32 that is computed with; None compares with the float layer's.
    """

    call: Callable[[Any], Any]
    prepare: Callable[[Tensor], Any] = _unchanged
    finish: Callable[[Any, Any], Tensor] = _as_it_is
    weight: Callable[[], Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to compute a Linear.

    Attributes:
        by: tritonq, or the peer's name.
        scheme: one of tritonq's presets, or FLOAT.
        build: from a Linear without bias, on the device it is measured on.
        tolerance: largest relative error; see `Built.weight` for what it is relative to.
        measures: LINEAR, MATMUL or INT8_TO_INT8.
        package: what has to be installed.
        dtypes: of the input, as far as they are limited.
        needs_gpu: it runs nowhere else.
    """

    by: str
    scheme: str
    build: Callable[[nn.Linear], Built]
    tolerance: float
    measures: str = LINEAR
    package: str = "torch"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALVES)
    needs_gpu: bool = False

    def missing(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot take part here, or None."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.needs_gpu and device.type != "cuda":
            return "it needs a GPU"
        if dtype not in self.dtypes:
            return f"it takes no {str(dtype).removeprefix('torch.')}"
        return None
