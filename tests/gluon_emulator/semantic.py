"""Gluon's semantic layer on the executing builder: what it would build as regions is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language import _core as core
from triton.experimental.gluon.language._semantic import GluonSemantic

from .builder import Builder
from .partitions import Partition
from .registers import Registers
from .schedule import Task

if TYPE_CHECKING:
    from .interpreter import Interpreter


class Semantic(GluonSemantic):
    """Types and checks as in Triton; partitions, reductions and scans run here."""

    builder: Builder

    def num_warps(self, generator: Any) -> Any:
        return core.constexpr(self.builder.num_warps)

    def num_ctas(self) -> Any:
        return core.constexpr(1)

    def warp_specialize(
        self, functions_and_args: Any, worker_num_warps: Any, worker_num_regs: Any, generator: Interpreter
    ) -> Any:
        """Start a task for each worker, run the default partition in this one, and wait for all of them."""
        (default, default_args), *workers = functions_and_args
        if len(workers) != len(worker_num_warps):
            raise ValueError(
                f"{len(workers)} worker partitions, but {len(worker_num_warps)} numbers of warps"
            )
        schedule, parent = self.builder.schedule, self.builder.partition
        parent.tick()
        tasks = []
        for position, ((function, args), warps) in enumerate(zip(workers, worker_num_warps, strict=True)):
            name = f"{parent.name}/worker {position} ({function.__name__})"
            task = PartitionTask(Partition(parent.program, name, warps, parent), generator, function, args)
            tasks.append(task)
            schedule.start(task)
        schedule.switch()
        result = generator.call_JitFunction(default, default_args, {})
        for task in tasks:
            schedule.wait(task.has_ended, task.its_end)
            parent.join(task.partition)
        return result

    def reduction(self, inputs: Any, axis: int | None, make_region: Any) -> Any:
        """Halves are combined until one element is left."""
        if axis is None:
            inputs = tuple(self.reshape(x, [x.numel.value], can_reorder=False) for x in inputs)
            axis = 0
        self._check_same_layout(inputs)
        shape = [int(core._unwrap_if_constexpr(size)) for size in inputs[0].shape]
        handles = [x.handle for x in inputs]
        while handles[0].data.shape[axis] > 1:
            halves = [handle.data.chunk(2, dim=axis) for handle in handles]
            left, right = ([Registers(pair[side], None) for pair in halves] for side in (0, 1))
            handles = self.builder.folded(make_region, left, right)
        kept = [size for position, size in enumerate(shape) if position != axis]
        return tuple(
            self._reduced(x, handle.data.squeeze(axis), kept, axis)
            for x, handle in zip(inputs, handles, strict=True)
        )

    def _reduced(self, x: Any, data: Any, shape: list[int], axis: int) -> Any:
        if not shape:
            return self.tensor(Registers(data, None, x.handle.pointee), x.type.scalar)
        layout = x.type.layout
        if not isinstance(layout, (gl.AutoLayout, gl.CoalescedLayout)):
            layout = gl.SliceLayout(axis, layout)
        type_ = core.distributed_type(x.type.scalar, shape, layout)
        return self.tensor(Registers(data, layout._to_ir(self.builder), x.handle.pointee), type_)

    def associative_scan(self, inputs: Any, axis: int, make_region: Any, reverse: bool) -> Any:
        """Elements are combined one after the other."""
        axis = axis % len(inputs[0].shape)
        handles = [x.handle for x in inputs]
        size = handles[0].data.shape[axis]
        order = range(size - 1, -1, -1) if reverse else range(size)
        results = [handle.data.clone() for handle in handles]
        running: list[Registers] = []
        for position in order:
            here = [Registers(handle.data.select(axis, position)) for handle in handles]
            running = self.builder.folded(make_region, running, here) if running else here
            for result, value in zip(results, running, strict=True):
                result.select(axis, position).copy_(value.data)
        return tuple(
            self.tensor(x.handle.like(result), x.type) for x, result in zip(inputs, results, strict=True)
        )


class PartitionTask(Task):
    """A partition's code, as a task of the schedule."""

    def __init__(
        self, partition: Partition, generator: Interpreter, function: Any, args: Any, kwargs: Any = None
    ) -> None:
        def body() -> Any:
            generator.call_JitFunction(function, args, kwargs or {})
            partition.end()

        super().__init__(partition.name, body)
        self.partition = partition
