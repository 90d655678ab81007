"""A builder that executes what Triton's own front end asks it to build.

Gluon's semantic layer (types, promotion, layout checks) runs unchanged, and calls `create_…` methods, which the
compiler would turn into operations. Here each one does its work at once, or puts it under way. What no method knows
raises NotImplementedError by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from .assembly import run_assembly
from .barriers import BarrierOperations
from .copies import CopyOperations
from .errors import source_line
from .global_memory import GlobalMemory
from .global_operations import GlobalOperations
from .layouts import Layout, inferred_shared_layout, layout
from .partitions import EARLIER_KERNELS, Partition
from .products import ProductOperations
from .registers import ElementwiseOperations, Registers, Type, integer
from .schedule import Schedule
from .shapes import ShapeOperations
from .shared_memory import SharedView

#: Part of an assembly's text → what it computes: (operand tensors) -> list of tensors.
AssemblyTwins = dict[str, Callable[..., list[Tensor]]]


class Builder(
    ShapeOperations,
    ElementwiseOperations,
    GlobalOperations,
    BarrierOperations,
    CopyOperations,
    ProductOperations,
):
    """Executes operations for the partition that holds the baton."""

    def __init__(
        self, schedule: Schedule, memory: GlobalMemory, grid: tuple[int, int, int], twins: AssemblyTwins
    ) -> None:
        self.schedule = schedule
        self.memory = memory
        self.grid = grid
        self.options = CUDABackend(GPUTarget("cuda", 90, 32)).parse_options({"enable_fp_fusion": False})
        self.codegen_fns: dict[str, Any] = {}
        self.module_map: dict[str, Any] = {}
        self._twins = twins
        self.polls = 0

    @property
    def partition(self) -> Partition:  # type: ignore[override]
        """Who runs."""
        return self.schedule.current.partition  # type: ignore[attr-defined]

    @property
    def num_warps(self) -> int:  # type: ignore[override]
        """How many warps that is."""
        return self.partition.num_warps

    # Programs

    def create_get_program_id(self, axis: int) -> Registers:
        return Registers(torch.tensor(self.partition.program.ids[axis], dtype=torch.int32))

    def create_get_num_programs(self, axis: int) -> Registers:
        return Registers(torch.tensor(self.grid[axis], dtype=torch.int32))

    def create_barrier(self, *arguments: Any) -> None:
        """The warps of a partition run in step here."""
        self.schedule.switch()

    def create_fence_mbarrier_init_release_cluster(self) -> None:
        """There are no other programs in the cluster."""

    def create_cluster_barrier(self, *arguments: Any) -> None:
        self.schedule.switch()

    create_cluster_arrive = create_cluster_wait = create_cluster_barrier

    # The kernels before and after this one

    def create_grid_dependency_wait(self) -> None:
        """The kernels before this one have ended."""
        self.schedule.switch()
        self.partition.clock.learn(EARLIER_KERNELS.component, EARLIER_KERNELS.step)

    def create_grid_dependency_launch_dependents(self) -> None:
        """A hint: nothing runs after this one here."""

    # Shared memory

    def get_shared_mem_desc_ty(
        self, element: Type, shape: list[int], layout_: Layout, allocated: Any
    ) -> Type:
        return Type(element.dtype, tuple(shape), layout_)

    def get_nvmma_shared_layout(self, *arguments: Any) -> Layout:
        return layout("get_nvmma_shared_layout", *arguments)

    def get_swizzled_shared_layout(self, *arguments: Any) -> Layout:
        return layout("get_swizzled_shared_layout", *arguments)

    def get_padded_shared_layout(self, *arguments: Any) -> Layout:
        return layout("get_padded_shared_layout", *arguments)

    def get_shared_linear_layout(self, *arguments: Any) -> Layout:
        return layout("get_shared_linear_layout", *arguments)

    def get_gluon_layout_from_memdesc(self, view: SharedView) -> Any:
        return view.gluon_layout

    def create_local_alloc(self, type_: Type, value: Registers | None = None) -> SharedView:
        view = SharedView.allocate(type_.dtype, type_.shape, type_.layout)
        if value is not None:
            self.create_local_store(view, value)
        return view

    def create_local_dealloc(self, view: SharedView) -> None:
        """Keeps it alive until here, which it is anyway."""

    def create_local_load(self, type_: Type, view: SharedView) -> Registers:
        self.schedule.switch()
        view.record(self.partition, "a load", is_write=False)
        return Registers(view.data.clone(), type_.layout)

    def create_local_store(self, view: SharedView, value: Registers) -> None:
        self.schedule.switch()
        view.record(self.partition, "a store", is_write=True)
        view.data.copy_(value.data)

    def create_memdesc_index(self, type_: Type, view: SharedView, index: Registers) -> SharedView:
        position = integer(index)
        if not 0 <= position < view.data.shape[0]:
            raise IndexError(f"index {position} of {view.data.shape[0]} buffers at {source_line()}")
        return view.view(view.data[position], view.layout)

    def create_memdesc_subslice(self, type_: Type, view: SharedView, offsets: list[int]) -> SharedView:
        ends = (start + size for start, size in zip(offsets, type_.shape, strict=True))
        return view.sliced(
            view.data[tuple(slice(start, end) for start, end in zip(offsets, ends, strict=True))]
        )

    def create_memdesc_trans(self, view: SharedView, order: list[int]) -> SharedView:
        turned = self._with_shared_layout(
            "create_memdesc_trans", view, view.data.permute(*order), tuple(order)
        )
        turned.whole_shape = tuple(view.whole_shape[axis] for axis in order)
        return turned

    def create_memdesc_reshape(self, view: SharedView, shape: list[int]) -> SharedView:
        return self._with_shared_layout("create_memdesc_reshape", view, view.data.view(shape), tuple(shape))

    def create_memdesc_reinterpret(self, type_: Type, view: SharedView) -> SharedView:
        return view.reinterpreted(type_.dtype, type_.shape, type_.layout)

    def _with_shared_layout(
        self, operation: str, view: SharedView, data: Tensor, *arguments: Any
    ) -> SharedView:
        assert view.layout is not None
        bits = 8 * view.data.element_size()
        found = inferred_shared_layout(operation, view.layout, bits, view.whole_shape, *arguments)
        return view.view(data, found._to_ir(self), found)

    # Assembly

    def create_inline_asm(
        self,
        assembly: str,
        constraints: str,
        values: list[Registers],
        types_: list[Type],
        pure: bool,
        pack: int,
    ) -> Any:
        if assembly.startswith("griddepcontrol."):  # as Triton before 3.9 writes it
            if assembly.startswith("griddepcontrol.wait"):
                self.create_grid_dependency_wait()
            return _Results([Registers(torch.zeros((), dtype=torch.int32))])
        twin = next((twin for text, twin in self._twins.items() if text in assembly), None)
        inputs = [value.data for value in values]
        if twin is not None:
            results = twin(*inputs)
        else:
            results = run_assembly(assembly, inputs, [type_.dtype for type_ in types_], pack)
        layout_ = values[0].layout if values else None
        return _Results([Registers(result, layout_) for result in results])


class _Results:
    """What the front end takes for an operation with results."""

    def __init__(self, results: list[Registers]) -> None:
        self._results = results

    def get_result(self, index: int) -> Registers:
        return self._results[index]
