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
EVERY_FAMILY = sorted(
    path.stem.removeprefix("test_kernels_") for path in ROOT.glob("tests/test_kernels_*.py")
)
#: Whose matrix instruction and copies are others on compute capability 8.0.
PRODUCTS = ["dynamic", "gated", "int4_int8", "int8", "weight_only", "weight_only_gradient"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs them")
@pytest.mark.parametrize(("architecture", "families"), [("90", EVERY_FAMILY), ("80", PRODUCTS)])
def test_a_few_tests_of_every_kernel(architecture: str, families: list[str]) -> None:
    environment = os.environ | {"TRITONQ_PTX": architecture, "TRITONQ_PTX_EVERY": "1000"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = [f"tests/test_kernels_{family}.py" for family in families]
    run = subprocess.run(
        [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
