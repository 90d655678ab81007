"""The instruction sets that have kernels. The widest that this processor has and that passes a self-test is used.

    avx512_vnni   512-bit vectors, 32 of them; vpdpbusd: 64 products of a uint8 and an int8, exact in int32
    avx2          256-bit vectors, 16 of them; vpmaddwd: 16 products of two int16, exact in int32
    portable      128-bit vectors in portable LLVM IR, for ARM and other processors

No set uses a product that can saturate, as vpmaddubsw does for 8-bit operands.
`TRITONQ_CPU` chooses another set than the widest, or `off`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform

#: The environment variable that chooses an instruction set.
VARIABLE = "TRITONQ_CPU"
OFF = "off"


@dataclasses.dataclass(frozen=True, eq=False)
class Instructions:
    """An instruction set.

    Attributes:
        name: see the module.
        lanes: 32-bit numbers in a vector.
        needs: LLVM's names of the features without which it is not there.
        without: how the names of features begin that are not used, although the processor may have them.
    """

    name: str
    lanes: int
    needs: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def many_registers(self) -> bool:
        """32 vector registers rather than 16."""
        return self.name != "avx2"


#: Not LLVM's: float16 is converted by instructions, not by functions that LLVM would look for.
_HALF = "half"
_AVX2 = ("avx2", "fma", "f16c")
AVX512_VNNI = Instructions(
    "avx512_vnni", 16, (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
)
AVX2 = Instructions("avx2", 8, _AVX2, without=("avx512", "avxvnni", "avx10", "amx", "evex"))
PORTABLE = Instructions("portable", 4, (_HALF,))
SETS = (AVX512_VNNI, AVX2, PORTABLE)


@functools.cache
def features() -> frozenset[str]:
    """LLVM's names of what this processor can do, and `_HALF`."""
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    names = {name for name, there in found.items() if there}
    if platform.machine().lower() in ("arm64", "aarch64") or "f16c" in names:
        names.add(_HALF)
    return frozenset(names)


def candidates() -> tuple[Instructions, ...]:
    """The sets that this processor has and the user allows, the widest first."""
    wanted = os.environ.get(VARIABLE, "")
    known = [OFF, *(instructions.name for instructions in SETS)]
    if wanted and wanted not in known:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(known)}, found {wanted!r}")
    return tuple(
        instructions
        for instructions in SETS
        if wanted in ("", instructions.name) and features().issuperset(instructions.needs)
    )
