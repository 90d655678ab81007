"""The emulator of tools/ptx_emulator as a GPU: kernels of all kinds run as compiled for it, on CPU tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.support.gluon_ir import misread
from tools.ptx_emulator.launches import emulated_launches

#: Codes of weights, which a kernel may read while the kernel before it still runs; nothing else (hopper/producer.py).
WEIGHTS = ("w_desc", "up_desc")
#: Compute capability times ten → bytes of shared memory.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


@contextlib.contextmanager
def emulated_gpu(architecture: int, seed: int = 0, multiprocessors: int = 4) -> Iterator[None]:
    """Meanwhile CPU tensors lie on a small GPU: few multiprocessors, so that programs take several tiles."""
    from tritonq.kernels.launch.target import Target, pretended

    target = Target("cuda", architecture, multiprocessors, SHARED_MEMORY[architecture])
    with pretended(target), emulated_launches(architecture, seed, WEIGHTS) as emulated:
        yield
    problems = [problem for ir in emulated.gluon_ir for problem in misread(ir)]
    assert not problems, "\n".join(problems)
