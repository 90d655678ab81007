"""The search for configurations, without a GPU: candidates, workloads, processes that crash, shapes of models."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

pytest.importorskip("triton", reason="Triton is not installed")

from tests.support import worker_questions
from tests.support.tuned_files import H100, TARGETS
from tests.test_ahead_of_time import compiled_for, problems_of
from tritonq.kernels.config import choose, tuned_file
from tritonq.kernels.config.candidates import first_round, next_round
from tritonq.kernels.config.limits import why_not
from tritonq.kernels.config.tile import TileConfig
from tritonq.tuning import measure, shapes
from tritonq.tuning.schemes import SCHEMES
from tritonq.tuning.search import Tools, TunedFile, tune
from tritonq.tuning.worker import NoAnswer, Worker, WorkerError, Workers
from tritonq.tuning.workload import Workload, explained, product
from tritonq.util.compare import disagreement, largest_difference


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(tuned_file.DIRECTORY_VARIABLE, str(tmp_path / "tuned"))
    choose.forget()
    yield tmp_path
    choose.forget()


WORKLOADS = st.builds(
    Workload,
    scheme=st.sampled_from(SCHEMES),
    features=st.sampled_from([16, 130, 4096, 28672]),
    columns=st.sampled_from([64, 314, 4096, 14336]),
    rows=st.sampled_from([1, 9, 33, 64, 100, 1000, 8192]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)


class TestCandidates:
    @settings(max_examples=60)
    @given(workload=WORKLOADS, name=st.sampled_from(sorted(TARGETS)))
    def test_rules_and_candidates_keep_within_the_limits(self, workload: Workload, name: str) -> None:
        target = TARGETS[name]
        found = explained(workload, target)
        assert why_not(found.problem, target, found.config) is None
        candidates = first_round(found.problem, target)
        assert candidates
        for config in [*candidates, *next_round(found.problem, target, found.config)]:
            assert why_not(found.problem, target, config) is None, config
        assert len(set(candidates)) == len(candidates) <= 90

    def test_every_round_changes_one_thing(self) -> None:
        best = TileConfig(64, 16, 256, 2, 4, 3)
        problem = explained(Workload("w8a8", 4096, 4096, 16), H100).problem
        near = next_round(problem, H100, best)
        assert len(near) == 7
        for config in near:
            changed = [
                name for name, value in dataclasses.asdict(config).items() if value != getattr(best, name)
            ]
            assert len(changed) == 1

    def test_a_kernel_compiles_with_its_candidates(self) -> None:
        """The widest tile, and one with a limit of registers: no stack, and the instruction that is meant."""
        workload = Workload("w4a16", 4096, 4096, 16)
        problem = explained(workload, TARGETS["sm_90"]).problem
        first = first_round(problem, TARGETS["sm_90"])
        near = next_round(problem, TARGETS["sm_90"], first[0])
        chosen = [first[-1], next(config for config in near if config.max_registers == 128)]
        records = compiled_for("sm_90", [f"candidate-{json.dumps(dataclasses.asdict(c))}" for c in chosen])
        assert len(records) == len(chosen)
        for record in records:
            problems = problems_of({**record, "case": "w4a16-g128-bfloat16-decode"}, "sm_90")
            assert not problems, (record, problems)

    @pytest.mark.skipif(shutil.which("cc") is None, reason="the stand-in for the driver needs a C compiler")
    def test_what_is_compiled_ahead_is_what_is_launched(self, tmp_path: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "tests.support.compiled_ahead", str(tmp_path)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        counts = json.loads(run.stdout.splitlines()[-1])
        assert list(counts.values()) == [[0, 1, 1], [1, 2, 2], [2, 3, 3]]


class TestWorkloads:
    @pytest.mark.usefixtures("kernels_can_run")
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_right_result_passes_and_a_wrong_one_does_not(self, scheme: str, device: str) -> None:
        workload = Workload(scheme, 48, 96, 5, "float16", group_size=32 if scheme.startswith("w4") else None)
        operands = product(workload, device, copies=2)
        expected = operands.expected()
        found = measure.check(operands, None, expected)
        assert found.shape == expected.shape
        assert torch.equal(operands.run(1), found)  # a copy of the weight
        if expected.is_floating_point():
            expected[2, 3] += 10 * expected.float().abs().max()
        else:
            expected[2, 3] ^= 64  # a code
        with pytest.raises(ValueError, match=r"wrong result: (off by|1 codes differ)"):
            measure.check(operands, None, expected)

    def test_a_result_that_changes_does_not_pass(self) -> None:
        class Fickle:
            exact = False
            calls = 0

            def run(self, config: object = None) -> torch.Tensor:
                self.calls += 1
                return torch.ones(3) + 1e-6 * self.calls

        with pytest.raises(ValueError, match="results differ between runs"):
            measure.check(Fickle(), None, torch.ones(3))  # type: ignore[arg-type]

    def test_agreement(self) -> None:
        nan = torch.tensor([1.0, torch.nan])
        assert largest_difference(nan, nan.clone()) == 0
        assert largest_difference(nan, torch.ones(2)) == torch.inf
        assert disagreement(nan, nan.clone(), exact=True) is None
        assert "instead of" in str(disagreement(nan, nan[:1], exact=True))
        assert disagreement(torch.ones(4).half(), torch.full((4,), 1.0001), exact=False) is None
        assert disagreement(torch.ones(4).half(), torch.full((4,), 1.1), exact=False) is not None
        assert disagreement(nan, torch.ones(2), exact=False) is not None


class TestWorkers:
    def test_a_crash_costs_a_process_and_no_more(self) -> None:
        worker = Worker(worker_questions.answer, patience=60)
        assert worker.ask("one").split()[-1] == worker.ask("two").split()[-1]
        with pytest.raises(WorkerError, match=r"ended the process \(exit code 7\)"):
            worker.ask("crash")
        with pytest.raises(WorkerError, match=r"^ValueError: no such thing$"):
            worker.ask("raise")
        worker._patience = 0.2
        with pytest.raises(WorkerError, match="no answer in 0 s"):
            worker.ask("hang")
        worker.close()

    def test_answers_come_in_the_order_of_questions(self) -> None:
        workers = Workers(worker_questions.answer, 60, count=2)
        answers = list(workers.ask_all([("crash",), ("a",), ("b",)]))
        workers.close()
        assert [str(answer).split()[0] for answer in answers] == ["it", "a", "b"]
        assert isinstance(answers[0], WorkerError)

    def test_after_a_question_without_end_none_is_asked_if_so_wanted(self) -> None:
        workers = Workers(worker_questions.answer, 60, count=1, ends_at_no_answer=True)
        (first,) = workers.ask_all([("a",)])
        assert first.startswith("a answered")
        workers._workers[0]._patience = 1
        hung, *others = workers.ask_all([("hang",), ("crash",), ("b",)])
        workers.close()
        assert isinstance(hung, NoAnswer)
        assert str(hung) == "no answer in 1 s"
        assert others == [None, None]


class FakeGPU:
    """Times by a rule; what is wrong, crashes or does not compile by another."""

    def __init__(self, best: TileConfig) -> None:
        self.best, self.measured, self.bad = best, 0, dict[TileConfig, str]()

    def compile_all(self, workload: Workload, configs: Sequence[TileConfig]) -> list[str | None]:
        return ["OutOfResources" if config.num_warps == 8 else None for config in configs]

    def measure(self, workload: Workload, config: TileConfig) -> float:
        self.measured += 1
        if config in self.bad:
            raise WorkerError(self.bad[config])
        wanted, given = dataclasses.asdict(self.best), dataclasses.asdict(config)
        return 10.0 + sum((1 + name.startswith("block")) * (wanted[name] != given[name]) for name in wanted)

    @property
    def tools(self) -> Tools:
        return Tools(self.compile_all, self.measure)


class TestSearch:
    WORKLOAD = Workload("w8a8", 4096, 4096, 16)

    def test_finds_keeps_and_goes_on(self) -> None:
        """A tile of the first round with another depth, other splits and a limit: found in three rounds, kept, used."""
        gpu = FakeGPU(TileConfig(64, 16, 128, 4, 4, 3, max_registers=128))
        before = explained(self.WORKLOAD, H100)
        gpu.bad[TileConfig(128, 16, 128, 8, 4, 4)] = "wrong result: off by 1"
        more = Workload("w8a8", 4096, 14336, 1)
        file = TunedFile(H100, {"driver": "1"})
        results = tune([self.WORKLOAD, more], H100, gpu.tools, file)
        result = next(results)
        assert result.entry is not None
        assert result.entry.config == gpu.best
        assert result.speedup is not None
        assert result.speedup > 1.1
        assert [reason for _, reason in result.dropped] == ["wrong result: off by 1"]
        assert {config.num_warps for config, _ in result.uncompiled} == {8}
        found = explained(dataclasses.replace(self.WORKLOAD, rows=9), H100)
        assert (found.config, found.source) == (gpu.best, "tuned")
        assert explained(more, H100).source == "rule"
        del results  # interrupted here: the same again goes on where it was
        assert before.source == "rule"
        resumed = list(tune([self.WORKLOAD, more], H100, gpu.tools, TunedFile(H100, {})))
        assert [one.workload for one in resumed] == [more]
        assert explained(more, H100).source == "tuned"
        assert list(tune([self.WORKLOAD, more], H100, gpu.tools, TunedFile(H100, {}))) == []
        fields = json.loads(tuned_file.path_of(H100).read_text())
        assert len(fields["entries"]) == 2
        assert [path.name for path in tuned_file.path_of(H100).parent.iterdir()] == [file.path.name]

    def test_a_gain_within_the_noise_changes_nothing(self) -> None:
        before = explained(self.WORKLOAD, H100).config

        def measured(workload: Workload, config: TileConfig) -> float:
            return 10.0 if config == before else 9.9

        (result,) = tune([self.WORKLOAD], H100, Tools(FakeGPU(before).compile_all, measured), None)
        assert result.entry is not None
        assert (result.entry.config, result.entry.microseconds) == (before, 10.0)
        assert not tuned_file.path_of(H100).exists()

    def test_a_lucky_measurement_changes_nothing(self) -> None:
        before = explained(self.WORKLOAD, H100).config
        seen = set()

        def measured(workload: Workload, config: TileConfig) -> float:
            lucky = config not in seen
            seen.add(config)
            return 10.0 if config == before or not lucky else 8.0

        (result,) = tune([self.WORKLOAD], H100, Tools(FakeGPU(before).compile_all, measured), None)
        assert result.entry is not None
        assert result.entry.config == before

    def test_what_runs_now_and_is_wrong_is_said(self) -> None:
        gpu = FakeGPU(TileConfig(64, 16, 128, 2, 4, 3))
        gpu.bad[explained(self.WORKLOAD, H100).config] = "wrong result: off by 3"
        (result,) = tune([self.WORKLOAD], H100, gpu.tools, TunedFile(H100, {}))
        assert (result.entry, result.speedup) == (None, None)
        assert result.dropped[0][1] == "wrong result: off by 3"
        assert gpu.measured == 1
        assert not tuned_file.path_of(H100).exists()

    def test_one_measurement_a_bucket(self) -> None:
        rows = [dataclasses.replace(self.WORKLOAD, rows=rows) for rows in (10, 16, 17)]
        results = list(tune(rows, H100, FakeGPU(TileConfig(64, 16, 128, 2, 4, 3)).tools, None))
        assert [result.workload.rows for result in results] == [10, 17]

    def test_a_file_of_others_is_not_written_over(self) -> None:
        path = tuned_file.path_of(H100)
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        with pytest.raises(ValueError, match="--again replaces it"):
            TunedFile(H100, {})
        TunedFile(H100, {}, again=True)


class TestShapes:
    def test_of_a_config(self, tmp_path: Path) -> None:
        """Llama-3-8B's: heads that share keys and values; siblings in one."""
        file = tmp_path / "config.json"
        fields: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        file.write_text(json.dumps(fields | {"num_key_value_heads": 8}))
        expected = {(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (6144, 4096), (28672, 4096)}
        assert set(shapes.shapes_of_model(file)) == set(shapes.shapes_of_model(tmp_path)) == expected
        assert expected <= set(shapes.usual_shapes())

    def test_of_tensors(self, tmp_path: Path) -> None:
        sizes = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32, "gate_proj": 48, "up_proj": 48}
        tensors = {f"model.layers.0.{name}.weight": torch.zeros(size, 32) for name, size in sizes.items()}
        tensors["model.embed_tokens.weight"] = torch.zeros(99, 32)
        tensors["model.norm.weight"] = torch.zeros(32)
        tensors["lm_head.weight"] = torch.zeros(99, 32)
        save_file(tensors, tmp_path / "model.safetensors")
        assert set(shapes.shapes_of_model(tmp_path)) == {(32, 32), (16, 32), (48, 32), (64, 32), (96, 32)}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "must be a model's config.json"),
            ("[1]", "must hold a dictionary, found list"),
            ('{"hidden_size": 64}', "must have intermediate_size, a positive integer, found None"),
            ('{"hidden_size": 1e9, "intermediate_size": 3}', "must have hidden_size"),
            ('{"hidden_size": 64, "intermediate_size": -3}', "must have intermediate_size"),
        ],
    )
    def test_of_what_is_no_config(self, text: str, message: str, tmp_path: Path) -> None:
        file = tmp_path / "config.json"
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            shapes.shapes_of_model(file)

    @pytest.mark.parametrize("text", ["4096", "4096x", "0x5", "-1x5", "4096*4096", "99999999x1", "1x2x3"])
    def test_no_shape(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"--shapes must be NxK"):
            shapes.parse_shape(text)
