"""`tritonq eval`: the numbers are those of the model itself, float or packed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

pytest.importorskip("typer")
pytest.importorskip("rich")
import tritonq
from tests.support import hosts
from tests.support.checkpoints import read_config
from tests.support.model_directories import TEXT, run, save_model

Capture = pytest.CaptureFixture[str]
TOKENS = 48


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text, a float model, and quantized ones; the static one hands int8 from layer to layer."""
    home = tmp_path_factory.mktemp("models")
    (home / "text.txt").write_text(TEXT)
    torch.manual_seed(0)
    source = save_model(home / "float")
    batches = [{"input_ids": hosts.TOKENS, "use_cache": False}]
    for scheme in ("w4a16", "w8a8", "w8a8_static"):
        tritonq.save(tritonq.quantize_(hosts.load(source), scheme, calibration=batches), home / scheme)
        for path in source.glob("tokenizer*"):
            (home / scheme / path.name).write_bytes(path.read_bytes())
    assert "edges" in read_config(home / "w8a8_static")["tritonq"]
    return home


def evaluated(home: Path, name: str, capsys: Capture, *arguments: Any) -> tuple[dict[str, Any], str]:
    out, err = run(
        capsys, "eval", home / name, "--text", home / "text.txt", "--tokens", TOKENS, *arguments,
        "--json", home / f"{name}.json",
    )  # fmt: skip
    assert err == ""
    return json.loads((home / f"{name}.json").read_text()), out


@torch.no_grad()
@pytest.mark.parametrize("name", ["float", "w4a16", "w8a8", "w8a8_static"])
def test_the_numbers(name: str, models: Path, capsys: Capture) -> None:
    report, out = evaluated(models, name, capsys, "--batch", 3, "--windows", 7)
    from transformers import AutoTokenizer

    model = hosts.load(models / "float")
    if name != "float":
        model = tritonq.load(models / name, model)
    ids = torch.tensor(AutoTokenizer.from_pretrained(models / name)(TEXT)["input_ids"])
    losses = [
        F.cross_entropy(model(window[None]).logits[0, :-1].float(), window[1:])
        for window in ids[: 7 * TOKENS].split(TOKENS)
    ]
    loss = float(torch.stack(losses).mean())
    assert report["loss"] == pytest.approx(loss, rel=1e-4)  # in other batches
    assert report["perplexity"] == pytest.approx(math.exp(report["loss"]))
    # A token is a character here, and each a byte.
    assert report["bits_per_byte"] == pytest.approx(report["loss"] / math.log(2))
    assert report["tokens"] == 7 * (TOKENS - 1)
    assert (report["windows"], report["window_tokens"]) == (7, TOKENS)
    assert report["scheme"] == name
    assert report["tokens_per_second"] == pytest.approx(report["tokens"] / report["seconds"])
    assert report["dtype"] == "bfloat16"
    assert f"perplexity     {report['perplexity']:.4f}" in out


def test_quantized_models_stay_packed(models: Path, capsys: Capture) -> None:
    sizes = {
        name: evaluated(models, name, capsys, "--windows", 1)[0]["model_bytes"]
        for name in ("float", "w8a8", "w4a16")
    }
    assert sizes["w4a16"] < 0.75 * sizes["w8a8"] < 0.75 * 0.75 * sizes["float"]


def test_dtype(models: Path, capsys: Capture) -> None:
    report, out = evaluated(models, "float", capsys, "--dtype", "float32", "--windows", 2)
    assert report["dtype"] == "float32"
    assert "on             cpu, float32" in out or torch.cuda.is_available()


def write_masked_model(directory: Path) -> None:
    """A model that fills gaps, and does not continue text."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {
        key: hosts.SIZES[key]
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    }
    config = BertConfig(**sizes, num_attention_heads=4, max_position_embeddings=64)
    BertForMaskedLM(config).save_pretrained(directory)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float", "--text", "nowhere"), "nowhere must be a text file, found nothing there"),
        (("float", "--text", "short"), "the text has 2 tokens, less than one window of 32"),
        (
            ("float", "--text", "text.txt", "--tokens", "99"),
            "--tokens must be at most 64, the model's limit, found 99",
        ),
        (("float", "--text", "text.txt", "--device", "tpu"), "--device must be cuda or cpu, found 'tpu'"),
        (("nowhere", "--text", "text.txt"), "nowhere must be a model directory, found nothing there"),
        (("damaged", "--text", "text.txt"), "must be a whole safetensors file, found "),
        (("fp8", "--text", "text.txt"), "quant_method"),
        (("masked", "--text", "text.txt"), "masked must be a causal language model, found BertForMaskedLM"),
        (
            ("partial", "--text", "text.txt"),
            "must hold all of the model's tensors, found no model.norm.weight",
        ),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], message: str, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(models)
    Path("short").write_text("hi")
    for name in ("damaged", "fp8", "masked", "partial"):
        if not Path(name).exists():
            save_model(Path(name))
    write_masked_model(Path("masked"))
    tensors = load_file("partial/model.safetensors")
    tensors.pop("model.norm.weight", None)
    save_file(tensors, "partial/model.safetensors", metadata={"format": "pt"})
    Path("damaged/model.safetensors").write_bytes(b"x")
    fields = json.loads(Path("fp8/config.json").read_text())
    Path("fp8/config.json").write_text(json.dumps({**fields, "quantization_config": {"quant_method": "fp8"}}))
    _, err = run(capsys, "eval", "--tokens", 32, *arguments, code=1)
    assert message in err
    assert err.count("\n") == 1
