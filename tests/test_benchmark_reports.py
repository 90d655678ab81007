"""What `python3 -m benchmarks.linear` makes of a run: rates, recorded peers, means, goals, tables and figures."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from benchmarks.linear import goals, recorded, rows, shapes, tables
from benchmarks.linear.compare import geometric_mean, pairs
from benchmarks.linear.contender import FLOAT, INT8_TO_INT8, LINEAR, MATMUL, OURS
from benchmarks.linear.markdown import markdown
from benchmarks.linear.peers import PEERS
from benchmarks.linear.results import Results
from benchmarks.linear.rows import FAILED, MEASURED, RECORDED, WRONG, Row
from tests.support.benchmark_runs import CEILINGS, GATE_UP, on_an_h100, run, synthetic
from tritonq.util import timing


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

    def test_times_that_spread_are_named(self):
        unsteady = synthetic(OURS, "w8a8", 1, 10.0, low=9.0, high=11.0)
        steady = synthetic(OURS, "w8a8", 16, 10.0, low=9.9, high=10.1)
        results = on_an_h100(unsteady, steady, synthetic("peer", "w8a8", 1, 9.0, RECORDED))
        (line,) = tables.problems(results)
        assert line.startswith("unsteady: tritonq w8a8 8b.gate_up M = 1")
        assert line.endswith("9.0 … 11.0 µs")


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
