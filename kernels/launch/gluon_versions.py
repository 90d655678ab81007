"""One name for each Gluon function whose name differs between Triton 3.6 and 3.9.

Gluon is Triton's experimental lower level: tensors have explicit layouts, and a kernel decides which warps copy, which
multiply, and when they wait for each other. The other functions that Hopper's kernels use have the same names in all
versions: `mbarrier`, `warpgroup_mma`, `warp_specialize`, `NVMMASharedLayout`, `TensorDescriptor`.
"""

from __future__ import annotations

import importlib.util

import triton

#: Versions of Triton in which Hopper's kernels compile. In others every product runs in plain Triton.
_KNOWN = ((3, 6), (3, 9))


def _is_available() -> bool:
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return (
        _KNOWN[0] <= version <= _KNOWN[1]
        and importlib.util.find_spec("triton.experimental.gluon") is not None
    )


#: True where `kernels.hopper` can be imported and compiled.
AVAILABLE = _is_available()

if AVAILABLE:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import tma
    from triton.language.extra import cuda

    #: Tile in global memory → shared memory, by the copy engine. Renamed in 3.8; the old name is an error in 3.9.
    load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
    #: Shared memory → tile in global memory.
    store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
    #: All warps of the partition that calls it. Renamed in 3.7.
    barrier = getattr(gl, "barrier", None) or gl.thread_barrier
    #: Programmatic dependent launch: lets the next kernel start on a free multiprocessor.
    allow_next_kernel = cuda.gdc_launch_dependents
    #: Waits until the previous kernel has ended and its writes are visible.
    wait_for_previous_kernel = cuda.gdc_wait
