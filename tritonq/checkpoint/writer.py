"""`save`: a quantized model to a directory that compressed-tensors readers understand.

Tensors go out under the names that `state_dict` gives them, quantized layers in the canonical layout, shard by shard:
beside the model only one shard is ever held. A tensor that several names share is written once, under the first; the
others are recorded and tied again by `load`.
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
        model: holds QuantizedLinear layers; its parameters and persistent buffers are saved, whatever modules they are
            in. If it has a `config` with a `to_dict` method (Hugging Face), config.json holds that too.
        directory: made if it is not there; other files in it stay, an earlier checkpoint is replaced as a whole.
        max_shard_bytes: tensors are split over several files where they take more.

    Warns:
        UserWarning: layers that `load` reads but other compressed-tensors readers refuse, by name.

    Raises:
        TypeError, ValueError: a model or an argument that cannot be saved, naming the module.
        OSError: the disk is full, or the like. In all cases the directory is as it was.
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
    """The model itself where torch.compile has wrapped it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def _write_shards(stage: Path, tensors: Iterator[Stored], max_bytes: int) -> None:
    """Write tensors in order, opening a new file before one grows beyond `max_bytes`; name the files at the end."""
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
            tensor = tensor.clone()  # another view of one memory: safetensors wants its own
        owners.add(tensor.untyped_storage().data_ptr())
        pending[name] = tensor
        size += tensor.nbytes
    if pending:
        flush()
    name_parts(stage, shards)


def part_name(index: int) -> str:
    """The name of a tensor file as long as nobody knows how many there will be."""
    return f"part-{index}"


def name_parts(stage: Path, shards: Sequence[Mapping[str, int]]) -> None:
    """Give all parts their names, and write the index where there are several; `shards` as for `index_fields`."""
    for index in range(len(shards)):
        os.replace(stage / part_name(index), stage / shard_name(index, len(shards)))
    if len(shards) > 1:
        write_json(stage / files.INDEX, index_fields(shards))


def shard_name(index: int, count: int) -> str:
    """The name of one of `count` tensor files."""
    return files.SINGLE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def index_fields(shards: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """What the index file says: which file each tensor is in.

    Args:
        shards: tensor name → bytes, a file each.
    """
    weight_map = {
        name: shard_name(index, len(shards)) for index, names in enumerate(shards) for name in names
    }
    return {
        "metadata": {"total_size": sum(sum(names.values()) for names in shards)},
        "weight_map": weight_map,
    }


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file; what goes wrong is an OSError."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(mode)  # safetensors makes files that only their owner can read


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
