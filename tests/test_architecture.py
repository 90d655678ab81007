"""Imports go down only, from folder to folder and from file to file; a planted import that goes up is found."""

from __future__ import annotations

import ast
import graphlib
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.kernel_floors import imported

ROOT = Path(__file__).parent.parent


def checked_kernels(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "kernel_floors.py"), str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def checked_folders(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter, on the tree at `root`, as `make check` runs it."""
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from importlinter.cli import lint_imports; " + (
        "sys.exit(lint_imports(no_cache=True))"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)


def import_circle(root: Path) -> list[str]:
    """Files of tritonq and kernels that import each other in a circle, inside functions and for types included."""
    modules: dict[str, Path] = {}
    for folder, package in (("tritonq", "tritonq"), ("kernels", "tritonq.kernels")):
        for path in (root / folder).rglob("*.py"):  # which does not follow the link tritonq/kernels
            parts = path.relative_to(root / folder).with_suffix("").parts
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        package_parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        found = (
            module if module in modules else module.rpartition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for module in imported(node, package_parts)
        )
        graph[name] = {module for module in found if module in modules and module != name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


@pytest.fixture
def tree(tmp_path):
    shutil.copytree(ROOT / "tritonq", tmp_path / "tritonq", ignore=shutil.ignore_patterns("kernels", "data"))
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_kernels_import_downwards():
    result = checked_kernels(ROOT / "kernels")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        (
            "launch/target.py",
            "from ..matmul.int8 import int8_matmul",
            "tritonq.kernels.matmul.int8.int8_matmul",
        ),
        ("rows/quantize.py", "from ..hopper import ring", "tritonq.kernels.hopper.ring"),
        ("matmul/int8.py", "def f():\n    import tritonq.nn", "tritonq.nn"),
        ("blocks/unpack.py", "from tritonq.numerics import slabs", "tritonq.numerics.slabs"),
    ],
)
def test_a_kernel_that_imports_upwards_is_found(tree, file, line, found):
    path = tree / "kernels" / file
    path.write_text(path.read_text() + f"\n{line}\n")
    result = checked_kernels(tree / "kernels")
    assert result.returncode == 1
    assert f"{file}:" in result.stdout
    assert result.stdout.rstrip().endswith(f"must not import {found}")


def test_a_loose_kernel_is_found(tree):
    (tree / "kernels" / "extra.py").write_text("")
    assert "extra.py: not in one of the folders" in checked_kernels(tree / "kernels").stdout


def test_a_folder_that_imports_upwards_is_found(tree):
    pytest.importorskip("importlinter")
    assert checked_folders(tree).returncode == 0
    path = tree / "tritonq" / "numerics" / "qparams.py"
    path.write_text(path.read_text() + "\nfrom tritonq.nn import linear\n")
    result = checked_folders(tree)
    assert result.returncode == 1
    assert "tritonq.numerics.qparams -> tritonq.nn.linear" in result.stdout


def test_a_folder_without_a_floor_is_found(tree):
    pytest.importorskip("importlinter")
    folder = tree / "tritonq" / "attic"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    result = checked_folders(tree)
    assert result.returncode == 1
    assert "attic" in result.stdout


def test_no_files_import_each_other():
    assert import_circle(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("tritonq/util/table.py", "from tritonq.analysis import report"),
        ("tritonq/numerics/config.py", "def f():\n    from tritonq.numerics.qparams import divide"),
        (
            "tritonq/nn/packed_weight.py",
            "if TYPE_CHECKING:\n    from tritonq.nn.linear import QuantizedLinear",
        ),
        ("kernels/launch/target.py", "from .counters import counters"),
    ],
)
def test_a_circle_of_files_is_found(tree, file, line):
    path = tree / file
    path.write_text(path.read_text() + f"\n{line}\n")
    name = ".".join(Path(file).with_suffix("").parts).replace("kernels.", "tritonq.kernels.", 1)
    assert name in import_circle(tree)


def test_every_folder_says_what_it_is_for():
    """In its package's docstring, and in docs/design.md."""
    page = (ROOT / "docs" / "design.md").read_text()
    for folder in sorted(path.parent.name for path in (ROOT / "tritonq").glob("*/__init__.py")):
        assert importlib.import_module(f"tritonq.{folder}").__doc__, folder
        assert f"| `{folder}/` |" in page, folder
