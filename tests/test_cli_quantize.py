"""`tritonq quantize`: the same files as `quantize_` and `save`, resumable, and errors in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")
import tritonq
from tests.support import hosts
from tests.support.model_directories import TEXT, run, save_model
from tritonq.analysis.perplexity import cut_windows
from tritonq.cli.model_directory import ModelDirectory
from tritonq.streaming import workspace

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def expected(source: Path, directory: Path, config: Any, **words: Any) -> dict[str, bytes]:
    """What `quantize_` and `save` make of the model: file → bytes."""
    model = hosts.load(source)
    words.setdefault("ignore", [hosts.head_name(model)])
    tritonq.save(tritonq.quantize_(model, config, **words), directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def check(found: Path, wanted: dict[str, bytes]) -> None:
    """The same tensor files bit for bit, and the same values in the JSON files."""
    for name, content in wanted.items():
        written = (found / name).read_bytes()
        if name.endswith(".json"):
            assert json.loads(written) == json.loads(content), name
        else:
            assert written == content, name


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_the_copy(scheme: str, llama: Path, tmp_path: Path, capsys: Capture) -> None:
    out, err = run(
        capsys, "quantize", llama, "-s", scheme, "-o", tmp_path / "q", "--json", tmp_path / "q.json"
    )
    assert err == ""
    assert out == f"{tritonq.info(tmp_path / 'q')}\n"
    check(tmp_path / "q", expected(llama, tmp_path / "e", scheme))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "q" / name).read_bytes() == (llama / name).read_bytes()
    report = json.loads((tmp_path / "q.json").read_text())
    assert report["layers"] == 14
    assert report["kept_files"] == 0
    assert report["seconds"] > 0
    model = hosts.load(tmp_path / "q", tritonq.TritonQConfig())
    assert torch.isfinite(hosts.logits(model)).all()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("architecture", ["gpt-neox", "mixtral"])
def test_a_model_whose_files_hold_other_tensors(architecture: str, tmp_path: Path, capsys: Capture) -> None:
    """A head that the files call otherwise, experts that are merged on loading."""
    source = save_model(tmp_path / "source", architecture)
    _, err = run(capsys, "quantize", source, "-s", "w4a16", "-o", tmp_path / "q")
    assert err.startswith(
        "quantizing during loading by transformers: the model's tensors must be in the files"
    )
    assert ("experts stay in float" in err) == (architecture == "mixtral")
    check(tmp_path / "q", expected(source, tmp_path / "e", "w4a16"))
    assert not (tmp_path / "q.partial").exists()


@pytest.mark.parametrize("scheme", ["w8a8_static", "w8a8"])
def test_calibration(scheme: str, llama: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    """Static scales from a text, and SmoothQuant on it."""
    smooth = ["--smooth"] if scheme == "w8a8" else []
    run(
        capsys, "quantize", llama, "-s", scheme, "-o", tmp_path / "q",
        "--calibrate", text, "--tokens", 48, "--windows", 5, *smooth,
    )  # fmt: skip
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(llama)(TEXT)["input_ids"]
    assert len(tokens) == len(TEXT)
    batches = [{"input_ids": ids, "use_cache": False} for ids in cut_windows(tokens, 48, 5).split(1)]
    model = hosts.load(llama).eval()
    if smooth:
        tritonq.smooth_(model, batches)
        before = hosts.load(llama).model.layers[0].input_layernorm.weight
        assert not torch.equal(model.model.layers[0].input_layernorm.weight, before)
    tritonq.save(tritonq.quantize_(model, scheme, calibration=batches), tmp_path / "e")
    check(tmp_path / "q", {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()})
    assert (tmp_path / "q" / "tokenizer.json").exists()


def test_config_file_ignore_and_dtype(llama: Path, tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "schemes.json"
    w4 = tritonq.W4A16(group_size=32, symmetric=False)
    config.write_text(json.dumps({"re:.*mlp.*": w4.to_dict(), "o_proj": None, "v_proj": "W8A8"}))
    words = ("--config", config, "-s", "w8a16", "--ignore", "lm_head", "--ignore", "re:.*layers.0.*")
    run(capsys, "quantize", llama, *words, "--dtype", "float32", "-o", tmp_path / "q")
    model = hosts.load(llama, dtype=torch.float32)
    table = {"re:.*mlp.*": w4, "o_proj": None, "v_proj": "w8a8", "_default": "w8a16"}
    tritonq.save(tritonq.quantize_(model, table, ignore=["lm_head", "re:.*layers.0.*"]), tmp_path / "e")
    check(tmp_path / "q", {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()})
    assert tritonq.info(tmp_path / "q").layers == 6


@pytest.mark.filterwarnings("default")
def test_an_empty_ignore_quantizes_the_head_and_warnings_are_one_line(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    _, err = run(capsys, "quantize", llama, "-s", "w8a16", "-o", tmp_path / "q", "--ignore", "")
    assert err.startswith("warning: the weight of lm_head is tied to model.embed_tokens")
    assert err.count("\n") == 1
    assert tritonq.info(tmp_path / "q").layers == 15


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(28, "No space left on device"), 1, "No space left")],
    ids=["Ctrl-C", "disk full"],
)
def test_an_interrupted_run_says_how_to_go_on(
    error: BaseException, code: int, words: str, llama: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ("quantize", llama, "-s", "w8a16", "-o", tmp_path / "q")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tritonq.cli.quantize._MEGABYTE", 20)  # bytes: several files, of 20,000 bytes each
        write = workspace.write_tensors

        def stop_at_the_third(path: Path, tensors: Any) -> None:
            if "-00003-" in path.name:
                raise error
            write(path, tensors)

        patch.setattr(workspace, "write_tensors", stop_at_the_third)
        _, err = run(capsys, *command, code=code)
        assert words in err
        assert (
            f"{tmp_path / 'q.partial'} keeps the finished files: the same command continues, --restart starts over"
            in err
        )
        assert err.count("\n") == 1
        assert not (tmp_path / "q").exists()
        patch.setattr(workspace, "write_tensors", write)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(ModelDirectory, "load", lambda *words: pytest.fail("loaded before it was refused"))
            static = ("-s", "w8a8_static", "--calibrate", text, "--tokens", 32)
            _, err = run(capsys, *command, *static, code=1)
        assert "unfinished result for other" in err
        _, err = run(capsys, *command, "--ignore", "q_proj", "--ignore", "lm_head", code=1)
        assert "unfinished result for other options" in err
        run(capsys, *command, "--json", tmp_path / "q.json")
    assert json.loads((tmp_path / "q.json").read_text())["kept_files"] == 2
    assert len(list((tmp_path / "q").glob("model-*.safetensors"))) > 3
    assert torch.isfinite(hosts.logits(hosts.load(tmp_path / "q", tritonq.TritonQConfig()))).all()


def test_an_interrupted_calibration_leaves_nothing(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(*words: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tritonq, "quantize_", interrupt)
    command = (
        "quantize",
        llama,
        "-s",
        "w8a8_static",
        "-o",
        tmp_path / "q",
        "--calibrate",
        text,
        "--tokens",
        32,
    )
    _, err = run(capsys, *command, code=130)
    assert err == "interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def pickles(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02")


def unknown_architecture(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "crystal_ball"}')


def quantized_already(directory: Path) -> None:
    fields = json.loads((directory / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "fp8"}
    (directory / "config.json").write_text(json.dumps(fields))


def quantized_elsewhere(directory: Path) -> None:
    (directory / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')


def no_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


STATIC = ("-s", "w8a8_static", "--calibrate", "text.txt", "--tokens", "32")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": 4}, "config.json: quantization_config must be a dictionary, found 4"),
        ({"architectures": ["BertTokenizer"]}, None),
        ({"architectures": ["os"]}, None),
        ({"architectures": [7]}, None),
        ({"architectures": 7}, None),
        ({"hidden_size": -8}, "config.json must "),
        (
            {"hidden_size": 72},
            "model.embed_tokens.weight must be bfloat16 [128, 72], found bfloat16 [128, 64]",
        ),
        ({"num_hidden_layers": "many"}, "config.json must "),
        ({"dtype": "float8_e4m3fn"}, "must be a model in float32, float16 or bfloat16"),
        ({"dtype": "sparkling"}, "config.json must be"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, None),
    ],
    ids=str,
)
def test_hostile_configs(
    fields: dict[str, Any], message: str | None, llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    """One sentence, or the model that the rest of the file describes; never a traceback, never the directory's code."""
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    (source / "evil.py").write_text("raise SystemExit('code of the directory was run')")
    config = source / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    _, err = run(
        capsys, "quantize", source, "-s", "w8a16", "-o", tmp_path / "q", code=int(message is not None)
    )
    assert err.count("\n") == int(message is not None), err
    assert (message or "") in err
    assert (tmp_path / "q").exists() == (message is None)


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, ("-s", "w5a16"), "--scheme must be one of w8a16, w4a16, w8a8, w8a8_static, w4a8, found 'w5a16'"),
        (None, (), "say how to quantize: --scheme w8a16, w4a16"),
        (None, ("--config", "none.json"), "none.json must be a JSON file, found nothing there"),
        (None, ("--config", "text.txt"), "text.txt must hold JSON, found JSONDecodeError"),
        (None, ("--config", "list.json"), "list.json must hold a dictionary from patterns to schemes, found [1]"),
        (None, ("--config", "bad.json"), "bad.json: q_proj: QuantConfig.from_dict knows activation, algorithm, weight"),
        (None, ("--config", "odd.json"), "odd.json: q_proj must be one of w8a16"),
        (None, ("-s", "w8a8_static"), "a static scheme needs --calibrate TEXT"),
        (None, ("-s", "w8a8", "--calibrate", "text.txt"), "--calibrate is for static schemes (w8a8_static) and"),
        (None, ("-s", "w8a8", "--smooth"), "--smooth needs --calibrate TEXT"),
        (None, (*STATIC[:3], "nowhere.txt"), "nowhere.txt must be a text file, found nothing there"),
        (None, (*STATIC[:3], "empty.txt"), "empty.txt must hold text, found none"),
        (None, (*STATIC[:3], "latin.txt"), "latin.txt must be UTF-8 text, found byte 0xe9 at position 1"),
        (None, (*STATIC[:3], "short.txt", "--tokens", "32"), "the text has 5 tokens, less than one window of 32"),
        (None, (*STATIC[:3], "text.txt", "--tokens", "65"), "--tokens must be at most 64, the model's limit"),
        (None, ("-s", "w8a16", "--dtype", "int8"), "--dtype must be auto, float32, float16, bfloat16, found 'int8'"),
        (None, ("-s", "w8a16", "--device", "tpu"), "--device must be cuda or cpu, found 'tpu'"),
        (None, ("-s", "w8a16", "--json", "nowhere/x.json"), "the folder of 'nowhere/x.json' does not exist"),
        (pickles, ("-s", "w8a16"), "found pytorch_model.bin: reading a pickle can run code, so tritonq reads none"),
        (unknown_architecture, ("-s", "w8a16"), "config.json must be of a model that transformers knows: "),
        (quantized_already, ("-s", "w8a16"), "must be a float model, found one that is already quantized (fp8)"),
        (quantized_elsewhere, ("-s", "w8a16"), "but only quantize_config.json does: run tritonq convert"),
        (no_tokenizer, STATIC, "must hold a tokenizer that transformers loads, found none"),
        (truncated, ("-s", "w8a16"), "must be a whole safetensors file, found "),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    spoil: Any,
    arguments: Any,
    message: str,
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama, tmp_path / "model")
    files = {
        "text.txt": TEXT.encode(), "empty.txt": b" \n", "latin.txt": b"d\xe9j\xe0 vu", "short.txt": b"hello",
        "list.json": b"[1]", "bad.json": b'{"q_proj": {"bits": 4}}', "odd.json": b'{"q_proj": 4}',
    }  # fmt: skip
    for name, content in files.items():
        Path(name).write_bytes(content)
    if spoil is not None:
        spoil(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    _, err = run(capsys, "quantize", "model", "-o", "q", *arguments, code=1)
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_directories(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for model, output, message in (
        (
            "meta/llama",
            "q",
            "meta/llama must be a model directory, found nothing there (models are not downloaded)",
        ),
        (tmp_path, "q", "config.json is missing"),
        (llama, llama, "must be empty or not exist, found files in it"),
        (llama / "config.json", "q", "must be a checkpoint directory, found a file"),
    ):
        _, err = run(capsys, "quantize", model, "-o", output, "-s", "w4a16", code=1)
        assert message in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert "Missing option" in run(capsys, "quantize", llama, "-s", "w4a16", code=2)[1]
