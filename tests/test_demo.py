"""The demo: the model that ships is trained, the table's numbers hang together, and the requirement it serves holds."""

from __future__ import annotations

import io
import json

import pytest
import torch

from tritonq.demo import show
from tritonq.demo.evaluate import bits_per_byte
from tritonq.demo.measure import CONFIGS, FLOAT, DemoReport, run_demo
from tritonq.demo.model import load_demo_model
from tritonq.demo.text import calibration_bytes, heldout_bytes
from tritonq.ops import backend

PARAMETERS = 1_115_264


@pytest.fixture(scope="module")
def report() -> DemoReport:
    seen: list[tuple[str, int, int]] = []
    found = run_demo("cpu", lambda *step: seen.append(step))
    assert [step[0] for step in seen] == sorted((step[0] for step in seen), key=list(CONFIGS).index)
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)
    assert seen[-1][1] == seen[-1][2]
    return found


def test_every_scheme_has_a_row(report: DemoReport) -> None:
    assert [row.scheme for row in report.rows] == list(CONFIGS)
    assert {"w8a16", "w4a16", "w8a8", "w8a8_static", "w4a8", "w4a16 affine g64"} <= set(CONFIGS)
    assert report.parameters == PARAMETERS
    assert {row.backend for row in report.rows[1:]} == {backend("cpu")}


def test_the_model_is_trained(report: DemoReport) -> None:
    """Uniform bytes cost 8 bits, the frequencies of letters alone about 4.7."""
    assert report.rows[0].scheme == FLOAT
    assert 1.55 < report.rows[0].bits_per_byte < 1.65


def test_each_scheme_costs_what_it_should(report: DemoReport) -> None:
    change = {row.scheme: row.change for row in report.rows}
    assert abs(change["w8a16"]) < 0.002
    assert abs(change["w8a8"]) < 0.004
    assert change["w8a8_static"] < 0.03
    assert change["w4a16 channel"] >= 0.03, "INT4 must cost something, or there is nothing to improve"
    assert change["w4a16 affine g64"] < change["w4a16"] < 0.06
    assert change["w4a8"] < 0.07
    error = {row.scheme: row.logits_error for row in report.rows}
    assert error[FLOAT] == 0
    assert 0 < error["w8a16"] < error["w8a8"] < error["w8a8_static"] < error["w4a16"] < 0.15


def test_memory_savings_are_real(report: DemoReport) -> None:
    size = {row.scheme: row.weight_bytes for row in report.rows}
    assert size[FLOAT] == 4 * PARAMETERS
    stays_float = 4 * (2 * 256 * 128 + 9 * 128)  # embedding, lm_head, norms
    codes = PARAMETERS - stays_float // 4
    assert codes < size["w8a16"] - stays_float < 1.05 * codes
    assert codes / 2 < size["w4a16"] - stays_float < 1.08 * codes / 2
    for row in report.rows:
        assert row.ratio_to_fp16 == pytest.approx(2 * row.ratio_to_fp32)
        assert row.save_seconds > 0
        assert row.load_seconds > 0
        assert row.tokens_per_second > 0


def test_report_as_json_and_markdown(report: DemoReport) -> None:
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["scheme"] == "w8a16"
    lines = show.markdown(report).splitlines()
    assert len([line for line in lines if line.startswith("| w")]) == len(CONFIGS) - 1
    assert "CPU" in lines[-1]
    assert torch.__version__ in lines[-1]


@pytest.mark.needs_extra("rich")
def test_table(report: DemoReport) -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(show.rich_table(report))
    text = console.export_text()
    assert all(row.scheme in text for row in report.rows)
    console.file.close()


@pytest.mark.needs_extra("rich")
@pytest.mark.parametrize(
    ("width", "terminal"), [(40, True), (80, True), (80, False), (160, True), (160, False)]
)
def test_no_number_is_cut(report: DemoReport, width: int, terminal: bool) -> None:
    from rich.console import Console

    file = io.StringIO()
    show.print_report(report, Console(file=file, width=width, force_terminal=terminal, color_system=None))
    text = file.getvalue()
    assert "…" not in text
    lines = text.splitlines()
    for row in report.rows:
        found = " ".join(line for line in lines if f" {row.scheme} " in line)
        assert all(f" {cell} " in found for cell in show.cells(row))
    for heading in show.HEADINGS:
        assert f" {heading} " in text
    if terminal and width >= 80:
        assert max(map(len, lines)) <= width
    assert text.count(" scheme ") == (2 if terminal and width <= 80 else 1)


@pytest.mark.needs_extra("matplotlib")
def test_plot(report: DemoReport, tmp_path) -> None:
    show.plot(report, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.needs_extra("rich")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, "tpu"), "--device must be cuda or cpu, found 'tpu'"),
        ((None, "picture.gif", None), "found 'picture.gif'"),
        (("missing-folder/demo.json", None, None), "'missing-folder/demo.json' does not exist"),
    ],
)
def test_bad_arguments_are_refused_first(arguments, message, tmp_path, monkeypatch) -> None:
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    json_file, plot_file, device = arguments
    with pytest.raises(ValueError, match=message):
        show.demo(json_file and Path(json_file), plot_file and Path(plot_file), device)


def test_held_out_text_was_held_out() -> None:
    """No line of the held-out text that says something stands in the calibration text."""
    lines = {line.strip() for line in heldout_bytes().splitlines() if len(line.strip()) > 40}
    assert len(lines) > 300
    assert not lines & {line.strip() for line in calibration_bytes().splitlines()}


def test_shorter_text_is_harder() -> None:
    """The protocol counts every byte of every window once, with nothing before the window."""
    model = load_demo_model()
    text = heldout_bytes()[:4096]
    assert bits_per_byte(model, text, context=32) > bits_per_byte(model, text, context=256)
