"""A test that hangs on a GPU ends the run, by name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("pytest_timeout")

PRETENDING_A_GPU = """
    import torch
    torch.cuda.is_available = lambda: True
    from tests import conftest
    conftest.GPU_SECONDS = 1
    pytest_collection_modifyitems = conftest.pytest_collection_modifyitems
"""
HANGING = """
    import ctypes

    def test_before():
        pass

    def test_hanging():
        ctypes.CDLL(None).sleep(600)  # as a driver waits for a kernel: outside of Python, where no signal is seen

    def test_after():
        pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hanging_test_is_named(workers: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(textwrap.dedent(PRETENDING_A_GPU))
    (tmp_path / "test_made.py").write_text(textwrap.dedent(HANGING))
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider"]
    if workers:
        pytest.importorskip("xdist")
        command += ["-n", str(workers), "-v"]
    root = Path(__file__).parent.parent
    found = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert found.returncode == 1, found.stdout + found.stderr
    said = found.stdout + found.stderr
    assert "test_hanging" in said
    assert "Timeout" in said or "crashed" in said
    if workers:  # the other tests run all the same
        assert "1 failed, 2 passed" in said
