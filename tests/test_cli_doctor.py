"""`tritonq doctor`: what it checks, what it says, and that it sees what is wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer", reason="the command line needs typer and rich")
pytest.importorskip("rich", reason="the command line needs typer and rich")

from tritonq import cli
from tritonq.doctor import checks, command, cpu, operators

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
#: As it is: tests pretend that there is a GPU, or none.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATOR_MODULES = (
    "fake_quantize",
    "int4",
    "int8",
    "int8_gated",
    "norm_quantize",
    "observe",
    "quantize",
    "weight_only",
)


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_gpu(monkeypatch)
    assert cli.main(["doctor", "--json", str(tmp_path / "out.json")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert command.NO_GPU in captured.out
    assert f"torch: {torch.__version__}" in captured.out
    assert captured.out.endswith("9 checks, all right\n")
    fields = json.loads((tmp_path / "out.json").read_text())
    assert [check["wrong"] for check in fields["checks"]] == [None] * 9


def test_a_wrong_reference_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A product that saturates to 16 bits, as torch's own does on some processors."""
    without_gpu(monkeypatch)
    right = cpu.int_matmul
    monkeypatch.setattr(cpu, "int_matmul", lambda x, w: right(x, w).clamp(-(1 << 15), (1 << 15) - 1))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "WRONG: off by" in out
    assert out.endswith("9 checks, 1 WRONG\n")


@dataclasses.dataclass
class Made:
    """A check with made-up results."""

    results: list[torch.Tensor]
    name: str = "made"
    path: str = "up"

    def run(self, device: str, repeats: int) -> checks.Outcome:
        results = iter(self.results)
        return checks.compared(lambda: (next(results),), (torch.ones(3),), True, repeats)


def test_outcomes() -> None:
    one, two = torch.ones(3), torch.tensor([1.0, 1.0, 3.0])
    assert checks.run_check(Made([one, one]), "cpu", 2) == checks.Outcome(0.0, None)
    wrong = checks.run_check(Made([two, two]), "cpu", 2)
    assert (wrong.difference, wrong.wrong) == (2.0, "off by 2, but every bit must match")
    assert checks.run_check(Made([one, two]), "cpu", 2).wrong == "another result every time"
    short = checks.run_check(Made([one[:2]]), "cpu", 1)
    assert str(short.wrong).startswith("[2] of torch.float32 instead of [3]")
    assert str(checks.run_check(Made([]), "cpu", 1).wrong).startswith("StopIteration")


@needs_triton
@pytest.mark.usefixtures("kernels_can_run")
def test_products_are_right(device: str) -> None:
    """Every family on every path that there is, in the interpreter where no GPU is."""
    from tritonq.doctor.products import product_checks
    from tritonq.kernels.launch.target import INTERPRETER, gpu_target

    target = gpu_target(0) if device == "cuda" else INTERPRETER
    shapes = ((40, 64, 3), (33, 48, 17), (130, 128, 70))
    made = list(product_checks(target, "float16", shapes, large_shapes=((272, 256, 40),)))
    outcomes = [checks.run_check(check, device, repeats=2) for check in made]
    assert [(check, one.wrong) for check, one in zip(made, outcomes, strict=True) if one.wrong] == []
    assert len({check.workload.scheme for check in made}) == 9
    assert {check.config.path for check in made} >= {"pointers", "descriptors", "quantizing", "apart"}
    assert any(check.config.splits > 1 for check in made)


@needs_triton
def test_products_of_an_h100_are_those_of_production() -> None:
    """Every tile of Hopper's kernels; rings that go round; programs that take several tiles, of one row and of many."""
    from tests.support.tuned_files import H100
    from tritonq.doctor.products import product_checks
    from tritonq.kernels.config.hopper_weight_only_shapes import rings_of
    from tritonq.kernels.launch.gluon_versions import AVAILABLE

    if not AVAILABLE:
        pytest.skip("Triton has no Gluon for Hopper")
    tiles: dict[str, set[tuple[int, int]]] = {}
    again: dict[str, set[tuple[int, int]]] = {}
    for check in product_checks(H100):
        config, workload = check.config, check.workload
        if config.path != "hopper" or config.splits > 1:
            continue
        tile = config.block_n, config.block_m
        tiles.setdefault(workload.scheme, set()).add(tile)
        in_slot = rings_of(config).x_columns if workload.config.weight_only else config.block_k
        goes_round = workload.columns // in_slot > config.num_stages
        if goes_round and config.tiles(workload.features, workload.rows) > 2 * H100.multiprocessors:
            again.setdefault(workload.scheme, set()).add(tile)
    assert tiles == {
        "w4a16": {(128, 8), (128, 64), (128, 128)},
        "w8a16": {(128, 8), (128, 64), (128, 128), (128, 256)},
        "w8a8": {(64, 64), (64, 128), (128, 64), (128, 128), (256, 64), (256, 128)},
        "w4a8": {(128, 16), (128, 128)},
        "w8a8_gated": {(64, 64), (64, 128), (128, 64), (128, 128), (256, 64)},
    }
    assert again == tiles


@pytest.fixture
def kernels_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators launch kernels while a check computes, and not while it asks the reference."""
    state = {"on": False}

    def compared(*arguments: Any) -> checks.Outcome:
        state["on"] = True
        try:
            return checks.compared(*arguments)
        finally:
            state["on"] = False

    monkeypatch.setattr(operators, "compared", compared)
    for name in OPERATOR_MODULES:
        module = importlib.import_module(f"tritonq.ops.{name}")
        monkeypatch.setattr(module, "uses_kernels", lambda x: state["on"])


@needs_triton
@pytest.mark.usefixtures("kernels_can_run", "kernels_on_a_cpu")
@pytest.mark.parametrize("name", list(operators.samples()))
def test_operators_are_right(name: str, device: str) -> None:
    outcome = checks.run_check(operators.OperatorCheck(name), device, repeats=2)
    assert outcome.wrong is None


@needs_triton
def test_every_operator_is_checked() -> None:
    from tritonq import ops

    checked = {sample.operator for sample in operators.samples().values()}
    no_kernels = {ops.backend, ops.scale_of_codes, ops.scale_with_history, ops.traced_version}
    others = {ops.rms_norm_quantize_per_tensor, ops.layer_norm_quantize_per_tensor}
    others |= {ops.add_rms_norm_quantize_per_token}  # the other mode of a kernel that is checked
    everything = {getattr(ops, name) for name in ops.__all__}
    assert everything - checked == no_kernels | others


class Direct:
    """Workers that answer the first question in this process; the second ends its own."""

    def __init__(self, function: Any, *rest: Any, **words: Any) -> None:
        self.function = function

    def ask_all(self, questions: Any) -> Iterator[Any]:
        from tritonq.tuning.worker import WorkerError

        yield self.function(questions[0][0], DEVICE, 2)
        yield WorkerError("it ended the process (exit code 139)")

    def close(self) -> None:
        pass


@pytest.fixture
def as_if_on_an_h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A GPU of which nothing but the checks of products is asked; those are for the test to set."""
    from tests.support.tuned_files import H100
    from tritonq.doctor import chains
    from tritonq.kernels.config import tuned_file
    from tritonq.kernels.launch import target

    with monkeypatch.context() as patches:
        patches.setenv(tuned_file.DIRECTORY_VARIABLE, str(tmp_path))
        patches.setattr(torch.cuda, "is_available", lambda: True)
        patches.setattr(torch.cuda, "device_count", lambda: 1)
        patches.setattr(torch.cuda, "current_device", lambda: 0)
        patches.setattr("tritonq.util.machine.gpu", lambda index: {"gpu": H100.name, "driver": None})
        patches.setattr("tritonq.ops.backend", lambda device: "triton")
        patches.setattr(target, "gpu_target", lambda index: H100)
        patches.setattr(chains, "chain_checks", list)
        patches.setattr(operators, "operator_checks", list)
        yield patches


@needs_triton
@pytest.mark.usefixtures("kernels_can_run")
def test_on_a_gpu(as_if_on_an_h100: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The report, of an H100 whose kernels are interpreted and one of whose processes dies."""
    from tests.support.tuned_files import H100
    from tritonq.doctor import products
    from tritonq.kernels.config import tuned_file
    from tritonq.kernels.config.tile import TileConfig
    from tritonq.tuning import worker
    from tritonq.tuning.workload import Workload

    config = TileConfig(64, 16, 64, 1, 4, 2)
    made = [products.ProductCheck(Workload("w8a8", 40, 64, m, "float16"), config) for m in (3, 5)]
    as_if_on_an_h100.setattr(products, "product_checks", lambda target: made)
    as_if_on_an_h100.setattr(worker, "Workers", Direct)
    tuned_file.path_of(H100).write_text("{}")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    for line in (
        "gpu: NVIDIA H100 80GB HBM3",
        "driver: not installed",
        "path pointers: yes",
        "path descriptors: yes",
        "ignored: it is of another version of tritonq",
        "WRONG: it ended the process (exit code 139)",
        "11 checks, 1 WRONG",
    ):
        assert line in out
    assert "path hopper: " in out


@needs_triton
def test_a_check_that_hangs_is_named_and_ends_the_run(
    as_if_on_an_h100: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.support.worker_questions import Hanging
    from tritonq.doctor import products

    made = [Hanging("planted"), Hanging("another"), Hanging("a third")]
    as_if_on_an_h100.setattr(products, "product_checks", lambda target: made)
    as_if_on_an_h100.setattr(command, "_MOST_PROCESSES", 1)
    start = time.monotonic()
    assert cli.main(["doctor", "--timeout", "3", "--json", str(tmp_path / "out.json")]) == 1
    assert time.monotonic() - start < 30  # one check's time, not three's, and no waiting for its process
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "nowhere" in line]
    assert lines[0].startswith("planted")
    assert lines[0].endswith("WRONG: hangs: no answer in 3 s")
    assert [line.endswith("not run") for line in lines] == [False, True, True]
    assert out.endswith("12 checks, 1 WRONG, 2 not run: see what hangs\n")
    *_, planted, another, third = json.loads((tmp_path / "out.json").read_text())["checks"]
    assert planted["wrong"] == "hangs: no answer in 3 s"
    assert [check["ran"] for check in (planted, another, third)] == [True, False, False]


@needs_triton
def test_missing_paths() -> None:
    from tests.support.tuned_files import TARGETS
    from tritonq.kernels.config.limits import missing_paths

    for name, target in TARGETS.items():
        missing = missing_paths(target)
        assert list(missing) == ["pointers", "descriptors", "hopper"]
        assert missing["pointers"] is None
        assert (missing["descriptors"] is None) == (name in ("sm_90", "sm_100", "sm_120"))
        assert (
            name == "sm_90"
            or "compute capability 9.0" in str(missing["hopper"])
            or "Gluon" in str(missing["hopper"])
        )
