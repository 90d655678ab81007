"""The observer that marks an activation as dynamic, as in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from tritonq.observers.base import ObserverBase
from tritonq.observers.processes import Processes


class PlaceholderObserver(ObserverBase):
    """Marks an activation whose scale is computed from each input; it observes nothing.

    Args:
        dtype, qscheme, quant_min, quant_max: as for every observer.
        is_dynamic: must be True; a calibrated activation needs an observer that observes.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.qint8,
        qscheme: torch.qscheme = torch.per_tensor_symmetric,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = True,
    ) -> None:
        super().__init__(dtype, qscheme, quant_min=quant_min, quant_max=quant_max)
        if is_dynamic is not True:
            raise ValueError(f"PlaceholderObserver: is_dynamic must be True, found {is_dynamic!r}")

    def observe(self, x: Tensor) -> None:
        pass

    def has_data(self) -> bool:
        return False

    def reset_min_max_vals(self) -> None:
        pass

    def take_over(self, other: ObserverBase) -> None:
        pass

    def share(self, processes: Processes) -> None:
        pass
