"""A functional emulator of Gluon on Hopper: values and the asynchronous protocol, on a CPU.

`emulate(kernel, grid, *args, seed=…)` runs an unmodified `@gluon.jit` kernel. Gluon's own front end runs as when it
compiles, on a builder that executes (builder.py); kernels are rewritten to call it (rewrite.py, interpreter.py).
Partitions of warps are tasks that pass a baton; asynchronous copies and products happen late, in a random order drawn
from the seed (schedule.py); vector clocks find accesses that nothing orders, in whatever schedule (clocks.py,
shared_memory.py).

Not emulated: time, registers, bank conflicts, clusters and multicast, assembly beyond a few instructions (assembly.py),
layouts beyond Gluon's own checks. Races of programs on global memory are found only by their values, with
`concurrent=True`.
"""

from .errors import (
    BarrierError,
    DeadlockError,
    DependentLaunchError,
    EmulationError,
    FenceError,
    OutOfBoundsError,
    RaceError,
    UnfinishedError,
)
from .launching import emulate, emulated_launches

__all__ = [
    "BarrierError",
    "DeadlockError",
    "DependentLaunchError",
    "EmulationError",
    "FenceError",
    "OutOfBoundsError",
    "RaceError",
    "UnfinishedError",
    "emulate",
    "emulated_launches",
]
