"""`convert`: GPTQ and AWQ directories in compressed-tensors' layout, without a model."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.checkpoints import Block, load, quantized, read_config
from tests.support.foreign_checkpoints import random_weight, write
from tests.support.kernel_inputs import assert_same
from tests.test_checkpoint_awq import Pair
from tests.test_checkpoint_awq import config as awq_config
from tests.test_checkpoint_awq import tensors_of as awq_tensors_of
from tests.test_checkpoint_awq import weights as awq_weights
from tests.test_checkpoint_gptq import config, tensors_of, weights
from tritonq import checkpoint, cli
from tritonq.checkpoint import files, rewrite


@pytest.fixture
def gptq(tmp_path: Path) -> Path:
    """Block's layers, affine, in three files, with what a directory of the hub has beside them."""
    directory = tmp_path / "gptq"
    tensors = tensors_of(Block(), weights(bits=4, group_size=32, symmetric=False))
    write(directory, config(sym=False), tensors, shards=3, model_type="block", torch_dtype="float16")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "merges.txt").write_text("a b")
    (directory / "quantize_config.json").write_text(json.dumps(config(sym=False)))
    (directory / "pytorch_model.bin").write_bytes(b"never copied")
    (directory / ".gitattributes").write_text("*.bin lfs")
    (directory / "figures").mkdir()
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def all_tensors(directory: Path) -> dict[str, Tensor]:
    with files.open_tensors(directory) as tensors:
        return {name: tensors.get(name).clone() for name in tensors}


def test_gptq(gptq: Path, tmp_path: Path) -> None:
    before = contents(gptq)
    checkpoint.convert(gptq, tmp_path / "q")
    assert contents(gptq) == before
    x, converted = torch.randn(3, 64), load(tmp_path / "q", Block())
    original = load(gptq, Block())
    assert_same(converted(x), original(x))
    for name, tensor in original.state_dict().items():
        assert_same(converted.state_dict()[name], tensor)
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == [
        "config.json",
        "merges.txt",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    fields = read_config(tmp_path / "q")
    assert (fields["model_type"], fields["torch_dtype"]) == ("block", "float16")
    assert fields["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": False,
                    "strategy": "group",
                    "group_size": 32,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
    }
    original_tensors = all_tensors(gptq)
    for name, tensor in all_tensors(tmp_path / "q").items():
        if name in original_tensors:
            assert_same(tensor, original_tensors[name])


def test_what_is_converted_is_what_save_would_write(gptq: Path, tmp_path: Path) -> None:
    checkpoint.convert(gptq, tmp_path / "converted")
    checkpoint.save(load(gptq, Block()), tmp_path / "saved")
    saved, converted = all_tensors(tmp_path / "saved"), all_tensors(tmp_path / "converted")
    assert saved.keys() == converted.keys()
    for name, tensor in saved.items():
        assert_same(converted[name], tensor)


def test_activation_order_and_overrides(tmp_path: Path) -> None:
    """Two config groups by name, and a warning for those who read them."""
    layers = weights(bits=4, group_size=32, symmetric=True, ordered=True)
    dynamic = {"fc2": {"desc_act": True}}
    layers["fc1"].groups = layers["fc1"].groups.sort().values
    write(tmp_path / "gptq", config(dynamic=dynamic), tensors_of(Block(), layers))
    with pytest.warns(UserWarning, match=r"compressed-tensors 0\.20 refuses fc2: .*activation order"):
        checkpoint.convert(tmp_path / "gptq", tmp_path / "q")
    q = load(tmp_path / "q", Block())
    for name, weight in layers.items():
        assert_same(q.get_submodule(name).dequantize(torch.float32), weight.dequantized())
    groups = read_config(tmp_path / "q")["quantization_config"]["config_groups"].values()
    assert {group["targets"][0]: group["weights"].get("actorder") for group in groups} == {
        "fc1": None,
        "fc2": "group",
    }


def test_awq(tmp_path: Path) -> None:
    layers = awq_weights()
    write(tmp_path / "awq", awq_config(), awq_tensors_of(Pair(), layers))
    checkpoint.convert(str(tmp_path / "awq"), str(tmp_path / "q"))
    q = load(tmp_path / "q", Pair())
    for name, weight in layers.items():
        assert_same(q.get_submodule(name).dequantize(torch.float32), weight.dequantized())
    assert checkpoint.info(tmp_path / "q").method == "compressed-tensors"


def test_a_converted_checkpoint_can_be_replaced(gptq: Path, tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.convert(gptq, tmp_path / "q")
    checkpoint.save(quantized(Block(), "w8a16"), tmp_path / "q")
    assert load(tmp_path / "q", Block()).fc1.config.scheme == "w8a16"


@pytest.mark.parametrize("function", ["write_tensors", "write_json", "shutil.copyfile"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk(
    function: str, existing: bool, gptq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is as it was, and so are its surroundings."""
    if existing:
        checkpoint.save(quantized(Block(), "w8a16"), tmp_path / "q")
    before = contents(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"{rewrite.__name__}.{function}", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.convert(gptq, tmp_path / "q")
    assert contents(tmp_path) == before
    assert (tmp_path / "q").exists() == existing


@pytest.mark.filterwarnings("ignore:compressed-tensors 0.20 refuses:UserWarning")
def test_values_are_checked(tmp_path: Path) -> None:
    """Not only shapes: what is converted is what would be loaded."""
    tensors = tensors_of(Block(), weights(bits=4, group_size=32, symmetric=True, ordered=True))
    for name, change, message in (
        (
            "fc2.scales",
            lambda t: t * torch.nan,
            "fc2.scales must be finite and not negative, found NaN or Inf",
        ),
        ("fc1.g_idx", lambda t: t + 9, "fc1.g_idx must hold groups 0 … 1, found 9 … 10"),
        (
            "fc2.qzeros",
            lambda t: t + 1,
            "fc2.qzeros must hold only zero points of 8 in a symmetric checkpoint",
        ),
    ):
        write(tmp_path / "gptq", config(desc_act=True), {**tensors, name: change(tensors[name])})
        with pytest.raises(ValueError, match=message) as caught:
            checkpoint.convert(tmp_path / "gptq", tmp_path / "q")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "q").exists()


def test_what_is_refused(gptq: Path, tmp_path: Path) -> None:
    checkpoint.save(quantized(Block(), "w4a16"), tmp_path / "q")
    with pytest.raises(ValueError, match="must hold a GPTQ or AWQ checkpoint, found compressed-tensors"):
        checkpoint.convert(tmp_path / "q", tmp_path / "again")
    with pytest.raises(ValueError, match="must be another directory than the source"):
        checkpoint.convert(gptq, tmp_path / "q" / ".." / "gptq")
    with pytest.raises(TypeError, match="directory must be a path"):
        checkpoint.convert(gptq, 3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="found nothing there"):
        checkpoint.convert(tmp_path / "nowhere", tmp_path / "again")
    (gptq / "secret.txt").symlink_to("/etc/hostname")
    with pytest.raises(
        ValueError, match=r"secret\.txt must be in the directory, found a link to /etc/hostname"
    ):
        checkpoint.convert(gptq, tmp_path / "again")
    (gptq / "secret.txt").unlink()
    shard = gptq / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        checkpoint.convert(gptq, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.needs_extra("typer", "rich")
def test_command(gptq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "q"
    assert cli.main(["convert", str(gptq), "-o", str(target), "--json", str(tmp_path / "i.json")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{checkpoint.info(target)}\n"
    assert captured.err == ""
    assert json.loads((tmp_path / "i.json").read_text())["method"] == "compressed-tensors"
    before = (target / "config.json").read_bytes()
    assert (
        cli.main(["convert", str(gptq), "-o", str(target)]) == 1
    )  # it may be a float model that is dear to someone
    assert "must be empty or not exist, found files in it" in capsys.readouterr().err
    assert (target / "config.json").read_bytes() == before
    assert cli.main(["convert", str(target), "-o", str(tmp_path / "again")]) == 1
    assert "must hold a GPTQ or AWQ checkpoint" in capsys.readouterr().err.replace("\n", " ")


# --- the real packages ------------------------------------------------------------------------------------------------


@pytest.mark.needs_extra("compressed_tensors")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_reads_what_is_converted(symmetric: bool, bits: int, tmp_path: Path) -> None:
    """The package takes config and tensors, and unpacks them to s · (q - z) in float16, bit for bit."""
    from tests.test_checkpoint_others import apply

    layers = weights(bits=bits, group_size=32, symmetric=symmetric)
    write(tmp_path / "gptq", config(bits=bits, sym=symmetric), tensors_of(Block().half(), layers))
    checkpoint.convert(tmp_path / "gptq", tmp_path / "q")
    model: Any = Block().half()
    compressor = apply(model, read_config(tmp_path / "q")["quantization_config"])
    compressor.compress_model(model)
    model.load_state_dict(all_tensors(tmp_path / "q"), strict=True, assign=True)
    compressor.decompress_model(model)
    for name, weight in layers.items():
        assert_same(model.get_submodule(name).weight, weight.dequantized().half())
    assert not hasattr(model.lm_head, "quantization_scheme")


@pytest.mark.needs_extra("compressed_tensors", "transformers")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_transformers_reads_what_is_converted(tied: bool, tmp_path: Path) -> None:
    """`from_pretrained` takes the directory, and computes with the weights that the GPTQ files stand for."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    architecture = LlamaConfig(**sizes, vocab_size=128, tie_word_embeddings=tied, dtype="float16")
    host = LlamaForCausalLM(architecture).half().eval()
    layers = {
        name: random_weight(module.out_features, module.in_features, 4, 32, symmetric=True)
        for name, module in host.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    tensors = tensors_of(host, layers)
    if tied:
        del tensors["lm_head.weight"]
    fields = {"architectures": ["LlamaForCausalLM"], **architecture.to_dict()}
    write(tmp_path / "gptq", config(), tensors, shards=2, **fields)
    checkpoint.convert(tmp_path / "gptq", tmp_path / "q")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q").requires_grad_(False)
    tokens = torch.arange(9)[None]
    logits = theirs(tokens).logits
    for name, weight in layers.items():
        assert_same(theirs.get_submodule(name).weight, weight.dequantized().half())
    ours = load(tmp_path / "gptq", host)
    assert torch.allclose(logits.float(), ours(tokens).logits.float(), atol=0.02 * float(logits.abs().max()))
