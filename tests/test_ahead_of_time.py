"""What the compiler makes of the kernels for GPUs that are not here: resources, and the instructions that are meant.

Each of the five targets compiles another fifth of the cases. With TRITONQ_COMPILE_ALL=1 every target compiles all of
them, which takes five minutes on one core.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fused_cases import DYNAMIC_CASES, ROW_CASES
from tests.support.gluon_ir import misread
from tests.support.protocol import unguarded

ROOT = Path(__file__).resolve().parents[1]
COMPILE_ALL = os.environ.get("TRITONQ_COMPILE_ALL") == "1"
SIZES = ("decode", "small", "middle", "large")
FAMILIES = (
    "w8a8",
    "w8a8-affine-requantize",
    "w8a8-gelu-residual",
    "w8a8-silu-residual-requantize",
    "w8a8-gated",
    "w8a8-gated-requantize",
    "w4a16-g128-bfloat16",
    "w4a16-g128-float16",
    "w4a16-g128-float32",
    "w4a16-g64-affine-bfloat16",
    "w4a16-g32-bfloat16",
    "w4a16-channel-bfloat16",
    "w8a16-bfloat16",
    "w8a16-g128-affine-bfloat16",
    "w4a8-g128",
    "w4a8-channel",
)
QUANTIZERS = [
    "quantize_per_tensor",
    *(
        f"quantize_per_token-{columns}-{kind}"
        for columns in (4096, 20000)
        for kind in ("symmetric", "affine")
    ),
    *(f"quantize-{name}-{mode}-{columns}" for name, mode, columns in ROW_CASES),
]
OBSERVERS = ["extremes-1", "extremes-4096", "histogram-16", "histogram-2048", "histogram-8192"]
BATCH = ["w8a8-batch"]
ODD = ["w8a8-affine-odd", "w8a8-gated-odd", "w4a16-g100-odd", "w4a16-channel-odd", "w8a16-affine-odd"]
GRADIENTS = [
    "gradient-w4a16-g128-bfloat16-small",
    "gradient-w4a16-g128-bfloat16-large",
    "gradient-w4a16-g64-affine-bfloat16-middle",
    "gradient-w4a16-g128-float32-small",
    "gradient-w8a16-bfloat16-large",
]
CASES = (
    QUANTIZERS
    + OBSERVERS
    + [f"{family}-{size}" for size in SIZES for family in FAMILIES]
    + ODD
    + GRADIENTS
    + list(DYNAMIC_CASES)
    + BATCH
)

#: target → bytes of shared memory (CUDA: the most a block may ask for; AMD: the local data share).
TARGETS = {
    "sm_80": 163 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
#: ptxas of Triton 3.7 puts a few values aside for this target, in kernels of 128 registers too.
ALLOWED_STACK = {"sm_120": 16}
MOST_REGISTERS = 255
REGISTER_FILE = 65_536  # of a multiprocessor of NVIDIA, 32 bits each

INT8, HALF = r"s8\.s8", r"(f16\.f16|bf16\.bf16)"
#: target → (int8 products, 16-bit products): the instruction that must appear, and no other beside it.
INSTRUCTIONS = {
    "sm_80": (rf"mma\.sync.*{INT8}", rf"mma\.sync.*{HALF}"),
    "sm_89": (rf"mma\.sync.*{INT8}", rf"mma\.sync.*{HALF}"),
    "sm_90": (rf"wgmma\.mma_async.*{INT8}", rf"wgmma\.mma_async.*{HALF}"),
    # The tensor-memory instruction for int8 comes with Triton 3.8.
    "sm_100": (rf"mma\.sync.*{INT8}|tcgen05\.mma.*kind::i8", r"tcgen05\.mma.*kind::f16"),
    "sm_120": (rf"mma\.sync.*{INT8}", rf"mma\.sync.*{HALF}"),
    "gfx942": (r"v_mfma_i32_.*_i8", r"v_mfma_f32_.*_b?f16"),
}


def compiled_for(target: str, names: list[str]) -> list[dict[str, Any]]:
    """One record per launch. Nothing compiles in a process that has TRITON_INTERPRET set, so another one does it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.ahead_of_time", target, *names]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{target}: {run.stderr[-3000:]}"
    return [json.loads(line) for line in run.stdout.splitlines()]


def problems_of(record: dict[str, Any], target: str) -> list[str]:
    """What is wrong with one compiled kernel, in words."""
    case, problems = record["case"], []
    nvidia = target.startswith("sm_")
    if record["stack"] > ALLOWED_STACK.get(target, 0):
        problems.append(f"{record['stack']} bytes of stack")
    if record["registers"] is None or not 0 < record["registers"] <= MOST_REGISTERS:
        problems.append(f"{record['registers']} registers")
    elif nvidia and record["registers"] * record["threads"] > REGISTER_FILE:
        problems.append(f"{record['registers']} registers in {record['threads']} threads")
    problems += record["unguarded"] + record["misread"]
    if record["serialized"]:
        problems.append("asynchronous products that the assembler serialized")
    if record["unsettled_loops"]:
        problems.append(f"{record['unsettled_loops']} loops that rewrite registers which wgmma still reads")
    if record["shared"] > TARGETS[target]:
        problems.append(f"{record['shared']} bytes of shared memory, {TARGETS[target]} allowed")
    wanted = wanted_instruction(case, target)
    found = record["instructions"]
    if wanted is None:
        if found:
            problems.append(f"{found}, no matrix instruction wanted")
    elif not found or not all(re.match(wanted, instruction) for instruction in found):
        problems.append(f"{found or 'no matrix instruction'}, wanted {wanted}")
    # Rows of an odd length are not aligned for one, nor are int8 weights read as the gradient reads them.
    if nvidia and case not in QUANTIZERS + OBSERVERS + ODD + GRADIENTS and not record["asynchronous_copies"]:
        problems.append("no 16-byte asynchronous copy")
    return problems


def wanted_instruction(case: str, target: str) -> str | None:
    """A pattern for every matrix instruction of a case; None where there must be none."""
    if case in QUANTIZERS + OBSERVERS:
        return None
    if "float32" in case:  # IEEE float32: no tensor core of NVIDIA has it, and tf32 is not it
        return r"v_mfma_f32_\d+x\d+x\d+_?f32" if target == "gfx942" else None
    integers, halves = INSTRUCTIONS[target]
    kind = integers if "a8" in case else halves
    narrow = (case.endswith("decode") and not case.startswith("w8a8")) or case in ODD + GRADIENTS
    if narrow and target in ("sm_90", "sm_100"):
        # 8 columns, or 16 rows of a gradient: before Triton 3.8 only mma.sync has that shape.
        return rf"{kind}|mma\.sync.*{INT8 if 'a8' in case else HALF}"
    return kind


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_well(target: str) -> None:
    place = list(TARGETS).index(target)
    names = CASES if COMPILE_ALL else CASES[place :: len(TARGETS)]
    records = compiled_for(target, names)
    assert {record["case"] for record in records} == set(names)
    problems = [
        f"{record['case']}: {problem}" for record in records for problem in problems_of(record, target)
    ]
    assert not problems, f"{target}:\n" + "\n".join(problems)


def test_every_case_is_compiled_for_some_target() -> None:
    assert {name for place in range(len(TARGETS)) for name in CASES[place :: len(TARGETS)]} == set(CASES)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"stack": 8}, "stack"),
        ({"registers": 256}, "registers"),
        ({"registers": 200, "threads": 512}, "512 threads"),
        ({"unguarded": ["arrive behind wait"]}, "arrive behind wait"),
        ({"misread": ["always the same barrier"]}, "same barrier"),
        ({"shared": 300_000}, "shared"),
        ({"instructions": []}, "no matrix instruction"),
        ({"instructions": ["mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"]}, "wgmma"),
        ({"instructions": ["wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16"]}, "wgmma"),
        ({"asynchronous_copies": False}, "asynchronous"),
        ({"unsettled_loops": 1}, "wgmma still reads"),
        ({"serialized": True}, "serialized"),
    ],
)
def test_problems_are_seen(change: dict[str, Any], problem: str) -> None:
    good = {
        "case": "w8a8-small",
        "registers": 64,
        "stack": 0,
        "shared": 81_920,
        "threads": 128,
        "instructions": ["wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8"],
        "asynchronous_copies": True,
        "unsettled_loops": 0,
        "serialized": False,
        "unguarded": [],
        "misread": [],
    }
    assert problems_of(good, "sm_90") == []
    assert problem in " ".join(problems_of(good | change, "sm_90"))


GUARDED = """
    @%p1 mbarrier.init.shared::cta.b64 [%r1], 1;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 1;
    fence.proxy.async.shared::cta;
    griddepcontrol.wait;
    griddepcontrol.launch_dependents;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 32768;
    wgmma.wait_group.sync.aligned 1;
    bar.sync 0, 256;
    mbarrier.arrive.shared::cta.b64 _, [%r2];
    cp.async.bulk.wait_group.read 0;
    bar.sync 0, 256;
    st.shared.v2.b32 [%r3], {%r4, %r5};
    fence.proxy.async.shared::cta;
    bar.sync 0, 256;
    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r6, %r7}], [%r3];
    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r8, %r7}], [%r9];
"""


@pytest.mark.parametrize("line", [3, 4, 8, 11, 13, 14])
def test_a_barrier_or_fence_that_is_missing_is_seen(line: int) -> None:
    lines = GUARDED.splitlines()
    assert unguarded(GUARDED) == []
    assert unguarded("\n".join(lines[:line] + lines[line + 1 :])) != []


LOOPS = """
#plain = #ttg.nvmma_shared<{swizzlingByteWidth = 0, transposed = false, elementBitWidth = 16}>
#swizzled = #ttg.nvmma_shared<{swizzlingByteWidth = 128, transposed = false, elementBitWidth = 16}>
tt.func public @kernel(%empty: !ttg.memdesc<4x1xi64, #barriers> loc("empty"(#loc)), %steps: i32 loc("steps"(#loc))) {
  %all:1 = scf.for %piece = %c0 to %steps step %c1 iter_args(%slot = %c0) -> (i32)  : i32 {
    %next:1 = scf.for %step = %c0 to %steps step %c1 iter_args(%inner = %slot) -> (i32)  : i32 {
      %next_slot = arith.addi %inner, %c1 : i32 loc(#loc7)
      scf.if %condition {
        %barrier = ttg.memdesc_index %empty[%next_slot] : !ttg.memdesc<4x1xi64, #barriers> loc("a (b)"(#loc))
        ttng.arrive_barrier %barrier, 1, %true : !ttg.memdesc<1xi64, #barriers> loc(#loc49)
      }
      scf.yield %next_slot : i32
    }
    %last = ttg.memdesc_index %empty[%slot] : !ttg.memdesc<4x1xi64, #barriers>
    ttng.arrive_barrier %last, 1, %true : !ttg.memdesc<1xi64, #barriers>
    %turned = ttg.memdesc_trans %x {order = array<i32: 1, 0>} : !ttg.memdesc<1x64xbf16, #swizzled> -> !ttg.memdesc
    scf.yield %next#0 : i32
  }
}
"""


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("%empty[%next_slot]", "%empty[%slot]", "always the same barrier"),
        ("%empty[%slot]", "%empty[%c0]", "always the same barrier"),
        ("1x64xbf16, #swizzled", "1x64xbf16, #plain", "without swizzle"),
    ],
)
def test_what_the_compiler_reads_otherwise_is_seen(right: str, wrong: str, found: str) -> None:
    assert misread(LOOPS) == []
    (problem,) = misread(LOOPS.replace(right, wrong))
    assert found in problem


@pytest.mark.parametrize(
    ("phase", "arrivals", "problems"),
    [("%phase", 1, 0), ("%phase", 2, 2), ("%before", 1, 2)],
    ids=["once-round", "more-arrivals-than-waits", "always-one-phase"],
)
def test_a_ring_that_a_round_goes_through_once(phase: str, arrivals: int, problems: int) -> None:
    """Then the barriers are the same in every round, and the phase is not."""
    arrive = "    ttng.arrive_barrier %empty{}, 1, %true : !ttg.memdesc<1xi64, #barriers>\n"
    loop = (
        "  %all:1 = scf.for %step = %c0 to %steps step %c1 iter_args(%phase = %c0) -> (i32)  : i32 {\n"
        f"    ttng.wait_barrier %full0, {phase}, %true : !ttg.memdesc<1xi64, #barriers>\n"
        + "".join(arrive.format(number) for number in range(arrivals))
        + "  }\n"
    )
    assert len(misread(loop)) == problems
