"""A contender: a way to compute a Linear, built from a float one."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: What is timed: the whole layer from float to float, including the quantization of the input; the product alone, of
#: int8 inputs, with its scales; a layer that takes int8 and returns int8.
LINEAR, MATMUL, INT8_TO_INT8 = "linear", "matmul", "int8 to int8"
OURS = "tritonq"
#: torch's layer in the run's dtype. Speed-ups are relative to it.
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
        call: the timed call; its argument is the result of `prepare`.
        prepare: x [M, K] → the argument of `call`; not timed.
        finish: (output, the argument of `call`) → float [M, N]; not timed.
        weight: the float32 weight [N, K] to compare with; None takes the float layer's.
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
        build: makes it from a Linear without bias, on the device of the measurement.
        tolerance: the largest relative error; `Built.weight` is the reference.
        measures: LINEAR, MATMUL or INT8_TO_INT8.
        package: the package that must be installed.
        dtypes: the input dtypes that it takes, if they are limited.
        needs_gpu: it runs only on a GPU.
        runs_on_gpu: it runs on a GPU, too.
    """

    by: str
    scheme: str
    build: Callable[[nn.Linear], Built]
    tolerance: float
    measures: str = LINEAR
    package: str = "torch"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALVES)
    needs_gpu: bool = False
    runs_on_gpu: bool = True

    def missing(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """The reason why it cannot take part here, or None."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.needs_gpu and device.type != "cuda":
            return "it needs a GPU"
        if not self.runs_on_gpu and device.type == "cuda":
            return "it runs on CPUs alone"
        if dtype not in self.dtypes:
            return f"it takes no {str(dtype).removeprefix('torch.')}"
        return None
