"""Kernels in plain Triton as compiled: their own tests once more, a few of each, in the emulator of PTX.

A process of their own runs them: this one has the interpreter's variable set. `make test-ptx` runs all of them, with
two versions of Triton.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).resolve().parents[1]
#: Compute capability times ten → those whose tests are quick to emulate; `make test-ptx` runs the others, too.
FAMILIES = {
    "90": ["dynamic", "fake_quantize", "gated", "int4_int8", "int8"],
    "80": ["dynamic", "gated", "int4_int8", "int8"],
}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs them")
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_few_tests_of_kernels(architecture: str) -> None:
    environment = os.environ | {"TRITONQ_PTX": architecture, "TRITONQ_PTX_EVERY": "1000"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = [f"tests/test_kernels_{family}.py" for family in FAMILIES[architecture]]
    run = subprocess.run(
        [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
