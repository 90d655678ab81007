"""The figures of docs/learn.md: each one draws itself anew, and the numbers on the page are those of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from docs.figures import __main__ as figures

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: Figures without calibration and held-out text: a run over a little of either gives the recorded numbers.
REPRODUCIBLE = ("grid", "granularity", "static_flow", "training")
LARGEST = 150_000  # bytes of a picture


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    figures.main(["--out", str(folder), "--limit", "512"])
    return folder


@pytest.mark.parametrize("name", figures.NAMES)
def test_a_figure_is_drawn_anew(drawn: Path, name: str) -> None:
    assert (drawn / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    new, recorded = (
        json.loads((folder / "figures.json").read_text())[name] for folder in (drawn, DOCS / "images")
    )
    assert new.keys() == recorded.keys()
    if name in REPRODUCIBLE:
        assert new == pytest.approx(recorded, rel=1e-3)


@pytest.mark.parametrize("name", figures.NAMES)
def test_the_page_shows_it(name: str) -> None:
    assert f"](images/{name}.png)" in (DOCS / "learn.md").read_text()
    assert (DOCS / "images" / f"{name}.png").stat().st_size < LARGEST


def test_numbers_on_the_page_are_recorded() -> None:
    """Every decimal number in the page's prose and tables is one of a figure's, rounded as it stands there."""
    code = r"```.*?```|`[^`\n]*`|^    .*?$"
    text = re.sub(code, "", (DOCS / "learn.md").read_text(), flags=re.S | re.M)
    recorded = [
        abs(value) for group in json.loads((DOCS / "images" / "figures.json").read_text()).values()
        for value in group.values()
    ]  # fmt: skip
    for found in re.findall(r"(?<![\w.])\d+\.\d+(?: %)?", text):
        digits = found.removesuffix(" %")
        value = float(digits) / (100 if found.endswith("%") else 1)
        places = len(digits.partition(".")[2]) + (2 if found.endswith("%") else 0)
        assert any(abs(value - other) <= 0.501 * 10**-places for other in recorded), f"{found} is of no run"


def test_one_figure_alone_keeps_the_others_numbers(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text((drawn / "figures.json").read_text())
    figures.main(["--out", str(tmp_path), "--limit", "512", "static_flow"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["figures.json", "static_flow.png"]
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(
        (drawn / "figures.json").read_text()
    )


def test_an_unknown_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        figures.main(["grids"])
    assert "NAME must be one of grid, granularity" in capsys.readouterr().err
