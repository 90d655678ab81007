"""`python3 -m benchmarks.perplexity`: its recipes, its numbers, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")
import tritonq
from benchmarks import recipes
from tests.support import hosts
from tests.support.model_directories import TEXT, save_model
from tritonq.analysis.perplexity import cut_windows, perplexity

perplexity_benchmark = pytest.importorskip("benchmarks.perplexity")
TOKENS = 32


def test_recipes():
    recipe = recipes.parse("w8a8_static+observer=mse+smooth=0.25+down_proj=w8a8+lm_head=float")
    assert recipe.config == tritonq.W8A8Static(observer="mse")
    assert recipe.alpha == 0.25
    assert recipe.exceptions == {"down_proj": tritonq.W8A8(), "lm_head": None}
    assert recipes.parse("w8a8+smooth").alpha == "search"
    assert recipes.parse("float").config is None
    for name in perplexity_benchmark.RECIPES:
        assert recipes.parse(name).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w3a3", "a scheme must be one of float, w8a16, .* found 'w3a3'"),
        ("w8a8+down_proj=w3", "a scheme must be one of float, .* found 'w3'"),
        ("w8a8+observer=mse", "observer=mse needs a static scheme, found w8a8"),
        ("w8a8+smooth=much", "smooth needs a number .* found 'much'"),
        ("w8a8+fast", "a part must be smooth, .* found 'fast'"),
    ],
)
def test_recipes_that_mean_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        recipes.parse(name)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, and a text."""
    torch.manual_seed(0)
    home = save_model(tmp_path_factory.mktemp("model"))
    (home / "text.txt").write_text(TEXT)
    return home


def test_the_numbers(directory, capsys):
    """The table's are those of the steps that the recipes stand for, on other text than is calibrated on."""
    names = ["float", "w8a8", "w8a8_static+smooth=0.5", "w8a8_static+smooth=0.5+down_proj=w8a16"]
    file = directory / "results.json"
    perplexity_benchmark.main(
        directory,
        directory / "text.txt",
        recipes=names,
        tokens=TOKENS,
        windows=4,
        calibration_windows=3,
        dtype="float32",
        json_file=file,
    )
    printed = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert [row["recipe"] for row in report["rows"]] == names

    ids = perplexity_benchmark.load(directory, None, TEXT, torch.float32, torch.device("cpu"))[1]
    windows, data = cut_windows(ids, TOKENS, 4), list(cut_windows(ids[-3 * TOKENS :], TOKENS).split(1))
    model = hosts.load(directory, None).float()
    expected = [perplexity(model, windows.split(1)).perplexity]
    expected.append(perplexity(tritonq.quantize_dynamic(model), windows.split(1)).perplexity)
    tritonq.smooth_(model, data)
    tritonq.quantize_(model, {"down_proj": "w8a16", "_default": "w8a8_static"}, calibration=data)
    expected.append(perplexity(model, windows.split(1)).perplexity)
    found = [row["perplexity"] for row in report["rows"]]
    assert [found[0], found[1], found[3]] == pytest.approx(expected, rel=1e-5)
    assert report["rows"][1]["change_percent"] == pytest.approx(100 * (found[1] / found[0] - 1))
    for name, value in zip(names, found, strict=True):
        assert name in printed
        assert f"{value:.3f}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"directory": "nowhere"}, "nothing there"),
        ({"gguf": "model.gguf"}, "must be a GGUF file, found nothing there"),
        ({"windows": 1000}, "--text must have 32,256 tokens for both purposes"),
        ({"recipes": ["w9"]}, "a scheme must be one of"),
    ],
)
def test_refusals(directory, words, message):
    arguments = {"directory": directory, "text_file": directory / "text.txt", "tokens": TOKENS}
    if "directory" in words:
        words = {"directory": directory / words["directory"]}
    with pytest.raises((ValueError, OSError), match=message):
        perplexity_benchmark.main(**{**arguments, **words})
