"""What a Gluon kernel means by its source and the compiler may read otherwise, read off the compiler's IR (TTGIR).

a loop's barriers     Python's loops carry every variable; Triton's those that it sees change. One that was another name
                      of the same value, before the loop and in it, is not carried: each round then arrives at the
                      barrier of the round before the first
a transposed view     of shared memory without swizzle: the compiler takes it for row after row, transposed or not
"""

from __future__ import annotations

import re

_BARRIERS = r"ttng\.(?:wait_barrier|arrive_barrier|barrier_expect)\b"
_VALUE = r"%[\w$.-]+"
_LOCATION = r"""\s*\bloc\((?:[^()"]|"[^"]*"|\([^()]*\))*\)"""


def misread(ttgir: str) -> list[str]:
    """Barriers in loops that no loop variable chooses, and transposed views without swizzle, in words."""
    return _fixed_barriers(ttgir) + _transposed(ttgir)


def _fixed_barriers(ttgir: str) -> list[str]:
    found = []
    # For each open brace, outermost first: the values that depend on a loop's variables; None where it is no loop's.
    open_braces: list[set[str] | None] = []
    for line in ttgir.splitlines():
        code = re.sub(_LOCATION, "", line).strip()
        if code.startswith("}"):
            open_braces.pop()
        loops = [dependent for dependent in open_braces if dependent is not None]
        result, _, operation = code.partition(" = ") if code.startswith("%") else ("", "", code)
        used = re.findall(_VALUE, operation)
        if re.match(_BARRIERS, operation) and loops and used[0] not in loops[-1]:
            found.append(f"in a loop, always the same barrier: {code[:80]}")
        for dependent in loops:
            names = re.findall(_VALUE, result)
            if any(name in dependent for name in used):
                dependent.update(names)
            else:
                dependent.difference_update(names)
        if code.startswith("^bb") and open_braces and open_braces[-1] is not None:
            open_braces[-1].update(re.findall(_VALUE, code))
        if code.endswith("{"):
            open_braces.append(_variables_of(code))
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
