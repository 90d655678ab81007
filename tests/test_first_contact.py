"""tools/first_contact.sh, which runs whole only where a GPU is, calls what there is, as that wants to be called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.linear.command import _parser
from tritonq.numerics.config import PRESETS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools" / "first_contact.sh"
#: In place of Python: one line per call, arguments apart by tabs.
REMEMBERING = '#!/bin/sh\nIFS="\t"\nprintf "%s\\n" "$*" >>"$CALLS"\n'


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    """What it calls Python with where a GPU is."""
    if shutil.which("bash") is None or shutil.which("timeout") is None:
        pytest.skip("needs bash and GNU's timeout")
    for name, text in (("python", REMEMBERING), ("nvidia-smi", "#!/bin/sh\necho a GPU\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "CALLS": str(tmp_path / "calls"),
        "OUT": str(tmp_path / "out"),
    }
    subprocess.run(["bash", str(SCRIPT)], env=environment, check=True, capture_output=True)
    return [line.split("\t") for line in (tmp_path / "calls").read_text().splitlines()]


def test_it_calls_what_there_is(calls: list[list[str]]) -> None:
    warmed, measured, modules = set(), set(), []
    for first, *arguments in calls:
        if first == "-":
            warmed.add(arguments[0])
            assert arguments[1] == "cuda"
            continue
        assert first == "-m"
        module, *words = arguments
        modules.append(module)
        if module == "pytest":
            files = [word for word in words if word.startswith("tests/")]
            assert files
            assert all((ROOT / file).is_file() for file in files)
            assert "--collect-only" not in words
        elif module == "benchmarks.linear":
            options = _parser().parse_args(words)
            assert len(options.shapes) == 3
            measured.update(options.schemes)
        else:
            assert any((ROOT / module.replace(".", "/")).with_suffix(end).exists() for end in ("", ".py"))
    assert warmed == measured
    assert measured <= set(PRESETS)
    assert modules[0] == "tritonq"
    assert modules.count("pytest") == 2
    assert modules[-1] == "benchmarks.host_overhead"
