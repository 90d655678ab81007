"""Quantizing file to file: equal to `quantize_` and `save` bit for bit, in little memory, and resumable."""

from __future__ import annotations

import copy
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tritonq
from tests.support.checkpoints import Block, Language
from tritonq.checkpoint.files import TensorFiles
from tritonq.numerics.config import W4A16, W8A8
from tritonq.streaming import Streamed, UnfitModelError, quantize_files, workspace

WHOLE = 10**9
SMALL = 3000  # several files a model


def write_source(model: nn.Module, directory: Path, files: int = 1) -> Path:
    """A float model as safetensors files under its own names; tied tensors once."""
    directory.mkdir()
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    if files == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {name: f"model-{i % files}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def empty(model: nn.Module) -> nn.Module:
    """The same without values; ties stay, which `.to("meta")` would undo."""
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    memo.update((id(old), nn.Parameter(old.detach().to("meta"))) for old in model.parameters())
    return copy.deepcopy(model, memo)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def check_equal(model: nn.Module, tmp_path: Path, config: Any, size: int = WHOLE, **words: Any) -> Streamed:
    """File for file what `quantize_` and `save` write."""
    source = write_source(model, tmp_path / "source", files=3)
    tritonq.save(
        tritonq.quantize_(copy.deepcopy(model), config, **words), tmp_path / "expected", max_shard_bytes=size
    )
    done = quantize_files(empty(model), source, tmp_path / "found", config, max_shard_bytes=size, **words)
    assert contents(tmp_path / "found") == contents(tmp_path / "expected")
    assert not (tmp_path / "found.partial").exists()
    return done


@pytest.mark.parametrize("size", [WHOLE, SMALL])
@pytest.mark.parametrize(
    "config",
    [
        "w8a16",
        "w8a8",
        "w4a8",
        W4A16(group_size=32, symmetric=False),
        W8A8(symmetric=False),
        tritonq.QuantConfig(tritonq.QuantSpec(8, True, "tensor", observer="minmax")),
        {"fc1": "w4a16", "fc2": None, "_default": "w8a16"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:other compressed-tensors readers")
def test_equals_quantize_and_save(config: Any, size: int, tmp_path: Path) -> None:
    done = check_equal(Block(), tmp_path, config, size)
    assert (done.shards > 1) == (size == SMALL)


@pytest.mark.parametrize("ignore", [("lm_head",), ()], ids=["head stays", "head too"])
@pytest.mark.filterwarnings("ignore:the weight of")
def test_tied_weights(ignore: tuple[str, ...], tmp_path: Path) -> None:
    check_equal(Language(), tmp_path, "w8a16", ignore=ignore)


def test_a_layer_under_two_names_and_two_layers_that_share_a_bias(tmp_path: Path) -> None:
    model = Block()
    model.again = model.fc1
    other = nn.Linear(64, 96)
    other.bias = model.fc1.bias
    model.other = other
    check_equal(model, tmp_path, "w8a8", SMALL)


def test_weights_are_rounded_to_the_dtype_of_the_model(tmp_path: Path) -> None:
    model = Block()
    source = write_source(model, tmp_path / "source")
    half = model.to(torch.bfloat16)
    tritonq.save(tritonq.quantize_(copy.deepcopy(half), "w8a16"), tmp_path / "expected")
    quantize_files(empty(half), source, tmp_path / "found", "w8a16")
    assert contents(tmp_path / "found") == contents(tmp_path / "expected")


def test_weights_that_do_not_fit_into_the_dtype_of_the_model(tmp_path: Path) -> None:
    """Those of Linears, and what stays float, which nobody else looks at."""
    for name in ("fc2.weight", "norm.weight"):
        model = Block()
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] = 1e5
        source = write_source(model, tmp_path / name)
        with pytest.raises(ValueError, match=f"^{name} must fit into float16, found 100000$"):
            quantize_files(empty(model.half()), source, tmp_path / "found", "w8a16")
    assert not list(tmp_path.glob("found*"))


def test_only_one_layer_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(9)))
    source = write_source(model, tmp_path / "source")
    read: list[weakref.ref[Tensor]] = []
    most = 0
    get = TensorFiles.get

    def spy(self: TensorFiles, name: str) -> Tensor:
        nonlocal most
        tensor = get(self, name)
        read.append(weakref.ref(tensor))
        most = max(most, sum(other() is not None for other in read))
        return tensor

    monkeypatch.setattr(TensorFiles, "get", spy)
    quantize_files(empty(model), source, tmp_path / "found", "w4a16", max_shard_bytes=SMALL)
    assert len(read) == 9 * 3  # weight and bias to quantize, the bias to store
    assert most <= 2


class Stop:
    """Lets `count` tensor files be written, then raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
        self.written: list[str] = []
        write = workspace.write_tensors

        def stopping(path: Path, tensors: dict[str, Tensor]) -> None:
            if len(self.written) == count:
                path.write_bytes(b"half a file")
                raise error
            write(path, tensors)
            self.written.append(path.name)

        monkeypatch.setattr(workspace, "write_tensors", stopping)


def interrupted(
    model: nn.Module, tmp_path: Path, count: int, error: BaseException, config: Any = "w8a16"
) -> Path:
    """A source of which `count` files were quantized before `error`."""
    source = tmp_path / "source"
    if not source.exists():
        write_source(model, source)
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, count, error)
        with pytest.raises(type(error)):
            quantize_files(empty(model), source, tmp_path / "found", config, max_shard_bytes=SMALL)
    assert not (tmp_path / "found").exists()
    partial = tmp_path / "found.partial"
    assert partial.exists() == (count > 0)
    assert not list(partial.glob("*.unfinished"))
    return source


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_goes_on_after_an_interruption(
    count: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Block()
    source = interrupted(model, tmp_path, count, error)
    rest = Stop(monkeypatch, 99, AssertionError())
    done = quantize_files(empty(model), source, tmp_path / "found", "w8a16", max_shard_bytes=SMALL)
    assert done.kept == count
    assert len(rest.written) == done.shards - count > 0
    tritonq.save(
        tritonq.quantize_(copy.deepcopy(model), "w8a16"), tmp_path / "expected", max_shard_bytes=SMALL
    )
    assert contents(tmp_path / "found") == contents(tmp_path / "expected")


def test_another_request_is_refused_until_it_begins_again(tmp_path: Path) -> None:
    model = Block()
    source = interrupted(model, tmp_path, 2, KeyboardInterrupt())

    def again(config: Any = "w8a16", size: int = SMALL, **words: Any) -> Streamed:
        return quantize_files(empty(model), source, tmp_path / "found", config, max_shard_bytes=size, **words)

    for changed in ({"config": "w8a8"}, {"size": 2 * SMALL}, {"ignore": ["fc1"]}):
        with pytest.raises(
            ValueError, match="unfinished result for other options: finish that run, or start over"
        ):
            again(**changed)
    (source / "model.safetensors").touch()
    with pytest.raises(ValueError, match="unfinished result for other source files"):
        again()
    assert again(config="w8a8", restart=True).kept == 0
    assert tritonq.info(tmp_path / "found").groups[0].scheme == "w8a8"


def test_a_finished_file_that_changed_is_made_again(tmp_path: Path) -> None:
    model = Block()
    source = interrupted(model, tmp_path, 3, KeyboardInterrupt())
    partial = tmp_path / "found.partial"
    first, second, _ = sorted(partial.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    done = quantize_files(empty(model), source, tmp_path / "found", "w8a16", max_shard_bytes=SMALL)
    assert done.kept == 1
    tritonq.load(tmp_path / "found", model)


@pytest.mark.parametrize("text", ["", "[]", '{"request": 1}', '{"request": {}, "finished": {}}'])
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    model = Block()
    source = interrupted(model, tmp_path, 1, KeyboardInterrupt())
    (tmp_path / "found.partial" / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"found\.partial"):
        quantize_files(empty(model), source, tmp_path / "found", "w8a16", max_shard_bytes=SMALL)
    assert quantize_files(empty(model), source, tmp_path / "found", "w8a16", restart=True).kept == 0


def test_a_directory_of_somebody_else_is_never_cleared(tmp_path: Path) -> None:
    source = write_source(Block(), tmp_path / "source")
    other = tmp_path / "found.partial"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(ValueError, match=r"found no manifest\.json in it"):
            quantize_files(empty(Block()), source, tmp_path / "found", "w8a16", restart=restart)
    assert (other / "thesis.txt").read_text() == "years of work"


def test_a_target_that_is_not_empty_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    source = write_source(Block(), tmp_path / "source")
    for name, found in (("file", "found a file"), ("full", "found files in it")):
        if name == "file":
            (tmp_path / name).write_text("")
        else:
            (tmp_path / name / "sub").mkdir(parents=True)
        with pytest.raises(ValueError, match=found):
            quantize_files(empty(Block()), source, tmp_path / name, "w8a16")
        assert not (tmp_path / f"{name}.partial").exists()
    (tmp_path / "void").mkdir()
    quantize_files(empty(Block()), source, tmp_path / "void", "w8a16")
    tritonq.load(tmp_path / "void", Block())


def test_a_mounted_target_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(Block(), tmp_path / "source")
    target = tmp_path / "found"
    target.mkdir()
    number = target.stat().st_ino
    monkeypatch.setattr(workspace.os.path, "ismount", lambda path: Path(path) == target)
    quantize_files(empty(Block()), source, target, "w8a16", max_shard_bytes=SMALL)
    assert target.stat().st_ino == number
    assert not (tmp_path / "found.partial").exists()
    tritonq.load(target, Block())


def test_a_mounted_target_that_fills_up_is_emptied_and_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(Block(), tmp_path / "source")
    target = tmp_path / "found"
    target.mkdir()
    copy = workspace.shutil.copyfile

    def half(source: Path, target: Path) -> None:
        copy(source, target)
        if target.name == "config.json":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(workspace.os.path, "ismount", lambda path: Path(path) == target)
        patch.setattr(workspace.shutil, "copyfile", half)
        with pytest.raises(OSError, match="No space left"):
            quantize_files(empty(Block()), source, target, "w8a16", max_shard_bytes=SMALL)
    assert not list(target.iterdir())
    streamed = quantize_files(empty(Block()), source, target, "w8a16", max_shard_bytes=SMALL)
    assert streamed.kept == streamed.shards > 1
    tritonq.load(target, Block())


def test_a_disk_that_is_too_small_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(Block(), tmp_path / "source")
    usage = workspace.shutil.disk_usage
    monkeypatch.setattr(workspace.shutil, "disk_usage", lambda path: usage(path)._replace(free=999))
    with pytest.raises(
        OSError, match=r"found\.partial needs 1\d,\d\d\d more bytes, found 999 free on its disk"
    ):
        quantize_files(empty(Block()), source, tmp_path / "found", "w8a16")
    monkeypatch.undo()
    quantize_files(empty(Block()), source, tmp_path / "found", "w8a16")


def test_companions_are_copied(tmp_path: Path) -> None:
    source = write_source(Block(), tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    quantize_files(empty(Block()), source, tmp_path / "found", "w8a16", companions=["tokenizer.json"])
    assert sorted(contents(tmp_path / "found")) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_files_that_are_not_the_models(tmp_path: Path) -> None:
    source = write_source(Block(), tmp_path / "source")

    def refused(model: nn.Module, message: str, kind: type[ValueError] = UnfitModelError) -> None:
        with pytest.raises(kind, match=message) as caught:
            quantize_files(empty(model), source, tmp_path / "found", "w8a16")
        assert type(caught.value) is kind

    refused(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), r"found no 0\.weight, 0\.bias, 1\.weight and 1 more"
    )
    refused(
        Block(columns=32), r"fc1\.weight must be float32 \[96, 32\], found float32 \[96, 64\]", ValueError
    )
    loose = Language(tied=False)
    source = write_source(loose, tmp_path / "loose")
    refused(Language(), r"embed\.weight and lm_head\.weight are one tensor in the model, found two")
    assert not (tmp_path / "found.partial").exists()


def test_bad_weights_and_configs(tmp_path: Path) -> None:
    model = Block()
    with torch.no_grad():
        model.fc2.weight[0, 0] = float("nan")
    source = write_source(model, tmp_path / "source")
    for config, message in (
        ("w8a16", "Linear 'fc2': weight must be finite, found 1 NaN"),
        ("w8a8_static", "fc1 has a static config, which needs the model in memory"),
        ("w5", "config must be a QuantConfig or one of"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_files(empty(model), source, tmp_path / "found", config)
    with pytest.raises(ValueError, match="max_shard_bytes must be a positive integer, found 0"):
        quantize_files(empty(model), source, tmp_path / "found", "w8a16", max_shard_bytes=0)
    assert not (tmp_path / "found").exists()
