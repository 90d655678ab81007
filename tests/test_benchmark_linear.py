"""`python3 -m benchmarks.linear`: what it measures on a CPU, what it refuses, and how it shows a run read from a file.

Times in synthetic runs are round numbers made up here, chosen so that what follows from them is easily checked.
"""

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

from benchmarks.linear import ceilings, command, goals, recorded, rows, schemes, shapes, tables
from benchmarks.linear import run as measuring
from benchmarks.linear.ceilings import Ceilings
from benchmarks.linear.compare import geometric_mean, pairs
from benchmarks.linear.contender import FLOAT, INT8_TO_INT8, LINEAR, MATMUL, OURS, Built, Contender
from benchmarks.linear.markdown import markdown
from benchmarks.linear.peers import PEERS
from benchmarks.linear.results import Results
from benchmarks.linear.rows import FAILED, MEASURED, RECORDED, WRONG, Row
from benchmarks.linear.run import random_linear
from tritonq import timing

CEILINGS = Ceilings(2.0, 1.5, 500.0, 800.0, 1000.0, 2000.0)
GATE_UP = shapes.named("8b.gate_up")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "_CPU_BUDGET_SECONDS", 0)
    monkeypatch.setattr(ceilings, "_CPU_BYTES", 4096)
    monkeypatch.setattr(ceilings, "_CPU_SIZE", 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def synthetic(by, scheme, m, microseconds, status=MEASURED, measures=LINEAR, shape=GATE_UP, **fields):
    named = (shape.name, shape.N, shape.K, m, by, scheme, measures, status)
    return Row(*named, microseconds=microseconds, **fields)


def on_an_h100(*found: Row, device: str = goals.GPU) -> Results:
    machine = {"device": device, "multiprocessors": 132}
    return Results(machine, "bfloat16", CEILINGS, {}, list(found), True)


def run(*arguments) -> int:
    return command.main([str(argument) for argument in arguments])


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
        assert named[:2] == [(FLOAT, FLOAT, LINEAR, 1), (FLOAT, FLOAT, LINEAR, 4)]
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
        assert "CPU reference path" in printed
        assert "48x64   N = 48, K = 64" in printed
        assert "CPU reference path" in page.read_text()

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


class TestRates:
    def test_bytes_of_each_scheme(self):
        def moved(scheme, measures=LINEAR):
            return rows.moved_bytes(Row("", 256, 512, 4, OURS, scheme, measures, MEASURED), 2)

        activations = 2 * 4 * 512 + 2 * 4 * 256
        assert moved(FLOAT) == 2 * 256 * 512 + activations
        assert moved("w8a16") == 256 * 512 + 2 * 256 + activations
        assert moved("w4a16") == 256 * 512 // 2 + 2 * 256 * 4 + activations
        assert moved("w8a8", MATMUL) == 256 * 512 + 2 * 256 + 4 * 512 + 2 * 4 * 256
        assert moved("w8a8_static", INT8_TO_INT8) == 256 * 512 + 2 * 256 + 4 * 512 + 4 * 256

    def test_shares_are_of_what_was_measured_and_of_the_datasheet(self):
        row = synthetic(OURS, "w8a8", 1024, None)
        found = rows.timed(row, timing.Timing(100.0, 99.0, 101.0), 5.0, 2, CEILINGS)
        operations = 2 * 1024 * GATE_UP.N * GATE_UP.K
        assert found.teraoperations_per_second is not None
        assert found.terabytes_per_second is not None
        assert found.teraoperations_per_second == pytest.approx(operations / 100e-6 / 1e12)
        assert found.of_peak == pytest.approx(found.teraoperations_per_second / 2000)
        assert found.of_bandwidth == pytest.approx(found.terabytes_per_second / 2.0)
        assert dataclasses.replace(CEILINGS, int8_datasheet=None).peak("w4a8") == 800
        assert CEILINGS.peak("w4a16") == 1000


class TestRecorded:
    def rows(self, device=goals.GPU, dtype=torch.bfloat16, batch_sizes=(1, 16, 3)):
        absent = [peer for peer in PEERS if peer.by in ("gemlite_w4", "humming_a8w8")]
        return recorded.recorded_rows(GATE_UP, batch_sizes, absent, device, dtype)

    def test_of_peers_that_are_absent(self):
        cells = json.loads(recorded.BASELINES.read_text())["rows"]
        found = self.rows()
        assert {(row.by, row.M) for row in found} == {
            ("gemlite_w4", 1),
            ("gemlite_w4", 16),
            ("humming_a8w8", 1),
            ("humming_a8w8", 16),
        }
        for row in found:
            (cell,) = [c for c in cells if (c["peer"], c["shape"], c["M"]) == (row.by, "8b.gate_up", row.M)]
            assert (row.status, row.microseconds, row.eager_microseconds) == (RECORDED, cell["us"], None)

    def test_only_on_the_same_gpu_in_the_same_dtype(self):
        assert self.rows(device="NVIDIA H200") == []
        assert self.rows(dtype=torch.float16) == []
        assert self.rows(batch_sizes=(2,)) == []

    def test_every_recorded_peer_has_an_adapter(self):
        document = json.loads(recorded.BASELINES.read_text())
        assert set(document["peers"]) - {peer.by for peer in PEERS} == {"bf16"}
        assert {row["peer"] for row in document["rows"]} == set(document["peers"])
        assert "provenance" in document

    def test_is_marked_wherever_it_is_shown(self, tmp_path, capsys):
        results = on_an_h100(
            synthetic(FLOAT, FLOAT, 1, 80.0),
            synthetic(OURS, "w8a8", 1, 40.0),
            synthetic("humming_a8w8", "w8a8", 1, 50.0, RECORDED),
        )
        file, page = tmp_path / "run.json", tmp_path / "run.md"
        results.write(file)
        assert run("--from", file, "--markdown", page, "--goals") == 0
        printed = capsys.readouterr().out
        for text in (printed, page.read_text()):
            assert "50.0ʳ" in text
            assert "40.0ʳ" not in text
            assert tables.RECORDED_LEGEND in text
            assert "1.25ʳ" in text
        assert "1.60ʳ" in page.read_text()

    def test_no_mark_without(self):
        results = on_an_h100(synthetic(OURS, "w8a8", 1, 40.0), synthetic("humming_a8w8", "w8a8", 1, 50.0))
        assert "ʳ" not in markdown(results, with_goals=True)


class TestComparison:
    def test_takes_the_fastest_peer_of_the_same_scheme(self):
        results = on_an_h100(
            synthetic(OURS, "w8a8", 1, 10.0),
            synthetic("slow", "w8a8", 1, 40.0),
            synthetic("fast", "w8a8", 1, 20.0),
            synthetic("other", "w8a16", 1, 1.0),
            synthetic("int_mm", "w8a8", 1, 1.0, measures=MATMUL),
            synthetic(FLOAT, FLOAT, 1, 1.0),
            synthetic("broken", "w8a8", 1, None, WRONG),
            synthetic(OURS, "w8a8", 2, 10.0),
        )
        (pair,) = pairs(results, ["w8a8"])
        assert (pair.peer.by, pair.ratio, pair.is_recorded) == ("fast", 2.0, False)

    def test_geometric_mean(self):
        assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
        assert geometric_mean([]) is None


class TestGoals:
    @staticmethod
    def findings(start: str, results: Results) -> list[goals.Finding]:
        (goal,) = [goal for goal in goals.GOALS if goal.text.startswith(start)]
        return goal.findings(results)

    def test_nothing_measured(self):
        for goal in goals.GOALS:
            assert goals.status(goal.findings(on_an_h100())) == goals.NOT_MEASURED

    def test_a_time(self):
        found = self.findings("W8A8, M = 4096, gate_up", on_an_h100(synthetic(OURS, "w8a8", 4096, 714.0)))
        assert goals.status(found) == goals.SHORT
        assert found[0].short_percent == pytest.approx(5.0)
        found = self.findings("W8A8, M = 4096, gate_up", on_an_h100(synthetic(OURS, "w8a8", 4096, 680.0)))
        assert goals.status(found) == goals.MET

    def test_other_shapes_and_sizes_are_no_matter(self):
        other = shapes.named("70b.gate_up")
        results = on_an_h100(
            synthetic(OURS, "w8a8", 4096, 1.0, shape=other),
            synthetic(OURS, "w8a8", 2048, 1.0),
            synthetic(OURS, "w8a8", 4096, 1.0, measures=MATMUL),
            synthetic(OURS, "w8a8", 4096, None, WRONG),
        )
        assert self.findings("W8A8, M = 4096, gate_up", results) == []

    def test_operations(self):
        product = {"measures": MATMUL, "teraoperations_per_second": 1200.0}
        found = self.findings("int8 product", on_an_h100(synthetic(OURS, "w8a8", 1024, 100.0, **product)))
        assert found[0].short_percent == pytest.approx(20.0)

    def test_against_another_one(self):
        results = on_an_h100(
            synthetic(OURS, "w8a8", 1024, 100.0, measures=MATMUL),
            synthetic("int_mm", "w8a8", 1024, 160.0, measures=MATMUL),
            synthetic(FLOAT, FLOAT, 1024, 152.0),
        )
        assert goals.status(self.findings("the same: ≥ 1.6", results)) == goals.MET
        (finding,) = self.findings("the same: ≥ 1.9", results)
        assert finding.found == pytest.approx(1.52)
        assert finding.short_percent == pytest.approx(20.0)

    def test_the_worst_cell_comes_first(self):
        results = on_an_h100(
            synthetic(OURS, "w8a8", 1, 10.0),
            synthetic("peer", "w8a8", 1, 9.0),
            synthetic(OURS, "w8a8", 16, 10.0),
            synthetic("peer", "w8a8", 16, 5.0, RECORDED),
            synthetic(OURS, "w8a8", 64, 10.0),
            synthetic("peer", "w8a8", 64, 12.0),
            synthetic(OURS, "w8a8", 128, 10.0),
            synthetic("peer", "w8a8", 128, 1.0),
        )
        found = self.findings("W8A8, M 1 … 64", results)
        assert [finding.is_met for finding in found] == [False, False, True]
        assert found[0].where == "w8a8 8b.gate_up M = 16 (peer)"
        assert found[0].is_recorded
        (line,) = [line for line in tables.goal_table(results) if line[0].startswith("W8A8, M 1 … 64")]
        assert line[1:] == ["short", "1 of 3", "w8a8 8b.gate_up M = 16 (peer)", "0.5ʳ ×", "50.0 %"]

    def test_the_mean_over_all_cells(self):
        results = on_an_h100(
            synthetic(OURS, "w4a16", 1, 10.0),
            synthetic("a", "w4a16", 1, 10.0),
            synthetic(OURS, "w4a8", 1, 10.0),
            synthetic("b", "w4a8", 1, 14.4),
        )
        (finding,) = self.findings("W4A16, W8A16, W4A8, geometric mean", results)
        assert finding.found == pytest.approx(1.2)
        assert finding.where == "2 cells"
        assert finding.is_met

    def test_static_against_dynamic_and_the_host(self):
        results = on_an_h100(
            synthetic(OURS, "w8a8", 1, 12.0, eager_microseconds=25.0),
            synthetic(OURS, "w8a8_static", 1, 10.0, measures=INT8_TO_INT8),
        )
        assert self.findings("static, int8 in and out", results)[0].found == pytest.approx(1.2)
        assert self.findings("W8A8, M = 1: ≤ 20 µs of CPU", results)[0].short_percent == pytest.approx(25.0)

    def test_cells_that_fall_short_are_listed(self):
        page = markdown(on_an_h100(synthetic(OURS, "w4a16", 1, 50.0)), with_goals=True)
        assert "- W4A16, M = 1, gate_up: ≤ 25 µs: w4a16 8b.gate_up M = 1: 50 µs, short by 100.0 %" in page

    def test_another_gpu_is_not_judged(self, tmp_path, capsys):
        file = tmp_path / "run.json"
        on_an_h100(device="NVIDIA H200").write(file)
        with pytest.raises(SystemExit):
            run("--from", file, "--goals")
        assert f"stated for an {goals.GPU}, found NVIDIA H200" in capsys.readouterr().err


class TestTables:
    def test_wrong_and_failed_stand_in_their_cells(self):
        found = [
            synthetic("peer", "w8a8", 1, 10.0),
            synthetic("peer", "w8a8", 16, None, WRONG, error=1.0, message="error 1.0e+00, allowed are 1e-02"),
            synthetic("peer", "w8a8", 64, None, FAILED, message="RuntimeError: no"),
            synthetic(FLOAT, FLOAT, 1, 20.0),
        ]
        results = on_an_h100(*found)
        title, header, *lines = tables.shape_table(results, found)
        assert title.startswith("8b.gate_up   N = 28672, K = 4096")
        assert header.split() == ["scheme", "timed", "by", "1", "16", "64", "host", "µs", "error"]
        assert lines[0].split() == ["cuBLAS", "bfloat16", "20.0"]
        assert lines[1].split() == ["w8a8", "peer", "10.0", "WRONG", "failed", "1.0e+00"]
        assert tables.problems(results) == [
            "WRONG: peer w8a8 8b.gate_up M = 16: error 1.0e+00, allowed are 1e-02",
            "failed: peer w8a8 8b.gate_up M = 64: RuntimeError: no",
        ]


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    rates = {
        "terabytes_per_second": 1.0,
        "teraoperations_per_second": 2.0,
        "of_bandwidth": 0.5,
        "of_peak": 0.1,
    }
    results = on_an_h100(
        *(synthetic(FLOAT, FLOAT, m, 80.0, **rates) for m in (1, 16)),
        *(synthetic(OURS, "w8a8", m, 40.0, **rates) for m in (1, 16)),
        synthetic(OURS, "w8a8", 16, 40.0, measures=MATMUL, **rates),
        synthetic("peer", "w8a8", 1, 50.0, RECORDED),
    )
    file, folder = tmp_path / "run.json", tmp_path / "plots"
    results.write(file)
    assert run("--from", file, "--plot", folder) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"roofline.svg", "speedup_8b.gate_up.svg", "achieved_8b.gate_up.svg"}
    assert all(path.read_text().startswith("<?xml") for path in folder.iterdir())


def test_plots_refuse_a_file_for_a_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        run("--plot", tmp_path / "file")
    assert "must be a folder" in capsys.readouterr().err


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
