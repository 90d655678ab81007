"""Small Gluon kernels for the tests of the emulator: right ones, with switches that break them one rule at a time."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

# 3.9 renamed them.
tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
tma_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def copy_kernel(
    source,
    target,
    counter_ptr,
    BYTES: gl.constexpr,
    WAIT: gl.constexpr,
    FENCE: gl.constexpr,
    STORE_WAIT: gl.constexpr,
    PHASE: gl.constexpr,
):
    """target = 2 · source, block by block through shared memory; both are descriptors of the same block shape."""
    registers: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    block = gl.allocate_shared_memory(source.dtype, source.block_shape, source.layout)
    loaded = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(loaded, count=1)
    row = gl.program_id(0) * source.block_shape[0]
    mbarrier.expect(loaded, BYTES)
    tma_load(source, [row, 0], loaded, block)
    if WAIT:
        mbarrier.wait(loaded, PHASE)
    doubled = block.load(registers) * 2
    block.store(doubled)
    if FENCE:
        fence_async_shared()
    tma_store(target, [row, 0], block)
    if STORE_WAIT:
        tma.store_wait(0)
    block.store(doubled)
    tma.store_wait(0)
    mbarrier.invalidate(loaded)
    gl.atomic_add(counter_ptr, 1)


@gluon.jit
def ring_load(
    a, b, slots_a, slots_b, full, empty, steps, row, column, STAGES: gl.constexpr, BREAK: gl.constexpr
):
    BYTES: gl.constexpr = a.block_type.nbytes + b.block_type.nbytes
    K: gl.constexpr = a.block_shape[1]
    for step in range(steps):
        slot = step % STAGES
        turn = step // STAGES
        if BREAK != "no wait for empty slots":
            mbarrier.wait(empty.index(slot), (turn & 1) ^ 1)
        mbarrier.expect(full.index(slot), BYTES)
        tma_load(a, [row, step * K], full.index(slot), slots_a.index(slot))
        tma_load(b, [column, step * K], full.index(slot), slots_b.index(slot))


@gluon.jit
def ring_multiply(
    out, slots_a, slots_b, full, empty, steps, row, column, STAGES: gl.constexpr, BREAK: gl.constexpr
):
    ROWS: gl.constexpr = slots_a.shape[1]
    COLUMNS: gl.constexpr = slots_b.shape[1]
    warps: gl.constexpr = gl.num_warps()
    INNER: gl.constexpr = 256 // slots_a.dtype.primitive_bitwidth
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, COLUMNS, INNER])
    acc_type: gl.constexpr = gl.int32 if slots_a.dtype == gl.int8 else gl.float32
    acc = gl.zeros([ROWS, COLUMNS], acc_type, layout)
    slot = 0
    previous = slot
    for step in range(steps):
        turn = step // STAGES
        if BREAK == "wrong phase":
            mbarrier.wait(full.index(slot), (turn & 1) ^ 1)
        else:
            mbarrier.wait(full.index(slot), turn & 1)
        acc = warpgroup_mma(slots_a.index(slot), slots_b.index(slot).permute((1, 0)), acc, is_async=True)
        if BREAK == "early release":
            mbarrier.arrive(empty.index(slot))
        acc = warpgroup_mma_wait(1, deps=[acc])
        # The product before this one is over, and its slot free.
        if BREAK != "early release":
            if BREAK == "release of the running one":
                mbarrier.arrive(empty.index(slot))
            elif BREAK == "never released":
                pass
            elif BREAK == "the slot is not carried":
                mbarrier.arrive(empty.index(previous), pred=step > 0)
            else:
                mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=step > 0)
        previous = slot
        slot = (slot + 1) % STAGES
    if BREAK != "no last wait":
        acc = warpgroup_mma_wait(0, deps=[acc])
    stage = gl.allocate_shared_memory(out.dtype, out.block_shape, out.layout)
    stage.store(acc.to(out.dtype))
    fence_async_shared()
    tma_store(out, [row, column], stage)
    tma.store_wait(0)


@gluon.jit
def ring_kernel(a, b, out, steps, STAGES: gl.constexpr, BREAK: gl.constexpr):
    """out [M, N] = a [M, K] · b [N, K]ᵀ: one worker loads, the default partition multiplies."""
    ROWS: gl.constexpr = a.block_shape[0]
    COLUMNS: gl.constexpr = b.block_shape[0]
    slots_a = gl.allocate_shared_memory(a.dtype, [STAGES, ROWS, a.block_shape[1]], a.layout)
    slots_b = gl.allocate_shared_memory(b.dtype, [STAGES, COLUMNS, b.block_shape[1]], b.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    row = gl.program_id(0) * ROWS
    column = gl.program_id(1) * COLUMNS
    gl.warp_specialize(
        [
            (ring_multiply, (out, slots_a, slots_b, full, empty, steps, row, column, STAGES, BREAK)),
            (ring_load, (a, b, slots_a, slots_b, full, empty, steps, row, column, STAGES, BREAK)),
        ],
        [1],
        [24],
    )


@triton.jit
def halves_of(x, SCALE: triton.language.constexpr):
    """A helper of plain Triton."""
    return x // 2, x % 2 * SCALE


@gluon.jit
def arithmetic_kernel(x_ptr, y_ptr, n, COUNT: gl.constexpr):
    """What integers, floats and shapes do: y int32 [6, COUNT] of x int32 [COUNT]."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    wide: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [4, 1], [1, 0])
    i = gl.arange(0, COUNT, layout)
    x = gl.load(x_ptr + i, mask=i < n, other=0)
    quotient, rest = halves_of(x, 3)
    gl.store(y_ptr + i, quotient)
    gl.store(y_ptr + COUNT + i, rest)
    gl.store(y_ptr + 2 * COUNT + i, (x.to(gl.float32) * 0.75).to(gl.int8).to(gl.int32))
    gl.store(y_ptr + 3 * COUNT + i, (x >> 1) + (x.to(gl.uint32, bitcast=True) >> 28).to(gl.int32))
    pair = gl.join(x, -x)
    largest = gl.max(gl.convert_layout(pair, wide), axis=1)
    gl.store(y_ptr + 4 * COUNT + i, gl.convert_layout(largest, layout))
    total = gl.sum(x, axis=0)
    if total > 0 and n > 1:
        total = -total
    gl.store(y_ptr + 5 * COUNT + i, gl.where(x > 0, total, x * 2147483647))


@gluon.jit
def dependent_kernel(weight_ptr, x_ptr, y_ptr, WAIT: gl.constexpr):
    weight = gl.load(weight_ptr)
    if WAIT:
        gdc_wait()
    gl.store(y_ptr, weight * gl.load(x_ptr))
