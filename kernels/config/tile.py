"""Which output tile a program computes, and the shapes that tiles take.

All products here put the weight on the left: outᵀ [N, M] = W [N, K] · xᵀ [K, M]. At small M the 64 rows that a matrix
instruction wants are then rows of the weight, and a weight unpacked in registers is already where the left operand is.
"""

from __future__ import annotations

import dataclasses

import triton
import triton.language as tl

from ..launch.target import Target

#: Of shared memory, for what Triton keeps there besides the pipeline's buffers.
_RESERVED_BYTES = 8192


@dataclasses.dataclass(frozen=True)
class TileConfig:
    """One configuration of a matmul kernel.

    Attributes:
        block_n: rows of the weight per program.
        block_m: rows of x per program.
        block_k: columns of K per load (a hint: kernels with slabs take the slab's).
        splits: programs that share the K of one tile.
        num_warps, num_stages: Triton's launch options.
        path: which kernel of the family: "pointers" (plain Triton, every GPU), "descriptors" (plain Triton, tiles
            brought by the tensor copy engine), "hopper" (Gluon, warp-specialized, compute capability 9.0; num_warps
            are those that multiply, num_stages the depth of the ring). Of the dynamic families: "quantizing" (x is
            quantized inside of the launch), "apart" (in one before; the product has a configuration of its own).
        max_registers: per thread, None for the compiler's choice.
    """

    block_n: int
    block_m: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int
    path: str = "pointers"
    max_registers: int | None = None

    @property
    def launch_options(self) -> dict[str, int]:
        """What Triton's launch is told: warps, stages, and the limit of registers where there is one."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.max_registers is None else {**options, "maxnreg": self.max_registers}

    def tiles(self, rows: int, columns: int) -> int:
        """Tiles of an [N = rows, M = columns] output."""
        return triton.cdiv(rows, self.block_n) * triton.cdiv(columns, self.block_m)


#: Of a dynamic family: two launches, and the product has a configuration of its own. These numbers mean nothing.
APART = TileConfig(64, 16, 64, 1, 4, 2, "apart")


def stages_that_fit(target: Target, bytes_per_stage: int, wanted: int) -> int:
    """The deepest software pipeline ≤ `wanted` whose buffers fit in shared memory; 1 where not even two do.

    Where a product reads its operands from registers (before Hopper, and on AMD), the oldest stage has left shared
    memory when the newest comes in: one buffer less.
    """
    in_registers = int(target.arch < 90)
    return max(1, min(wanted, (target.shared_memory - _RESERVED_BYTES) // bytes_per_stage + in_registers))


@triton.jit
def tile_of_program(program, N, M, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """(tile row along N, tile column along M), in bands of GROUP tile rows, so that neighbours share operands in L2."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    band = program // (GROUP * tiles_m)
    first_n = band * GROUP
    band_height = tl.minimum(tiles_n - first_n, GROUP)
    within = program % (GROUP * tiles_m)
    return first_n + within % band_height, within // band_height
