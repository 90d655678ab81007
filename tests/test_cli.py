"""The command line: what it prints, where errors go, and that it says so when typer is missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tritonq
from tests.support.checkpoints import Block, quantized
from tritonq import checkpoint, cli

needs_typer = pytest.mark.skipif(
    importlib.util.find_spec("typer") is None or importlib.util.find_spec("rich") is None,
    reason="the command line needs typer and rich",
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    checkpoint.save(quantized(Block(), "w4a16"), tmp_path / "q")
    return tmp_path / "q"


@needs_typer
def test_info(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(directory), "--json", str(tmp_path / "info.json")]) == 0
    expected = checkpoint.info(directory)
    captured = capsys.readouterr()
    assert captured.out == f"{expected}\n"
    assert captured.err == ""
    assert json.loads((tmp_path / "info.json").read_text()) == json.loads(json.dumps(expected.to_dict()))


@needs_typer
def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tritonq {tritonq.__version__}\n"
    for arguments in ([], ["--help"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert "info" in text
        assert "Describe a checkpoint directory." in text


@needs_typer
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["info", "nowhere"], 1, "nowhere must be a checkpoint directory, found nothing there"),
        (["info", "."], 1, "config.json is missing"),
        (["info"], 2, "Missing argument"),
        (["info", ".", "--jason", "x"], 2, "No such option"),
        (["quantise"], 2, "No such command 'quantise'"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


@needs_typer
def test_errors_are_red_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    cli.main(["info", "nowhere"])
    assert capsys.readouterr().err.startswith("\x1b[31mnowhere must be")


def test_python_m(directory: Path) -> None:
    """As a process: exit codes, and the advice where typer is missing."""
    hide = "import sys; sys.modules['typer'] = None; "
    run = (
        "import runpy; sys.argv = ['tritonq', 'info', 'x']; runpy.run_module('tritonq', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", hide + run], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == 'tritonq: the command line needs typer and rich: pip install "tritonq[demo]"\n'


@needs_typer
def test_python_m_exit_codes(directory: Path) -> None:
    for argument, code in ((str(directory), 0), ("nowhere", 1)):
        command = [sys.executable, "-m", "tritonq", "info", argument]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code
