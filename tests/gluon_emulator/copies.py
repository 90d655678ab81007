"""TMA: tensor descriptors, and copies between global and shared memory that happen later."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .barriers import barrier_at
from .errors import EmulationError, source_line
from .global_memory import GlobalMemory
from .partitions import EARLIER_KERNELS, Partition
from .registers import Registers, Type, integer
from .schedule import Operation
from .shapes import integers
from .shared_memory import SharedView


class Descriptor:
    """A tensor in global memory, seen in blocks: what lies outside of it reads as zero, and is not written."""

    def __init__(self, address: int, tensor: Tensor, block_shape: tuple[int, ...], fill: float = 0) -> None:
        width = tensor.element_size()
        if address % 16 or any(stride * width % 16 for stride in tensor.stride()[:-1]):
            raise EmulationError(
                f"TMA wants 16-byte addresses and strides, found {list(tensor.stride())} × {width}"
            )
        if tensor.stride(-1) != 1:
            raise EmulationError("TMA wants a contiguous last dimension")
        if block_shape[-1] * width < 16:
            raise EmulationError(
                f"TMA wants blocks of 16 bytes or more in the last dimension, found {block_shape}"
            )
        self.address = address
        self.tensor = tensor
        self.block_shape = block_shape
        self.fill = fill

    def read(self, corner: list[int]) -> Tensor:
        """The block at a corner."""
        block = torch.full(self.block_shape, self.fill, dtype=self.tensor.dtype)
        inside, part = self._common(corner)
        block[part] = self.tensor[inside]
        return block

    def write(self, corner: list[int], block: Tensor) -> None:
        """Replace the block at a corner."""
        inside, part = self._common(corner)
        self.tensor[inside] = block[part]

    def _common(self, corner: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What tensor and block have in common: (slices of the tensor, slices of the block)."""
        inside, part = [], []
        for start, size, block in zip(corner, self.tensor.shape, self.block_shape, strict=True):
            low = min(max(start, 0), size)
            high = max(min(start + block, size), low)
            inside.append(slice(low, high))
            part.append(slice(low - start, high - start))
        return tuple(inside), tuple(part)


class CopyOperations:
    """The part of the builder that copies by TMA."""

    partition: Partition
    memory: GlobalMemory

    def get_tensor_descriptor_layout_type(self, block: Type, is_signed: bool, layout: Any) -> Type:
        return Type(block.dtype, block.shape, layout)

    def create_make_tensor_descriptor(
        self, type_: Type, base: Registers, shape: list[Registers], strides: list[Registers], padding: Any
    ) -> Descriptor:
        assert base.pointee is not None
        address = integer(base)
        tensor = self.memory.view(address, base.pointee, integers(shape), integers(strides))
        return Descriptor(address, tensor, type_.shape, float("nan") if "NAN" in str(padding) else 0)

    def create_async_tma_copy_global_to_local(
        self,
        source: Descriptor,
        coordinates: list[Registers],
        barrier_view: SharedView,
        target: SharedView,
        predicate: Registers,
        multicast: bool = False,
        *hints: Any,
    ) -> None:
        if not bool(predicate.data):
            return
        if multicast:
            raise NotImplementedError("the Gluon emulator knows no clusters, and so no multicast")
        by, program = self.partition, self.partition.program
        program.schedule.switch()
        corner = self._check_copy(source, coordinates, target, is_write=False)
        barrier = barrier_at(barrier_view)
        epoch = barrier.transaction()
        target.record(by, "a TMA load", is_write=True, epoch=epoch)
        target.poison()
        count = math.prod(source.block_shape) * source.tensor.element_size()

        def happen() -> None:
            program.loads.remove(operation)
            target.data.copy_(source.read(corner))
            barrier.receive(epoch, count)

        operation = Operation(happen)
        program.loads.append(operation)
        program.schedule.add(operation)
        program.schedule.switch()

    def create_async_tma_copy_local_to_global(
        self, target: Descriptor, coordinates: list[Registers], source: SharedView, *hints: Any
    ) -> None:
        by, program = self.partition, self.partition.program
        program.schedule.switch()
        corner = self._check_copy(target, coordinates, source, is_write=True)
        source.record(by, "a TMA store", is_write=False, epoch=by.stores.next_epoch())
        by.stores.add(Operation(lambda: target.write(corner, source.data.clone()), by.stores))
        program.schedule.switch()

    def create_async_tma_store_wait(self, outstanding: int, *hints: Any) -> None:
        self.partition.program.schedule.switch()
        self.partition.stores.wait(outstanding)

    def create_fence_async_shared(self, cluster: bool) -> None:
        self.partition.fence()

    def _check_copy(
        self, descriptor: Descriptor, coordinates: list[Registers], shared: SharedView, *, is_write: bool
    ) -> list[int]:
        corner = integers(coordinates)
        if (
            tuple(shared.data.shape) != tuple(descriptor.block_shape)
            or shared.data.dtype != descriptor.tensor.dtype
        ):
            raise EmulationError(
                f"TMA copies {descriptor.tensor.dtype} {list(descriptor.block_shape)}, but {shared.data.dtype} "
                f"{list(shared.data.shape)} is given at {source_line()}"
            )
        if corner[-1] * descriptor.tensor.element_size() % 16:
            raise EmulationError(f"TMA wants 16-byte last coordinates, found {corner} at {source_line()}")
        has_waited = self.partition.clock.covers(EARLIER_KERNELS)
        self.memory.may_touch(descriptor.address, is_write, has_waited)
        return corner
