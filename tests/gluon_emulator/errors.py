"""What the emulator complains about, and where in the kernel's source it happened."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType

#: In the globals of every function that runs emulated: how its frames are told from all others.
MARK = "__emulated__"


class EmulationError(RuntimeError):
    """A kernel did what its hardware would not survive, or what would be lost there."""


class RaceError(EmulationError):
    """Two accesses of the same memory, one of them a write, that nothing orders."""


class FenceError(EmulationError):
    """Ordinary stores are read through the asynchronous proxy without a fence in between."""


class BarrierError(EmulationError):
    """An mbarrier is used against its rules: not initialized, too many arrivals, wrong byte count."""


class UnfinishedError(EmulationError):
    """The result of an asynchronous operation is used, or its end ignored, before a wait covers it."""


class DeadlockError(EmulationError):
    """All warps wait, and nothing is under way that could wake one."""


class OutOfBoundsError(EmulationError):
    """Global memory outside of the tensors that the kernel was given."""


class DependentLaunchError(EmulationError):
    """Memory that an earlier kernel may still write is touched before `gdc_wait`."""


def source_line() -> str:
    """`file:line in function` for the innermost lines of kernel code that are running, innermost first."""
    frames = list(_emulated_frames(sys._getframe()))
    if not frames:
        return "outside of the kernel"
    return " < ".join(
        f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
        for frame in frames[:3]
    )


def _emulated_frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if MARK in frame.f_globals:
            yield frame
        frame = frame.f_back
