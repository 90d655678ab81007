"""`convert`: rewrites a GPTQ or AWQ directory in compressed-tensors' layout, without building the model.

Names and shapes come from the files. Codes, scales and zero points stay the same numbers, and every other tensor is
copied bit by bit. One file of tensors is read, translated and written at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonq.checkpoint import compressed_tensors, files
from tritonq.checkpoint.contents import warn_of_refused
from tritonq.checkpoint.extras import KEY, Extras
from tritonq.checkpoint.foreign import ForeignTensors
from tritonq.checkpoint.publish import staged
from tritonq.checkpoint.source import ALONE, FIELD, Checkpoint, open_checkpoint
from tritonq.checkpoint.writer import name_parts, part_name, write_json, write_tensors
from tritonq.util.progress import track

#: A head that shares the embedding's weight is in no file, but must be listed as not quantized.
_HEAD = "lm_head"
#: Weight files of the old layout, which must not stay beside the new ones.
_WEIGHTS = (".safetensors", ".safetensors.index.json", *(name.removeprefix("*") for name in files.PICKLES))


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
) -> None:
    """Rewrite a GPTQ or AWQ checkpoint in compressed-tensors' layout.

    Args:
        source: a directory that `load` reads. Its other files (tokenizer, generation config, code, …) are copied.
        target: another directory. It is created if needed; an earlier checkpoint in it is replaced completely.

    Warns:
        UserWarning: names layers that `load` reads but other compressed-tensors readers refuse, and unknown keys of the
            source's quantization_config.

    Raises:
        TypeError: one of them is no path.
        FileNotFoundError: the source or one of its files is missing.
        ValueError: the source is damaged, is already in compressed-tensors' layout, cannot be translated, or is the
            target itself.
        OSError: for example, the disk is full. In all cases the target is unchanged.
    """
    files.check_path(source)
    files.check_path(target)
    path, goal = files.check_directory(os.fspath(source)), Path(target)
    if path.resolve() == goal.resolve():
        raise ValueError(f"{goal} must be another directory than the source, found the same")
    with open_checkpoint(path) as checkpoint:
        tensors = checkpoint.tensors
        if not isinstance(tensors, ForeignTensors):
            raise ValueError(f"{path} must hold a GPTQ or AWQ checkpoint, found {checkpoint.method}")
        companions = _companions(path, checkpoint)
        config = _config(path, tensors)
        with staged(goal) as stage:
            shards = []
            for index, file in enumerate(track(sorted(set(tensors.file_of.values())), "converting")):
                shard = {name: tensors.get(name) for name in tensors if tensors.file_of[name] == file}
                write_tensors(stage / part_name(index), shard)
                shards.append({name: tensor.nbytes for name, tensor in shard.items()})
            name_parts(stage, shards)
            for companion in companions:
                shutil.copyfile(companion, stage / companion.name)
            write_json(stage / files.CONFIG, config)


def _config(path: Path, tensors: ForeignTensors) -> dict[str, Any]:
    """The target's config.json: the source's with the new quantization_config."""
    config = files.read_json(path, files.CONFIG) if (path / files.CONFIG).exists() else {}
    layers = {name: group.config for group in tensors.scheme.groups for name in group.targets}
    ignore = [
        name.removesuffix(".weight")
        for name in tensors
        if name.endswith(".weight") and len(tensors.shapes[name]) == 2
    ]
    if _HEAD not in layers and _HEAD not in ignore:
        ignore.append(_HEAD)
    columns = {name: int(tensors.get(f"{name}.weight_shape")[1]) for name in layers}
    warn_of_refused(layers, columns, tensors.ordered, stacklevel=3)
    config[FIELD] = compressed_tensors.scheme_to_dict(layers, tensors.ordered, ignore)
    config[KEY] = Extras().to_dict()
    return config


def _companions(path: Path, checkpoint: Checkpoint) -> list[Path]:
    """The source's files that are neither weights nor a quantization_config.

    Raises:
        ValueError: one of them is a link to a file outside the directory.
    """
    left = {files.CONFIG, *ALONE, *checkpoint.tensors.file_of.values()}
    return [
        files.inside(path, entry.name)
        for entry in _ordinary_files(path)
        if entry.name not in left and not entry.name.endswith(_WEIGHTS)
    ]


def _ordinary_files(path: Path) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if entry.is_file() and not entry.name.startswith("."):
            yield entry
