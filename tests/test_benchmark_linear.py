"""`python3 -m benchmarks.linear`: what it measures on a CPU, and what it refuses."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
import types
from unittest import mock

import pytest
import torch

from benchmarks.linear import ceilings, command, goals, recorded, schemes, shapes
from benchmarks.linear import run as measuring
from benchmarks.linear.contender import FLOAT, INT8_TO_INT8, LINEAR, MATMUL, OURS, Built, Contender
from benchmarks.linear.peers import PEERS
from benchmarks.linear.rows import FAILED, MEASURED, WRONG
from benchmarks.linear.run import random_linear
from tests.support.benchmark_runs import on_an_h100, run, synthetic
from tritonq.util import timing


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_CPU_BUDGET_SECONDS", 0)
    monkeypatch.setattr(ceilings, "_CPU_BYTES", 4096)
    monkeypatch.setattr(ceilings, "_CPU_SIZE", 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class TestShapes:
    def test_are_the_models(self):
        found = {shape.name: (shape.N, shape.K) for shape in shapes.of_models([shapes.ALL])}
        assert found["8b.qkv"] == (6144, 4096)
        assert found["70b.gate_up"] == (57344, 8192)
        assert found["qwen3-8b.down"] == (4096, 12288)
        assert found["qwen3-32b.o"] == (5120, 8192)
        assert len(found) == 16

    def test_are_called_as_in_the_recorded_baseline(self):
        cells = json.loads(recorded.BASELINES.read_text())["rows"]
        named = {(cell["shape"], cell["N"], cell["K"]) for cell in cells}
        assert named == {(name, *size) for name, size in goals.KERNEL_SHAPES.items()}
        assert all(shapes.named(name) == shapes.Shape(name, n, k) for name, n, k in named)

    def test_are_measured_once(self):
        both = shapes.distinct(shapes.of_models(["llama-3-8b", "qwen3-8b"]))
        assert [shape.name for shape in both][:4] == ["8b.qkv", "8b.o", "8b.gate_up", "8b.down"]
        assert [shape.name for shape in both][4:] == ["qwen3-8b.gate_up", "qwen3-8b.down"]


class TestRunOnACpu:
    def test_measures_all_schemes(self, tmp_path, capsys):
        file, page = tmp_path / "run.json", tmp_path / "run.md"
        arguments = [
            "--shapes",
            "48x64",
            "--m",
            4,
            1,
            "--peers",
            "int_mm",
            "--json",
            file,
            "--markdown",
            page,
        ]
        assert run(*arguments) == 0
        document = json.loads(file.read_text())
        assert document["complete"] is True
        assert document["dtype"] == "float32"
        assert document["machine"]["command"].startswith("python3 ")
        named = [(row["by"], row["scheme"], row["measures"], row["M"]) for row in document["rows"]]
        floats = [row for row in named if row[0] == FLOAT]
        assert floats == [(FLOAT, FLOAT, LINEAR, 1), (FLOAT, FLOAT, LINEAR, 4)]
        assert named[0] == floats[0]
        ours = {(scheme, measures) for by, scheme, measures, _ in named if by == OURS}
        assert ours == {
            *((scheme, LINEAR) for scheme in schemes.TOLERANCES),
            ("w8a8", MATMUL),
            ("w8a8_static", INT8_TO_INT8),
        }
        assert ("int_mm", "w8a8", MATMUL, 4) in named
        for row in document["rows"]:
            assert row["status"] == MEASURED
            assert 0 < row["low"] <= row["microseconds"] <= row["high"]
            assert row["of_peak"] > 0
            assert row["of_bandwidth"] > 0
            assert row["eager_microseconds"] is None
        printed = capsys.readouterr().out
        assert "backend for CPUs" in printed
        assert "48x64   N = 48, K = 64" in printed
        assert "backend for CPUs" in page.read_text()

    def test_shows_a_file_as_it_showed_the_run(self, tmp_path, capsys):
        file = tmp_path / "run.json"
        assert run("--shapes", "32x32", "--m", 2, "--schemes", "w8a16", "--peers", "--json", file) == 0
        printed = capsys.readouterr().out
        assert run("--from", file) == 0
        assert capsys.readouterr().out == printed

    def test_in_16_bits_and_one_scheme(self, capsys):
        assert run("--shapes", "32x128", "--m", 3, "--schemes", "w4a16", "--dtype", "bfloat16") == 0
        printed = capsys.readouterr().out
        assert "tinygemm" in printed
        assert "w8a8" not in printed.partition("absent")[0]

    def test_quick(self, tmp_path):
        file = tmp_path / "run.json"
        assert run("--quick", "--schemes", "w8a8_static", "--json", file) == 0
        assert {(row["shape"], row["M"]) for row in json.loads(file.read_text())["rows"]} == {
            ("256x256", 1),
            ("256x256", 16),
        }

    def test_a_wrong_result_gets_no_time(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(schemes.TOLERANCES, "w8a8", 1e-9)
        file = tmp_path / "run.json"
        assert run("--shapes", "32x32", "--m", 1, "--schemes", "w8a8", "--peers", "--json", file) == 1
        wrong = [row for row in json.loads(file.read_text())["rows"] if row["by"] == OURS]
        assert [(row["status"], row["microseconds"]) for row in wrong] == [(WRONG, None), (WRONG, None)]
        assert wrong[0]["error"] > 0
        printed = capsys.readouterr().out
        assert "WRONG: tritonq w8a8 32x32 M = 1: error" in printed
        assert run("--from", file) == 1

    def test_nan_is_wrong(self, tmp_path, monkeypatch, capsys):
        replace_peers(monkeypatch, lambda linear: Built(lambda x: torch.full((len(x), 32), math.nan)))
        file = tmp_path / "run.json"
        assert run("--shapes", "32x32", "--m", 1, "--schemes", "w8a16", "--json", file) == 1
        assert "WRONG: fake w8a16 32x32 M = 1: error nan, allowed are 1.0e-02" in capsys.readouterr().out
        assert run("--from", file) == 1

    def test_a_peer_that_fails_is_reported(self, monkeypatch, capsys):
        def cannot_build(linear):
            raise RuntimeError("no kernel for this shape\nand more")

        replace_peers(monkeypatch, cannot_build)
        assert run("--shapes", "32x32", "--m", 1, 2, "--schemes", "w8a16") == 0
        printed = capsys.readouterr().out
        assert "failed: fake w8a16 32x32 M = 2: RuntimeError: no kernel for this shape\n" in printed

    def test_a_peer_that_fails_at_one_size_is_timed_at_others(self, monkeypatch):
        def build(linear):
            def call(x):
                if len(x) == 1:
                    raise NotImplementedError("M must be 2")
                return linear(x)

            return Built(call)

        replace_peers(monkeypatch, build)
        options = command._parser().parse_args(["--shapes", "32x32", "--m", "1", "2", "--schemes", "w8a16"])
        found = [row for row in command._measured(options).rows if row.by == "fake"]
        assert [row.status for row in found] == [FAILED, MEASURED]

    def test_ours_must_not_fail(self, monkeypatch):
        def cannot_build(linear, scheme):
            raise RuntimeError("broken")

        monkeypatch.setattr(schemes, "_whole", cannot_build)
        assert run("--shapes", "32x32", "--m", 1, "--schemes", "w8a16", "--peers") == 1

    def test_a_lost_gpu_ends_the_run(self, tmp_path, monkeypatch):
        def lost(device):
            raise RuntimeError("CUDA error: an illegal memory access\nand advice")

        monkeypatch.setattr(measuring, "_settle", lost)
        file = tmp_path / "run.json"
        said = "the GPU does not answer after float: CUDA error: an illegal memory access$"
        with pytest.raises(SystemExit, match=said):
            run("--shapes", "32x32", "--m", 1, "--schemes", "w8a16", "--json", file)
        document = json.loads(file.read_text())
        assert document["complete"] is False
        assert [row["by"] for row in document["rows"]] == [FLOAT]

    def test_an_interrupted_run_leaves_what_it_has(self, tmp_path, monkeypatch, capsys):
        def interrupted(linear):
            raise KeyboardInterrupt

        replace_peers(monkeypatch, interrupted)
        file, page = tmp_path / "run.json", tmp_path / "run.md"
        arguments = ["--shapes", "32x32", "--m", 1, "--schemes", "w8a16", "--json", file, "--markdown", page]
        assert run(*arguments) == 130
        document = json.loads(file.read_text())
        assert document["complete"] is False
        assert [row["by"] for row in document["rows"]] == [FLOAT, OURS]
        assert "**Incomplete**" in page.read_text()
        assert "32x32   N = 32, K = 32" in capsys.readouterr().out
        assert set(tmp_path.iterdir()) == {file, page}


def replace_peers(monkeypatch, build, package: str = "torch") -> None:
    """Instead of all peers but the layer in float, one."""
    fake = Contender("fake", "w8a16", build, 1e-2, package=package)
    monkeypatch.setattr(command, "PEERS", (*(peer for peer in PEERS if peer.by == FLOAT), fake))


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--m", "0"], "M must be a positive integer, found '0'"),
            (["--shapes", "12"], "a shape is NxK or one of 8b.qkv"),
            (["--shapes", "0x3"], "a shape is NxK"),
            (["--schemes", "w2a2"], "invalid choice: 'w2a2'"),
            (["--peers", "cutlass"], "invalid choice: 'cutlass'"),
            (["--goals"], f"--goals are stated for an {goals.GPU}, found no GPU"),
            (["--json", "no/such/folder.json"], "does not exist"),
            (["--markdown", "no/such/folder.md"], "does not exist"),
            (["--from", "no.json"], "no.json"),
            (
                ["--from", "no.json", "--m", "1", "--quick"],
                "--from measures nothing, and takes no --m, --quick",
            ),
        ],
    )
    def test_bad_usage(self, arguments, said, capsys):
        with pytest.raises(SystemExit) as exit:
            run(*arguments)
        assert exit.value.code == 2
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda document: [], "must have the format"),
            (lambda document: {**document, "format": "other"}, "must have the format"),
            (lambda document: {**document, "machine": None}, "machine must be a dict"),
            (lambda document: {**document, "absent": {"peer": []}}, "absent must hold reasons"),
            (lambda document: {**document, "ceilings": {"read": 1}}, "ceilings must have"),
            (lambda document: {**document, "rows": [{"shape": "o"}]}, "must name a cell"),
            (lambda document: with_row(document, status="fast"), "must name a cell"),
            (lambda document: with_row(document, microseconds=None), "must name a cell"),
            (lambda document: with_row(document, microseconds="1"), "must name a cell"),
            (lambda document: with_row(document, microseconds=0), "must name a cell"),
            (lambda document: with_row(document, error=math.nan), "must name a cell"),
            (lambda document: with_row(document, shape="../o"), "must name a cell"),
            (lambda document: with_row(document, by=["tritonq"]), "must name a cell"),
            (lambda document: with_row(document, status=[]), "must name a cell"),
            (lambda document: with_row(document, M=0), "must name a cell"),
            (lambda document: with_row(document, nonsense=1), "must have fields of"),
        ],
    )
    def test_a_file_of_something_else(self, change, said, tmp_path, capsys):
        file = tmp_path / "run.json"
        on_an_h100(synthetic(OURS, "w8a8", 1, 10.0)).write(file)
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
        with pytest.raises(SystemExit) as exit:
            run("--from", file)
        assert exit.value.code == 2
        assert said in capsys.readouterr().err

    def test_a_file_that_is_no_json(self, tmp_path, capsys):
        file = tmp_path / "run.json"
        file.write_bytes(b"\xff\x00")
        with pytest.raises(SystemExit):
            run("--from", file)
        assert "must be JSON" in capsys.readouterr().err


def with_row(document, **fields):
    return {**document, "rows": [{**document["rows"][0], **fields}]}


class TestPytestBenchmark:
    @pytest.fixture
    def entry(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pytest_benchmark", types.ModuleType("pytest_benchmark"))
        monkeypatch.delitem(sys.modules, "benchmarks.test_linear_benchmark", raising=False)
        yield importlib.import_module("benchmarks.test_linear_benchmark")
        del sys.modules["benchmarks.test_linear_benchmark"]

    @pytest.fixture
    def linear(self, entry):
        return random_linear(entry.SHAPE, torch.device("cpu"), torch.float32)

    def test_times_what_was_checked(self, entry, linear):
        benchmark = mock.Mock(extra_info={})
        for contender in entry.CONTENDERS:
            entry.test_linear(benchmark, linear, contender, 4)
            assert benchmark.extra_info["scheme"] == contender.scheme
            assert benchmark.extra_info["microseconds"] > 0
            assert benchmark.extra_info["error"] <= contender.tolerance
            assert benchmark.extra_info["calls_in_a_round"] == 1
            (run,), rounds = benchmark.pedantic.call_args
            assert run() is not None
            assert rounds["rounds"] > 1

    def test_fails_where_the_result_is_wrong(self, entry, linear):
        benchmark = mock.Mock(extra_info={})
        contender = dataclasses.replace(entry.CONTENDERS[1], tolerance=1e-9)
        with pytest.raises(AssertionError, match="allowed are"):
            entry.test_linear(benchmark, linear, contender, 4)
        benchmark.pedantic.assert_not_called()

    def test_is_skipped_without_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
        monkeypatch.delitem(sys.modules, "benchmarks.test_linear_benchmark", raising=False)
        with pytest.raises(pytest.skip.Exception):
            importlib.import_module("benchmarks.test_linear_benchmark")
