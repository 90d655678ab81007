"""The files of a checkpoint: shards, what stays and what goes when saving again, and failures on the way."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.checkpoints import Block, Stubbed, load, quantized, read_config
from tritonq import checkpoint
from tritonq.checkpoint import publish, writer
from tritonq.numerics.config import W4A16


@pytest.fixture
def model() -> nn.Module:
    return quantized(Block(), "w8a16")


def contents(directory: Path) -> dict[str, bytes]:
    """Everything below a directory, hidden files too."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"(directory)"
        for path in sorted(directory.rglob("*"))
    }


def test_shards(model: nn.Module, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path, max_shard_bytes=2000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = len(shards)
    assert count > 2
    assert shards == [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    assert set(index["weight_map"].values()) == set(shards)
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    x = torch.randn(3, 64)
    assert torch.equal(load(tmp_path, Block())(x), model(x))
    assert checkpoint.info(tmp_path).files.keys() == {*shards, "config.json", "model.safetensors.index.json"}


def test_saving_again_replaces_the_checkpoint_and_nothing_else(model: nn.Module, tmp_path: Path) -> None:
    """Fewer shards, then one file, then shards again: nothing of the earlier save is left, the user's files are."""
    mine = {
        "tokenizer.json": b"{}",
        "other.safetensors": b"x",
        "pytorch_model.bin": b"y",
        "notes/model.safetensors": b"z",
    }
    for name, data in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for size in (500, 2000, 10**9, 3000):
        checkpoint.save(model, tmp_path, max_shard_bytes=size)
        x = torch.randn(3, 64)
        assert torch.equal(load(tmp_path, Block())(x), model(x))
        now = contents(tmp_path)
        assert {name: now[name] for name in mine} == mine
        weights = [name for name in now if name.startswith("model") and name.endswith("safetensors")]
        assert len({name[-17:] for name in weights}) == 1, weights  # all of one save: "of-00003.safetensors"


def test_weights_of_another_program_are_not_mixed_up(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"theirs")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"found model-00001-of-00002\.safetensors of another program"):
        checkpoint.save(model, tmp_path)
    assert contents(tmp_path) == before


def fail_at(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, except that call `number` finds the disk full."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("existing", [True, False], ids=["over-an-old-one", "new"])
@pytest.mark.parametrize(
    ("owner", "function"),
    [(writer, "save_file"), (writer, "write_json"), (publish, "sync"), (os, "replace")],
)
def test_a_failed_save_leaves_everything_as_it_was(
    owner: Any, function: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write, flush or rename fails."""
    directory = tmp_path / "deep" / "q"
    if existing:
        checkpoint.save(quantized(Stubbed(), "w8a16"), directory, max_shard_bytes=100)
        (directory / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    new = quantized(Block(), W4A16(group_size=32))
    real = getattr(owner, function)
    failures = 0
    for number in range(1, 100):
        monkeypatch.setattr(owner, function, fail_at(number, real))
        try:
            checkpoint.save(new, directory, max_shard_bytes=4000)
        except OSError:
            failures += 1
            monkeypatch.setattr(owner, function, real)
            assert contents(tmp_path) == before, f"call {number}"
        else:
            break
    assert failures >= 2
    x = torch.randn(2, 64)
    assert torch.equal(load(directory, Block())(x), new(x))
    assert sorted(path.name for path in directory.parent.iterdir()) == ["q"]


def test_links_are_replaced_and_their_targets_left(model: nn.Module, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"theirs")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "model.safetensors").symlink_to(elsewhere)
    checkpoint.save(model, tmp_path / "q")
    assert elsewhere.read_bytes() == b"theirs"
    load(tmp_path / "q", Block())


def test_a_linked_directory_and_one_in_the_working_directory(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save(model, "here")
    (tmp_path / "link").symlink_to("here")
    checkpoint.save(model, "link/")
    assert (tmp_path / "link").is_symlink()
    load("link", Block())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_files_have_ordinary_permissions(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    checkpoint.save(model, tmp_path / "q")
    assert (tmp_path / "q").stat().st_mode == (tmp_path / "folder").stat().st_mode
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "q" / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("size", [0, -1, 1.5, "5GB", True, None])
def test_max_shard_bytes(size: Any, model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_shard_bytes must be a positive integer, found"):
        checkpoint.save(model, tmp_path / "q", max_shard_bytes=size)
    assert not (tmp_path / "q").exists()


# --- info ----------------------------------------------------------------------------------------------------


def test_info(tmp_path: Path) -> None:
    float_model = Block()
    q = quantized(float_model, {"fc1": "w8a8", "fc2": W4A16(group_size=32, symmetric=False)})
    checkpoint.save(q, tmp_path)
    info = checkpoint.info(tmp_path)
    assert info.layers == 2
    assert info.parameters == sum(tensor.numel() for tensor in float_model.state_dict().values())
    state = q.state_dict()
    assert info.bytes == sum(tensor.nbytes for tensor in state.values())
    assert info.bytes_by_dtype["int8"] == 64 * 96
    assert sum(info.bytes_by_dtype.values()) == info.bytes
    assert info.ratio_to_fp32 == pytest.approx(info.bytes / 4 / info.parameters)
    assert info.ratio_to_fp16 == pytest.approx(2 * info.ratio_to_fp32)
    assert [(group.scheme, group.layers, group.parameters) for group in info.groups] == [
        ("w8a8", ("fc1",), 64 * 96),
        ("w4a16", ("fc2",), 96 * 33),
    ]
    assert info.groups[0].bytes == sum(
        tensor.nbytes for name, tensor in state.items() if name.startswith("fc1.")
    )
    assert (info.groups[0].weight, info.groups[0].activation) == ("int8 channel", "int8 dynamic token")
    assert (info.groups[1].weight, info.groups[1].activation) == ("int4 group 32 affine", "float")
    assert info.files["model.safetensors"] == (tmp_path / "model.safetensors").stat().st_size
    assert json.loads(json.dumps(info.to_dict()))["groups"][0]["layers"] == ["fc1"]
    lines = str(info).splitlines()
    assert lines[0] == str(tmp_path)
    assert all(max(map(len, lines)) <= 120 for _ in lines)
    assert any(line.startswith("group_1  w4a16   int4 group 32 affine  float") for line in lines)
    assert read_config(tmp_path)["tritonq"]["version"] == 1
