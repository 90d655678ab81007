"""`tritonq tune`: what it lists, measures (with made-up times), keeps and refuses."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("typer", reason="the command line needs typer and rich")
pytest.importorskip("rich", reason="the command line needs typer and rich")

from tests.support.tuned_files import H100
from tests.test_tuning import FakeGPU
from tritonq import cli
from tritonq.kernels.config import choose, tuned_file
from tritonq.kernels.config.tile import TileConfig

BEST = TileConfig(64, 16, 128, 4, 4, 3, max_registers=128)
ONE = ("--schemes", "w8a8", "--shapes", "4096x4096", "--m", "16")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(tuned_file.DIRECTORY_VARIABLE, str(tmp_path / "tuned"))
    choose.forget()
    yield tmp_path
    choose.forget()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    """An H100 whose every kernel is fastest with `BEST`."""
    fake = FakeGPU(BEST)
    module = importlib.import_module("tritonq.tuning.command")
    monkeypatch.setattr(module, "this_gpu", lambda otherwise: H100)
    monkeypatch.setattr(module, "tools_for", lambda target: contextlib.nullcontext(fake.tools))
    monkeypatch.setattr(module, "_measured_on", lambda: {"driver": "1"})
    return fake


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["tune", *arguments]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    if code == 1 and captured.err:
        assert captured.err.count("\n") == 1
    return captured.out + captured.err


def test_measures_keeps_and_goes_on(
    gpu: FakeGPU, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, *ONE, "--json", str(directory / "out.json"))
    assert "w8a8    4096  4096  16  rule    14.0       10.0    1.40" in out
    assert "pointers 64×16×128, 4 splits, 4 warps, 3 stages, 128 registers" in out
    assert "dropped" not in out
    assert out.rstrip().endswith(f"kept in {tuned_file.path_of(H100)}")
    (result,) = json.loads((directory / "out.json").read_text())["results"]
    assert result["entry"]["config"]["max_registers"] == 128
    assert result["speedup"] == 1.4
    assert result["uncompiled"][0]["reason"] == "OutOfResources"
    measured = gpu.measured
    assert "nothing to measure" in run(capsys, *ONE)
    assert gpu.measured == measured
    assert "as before" in run(capsys, *ONE, "--again")
    assert "tuned" in run(capsys, *ONE, "--list")


def test_a_dry_run_keeps_nothing(gpu: FakeGPU, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, *ONE, "--dry-run")
    assert "1.40" in out
    assert "kept in" not in out
    assert not tuned_file.path_of(H100).exists()


def test_a_wrong_kernel_is_said(gpu: FakeGPU, capsys: pytest.CaptureFixture[str]) -> None:
    from tritonq.tuning.workload import Workload, explained

    gpu.bad[explained(Workload("w8a8", 4096, 4096, 16), H100).config] = "wrong result: off by 3"
    out = run(capsys, *ONE, code=1)
    assert "WRONG" in out
    assert "wrong result: off by 3" in out


def test_an_interrupt_keeps_what_is_measured(gpu: FakeGPU, capsys: pytest.CaptureFixture[str]) -> None:
    usual = gpu.measure

    def interrupted(workload: Any, config: TileConfig) -> float:
        if workload.rows == 64:
            raise KeyboardInterrupt
        return usual(workload, config)

    gpu.measure = interrupted  # type: ignore[method-assign]
    out = run(capsys, *ONE, "--m", "64", code=130)
    assert "w8a8    4096  4096  16" in out
    assert len(json.loads(tuned_file.path_of(H100).read_text())["entries"]) == 1


def test_lists_for_a_gpu_that_is_not_here(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a Triton that has no Gluon: the table's rows are of plain kernels."""
    monkeypatch.setattr("tritonq.kernels.config.hopper_weight_only_shapes.AVAILABLE", False)
    shown = ("--shapes", "4096x4096", "--m", "32", "--schemes", "w4a16", "--schemes", "w8a8_gated")
    out = run(capsys, "--list", "--target", "sm_90", *shown, "--json", str(directory / "list.json"))
    lines = out.splitlines()
    assert lines[1] == "w4a16       4096  4096  32  table   pointers 64×32×256, 4 splits, 4 warps, 3 stages"
    assert lines[2].startswith("w8a8_gated  4096  4096  32  rule")
    assert "starting point" in lines[3]
    fields = json.loads((directory / "list.json").read_text())
    assert [problem["source"] for problem in fields["problems"]] == ["table", "rule"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm_90"], "use it with --list"),
        (["--list", "--target", "sm_70"], "--target must be one of sm_80"),
        (["--schemes", "w2a2", "--list"], "--schemes must be of w4a16"),
        (["--shapes", "4096", "--list"], "--shapes must be NxK"),
        (["--dtype", "float64", "--list"], "--dtype must be bfloat16 or float16"),
        (["--model", "nowhere", "--list"], "found nothing there"),
        (["--json", "nowhere/x.json"], "does not exist"),
    ],
)
def test_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in run(capsys, *arguments, code=1)


def test_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments in ([], ["--dry-run"], ["--list"]):
        assert "on a GPU that torch can use, found none" in run(capsys, *arguments, code=1)


def test_a_file_of_others_is_not_written_over(gpu: FakeGPU, capsys: pytest.CaptureFixture[str]) -> None:
    file = tuned_file.path_of(H100)
    file.parent.mkdir()
    file.write_text("{}")
    assert "cannot be continued: it is of another version of tritonq" in run(capsys, *ONE, code=1)
    assert gpu.measured == 0
    assert "kept in" in run(capsys, *ONE, "--again")
