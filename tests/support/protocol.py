"""What must stand between two instructions of a kernel whose warps work apart, read off its PTX.

Gluon leaves to the compiler that a partition of several warps acts as one: that all of them have read a slot before one
thread says so, and have written, and fenced, what one thread has copied out. The emulator (tools/ptx_emulator) finds
where that goes wrong on the way that a launch takes; here every instruction is looked at.
"""

from __future__ import annotations

import itertools
import re

_EVENTS = {
    "barrier": r"\b(?:bar|barrier)\.sync\s+\d+",
    "fence": r"\bfence\.proxy\.async",
    "init": r"\bmbarrier\.init\b",
    "arrive": r"\bmbarrier\.arrive\.(?!expect_tx)",
    "copy out": r"\bcp\.async\.bulk\.tensor\S*\.global\.shared",
    "wait for copies": r"\bcp\.async\.bulk\.wait_group",
    "access": r"\b(?:ld|st)\.shared|\bldmatrix|\bstmatrix|\bwgmma\.",
    "wait": r"\bmbarrier\.try_wait",
}
#: Event → what the events before it must end with, the latest last.
_BEFORE = {"arrive": ["barrier"], "copy out": ["fence", "barrier"]}
#: Event → what must be next, other than these.
_BEHIND = {"wait for copies": ("barrier", ()), "init": ("fence", ("init", "barrier"))}


def unguarded(ptx: str) -> list[str]:
    """Where a barrier or a fence is missing, in words; the copies of one tile count as one."""
    events: list[str] = []
    for line in ptx.splitlines():
        name = next((name for name, pattern in _EVENTS.items() if re.search(pattern, line)), None)
        if name is not None and not (name == "copy out" and events[-1:] == [name]):
            events.append(name)
    found = []
    for place, event in enumerate(events):
        before = _BEFORE.get(event, [])
        if events[max(0, place - len(before)) : place] != before:
            found.append(f"{event} behind {events[max(0, place - 2) : place]}, not {before}")
        if event in _BEHIND:
            wanted, passed = _BEHIND[event]
            behind = next((name for name in events[place + 1 :] if name not in passed), None)
            if behind != wanted:
                found.append(f"{event} before {behind}, not {wanted}")
    between_kernels = re.findall(r"\bgriddepcontrol\.(wait|launch_dependents)", ptx)
    for before, then in itertools.pairwise(["", *between_kernels]):
        if then == "launch_dependents" and before != "wait":  # kernels/hopper/producer.py says why
            found.append("the next kernel is allowed in before the one before has ended")
    return found
