"""The errors that the emulator finds in kernels, one class per kind, so that tests can expect it."""

from __future__ import annotations


class EmulationError(Exception):
    """A kernel does something that fails on a GPU or is undefined there."""


class RaceError(EmulationError):
    """Nothing orders two accesses to shared memory, of which one writes."""


class FenceError(EmulationError):
    """The copy engine or wgmma reads what ordinary stores wrote, with no proxy fence in between."""


class BarrierError(EmulationError):
    """An mbarrier with too many arrivals, more bytes than were expected, or none at all at this address."""


class DeadlockError(EmulationError):
    """All warps wait."""


class UnfinishedError(EmulationError):
    """Registers of a product that still runs are touched, or a kernel ends while something runs."""


class OutOfBoundsError(EmulationError):
    """An access beside all memory that the launch was given, or misaligned."""


class DependentLaunchError(EmulationError):
    """Memory is touched before the kernel in front has ended (programmatic dependent launch)."""


class UnknownInstructionError(EmulationError):
    """The emulator lacks an instruction, or one of its forms."""
