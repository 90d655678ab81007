"""`info`: describes a checkpoint directory, from its config.json and the headers of its files."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import torch

from tritonq.checkpoint import files
from tritonq.checkpoint.compressed_tensors import LINEAR_CLASSES, Group, Scheme
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.source import open_checkpoint
from tritonq.util.table import aligned


@dataclasses.dataclass(frozen=True)
class GroupInfo:
    """One config group: its scheme in words, its layers, their parameters (N · K each) and bytes."""

    name: str
    scheme: str
    weight: str
    activation: str
    format: str
    layers: tuple[str, ...]
    parameters: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Info:
    """The description of a checkpoint.

    Attributes:
        directory: its path.
        method: its quant_method. GPTQ and AWQ files are otherwise described as if compressed-tensors had written them.
        groups: the config groups.
        layers: the number of quantized layers.
        parameters: parameters of the float model: N · K of each quantized weight, and all other tensors.
        bytes: of all tensors.
        bytes_by_dtype: dtype name → bytes of the tensors stored in it.
        ratio_to_fp32, ratio_to_fp16: bytes relative to the float model's in that dtype.
        files: file name → its size in bytes.
    """

    directory: str
    method: str
    groups: tuple[GroupInfo, ...]
    layers: int
    parameters: int
    bytes: int
    bytes_by_dtype: dict[str, int]
    ratio_to_fp32: float
    ratio_to_fp16: float
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        header = ("group", "scheme", "weights", "activations", "format", "layers", "parameters", "bytes")
        rows = [
            (group.name, group.scheme, group.weight, group.activation, group.format, f"{len(group.layers):,}",
             f"{group.parameters:,}", f"{group.bytes:,}")
            for group in self.groups
        ]  # fmt: skip
        return "\n".join(
            [
                self.directory,
                "",
                *aligned(header, rows, numbers=3),
                "",
                f"method      {self.method}",
                f"parameters  {self.parameters:,}, {self.layers:,} layers quantized",
                f"bytes       {self.bytes:,} = {self.ratio_to_fp32:.3f} of fp32, {self.ratio_to_fp16:.3f} of fp16",
                *aligned(
                    ("dtype", "bytes"), [(k, f"{v:,}") for k, v in self.bytes_by_dtype.items()], numbers=1
                ),
                "",
                *aligned(("file", "bytes"), [(k, f"{v:,}") for k, v in self.files.items()], numbers=1),
            ]
        )


def info(directory: str | os.PathLike[str]) -> Info:
    """Describe a checkpoint, without a model.

    Args:
        directory: as for `load`.

    Raises:
        FileNotFoundError, ValueError: as `load`, for errors that show without a model.
    """
    path = files.check_directory(os.fspath(directory))
    with open_checkpoint(path) as checkpoint:
        scheme, tensors = checkpoint.scheme, checkpoint.tensors
        sizes = {name: _nbytes(name, tensors) for name in tensors}
        layers = _quantized_layers(path, scheme, tensors)
        shapes = {name: _weight_shape(path, name, group, tensors) for name, group in layers.items()}
        groups = tuple(_group_info(group, layers, shapes, sizes) for group in scheme.groups)
        by_dtype: dict[str, int] = {}
        for name, size in sizes.items():
            word = str(tensors.dtypes[name]).removeprefix("torch.")
            by_dtype[word] = by_dtype.get(word, 0) + size
        inside = {
            name for name in tensors if name.rpartition(".")[0] in layers and not name.endswith(".bias")
        }
        plain = sum(math.prod(tensors.shapes[name]) for name in tensors if name not in inside)
        used = sorted({checkpoint.config_file, *tensors.file_of.values()})
    if len(used) > 2:
        used.append(files.INDEX)
    parameters = plain + sum(math.prod(shape) for shape in shapes.values())
    total = sum(sizes.values())
    return Info(
        directory=str(path),
        method=checkpoint.method,
        groups=groups,
        layers=len(layers),
        parameters=parameters,
        bytes=total,
        bytes_by_dtype=dict(sorted(by_dtype.items())),
        ratio_to_fp32=total / (4 * parameters) if parameters else 0.0,
        ratio_to_fp16=total / (2 * parameters) if parameters else 0.0,
        files={name: (path / name).stat().st_size for name in used},
    )


def _quantized_layers(path: Path, scheme: Scheme, tensors: TensorFiles) -> dict[str, Group]:
    """Layer → its group, for all names with a weight scale."""
    layers = {}
    for name in tensors:
        layer, _, local = name.rpartition(".")
        if local != "weight_scale":
            continue
        group = scheme.group_of([layer], LINEAR_CLASSES)
        if group is None:
            raise ValueError(
                f"{path}: {name} must belong to a config group, found none that targets {layer!r}"
            )
        layers[layer] = group
    return layers


def _weight_shape(path: Path, layer: str, group: Group, tensors: TensorFiles) -> tuple[int, ...]:
    """(N, K)."""
    name = f"{layer}.weight_shape" if group.packed else f"{layer}.weight"
    if name not in tensors:
        raise ValueError(f"{path}: {name} is missing")
    if not group.packed:
        return tensors.shapes[name]
    if tensors.shapes[name] != (2,) or tensors.dtypes[name] != torch.int64:
        raise ValueError(f"{path}: {name} must be int64 [2], found {tensors.describe(name)}")
    return tuple(tensors.get(name).tolist())


def _group_info(
    group: Group, layers: dict[str, Group], shapes: dict[str, tuple[int, ...]], sizes: dict[str, int]
) -> GroupInfo:
    own = tuple(name for name, its_group in layers.items() if its_group is group)
    members = set(own)
    weight, activation = group.config.weight, group.config.activation
    words = f"int{weight.bits} {weight.granularity}"
    words += f" {weight.group_size}" if weight.granularity == "group" else ""
    return GroupInfo(
        name=group.name,
        scheme=group.config.scheme,
        weight=words + ("" if weight.symmetric else " affine"),
        activation="float"
        if activation is None
        else f"int8 {'dynamic' if activation.dynamic else 'static'} "
        f"{activation.granularity}{'' if activation.symmetric else ' affine'}",
        format="packed" if group.packed else "int8",
        layers=own,
        parameters=sum(math.prod(shapes[name]) for name in own),
        bytes=sum(size for name, size in sizes.items() if name.rpartition(".")[0] in members),
    )


def _nbytes(name: str, tensors: TensorFiles) -> int:
    dtype = tensors.dtypes[name]
    if dtype is None:
        raise ValueError(
            f"{tensors.file_of[name]}: {name} must be of a dtype that torch has, found {tensors.describe(name)}"
        )
    return math.prod(tensors.shapes[name]) * dtype.itemsize
