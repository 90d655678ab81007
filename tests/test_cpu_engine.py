"""What lies around the CPU engine's kernels: where compiled code is kept, forks, threads, and doing without."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import tritonq
from tests.support.cpu_engines import same_bits
from tritonq import ops
from tritonq.cpu import choose, processor, threads

_SECONDS = 120
_PRODUCT = """
import torch, tritonq
torch.manual_seed(0)
layer = tritonq.quantize_(torch.nn.Sequential(torch.nn.Linear(64, 700)), "w8a8", ignore=())
x = torch.randn(9, 64)
print(tritonq.backend("cpu"), float(layer(x).double().sum()))
"""


@pytest.fixture
def needs_engine() -> None:
    if ops.backend("cpu") != "cpu":
        pytest.skip("there is no engine for this CPU")


def start(code: str, **variables: str) -> subprocess.Popen[str]:
    """A process of its own."""
    environment = {**os.environ, **variables}
    root = Path(__file__).parents[1]
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=environment, text=True, stdout=pipe, stderr=pipe)


def output(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, error
    return out


@pytest.mark.usefixtures("needs_engine")
def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    first, second = (start(_PRODUCT, TRITONQ_CACHE=folder) for _ in range(2))
    expected = output(first)
    assert output(second) == expected
    kept = sorted((tmp_path / "cache" / "cpu").iterdir())
    assert {file.suffix for file in kept} == {".o"}, "no temporary file is left"
    written = [file.stat().st_mtime_ns for file in kept]
    assert output(start(_PRODUCT, TRITONQ_CACHE=folder)) == expected
    assert [file.stat().st_mtime_ns for file in kept] == written, "what is kept is not compiled again"


@pytest.mark.usefixtures("needs_engine")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert output(start(_PRODUCT, TRITONQ_CACHE=str(tmp_path / "file"))).startswith("cpu ")


@pytest.mark.usefixtures("needs_engine")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_computes_alone() -> None:
    code = f"""
import os, sys, torch
torch.set_num_threads(2)
{_PRODUCT}
pid = os.fork()
again = float(layer(x).double().sum())
if pid == 0:
    os._exit(int(again != float(layer(x).double().sum())))
assert os.waitpid(pid, 0)[1] == 0
"""
    assert output(start(code)).startswith("cpu ")


@pytest.mark.usefixtures("needs_engine")
def test_threads_call_it_at_once() -> None:
    layer = tritonq.quantize_(torch.nn.Sequential(torch.nn.Linear(96, 700)), "w8a8", ignore=())
    inputs = [torch.randn(rows, 96) for rows in (1, 3, 9, 40)]
    with torch.no_grad():
        expected = [layer(x) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad():
            wrong.extend(index for _ in range(50) if not torch.equal(layer(inputs[index]), expected[index]))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.usefixtures("needs_engine")
def test_python_threads_take_the_place_of_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tritonq.quantize_(torch.nn.Sequential(torch.nn.Linear(512, 700)), "w8a8", ignore=())
    x = torch.randn(9, 512)
    expected, taken = layer(x), []

    def team() -> Any:
        taken.append(True)
        return threads._on_python_threads

    monkeypatch.setattr(threads, "_team", team)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(layer(x), expected)
    assert taken


@pytest.mark.usefixtures("needs_engine")
def test_more_rows_than_a_slice() -> None:
    for scheme in ("w8a8", "w4a8", "w8a16", "w8a8_static"):
        model, x = torch.nn.Sequential(torch.nn.Linear(32, 5)), torch.randn(1030, 32)
        calibration = [x] if scheme == "w8a8_static" else None
        layer = tritonq.quantize_(model, scheme, ignore=(), calibration=calibration)
        found = layer(x)
        assert same_bits(found[1020:], layer(x[1020:])), scheme
        assert same_bits(found[:7], layer(x[:7])), scheme


def test_the_variable_turns_it_off() -> None:
    assert output(start(_PRODUCT, TRITONQ_CPU="off")).startswith("reference ")


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONQ_CPU", "sse")
    with pytest.raises(
        ValueError, match="TRITONQ_CPU must be one of off, avx512_vnni, avx2, portable, found 'sse'"
    ):
        processor.candidates()


def test_without_llvmlite_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.delenv("TRITONQ_CPU", raising=False)
    choose.engine.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r'llvmlite is not installed: pip install "tritonq\[cpu\]"'):
            assert choose.engine() is None
        assert choose.engine() is None
    finally:
        choose.engine.cache_clear()
