"""What a user installs: the wheel's files, and what importing them does and does not touch."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD_INPUTS = ["pyproject.toml", "MANIFEST.in", "LICENSE", "CHANGELOG.md", "README.md", "constraints.txt"]
OLDEST_SETUPTOOLS = (77, 0)  # the first that reads an SPDX licence expression
BUILD_HOOK = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"

# Nothing of these may be needed to import and use the library; some of them take seconds to import.
OPTIONAL_PACKAGES = [
    "accelerate",
    "compressed_tensors",
    "hypothesis",
    "llvmlite",
    "matplotlib",
    "pytest",
    "rich",
    "transformers",
    "typer",
    "vllm",
]

QUANTIZE_AN_MLP = """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).eval()
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected = model(x)
        found = tritonq.quantize_(model, "w8a16")(x)
    assert isinstance(model[0], tritonq.nn.QuantizedLinear), type(model[0])
    assert found.shape == expected.shape and found.dtype == expected.dtype
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.02, error
"""


def source_files(folder: str, pattern: str = "*") -> dict[str, bytes]:
    """Relative path → content of the files of a source folder, caches left out."""
    top = ROOT / folder
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in sorted(top.rglob(pattern))
        if path.is_file() and "__pycache__" not in path.parts
    }


def build(hook: str, project: Path, target: Path) -> Path:
    """Run one hook of the build backend in `project`: no network, no isolation, no pip."""
    target.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD_HOOK, hook, str(target)],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what goes into a build, so that none of its litter stays in the repository."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SETUPTOOLS:
        pytest.skip(f"setuptools {version} is older than {OLDEST_SETUPTOOLS[0]}.{OLDEST_SETUPTOOLS[1]}")
    copy = tmp_path_factory.mktemp("project")
    for name in BUILD_INPUTS:
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy)
    for name in ("tritonq", "kernels", "tests"):
        # With __pycache__, on purpose: a checkout has it, a wheel must not.
        shutil.copytree(ROOT / name, copy / name, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", project, tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, unpacked: what site-packages would hold."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def distribution(installed: Path) -> importlib.metadata.PathDistribution:
    """The wheel's metadata, as an installer reads it."""
    (info,) = installed.glob("tritonq-*.dist-info")
    return importlib.metadata.PathDistribution(info)


def package_name(requirement: str) -> str:
    """`safetensors[torch]>=0.5` → `safetensors`."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None, requirement
    return match.group()


def run_installed(installed: Path, code: str, cwd: Path) -> str:
    """Run `code` in a new interpreter that finds tritonq in `installed` only."""
    start = f"import sys; sys.path.insert(0, {str(installed)!r})\n"
    script = cwd / "script.py"
    script.write_text(start + textwrap.dedent(code))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-I", str(script)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


class TestFiles:
    def test_kernels_are_real_files_of_tritonq(self, wheel: Path) -> None:
        kernels = source_files("kernels", "*.py")
        assert kernels
        with zipfile.ZipFile(wheel) as archive:
            packaged = {
                info.filename.removeprefix("tritonq/kernels/"): archive.read(info)
                for info in archive.infolist()
                if info.filename.startswith("tritonq/kernels/")
            }
            links = [info.filename for info in archive.infolist() if stat.S_ISLNK(info.external_attr >> 16)]
        assert packaged == kernels
        assert not links

    def test_only_tritonq_at_top_level(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        tops = {name.split("/")[0] for name in names}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"tritonq"}
        assert not [name for name in names if "__pycache__" in name]

    def test_every_module_and_the_type_marker(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        # rglob may or may not follow the link, depending on the Python: the kernels have their own test.
        modules = {name for name in source_files("tritonq", "*.py") if not name.startswith("kernels/")}
        assert {f"tritonq/{name}" for name in modules} <= names
        assert "tritonq/py.typed" in names

    def test_demo_data(self, wheel: Path) -> None:
        data = source_files("tritonq/demo/data")
        assert data
        with zipfile.ZipFile(wheel) as archive:
            for name, content in data.items():
                assert archive.read(f"tritonq/demo/data/{name}") == content, name

    def test_sdist_builds_the_same_wheel(self, project: Path, wheel: Path, tmp_path: Path) -> None:
        sdist = build("build_sdist", project, tmp_path / "sdist")
        with tarfile.open(sdist) as archive:
            assert not [member.name for member in archive if member.issym() or member.islnk()]
            assert not [name for name in archive.getnames() if name.split("/")[1:2] == ["kernels"]]
            (top,) = {name.split("/")[0] for name in archive.getnames()}
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    path = tmp_path / "unpacked" / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())
        again = build("build_wheel", tmp_path / "unpacked" / top, tmp_path / "wheel")
        with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
            assert sorted(one.namelist()) == sorted(other.namelist())


class TestMetadata:
    def test_requirements(self, distribution: importlib.metadata.PathDistribution) -> None:
        required = [line for line in distribution.requires or [] if "extra" not in line]
        assert {package_name(line) for line in required} == {"torch", "triton", "safetensors"}

    def test_triton_is_asked_for_on_linux_only(
        self, distribution: importlib.metadata.PathDistribution
    ) -> None:
        (line,) = [line for line in distribution.requires or [] if package_name(line) == "triton"]
        assert 'platform_system == "Linux"' in line.replace("'", '"')

    def test_command(self, distribution: importlib.metadata.PathDistribution) -> None:
        (script,) = distribution.entry_points.select(group="console_scripts")
        assert (script.name, script.value) == ("tritonq", "tritonq.cli:main")

    def test_license(self, distribution: importlib.metadata.PathDistribution) -> None:
        assert distribution.metadata["License-Expression"] == "Apache-2.0"
        text = distribution.read_text("licenses/LICENSE")
        assert text is not None
        assert text == (ROOT / "LICENSE").read_text()


class TestImport:
    def test_comes_from_the_wheel(self, installed: Path, tmp_path: Path) -> None:
        printed = run_installed(installed, "import tritonq; print(tritonq.__file__)", tmp_path)
        assert Path(printed.strip()).is_relative_to(installed)

    def test_imports_no_optional_package(self, installed: Path, tmp_path: Path) -> None:
        """Beyond what torch imports on its own."""
        code = f"""
            import torch
            before = set(sys.modules)
            import tritonq
            tops = {{name.split(".")[0] for name in set(sys.modules) - before}}
            found = sorted(tops & set({OPTIONAL_PACKAGES!r}))
            assert not found, found
        """
        run_installed(installed, code, tmp_path)

    def test_initializes_no_cuda(self, installed: Path, tmp_path: Path) -> None:
        code = """
            import torch
            import tritonq
            assert not torch.cuda.is_initialized()
        """
        run_installed(installed, code, tmp_path)

    def test_says_nothing(self, installed: Path, tmp_path: Path) -> None:
        code = """
            import torch
            import warnings
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                import tritonq
        """
        assert run_installed(installed, code, tmp_path) == ""

    @pytest.mark.parametrize(
        "blocked",
        [pytest.param(["triton"], id="triton"), pytest.param([*OPTIONAL_PACKAGES, "numpy"], id="optional")],
    )
    def test_quantizes_on_a_cpu_without(self, blocked: list[str], installed: Path, tmp_path: Path) -> None:
        code = f"""
            import importlib.abc

            class Blocker(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    if name.split(".")[0] in {blocked!r}:
                        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

            sys.meta_path.insert(0, Blocker())
            import torch
            import tritonq
        """
        check = textwrap.dedent(code) + textwrap.dedent(QUANTIZE_AN_MLP)
        run_installed(installed, check, tmp_path)


class TestKernelsFolder:
    """Another project's package is called `kernels`, and programs look for it with find_spec."""

    def test_is_no_package(self) -> None:
        assert not (ROOT / "kernels" / "__init__.py").exists()

    def test_reaches_tritonq_by_a_relative_link(self) -> None:
        link = ROOT / "tritonq" / "kernels"
        if not link.is_symlink():
            pytest.skip("this checkout has no symbolic links")
        assert os.readlink(link) == os.path.join("..", "kernels")

    def test_is_not_found_as_a_regular_package(self) -> None:
        code = f"""
            import sys; sys.path.insert(0, {str(ROOT)!r})
            from importlib.util import find_spec
            spec = find_spec("kernels")
            print(spec.origin if spec else None)
        """
        done = subprocess.run(
            [sys.executable, "-I", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        origin = done.stdout.strip()
        assert origin == "None" or not Path(origin).is_relative_to(ROOT / "kernels"), origin
