"""Where a configuration comes from: the tuned file, the shipped table, the rule; and what a file cannot do."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tests.support import tuned_files
from tests.support.tuned_files import H100, INT8, RULE, TARGETS, TUNED
from tritonq.kernels.config import choose, limits, shipped, tuned_file
from tritonq.kernels.config.problem import BUCKETS, Int8, Problem, WeightOnly, bucket_of
from tritonq.kernels.config.tile import TileConfig
from tritonq.kernels.launch.launch import launching
from tritonq.kernels.launch.target import pretended, target_of


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tuned files of the test alone."""
    monkeypatch.setenv(tuned_file.DIRECTORY_VARIABLE, str(tmp_path))
    choose.forget()
    yield tmp_path
    choose.forget()


def chosen(problem: Problem = INT8, target: Any = H100) -> choose.Explanation:
    """What is chosen by sources of which each is asked anew."""
    tuned_file.forget()
    return choose.explain(problem, target, lambda: RULE)


class TestSources:
    def test_tuned_before_table_before_rule(self) -> None:
        row = shipped.ROWS[0]
        problem = Problem(WeightOnly(4, 128, 64, "torch.bfloat16", False), row.bucket, 4096, 4096)
        assert (chosen().config, chosen().source) == (RULE, "rule")
        found = chosen(problem)
        assert (found.config, found.source, found.origin) == (row.config, "table", row.source)
        tuned = TileConfig(64, 32, 256, 1, 8, 2)
        file = tuned_files.write(tuned_files.fields_of(tuned_files.entry(problem, tuned)))
        found = chosen(problem)
        assert (found.config, found.source, found.origin) == (tuned, "tuned", str(file))
        assert chosen().source == "rule"  # another problem

    def test_the_whole_bucket_of_rows_is_served(self) -> None:
        tuned_files.write(tuned_files.fields_of(tuned_files.entry()))
        served = [
            rows for rows in range(1, 40) if chosen(tuned_files.with_rows(INT8, rows)).source == "tuned"
        ]
        assert served == list(range(9, 17))

    def test_what_does_not_fit_is_passed_over(self) -> None:
        """By the tuned file, and by the table: five stages of a wide tile on a GPU with little shared memory."""
        small = dataclasses.replace(H100, shared_memory=48 * 1024)
        entry = tuned_files.entry(config=TileConfig(128, 128, 128, 1, 8, 5))
        tuned_files.write(tuned_files.fields_of(entry, target=small))
        found = chosen(target=small)
        assert found.source == "rule"
        assert found.passed_over == ("tuned: 5 stages of 32,768 bytes do not fit in 49,152",)

    def test_configured_asks_once(self) -> None:
        asked = []

        def rule() -> TileConfig:
            asked.append(1)
            return RULE

        for _ in range(3):
            assert choose.configured(INT8, H100, rule) == RULE
        assert len(asked) == 1
        choose.forget()
        tuned_files.write(tuned_files.fields_of(tuned_files.entry()))
        assert choose.configured(INT8, H100, rule) == TUNED
        assert len(asked) == 1

    def test_asked_hears_a_launcher_that_has_nowhere_to_run(self) -> None:
        """Tensors without memory on a GPU that is not here: the problem, its configuration, the launch."""
        from tritonq.kernels.blocks.int8_product import Int8Activation, Int8Weight
        from tritonq.kernels.matmul.int8 import int8_matmul
        from tritonq.kernels.matmul.int8_pointers import int8_matmul_kernel

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, device="meta")

        launches = []
        codes, weight = empty(5, 4096, dtype=torch.int8), empty(4096, 4096, dtype=torch.int8)
        sums = empty(4096, dtype=torch.int32)
        with (
            pretended(TARGETS["sm_90"]),
            launching(lambda *launch: launches.append(launch)),
            choose.asked() as explanations,
        ):
            w = Int8Weight(weight, empty(4096), None, sums)
            out = int8_matmul(Int8Activation(codes, empty(5, 1)), w, torch.float16)
        assert (out.shape, out.dtype, out.device.type) == ((5, 4096), torch.float16, "meta")
        ((kernel, _, _, constants),) = launches
        assert kernel is int8_matmul_kernel
        (explanation,) = explanations
        assert explanation.problem == Problem(Int8("short", addressable=True), 5, 4096, 4096)
        assert constants["BLOCK_K"] == explanation.config.block_k
        with pytest.raises(ValueError, match="need tensors on a GPU, found device meta"):
            target_of(codes)


class TestDamage:
    """Ignored, with one warning that names the file, the reason and the remedy."""

    def refused(self, content: bytes | dict[str, Any]) -> str:
        file = tuned_files.write({} if isinstance(content, bytes) else content)
        if isinstance(content, bytes):
            file.write_bytes(content)
        tuned_file.forget()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for rows in (3, 16, 500):
                found = choose.explain(tuned_files.with_rows(INT8, rows), H100, lambda: RULE)
                assert (found.config, found.source) == (RULE, "rule")
        (warning,) = heard
        message = str(warning.message)
        assert message.startswith(f"{file} is ignored")
        assert message.endswith("run `tritonq tune` again or delete the file")
        return message

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"format": 1}, "of another version of tritonq"),
            ({"gpu": {}}, "on another GPU"),
            ({"gpu": dataclasses.asdict(dataclasses.replace(H100, multiprocessors=114))}, "on another GPU"),
            ({"triton": "3.1"}, "with another version of Triton"),
            ({"kernels": "0" * 16}, "measured with other kernels"),
            ({"entries": None}, "holds no list of entries"),
            ({"entries": [7]}, "an entry is damaged"),
        ],
    )
    def test_stale_or_foreign(self, change: dict[str, Any], reason: str) -> None:
        assert reason in self.refused(tuned_files.fields_of(tuned_files.entry()) | change)

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}"]
    )
    def test_not_json(self, content: bytes) -> None:
        self.refused(content)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("block_n", 48),
            ("block_n", 1 << 20),
            ("block_m", -16),
            ("block_m", 0),
            ("block_k", 2.0),
            ("block_k", "64"),
            ("splits", 3),
            ("splits", True),
            ("splits", 64),
            ("num_warps", 12),
            ("num_warps", None),
            ("num_stages", 0),
            ("num_stages", 100),
            ("max_registers", 300),
            ("max_registers", [1]),
            ("path", 3),
            ("surprise", 1),
        ],
    )
    def test_numbers_out_of_bounds(self, name: str, value: Any) -> None:
        fields = tuned_files.fields_of(tuned_files.entry())
        fields["entries"][0]["config"][name] = value
        assert "an entry is damaged" in self.refused(fields)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("bucket", 17),
            ("bucket", 16.0),
            ("features", -1),
            ("columns", 1 << 40),
            ("variant", "x"),
            ("variant", ["short", True]),
            ("variant", {"epilogue": "short"}),
            ("variant", {"epilogue": "short", "addressable": 1}),
            ("variant", {"epilogue": "shortest", "addressable": True}),
            ("family", "weight_only"),
            ("family", None),
            ("microseconds", float("nan")),
            ("microseconds", 0),
            ("before", {}),
        ],
    )
    def test_fields_out_of_bounds(self, name: str, value: Any) -> None:
        fields = tuned_files.fields_of(tuned_files.entry())
        fields["entries"][0][name] = value
        assert "an entry is damaged" in self.refused(fields)

    def test_neither_file_nor_readable(self, directory: Path) -> None:
        file = tuned_file.path_of(H100)
        file.mkdir()
        with pytest.warns(UserWarning, match="must be a file"):
            assert chosen().source == "rule"
        file.rmdir()
        os.mkfifo(file)
        with pytest.warns(UserWarning, match="must be a file"):
            assert chosen().source == "rule"

    def test_a_path_that_is_not_there_is_passed_over(self) -> None:
        """A file's word is looked up, and nothing more."""
        tuned_files.write(
            tuned_files.fields_of(tuned_files.entry(config=dataclasses.replace(TUNED, path="x")))
        )
        assert chosen().passed_over == ("tuned: there is no path 'x' of int8",)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "NVIDIA_H100_80GB_HBM3.json"
    assert tuned_file.path_of(H100) == tmp_path / name
    monkeypatch.delenv(tuned_file.DIRECTORY_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tuned_file.path_of(H100) == tmp_path / "cache" / "tritonq" / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuned_file.path_of(H100) == tmp_path / ".cache" / "tritonq" / name
    hostile = dataclasses.replace(H100, name="../../x\0/y" * 100)
    assert tuned_file.path_of(hostile).parent == tmp_path / ".cache" / "tritonq"


def test_buckets() -> None:
    assert [bucket_of(rows) for rows in (1, 8, 9, 4097, 8192, 1_000_000)] == [8, 8, 16, 8192, 8192, 8192]
    assert {bucket_of(bound) for bound in BUCKETS} == set(BUCKETS)


def test_shape_classes() -> None:
    """Llama-3-8B's o, down, gate_up, and a square of 8192, on 132 multiprocessors."""
    shapes = ((4096, 4096), (4096, 14336), (28672, 4096), (8192, 8192), (1 << 20, 64))
    classes = [Problem(Int8("short", addressable=True), 1, *shape).shape_class(H100) for shape in shapes]
    assert classes == [(0.5, False), (0.5, True), (4.0, False), (1.0, False), (4.0, False)]


@pytest.mark.parametrize("row", shipped.ROWS, ids=lambda row: f"{row.kernel}-{row.shape_class}-{row.bucket}")
def test_shipped_rows_run_what_they_are_for(row: shipped.Row) -> None:
    """And differ from the rule: a row that repeats it is none."""
    slabs, group_size, slab_width = (4, 128, 64) if row.kernel.startswith("int4") else (1, 4096, 128)
    target = TARGETS["sm_90"]
    columns = 14336 if row.shape_class[1] else 4096
    group_size = group_size if slabs == 4 else columns
    variant = WeightOnly(slabs, group_size, slab_width, "torch.bfloat16", suits_hopper=False)
    problem = Problem(variant, row.bucket, 4096, columns)
    assert shipped.shipped(problem, target, "pointers") is row
    assert shipped.shipped(problem, target, "hopper") is None
    assert limits.why_not(problem, target, row.config) is None
    from tritonq.kernels.matmul.weight_only import choose_config

    blocks = columns // (slabs * slab_width)
    groups = columns // group_size
    rule = choose_config(target, row.bucket, 4096, blocks, groups, slabs, slab_width, 2, True)
    assert row.config != rule


#: Bytes a second that the data sheets name.
BANDWIDTHS = {"sm_80": 1.6e12, "sm_89": 1.0e12, "sm_90": 3.35e12, "sm_100": 8e12, "sm_120": 1.8e12}


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "w8a8", "w4a8"])
@pytest.mark.parametrize("name", BANDWIDTHS)
def test_decoding_keeps_memory_busy(name: str, scheme: str) -> None:
    """Why bandwidth is no input of the rules: at one microsecond of latency, enough bytes are under way already.

    Per multiprocessor: the programs that the tiles and the shared memory give it, times all stages but the one in use.
    W4A8 on sm_100 has 0.86 of it.
    """
    from tritonq.tuning.workload import Workload, explained

    target = TARGETS[name]
    found = explained(Workload(scheme, 28672, 4096, 1), target)
    needs = limits.demands(found.problem, found.config)
    tiles = found.config.tiles(28672, 1) * found.config.splits / target.multiprocessors
    programs = min(tiles, target.shared_memory // (needs.bytes_per_stage * found.config.num_stages))
    under_way = programs * needs.bytes_per_stage * (found.config.num_stages - 1)
    assert under_way >= 0.85 * 1e-6 * BANDWIDTHS[name] / target.multiprocessors
