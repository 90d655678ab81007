"""wgmma: products that read shared memory later, and accumulators that are not there before a wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import EmulationError, source_line
from .partitions import Partition
from .registers import Registers
from .schedule import Operation
from .shared_memory import SharedView

#: Sums of this many int8 products are exact in float32: 2¹⁴ · 2¹⁰ = 2²⁴.
_EXACT_K = 1024


class ProductOperations:
    """The part of the builder that issues wgmma and waits for it."""

    partition: Partition

    def create_warpgroup_mma(
        self,
        a: Registers | SharedView,
        b: SharedView,
        accumulator: Registers,
        use_accumulator: Registers,
        precision: Any,
        imprecise: int,
        is_async: bool,
    ) -> Registers:
        by, schedule = self.partition, self.partition.program.schedule
        schedule.switch()
        self._check_product(a, b, accumulator)
        epoch = by.products.next_epoch()
        for operand in (a, b):
            if isinstance(operand, SharedView):
                operand.record(by, "a warpgroup_mma", is_write=False, epoch=epoch)
        left = a if isinstance(a, SharedView) else a.data
        keeps = bool(use_accumulator.data)
        result = accumulator.like(accumulator.value)  # until it happens

        def happen() -> None:
            product = _product(left.data, b.data, accumulator.value.dtype)
            # The accumulator may itself be under way: it is in the same queue, and so it is there now.
            result.value = accumulator.value + product if keeps else product

        result.pending = by.products.add(Operation(happen, by.products))
        if not is_async:
            by.products.wait(0)
        schedule.switch()
        return result

    def create_warpgroup_mma_wait(self, values: list[Any], outstanding: int) -> list[Any]:
        self.partition.program.schedule.switch()
        self.partition.products.wait(outstanding)
        return values

    def _check_product(self, a: Registers | SharedView, b: SharedView, accumulator: Registers) -> None:
        (rows, inner), (inner_b, columns) = (
            (a.data if isinstance(a, SharedView) else a.value).shape,
            b.data.shape,
        )
        where = f"at {source_line()}"
        if tuple(accumulator.value.shape) != (rows, columns) or inner != inner_b:
            raise EmulationError(
                f"warpgroup_mma of [{rows}, {inner}] and [{inner_b}, {columns}] into "
                f"{list(accumulator.value.shape)} {where}"
            )
        if self.partition.num_warps % 4:
            raise EmulationError(f"warpgroup_mma in a partition of {self.partition.num_warps} warps {where}")
        if accumulator.layout is None or accumulator.layout.method != "get_mma_layout":
            raise EmulationError(f"warpgroup_mma wants an accumulator in an NVMMADistributedLayout {where}")
        if isinstance(a, Registers) and (a.layout is None or a.layout.method != "get_dot_operand_layout"):
            raise EmulationError(f"warpgroup_mma wants a left operand in a DotOperandLayout {where}")
        for operand, is_transposed in ((a, False), (b, True)):
            if isinstance(operand, SharedView):
                _check_shared(operand, is_transposed, where)


def _check_shared(operand: SharedView, is_transposed: bool, where: str) -> None:
    """An operand in shared memory is swizzled for wgmma, and lies along K where its elements are bytes."""
    if operand.layout is None or operand.layout.method != "get_nvmma_shared_layout":
        raise EmulationError(f"warpgroup_mma wants shared operands in an NVMMASharedLayout {where}")
    if operand.data.element_size() == 1 and operand.layout.arguments[2] != is_transposed:
        raise EmulationError(f"warpgroup_mma wants 8-bit operands contiguous along K {where}")


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, exact for integers, summed in float32 or better for floats."""
    wide = torch.float32 if dtype.is_floating_point or a.shape[1] <= _EXACT_K else torch.float64
    return (a.to(wide) @ b.to(wide)).to(dtype)
