"""Damaged and contradictory files, and models that do not fit: one clear sentence each, and the target untouched."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tests.support.checkpoints import (
    Block,
    Stubbed,
    quantized,
    read_config,
    read_tensors,
    refuse,
    write_config,
    write_tensors,
)
from tritonq import checkpoint
from tritonq.numerics.config import W4A16, W8A8Static


@pytest.fixture
def w4a16(tmp_path: Path) -> Path:
    """Block with fc1 and fc2 in affine int4, groups of 32."""
    checkpoint.save(quantized(Block(), W4A16(group_size=32, symmetric=False)), tmp_path)
    return tmp_path


@pytest.fixture
def w8a8_static(tmp_path: Path) -> Path:
    """Block with fc1 and fc2 in int8, calibrated."""
    checkpoint.save(quantized(Block(), W8A8Static(), torch.randn(8, 64)), tmp_path)
    return tmp_path


# --- tensors ----------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Tensor]], Any]
DAMAGES: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda t: t.pop("fc1.weight_scale"),
        "the model needs fc1.weight_scale, which the files lack",
    ),
    "missing-shape": (lambda t: t.pop("fc1.weight_shape"), "the model needs fc1.weight_shape"),
    "missing-bias": (lambda t: t.pop("fc1.bias"), "the model needs fc1.bias"),
    "missing-float": (lambda t: t.pop("norm.weight"), "the model needs norm.weight"),
    "missing-buffer": (lambda t: t.pop("saved"), "the model needs saved"),
    "superfluous": (
        lambda t: t.update({"fc9.weight": torch.zeros(1)}),
        "the files hold fc9.weight, which the model",
    ),
    "superfluous-bias": (
        lambda t: t.update({"fc2.bias": torch.ones(33)}),
        "fc2.bias must be zero, since the model's layer has none",
    ),
    "order-dtype": (
        lambda t: t.update({"fc1.weight_g_idx": torch.zeros(64)}),
        "fc1.weight_g_idx must be int32 [64], found float32 [64]",
    ),
    "order-unknown": (
        lambda t: t.update({"norm.weight_g_idx": torch.zeros(64)}),
        "the files hold norm.weight_g_idx",
    ),
    "input-scale": (lambda t: t.update({"fc1.input_scale": torch.ones(1)}), "the files hold fc1.input_scale"),
    "many": (lambda t: t.update({f"x{n}": torch.zeros(1) for n in range(99)}), "and 94 more"),
    "packed-shape": (
        lambda t: t.update({"fc1.weight_packed": torch.zeros(96, 9).int()}),
        "fc1.weight_packed must be",
    ),
    "packed-dtype": (
        lambda t: t.update({"fc1.weight_packed": torch.zeros(96, 8)}),
        "int32 [96, 8], found float32",
    ),
    "packed-huge": (
        lambda t: t.update({"fc1.weight_packed": torch.zeros(7000).int()}),
        "at most 6,144 elements",
    ),
    "scale-shape": (
        lambda t: t.update({"fc1.weight_scale": torch.ones(96, 1)}),
        "[96, 2], found float32 [96, 1]",
    ),
    "scale-dtype": (lambda t: t.update({"fc1.weight_scale": torch.ones(96, 2).double()}), "found float64"),
    "scale-nan": (lambda t: t["fc1.weight_scale"].fill_(float("nan")), "fc1.weight_scale must be finite"),
    "scale-inf": (
        lambda t: t["fc2.weight_scale"].view(-1)[-1:].fill_(float("inf")),
        "fc2.weight_scale must be finite",
    ),
    "zero-shape": (
        lambda t: t.update({"fc1.weight_zero_point": torch.zeros(96, 2).int()}),
        "fc1.weight_zero_point",
    ),
    "shape-value": (
        lambda t: t["fc1.weight_shape"].add_(1),
        "fc1.weight_shape must be [96, 64], found [97, 65]",
    ),
    "shape-swapped": (lambda t: t["fc1.weight_shape"].copy_(t["fc1.weight_shape"].flip(0)), "found [64, 96]"),
    "shape-dtype": (
        lambda t: t.update({"fc1.weight_shape": torch.ones(2).int()}),
        "weight_shape must be int64 [2]",
    ),
    "bias-shape": (lambda t: t.update({"fc1.bias": torch.zeros(95)}), "fc1.bias must be"),
    "bias-dtype": (lambda t: t.update({"fc1.bias": torch.zeros(96).int()}), "fc1.bias must be"),
    "float-shape": (lambda t: t.update({"norm.weight": torch.zeros(34)}), "norm.weight must be float32 [33]"),
    "float-dtype": (lambda t: t.update({"norm.weight": torch.zeros(33).int()}), "found int32 [33]"),
    "integer-dtype": (lambda t: t.update({"counter": torch.tensor(7.0)}), "counter must be int64 []"),
    "float8": (
        lambda t: t.update({"norm.weight": torch.zeros(33).to(torch.float8_e4m3fn)}),
        "found float8_e4m3fn",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tensors(name: str, w4a16: Path) -> None:
    change, fragment = DAMAGES[name]
    tensors = read_tensors(w4a16)
    change(tensors)
    write_tensors(w4a16, tensors)
    refuse(w4a16, fragment)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_input_scale(value: float, w8a8_static: Path) -> None:
    tensors = read_tensors(w8a8_static)
    tensors["fc1.input_scale"].fill_(value)
    write_tensors(w8a8_static, tensors)
    refuse(w8a8_static, "model.safetensors: fc1.input_scale must be finite and positive")
    del tensors["fc1.input_scale"]
    write_tensors(w8a8_static, tensors)
    refuse(w8a8_static, "the model needs fc1.input_scale")


def test_stubs(tmp_path: Path) -> None:
    checkpoint.save(quantized(Stubbed(), "w8a8_static", torch.randn(4, 16)), tmp_path)
    tensors = read_tensors(tmp_path)
    write_tensors(tmp_path, {**tensors, "quant.scale": torch.tensor([-1.0])})
    refuse(tmp_path, "quant.scale must be finite and positive", model=Stubbed())
    write_tensors(tmp_path, {**tensors, "quant.zero_point": torch.zeros(2, dtype=torch.int8)})
    refuse(tmp_path, "quant.zero_point must be int8 [1], found int8 [2]", model=Stubbed())
    write_tensors(tmp_path, {name: tensor for name, tensor in tensors.items() if name != "fc1.output_scale"})
    refuse(tmp_path, "which the files lack", model=Stubbed())


def test_codes_outside_four_bits(tmp_path: Path) -> None:
    """One int8 a code is another way to store int4: then the range is the file's to keep."""
    checkpoint.save(quantized(nn.Sequential(nn.Linear(32, 4)), "w4a16"), tmp_path)
    fields = read_config(tmp_path)
    fields["quantization_config"]["format"] = "int-quantized"
    write_config(tmp_path, fields)
    tensors = read_tensors(tmp_path)
    del tensors["0.weight_packed"], tensors["0.weight_shape"]
    write_tensors(tmp_path, {**tensors, "0.weight": torch.full((4, 32), 8, dtype=torch.int8)})
    refuse(tmp_path, "0.weight must hold codes in -8 … 7, found 8 … 8", model=nn.Sequential(nn.Linear(32, 4)))


def test_zero_points_outside_four_bits(tmp_path: Path) -> None:
    """Likewise stored one int8 each."""
    checkpoint.save(
        quantized(nn.Sequential(nn.Linear(32, 4)), W4A16(group_size=32, symmetric=False)), tmp_path
    )
    fields = read_config(tmp_path)
    fields["quantization_config"]["config_groups"]["group_0"]["format"] = "int-quantized"
    write_config(tmp_path, fields)
    tensors = read_tensors(tmp_path)
    del tensors["0.weight_packed"], tensors["0.weight_shape"]
    tensors["0.weight"] = torch.zeros(4, 32, dtype=torch.int8)
    tensors["0.weight_zero_point"] = torch.full((4, 1), -9, dtype=torch.int8)
    write_tensors(tmp_path, tensors)
    message = "0.weight_zero_point must hold codes in -8 … 7, found -9 … -9"
    refuse(tmp_path, message, model=nn.Sequential(nn.Linear(32, 4)))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_file(keep: int, w4a16: Path) -> None:
    file = w4a16 / "model.safetensors"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:keep])
    refuse(w4a16, "model.safetensors must be a whole safetensors file")


def test_pickles_are_refused(w4a16: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os._exit, (3,)

    (w4a16 / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    refuse(w4a16, "model.safetensors must be a whole safetensors file")
    (w4a16 / "model.safetensors").rename(w4a16 / "pytorch_model.bin")
    refuse(w4a16, "must hold model.safetensors, found pytorch_model.bin: pickles are never read")
    (w4a16 / "pytorch_model.bin").unlink()
    refuse(w4a16, "model.safetensors is missing", kind=FileNotFoundError)


def sharded(directory: Path) -> dict[str, Any]:
    checkpoint.save(quantized(Block(), "w8a16"), directory, max_shard_bytes=4000)
    fields = json.loads((directory / "model.safetensors.index.json").read_text())
    assert isinstance(fields, dict)
    return fields


@pytest.mark.parametrize(
    ("file", "fragment"),
    [
        ("../outside.safetensors", "files must be named without folders, found '../outside.safetensors'"),
        ("sub/inside.safetensors", "files must be named without folders"),
        ("/etc/passwd", "files must be named without folders, found '/etc/passwd'"),
        ("..", "files must be named without folders"),
        ("", "files must be named without folders"),
        ("a\\b.safetensors", "files must be named without folders"),
        ("a\0.safetensors", "files must be named without folders"),
        ("pytorch_model.bin", "found 'pytorch_model.bin': pickles are never read"),
        ("link.safetensors", "link.safetensors must be in the directory, found a link to"),
        ("folder.safetensors", "folder.safetensors must be a file, found something else"),
        ("model-00001-of-00009.safetensors", "model-00001-of-00009.safetensors is missing"),
    ],
)
def test_index_that_names_other_files(file: str, fragment: str, tmp_path: Path) -> None:
    directory = tmp_path / "q"
    index = sharded(directory)
    first = next(iter(index["weight_map"]))
    data = (directory / index["weight_map"][first]).read_bytes()
    (directory / "sub").mkdir()
    (directory / "folder.safetensors").mkdir()
    for path in (
        tmp_path / "outside.safetensors",
        directory / "sub" / "inside.safetensors",
        directory / "pytorch_model.bin",
    ):
        path.write_bytes(data)
    (directory / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    index["weight_map"][first] = file
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    kind = FileNotFoundError if fragment.endswith("is missing") else ValueError
    refuse(directory, fragment, kind=kind)


def test_the_hugging_face_cache_is_allowed_its_links(w4a16: Path) -> None:
    """snapshots/<revision>/<file> → ../../blobs/<hash>."""
    snapshot_directory, blobs = w4a16 / "snapshots" / "abc", w4a16 / "blobs"
    snapshot_directory.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (w4a16 / name).rename(blobs / f"hash-of-{name}")
        (snapshot_directory / name).symlink_to(f"../../blobs/hash-of-{name}")
    checkpoint.load(snapshot_directory, Block())


def test_index_that_contradicts_the_files(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    file = tmp_path / "model.safetensors.index.json"
    names = index["weight_map"]
    for weight_map, fragment in (
        ([], "weight_map must be a dictionary from tensors to files"),
        ({"fc1.bias": 3}, "weight_map must be a dictionary from tensors to files"),
        ({**names, "ghost": next(iter(names.values()))}, "ghost must be in"),
        ({name: shard for name, shard in names.items() if name != "saved"}, "saved"),
    ):
        file.write_text(json.dumps({"weight_map": weight_map}))
        refuse(tmp_path, fragment)


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_that_do_not_fit(w4a16: Path) -> None:
    refuse(w4a16, "no Linear of the model belongs", model=nn.Sequential(nn.Conv1d(2, 2, 2)))
    refuse(w4a16, "the model needs 0.weight_packed", model=nn.Sequential(nn.Linear(64, 96)))
    refuse(w4a16, "fc1.weight_shape must be [96, 128], found [96, 64]", model=Block(columns=128))
    converted = quantized(Block(), "w8a8", ignore=())
    refuse(w4a16, "lm_head is a QuantizedLinear in the model, but not quantized", model=converted)
    prepared = tritonq.prepare(Block(), "w8a8_static")
    refuse(w4a16, "fc1 is prepared: load into the float model", model=prepared)
    with pytest.raises(ValueError, match="cannot replace itself"):
        checkpoint.load(w4a16, nn.Linear(4, 4))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, found dict"):
        checkpoint.load(w4a16, {})  # type: ignore[arg-type]
    with torch.device("meta"):
        empty = Block()
    refuse(w4a16, "unsaved is a buffer on the meta device that no checkpoint holds", model=empty)


def test_models_that_cannot_be_saved(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    layer = quantized(nn.Sequential(nn.Linear(4, 4)), "w8a8")
    for model, fragment in (
        (Block(), "model must hold a QuantizedLinear, found none"),
        (layer[0], "model must hold layers, found a QuantizedLinear itself"),
        (tritonq.prepare(Block(), "w8a8_static"), "fc1 is prepared but not converted"),
        (nn.Sequential(layer, Extra(4, 4)), "1 has extra state"),
        (
            nn.Sequential(layer, empty),
            "1.weight must be a dense tensor with values, found one on the meta device",
        ),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
            checkpoint.save(model, tmp_path / "q")
        assert fragment in str(caught.value)
        assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, found str"):
        checkpoint.save("model", tmp_path / "q")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file must be a directory, found a file"):
        checkpoint.save(layer, tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(w4a16: Path) -> None:
    (w4a16 / "config.json").unlink()
    os.mkfifo(w4a16 / "config.json")
    code = f"from tritonq import checkpoint; checkpoint.info({str(w4a16)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "must be a file, found something else" in done.stderr
