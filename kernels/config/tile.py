"""The shape of a tile, and the output tile that a program computes.

All products put the weight on the left: outᵀ [N, M] = W [N, K] · xᵀ [K, M]. Then the 64 rows of a matrix instruction
are rows of the weight, which suits small M. And a weight that was unpacked in registers is already in place, because
the left operand may be in registers.
"""

from __future__ import annotations

import dataclasses

import triton
import triton.language as tl

from ..launch.target import Target

#: Shared memory that Triton needs besides the pipeline's buffers.
_RESERVED_BYTES = 8192


@dataclasses.dataclass(frozen=True)
class TileConfig:
    """One configuration of a matmul kernel.

    Attributes:
        block_n: rows of the weight per program.
        block_m: rows of x per program.
        block_k: columns of K per step; kernels with slabs require that of the weight's layout.
        splits: programs that share the K of one tile.
        num_warps, num_stages: Triton's launch options.
        path: the kernel of the family: "pointers" (plain Triton, every GPU), "descriptors" (plain Triton; the tensor
            copy engine loads tiles), "hopper" (Gluon, warp-specialized, compute capability 9.0; num_warps counts the
            warps that multiply, num_stages the slots of the ring). For dynamic families: "quantizing" (x is quantized
            inside of the launch) or "apart" (in a launch before; the product has a separate configuration).
        max_registers: per thread; None leaves it to the compiler.
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
        """Triton's launch options: warps, stages, and the register limit if there is one."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.max_registers is None else {**options, "maxnreg": self.max_registers}

    def tiles(self, rows: int, columns: int) -> int:
        """Tiles of an [N = rows, M = columns] output."""
        return triton.cdiv(rows, self.block_n) * triton.cdiv(columns, self.block_m)


#: For a dynamic family: two launches; the product has a separate configuration. These numbers are not used.
APART = TileConfig(64, 16, 64, 1, 4, 2, "apart")


def stages_that_fit(target: Target, bytes_per_stage: int, wanted: int) -> int:
    """The deepest software pipeline ≤ `wanted` whose buffers fit in shared memory; 1 if not even two fit.

    Before Hopper, and on AMD, a product reads its operands from registers. The oldest stage has then left shared memory
    when the newest one arrives, so the pipeline needs one buffer less.
    """
    in_registers = int(target.arch < 90)
    return max(1, min(wanted, (target.shared_memory - _RESERVED_BYTES) // bytes_per_stage + in_registers))


@triton.jit
def tile_of_program(program, N, M, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """(tile row along N, tile column along M), in bands of GROUP tile rows: neighbours share operands in L2."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    band = program // (GROUP * tiles_m)
    first_n = band * GROUP
    band_height = tl.minimum(tiles_n - first_n, GROUP)
    within = program % (GROUP * tiles_m)
    return first_n + within % band_height, within // band_height
