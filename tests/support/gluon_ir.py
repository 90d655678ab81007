"""What a Gluon kernel means by its source and the compiler may read otherwise, read off the compiler's IR (TTGIR).

a loop's barriers     Python's loops carry every variable; Triton's those that it sees change. One that was another name
                      of the same value, before the loop and in it, is not carried: each round then arrives at the
                      barrier of the round before the first
a transposed view     of shared memory without swizzle: the compiler takes it for row after row, transposed or not
"""

from __future__ import annotations

import dataclasses
import re

_BARRIERS = r"ttng\.(?:wait_barrier|arrive_barrier|barrier_expect)\b"
_VALUE = r"%[\w$.-]+"
_LOCATION = r"""\s*\bloc\((?:[^()"]|"[^"]*"|\([^()]*\))*\)"""


def misread(ttgir: str) -> list[str]:
    """Barriers in loops that no loop variable chooses, and transposed views without swizzle, in words."""
    return _fixed_barriers(ttgir) + _transposed(ttgir)


@dataclasses.dataclass
class _Block:
    """An open brace.

    Attributes:
        dependent: the values that depend on the loop's variables; None where it is no loop's.
        rounds: barriers that each round waits for, though in another phase: a ring that a round goes through once.
        fixed: the lines on any other barrier that is the same in every round.
    """

    dependent: set[str] | None
    rounds: set[str] = dataclasses.field(default_factory=set)
    fixed: dict[str, str] = dataclasses.field(default_factory=dict)

    def barrier(self, used: list[str], code: str) -> None:
        assert self.dependent is not None
        if used[0] in self.dependent:
            return
        if code.startswith("ttng.wait_barrier") and used[1] in self.dependent:
            self.rounds.add(used[0])
        else:
            self.fixed[used[0]] = code

    def faults(self) -> list[str]:
        """A round that waits for n barriers of a ring may arrive at n others of one."""
        if len(self.fixed) <= len(self.rounds):
            return []
        return [f"in a loop, always the same barrier: {code[:80]}" for code in self.fixed.values()]


def _fixed_barriers(ttgir: str) -> list[str]:
    found = []
    open_braces: list[_Block] = []  # outermost first
    for line in ttgir.splitlines():
        code = re.sub(_LOCATION, "", line).strip()
        if code.startswith("}"):
            found += open_braces.pop().faults()
        loops = [block for block in open_braces if block.dependent is not None]
        result, _, operation = code.partition(" = ") if code.startswith("%") else ("", "", code)
        used = re.findall(_VALUE, operation)
        if re.match(_BARRIERS, operation) and loops:
            loops[-1].barrier(used, operation)
        for block in loops:
            names = re.findall(_VALUE, result)
            assert block.dependent is not None
            if any(name in block.dependent for name in used):
                block.dependent.update(names)
            else:
                block.dependent.difference_update(names)
        if code.startswith("^bb") and open_braces and open_braces[-1].dependent is not None:
            open_braces[-1].dependent.update(re.findall(_VALUE, code))
        if code.endswith("{"):
            open_braces.append(_Block(_variables_of(code)))
    return found


def _variables_of(code: str) -> set[str] | None:
    """A loop's variables, given its first line, or None for what is no loop."""
    if loop := re.search(rf"scf\.for (?:unsigned )?({_VALUE}) = ", code):
        carried = re.search(r"iter_args\((.*?)\)", code)
        return {loop[1], *re.findall(rf"({_VALUE}) = ", carried[1] if carried else "")}
    if loop := re.search(r"scf\.while \((.*?)\)", code):
        return set(re.findall(rf"({_VALUE}) = ", loop[1]))
    return set() if code == "} do {" else None


def _transposed(ttgir: str) -> list[str]:
    plain = re.findall(r"(#\w+) = #ttg\.nvmma_shared<\{swizzlingByteWidth = 0,", ttgir)
    found = []
    for view in re.finditer(r"ttg\.memdesc_trans .*?: (!ttg\.memdesc<[^>]*>)", ttgir):
        if any(re.search(rf"{layout}\b", view[1]) for layout in plain):
            found.append(f"a transposed view of shared memory without swizzle: {view[1]}")
    return found
