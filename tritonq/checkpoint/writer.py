"""`save`: writes a quantized model to a directory that readers of compressed-tensors understand.

Tensors have their names of `state_dict`. They are written shard by shard, so memory holds the model and one shard. A
tensor with several names is written once, under the first; the other names are recorded, and `load` ties them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tritonq.checkpoint import files
from tritonq.checkpoint.contents import Stored, describe, stored_tensors
from tritonq.checkpoint.extras import KEY
from tritonq.checkpoint.publish import staged

DEFAULT_MAX_SHARD_BYTES = 5 * 10**9


def save(
    model: nn.Module, directory: str | os.PathLike[str], *, max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES
) -> None:
    """Write a quantized model: all its tensors, and a config.json that says how they are quantized.

    Args:
        model: holds QuantizedLinear layers. The parameters and persistent buffers of all its modules are saved. If it
            has a `config` with a `to_dict` method (Hugging Face), config.json holds that too.
        directory: created if needed. An earlier checkpoint in it is replaced completely; other files stay.
        max_shard_bytes: the size limit of one file; more tensors go to further files.

    Warns:
        UserWarning: names layers that `load` reads but other compressed-tensors readers refuse.

    Raises:
        TypeError, ValueError: the model cannot be saved, or an argument is wrong; the message names the module.
        OSError: for example, the disk is full. In all cases the directory is unchanged.
    """
    model = unwrapped(model)
    if type(max_shard_bytes) is not int or max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be a positive integer, found {max_shard_bytes!r}")
    files.check_path(directory)
    config, extras = describe(model)
    with staged(Path(directory)) as stage:
        _write_shards(stage, stored_tensors(model, extras.tied), max_shard_bytes)
        config[KEY] = extras.to_dict()
        write_json(stage / files.CONFIG, config)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrapper of torch.compile."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def _write_shards(stage: Path, tensors: Iterator[Stored], max_bytes: int) -> None:
    """Write tensors in order, and begin a new file before one exceeds `max_bytes`. The files are named at the end."""
    shards: list[dict[str, int]] = []
    pending: dict[str, Tensor] = {}
    owners: set[int] = set()
    size = 0

    def flush() -> None:
        nonlocal size
        write_tensors(stage / part_name(len(shards)), pending)
        shards.append({name: tensor.nbytes for name, tensor in pending.items()})
        pending.clear()
        owners.clear()
        size = 0

    for name, tensor, _, _ in tensors:
        if tensor.is_meta:
            raise ValueError(f"{name} must be a dense tensor with values, found one on the meta device")
        if pending and size + tensor.nbytes > max_bytes:
            flush()
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in owners:
            tensor = tensor.clone()  # another view of the same memory, which safetensors refuses
        owners.add(tensor.untyped_storage().data_ptr())
        pending[name] = tensor
        size += tensor.nbytes
    if pending:
        flush()
    name_parts(stage, shards)


def part_name(index: int) -> str:
    """The temporary name of a tensor file, while the number of files is unknown."""
    return f"part-{index}"


def name_parts(stage: Path, shards: Sequence[Mapping[str, int]]) -> None:
    """Give all files their final names, and write the index if there are several; `shards` as for `index_fields`."""
    for index in range(len(shards)):
        os.replace(stage / part_name(index), stage / shard_name(index, len(shards)))
    if len(shards) > 1:
        write_json(stage / files.INDEX, index_fields(shards))


def shard_name(index: int, count: int) -> str:
    """The name of one of `count` tensor files."""
    return files.SINGLE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def index_fields(shards: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """The contents of the index file: the file of each tensor.

    Args:
        shards: one dictionary per file, tensor name → bytes.
    """
    weight_map = {
        name: shard_name(index, len(shards)) for index, names in enumerate(shards) for name in names
    }
    return {
        "metadata": {"total_size": sum(sum(names.values()) for names in shards)},
        "weight_map": weight_map,
    }


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one safetensors file; every failure is an OSError."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(mode)  # safetensors lets only the owner read its files


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
