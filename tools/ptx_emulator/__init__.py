"""Executes PTX on a CPU: what Triton and Gluon compiled, values and protocol alike (README.md)."""

from .copies import TensorMap
from .errors import (
    BarrierError,
    DeadlockError,
    DependentLaunchError,
    EmulationError,
    FenceError,
    OutOfBoundsError,
    RaceError,
    UnfinishedError,
    UnknownInstructionError,
)
from .global_memory import GlobalMemory, Region
from .machine import Machine

__all__ = [
    "BarrierError",
    "DeadlockError",
    "DependentLaunchError",
    "EmulationError",
    "FenceError",
    "GlobalMemory",
    "Machine",
    "OutOfBoundsError",
    "RaceError",
    "Region",
    "TensorMap",
    "UnfinishedError",
    "UnknownInstructionError",
]
