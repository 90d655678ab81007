"""Compiling one recorded launch for a GPU that is not here, and reading what came out."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.gluon_ir import misread
from tests.support.protocol import unguarded
from tools.ptx_emulator.specialization import Launch, described, source_of

MATRIX_INSTRUCTIONS = ("wgmma.mma_async", "mma.sync", "tcgen05.mma", "v_mfma")


@dataclasses.dataclass
class Compiled:
    """What the compiler made of a launch; shared memory and stack in bytes, threads per program."""

    kernel: str
    options: dict[str, Any]
    threads: int
    shared: int
    registers: int | None
    stack: int | None
    instructions: list[str]
    asynchronous_copies: bool
    unsettled_loops: int
    serialized: bool
    unguarded: list[str]
    misread: list[str]


def compile_launch(launch: Launch, gpu: Any) -> Compiled:
    """Specialise as Triton's own launch would, and compile."""
    import triton

    source = source_of(described(launch))
    compiled = triton.compile(source, target=gpu, options=launch.options)
    text = compiled.asm["amdgcn"] if gpu.backend == "hip" else compiled.asm["ptx"]
    registers, stack = _resources(compiled.asm, text, gpu.backend)
    is_gluon = launch.kernel.is_gluon()
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", text)
    return Compiled(
        kernel=compiled.metadata.name,
        options=launch.options,
        threads=int(threads.group(1)) if threads else gpu.warp_size * launch.options["num_warps"],
        shared=compiled.metadata.shared,
        registers=registers,
        stack=stack,
        instructions=sorted(set(_matrix_instructions(text))),
        asynchronous_copies="cp.async.cg.shared.global" in text or "cp.async.bulk.tensor" in text,
        unsettled_loops=sum(map(_is_unsettled, _loops(text))),
        serialized=is_gluon and _is_serialized(text),
        unguarded=unguarded(text) if is_gluon else [],
        misread=misread(compiled.asm["ttgir"]) if is_gluon else [],
    )


def _matrix_instructions(text: str) -> Iterator[str]:
    for line in text.splitlines():
        for name in MATRIX_INSTRUCTIONS:
            found = re.search(rf"{re.escape(name)}\S*", line)
            if found:
                yield found.group()


def _loops(ptx: str) -> Iterator[list[str]]:
    """The lines from each label to the branch back to it."""
    lines = ptx.splitlines()
    labels: dict[str, int] = {}
    for number, line in enumerate(lines):
        if label := re.match(r"\s*(\$L__BB\w+):", line):
            labels[label.group(1)] = number
        elif (branch := re.search(r"bra(?:\.uni)?\s+(\$L__BB\w+);", line)) and branch.group(1) in labels:
            yield lines[labels[branch.group(1)] : number]


def _is_unsettled(loop: list[str]) -> bool:
    """True if a wgmma that reads registers may still run when the loop's next round rewrites them.

    Triton 3.6 to 3.8 compiles some loops so: it waits for all but the last product, whose registers it then reuses.
    """
    in_flight = False
    for line in loop:
        if re.search(r"wgmma\.mma_async\S*\s+\{[^}]*\},\s*\{", line):
            in_flight = True
        elif re.search(r"wgmma\.wait_group\S*\s+0;", line):
            in_flight = False
    return in_flight


def _is_serialized(ptx: str) -> bool:
    """True if the assembler says that it makes each asynchronous product wait for the one before."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "kernel.ptx", Path(directory) / "kernel.cubin"
        source.write_text(ptx)
        command = [
            get_ptxas(90).path,
            "-v",
            "--fmad=false",
            "--gpu-name=sm_90a",
            str(source),
            "-o",
            str(target),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    return "wgmma.mma_async instructions are serialized" in said.stdout + said.stderr


def _resources(assembly: dict[str, Any], text: str, backend: str) -> tuple[int | None, int | None]:
    """(registers per thread, bytes of stack per thread)."""
    if backend == "hip":
        registers = re.search(r"\.vgpr_count:\s+(\d+)", text)
        stack = re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
        return (int(registers.group(1)) if registers else None, int(stack.group(1)) if stack else None)
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(assembly["cubin"])
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    return (int(found.group(1)), int(found.group(2))) if found else (None, None)
