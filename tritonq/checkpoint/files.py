"""Finds, opens and checks the files of a checkpoint directory, and trusts none of them.

    config.json                                    how layers are quantized
    model.safetensors                              all tensors, or
    model-00001-of-00002.safetensors, …            all tensors, with
    model.safetensors.index.json                   tensor name → file, or
    any.safetensors                                all tensors, if it is the only one: older GPTQ files

Tensors are read through a memory map, each when it is needed. Nothing is ever unpickled, and no file outside the
directory is opened, whatever an index or a link says.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SUFFIXES = (".json", ".safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class TensorFiles:
    """The tensors of a checkpoint by name.

    Attributes:
        shapes, dtypes: tensor name → its shape and dtype from the headers; None if torch has no such dtype.
        file_of: tensor name → the name of its file.
    """

    def __init__(self, opened: dict[str, Any]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        self.file_of: dict[str, str] = {}
        self._opened = opened
        for file, handle in opened.items():
            for name in handle.keys():  # noqa: SIM118 (not a dictionary)
                if name in self.file_of:
                    raise ValueError(
                        f"{file}: {name} must be in one file, found it in {self.file_of[name]} too"
                    )
                piece = handle.get_slice(name)
                self.shapes[name] = tuple(piece.get_shape())
                self.dtypes[name] = _DTYPES.get(piece.get_dtype())
                self.file_of[name] = file

    def __contains__(self, name: object) -> bool:
        return name in self.file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def get(self, name: str) -> Tensor:
        """The tensor, on the CPU. Its memory may be the file's map, so copy it to keep it."""
        try:
            tensor: Tensor = self._opened[self.file_of[name]].get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{self.file_of[name]}: {name} cannot be read: {error}") from None
        return tensor

    def describe(self, name: str) -> str:
        """Dtype and shape in words: "int8 [16, 32]"."""
        dtype = self.dtypes[name]
        return f"{'an unknown dtype' if dtype is None else str(dtype).removeprefix('torch.')} {list(self.shapes[name])}"


def check_path(directory: object) -> None:
    """Raise a TypeError unless `directory` is a path."""
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"directory must be a path (str or os.PathLike), found {directory!r}")


def check_directory(directory: str | Path) -> Path:
    """The directory as a Path, or a FileNotFoundError or ValueError."""
    path = Path(directory)
    if not path.exists():
        raise FileNotFoundError(f"{path} must be a checkpoint directory, found nothing there")
    if not path.is_dir():
        raise ValueError(f"{path} must be a checkpoint directory, found a file")
    return path


def read_json(directory: Path, file: str) -> dict[str, Any]:
    """The dictionary in a JSON file of the directory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or no dictionary.
    """
    path = inside(directory, file, _SUFFIXES)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold JSON, found {type(error).__name__}: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold a JSON dictionary, found {type(fields).__name__}")
    return fields


@contextlib.contextmanager
def open_tensors(directory: Path) -> Iterator[TensorFiles]:
    """Open the checkpoint's tensor files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, is a pickle or is outside the directory, or the index contradicts the files.
    """
    weight_map = None
    if (directory / SINGLE).exists() or not (directory / INDEX).exists():
        names = [SINGLE]
        if not (directory / SINGLE).exists():
            found = sorted(path.name for path in directory.glob("*.safetensors"))
            names = found if len(found) == 1 else names
            if not found:
                _refuse_pickles(directory)
    else:
        weight_map = _read_weight_map(directory)
        names = sorted(set(weight_map.values()))
    paths = {name: inside(directory, name, _SUFFIXES) for name in names}
    with contextlib.ExitStack() as stack:
        opened = {}
        for name, path in paths.items():
            try:
                opened[name] = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except SafetensorError as error:
                raise ValueError(f"{path} must be a whole safetensors file, found {error}") from None
        tensors = TensorFiles(opened)
        if weight_map is not None:
            _check_weight_map(directory / INDEX, weight_map, tensors)
        yield tensors


def _read_weight_map(directory: Path) -> dict[str, str]:
    weight_map = read_json(directory, INDEX).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(f, str) for f in weight_map.values())
    ):
        raise ValueError(f"{directory / INDEX}: weight_map must be a dictionary from tensors to files")
    return weight_map


def _check_weight_map(index: Path, weight_map: dict[str, str], tensors: TensorFiles) -> None:
    for name, file in weight_map.items():
        if tensors.file_of.get(name) != file:
            found = tensors.file_of.get(name, "no file")
            raise ValueError(f"{index}: {name} must be in {file}, found it in {found}")
    for name in tensors:
        if name not in weight_map:
            raise ValueError(f"{index}: {name} of {tensors.file_of[name]} is missing")


def inside(directory: Path, file: str, suffixes: tuple[str, ...] = ()) -> Path:
    """The path of an ordinary file directly in the directory.

    Args:
        directory: the directory.
        file: the file's name, from an index that may say anything.
        suffixes: the allowed suffixes; none allows all.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the name contains folders or has another suffix, or it is no file, or a link out of the directory.
    """
    path = directory / file
    if Path(file).name != file or "\\" in file or "\0" in file or file in ("", ".", ".."):
        raise ValueError(f"{directory}: files must be named without folders, found {file!r}")
    if suffixes and path.suffix not in suffixes:
        raise ValueError(
            f"{directory}: tensors must be in .safetensors files, found {file!r}: pickles are never read"
        )
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise ValueError(f"{path} must be a file, found something else")
        raise FileNotFoundError(f"{path} is missing")
    home = directory.resolve()
    target = path.resolve()
    allowed = [home]
    if (
        home.parent.name == "snapshots"
    ):  # the Hugging Face cache: snapshots/<revision>/<file> → ../../blobs/<hash>
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise ValueError(f"{path} must be in the directory, found a link to {target}")
    return path


def _refuse_pickles(directory: Path) -> None:
    for pattern in PICKLES:
        for path in sorted(directory.glob(pattern)):
            raise ValueError(f"{directory} must hold {SINGLE}, found {path.name}: pickles are never read")
