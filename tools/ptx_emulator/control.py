"""Control flow: branches, branch tables, exit; and dependent launches, which order kernels."""

from __future__ import annotations

import re
from typing import Any

import networkx  # type: ignore[import-untyped]
import numpy as np

from .decoding import Decoder, Run, instruction, lanes_of
from .errors import DependentLaunchError
from .numbers import Value
from .parser import Instruction, Program
from .strands import LANES


def meetings(program: Program) -> dict[int, int]:
    """Instruction → the first one that all ways from it lead through: where lanes that part meet again."""
    if program.meetings is None:
        end = len(program.instructions)
        backwards = networkx.DiGraph()
        for place, parsed in enumerate(program.instructions):
            ways = [place + 1]
            if parsed.opcode.startswith("bra"):
                ways = [program.labels[parsed.operands[0].name]] + (ways if parsed.guard else [])
            elif parsed.opcode == "brx.idx":
                ways = program.branch_targets[parsed.operands[1].name]
            elif parsed.opcode in ("ret", "exit"):
                ways = [end] + (ways if parsed.guard else [])
            backwards.add_edges_from((min(way, end), place) for way in ways)
        program.meetings = networkx.immediate_dominators(backwards, end)
    return program.meetings


@instruction(r"bra(?:\.uni)?")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    target, machine = decoder.program.labels[parsed.operands[0].name], decoder.machine

    def run(strand: Any, mask: Value) -> int | None:
        return target if mask is None else machine.branch(strand, mask, target)

    return run


@instruction(r"brx\.idx")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    table = np.array(decoder.program.branch_targets[parsed.operands[1].name])
    read, machine = decoder.reader(parsed.operands[0], "u32"), decoder.machine

    def run(strand: Any, mask: Value) -> int:
        targets = table[lanes_of(read(strand.registers), strand.lanes)].reshape(-1, LANES)
        assert (targets == targets[:, :1]).all(), "lanes of a warp take different branches of a table"
        return machine.part(strand, targets[:, 0])

    return run


@instruction(r"ret|exit")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    def run(strand: Any, mask: Value) -> int:
        assert mask is None, "some lanes of a warp end before others"
        strand.done = True
        return int(strand.place)

    return run


@instruction(r"griddepcontrol\.(wait|launch_dependents)")
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    def run(strand: Any, mask: Value) -> None:
        if found[1] == "wait":
            strand.waited = True
        elif not strand.waited and decoder.machine.dependent:
            raise DependentLaunchError("the next kernel is allowed in before the one in front has ended")

    return run


@instruction(
    r"setmaxnreg\S*|bar\.warp\.sync|nanosleep\S*|membar\S*|fence\.(?:acq_rel|sc|mbarrier_init)\S*|createpolicy\S*"
    r"|wgmma\.fence\S*|prefetch\S*"
)
def _(decoder: Decoder, parsed: Instruction, found: re.Match[str]) -> Run:
    """Without consequence here: strands run one at a time, and memory is as it was written."""
    return lambda strand, mask: None
