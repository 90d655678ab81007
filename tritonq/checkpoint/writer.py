"""`save`: a quantized model to a directory that compressed-tensors readers understand.

Tensors go out under the names that `state_dict` gives them, quantized layers in the canonical layout, shard by shard:
beside the model only one shard is ever held. A tensor that several names share is written once, under the first; the
others are recorded and tied again by `load`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tritonq.checkpoint import compressed_tensors, files
from tritonq.checkpoint.extras import KEY, Extras
from tritonq.checkpoint.publish import staged
from tritonq.config import QuantConfig
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.stubs import Quantize
from tritonq.patterns import Place, named_modules, places
from tritonq.qparams import FLOAT_DTYPES
from tritonq.selection import PLAN

DEFAULT_MAX_SHARD_BYTES = 5 * 10**9
_Memory = tuple[torch.device, int, tuple[int, ...], tuple[int, ...], torch.dtype]


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
    everything = places(model)
    layers = {place.name: place.module for place in everything if isinstance(place.module, QuantizedLinear)}
    _check_model(model, everything, layers)
    plain = {
        name: compressed_tensors.plain_config(layer.config, layer.in_features)
        for name, layer in layers.items()
    }
    ignore = [place.name for place in everything if isinstance(place.module, nn.Linear)]
    extras = _describe(everything, layers, plain)
    config = _host_config(model)
    ordered = [name for name, layer in layers.items() if layer.input_order is not None]
    config["quantization_config"] = compressed_tensors.scheme_to_dict(plain, ordered, ignore)

    _warn_of_refused(layers)
    with staged(Path(directory)) as stage:
        _write_shards(stage, _tensors(model, extras.tied), max_shard_bytes)
        config[KEY] = extras.to_dict()
        _write_json(stage / files.CONFIG, config)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself where torch.compile has wrapped it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def _check_model(model: nn.Module, everything: list[Place], layers: dict[str, QuantizedLinear]) -> None:
    if isinstance(model, QuantizedLinear):
        raise ValueError("model must hold layers, found a QuantizedLinear itself: put it into nn.Sequential")
    for place in everything:
        if hasattr(place.module, PLAN):
            raise ValueError(
                f"{place.name} is prepared but not converted: convert the model before saving it"
            )
    if not layers:
        raise ValueError("model must hold a QuantizedLinear, found none: quantize it first")
    for name, layer in layers.items():
        parts = {"dtype": layer.dtype, **({} if layer.bias is None else {"bias": layer.bias.dtype})}
        for part, dtype in parts.items():
            if dtype not in FLOAT_DTYPES:
                raise TypeError(
                    f"{name}: {part} must be float32, float16 or bfloat16 to be saved, found {dtype}: call "
                    "model.float() first"
                )
    for name, module in [("model", model), *((place.name, place.module) for place in everything)]:
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(f"{name} has extra state (get_extra_state), which safetensors files cannot hold")


def _describe(
    everything: list[Place], layers: dict[str, QuantizedLinear], plain: dict[str, QuantConfig]
) -> Extras:
    """What compressed-tensors cannot say of the model; ties are filled in as tensors are written."""
    extras = Extras(hands_over=[name for name, layer in layers.items() if layer.output_scale is not None])
    for name, layer in layers.items():
        if layer.dtype != (layer.scales if layer.bias is None else layer.bias).dtype:
            extras.dtypes[name] = layer.dtype
        if layer.config != plain[name]:
            fields = layer.config.to_dict()
            observers = (fields["weight"]["observer"], (fields["activation"] or {}).get("observer"))
            if observers != (None, None):
                extras.observers[name] = observers
    for place in everything:
        if isinstance(place.module, Quantize):
            extras.stubs[place.name] = place.module.symmetric
    return extras


def _tensors(model: nn.Module, tied: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `state_dict`, computed one module at a time; names of what came before are put into `tied`."""
    sharable = {_memory(tensor) for module in model.modules() for tensor in _sharable(module)}
    names_of: dict[_Memory, str] = {}
    prefix_of: dict[int, str] = {}
    for module_name, module in named_modules(model):
        prefix = f"{module_name}." if module_name else ""
        first_prefix = prefix_of.setdefault(id(module), prefix)
        state: dict[str, Tensor] = {}
        module._save_to_state_dict(state, prefix, keep_vars=False)
        for name, tensor in state.items():
            _check_tensor(name, tensor)
            memory = _memory(tensor)
            if first_prefix != prefix:
                first = first_prefix + name[len(prefix) :]
                tied[name] = tied.get(first, first)
            elif memory in sharable and names_of.setdefault(memory, name) != name:
                tied[name] = names_of[memory]
            else:
                yield name, tensor


def _sharable(module: nn.Module) -> list[Tensor]:
    """A module's tensors that are stored once if another module has them too.

    Not the quantized layers' own: readers expect scales at every layer, and codes are computed for the file anyway.
    """
    if isinstance(module, QuantizedLinear):
        return [] if module.bias is None else [module.bias]
    if isinstance(module, Quantize):
        return []
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None and tensor.numel()]


def _memory(tensor: Tensor) -> _Memory:
    """Equal for two tensors that are alive exactly if they are the same view of the same memory."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, found {type(tensor).__name__}")
    if tensor.is_meta or tensor.layout != torch.strided:
        found = "one on the meta device" if tensor.is_meta else str(tensor.layout)
        raise ValueError(f"{name} must be a dense tensor with values, found {found}")


def _write_shards(stage: Path, tensors: Iterator[tuple[str, Tensor]], max_bytes: int) -> None:
    """Write tensors in order, opening a new file before one grows beyond `max_bytes`; name the files at the end."""
    shards: list[dict[str, int]] = []
    pending: dict[str, Tensor] = {}
    owners: set[int] = set()
    size = 0

    def flush() -> None:
        nonlocal size
        _write_tensors(stage / _part(len(shards)), pending)
        shards.append({name: tensor.nbytes for name, tensor in pending.items()})
        pending.clear()
        owners.clear()
        size = 0

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > max_bytes:
            flush()
        tensor = tensor.cpu().contiguous()
        if (
            tensor.untyped_storage().data_ptr() in owners
        ):  # other views of one memory: safetensors wants their own
            tensor = tensor.clone()
        owners.add(tensor.untyped_storage().data_ptr())
        pending[name] = tensor
        size += tensor.nbytes
    if pending:
        flush()
    if len(shards) == 1:
        os.replace(stage / _part(0), stage / files.SINGLE)
        return
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(stage / _part(index), stage / file)
        weight_map.update(dict.fromkeys(names, file))
    total = sum(sum(names.values()) for names in shards)
    _write_json(stage / files.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _part(index: int) -> str:
    return f"part-{index}"


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(mode)  # safetensors makes files that only their owner can read


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _host_config(model: nn.Module) -> dict[str, Any]:
    """The model's own configuration, with what `save_pretrained` of transformers would add."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(to_dict):
        return {}
    fields = dict(to_dict())
    fields["architectures"] = fields.get("architectures") or [type(model).__name__]
    dtype = getattr(model, "dtype", None)
    if isinstance(dtype, torch.dtype):
        fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = str(dtype).removeprefix("torch.")
    try:
        json.dumps(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.config.to_dict() must return JSON values: {error}") from None
    return fields


def _warn_of_refused(layers: dict[str, QuantizedLinear]) -> None:
    """Say which layers other readers of the format do not take."""
    short = []
    ordered = [name for name, layer in layers.items() if layer.input_order is not None]
    for name, layer in layers.items():
        spec = layer.config.weight
        if spec.granularity == "group" and layer.in_features % layer.group_size:
            short.append(f"{name} (K = {layer.in_features}, group {layer.group_size})")
    if short:
        warnings.warn(
            f"other compressed-tensors readers refuse {', '.join(short)}: their last group is shorter; a group_size "
            "that divides K avoids it",
            UserWarning,
            stacklevel=3,
        )
    if ordered:
        warnings.warn(
            f"compressed-tensors 0.20 refuses {', '.join(ordered)}: their groups are in activation order (actorder "
            "'group'), which vLLM and older versions read",
            UserWarning,
            stacklevel=3,
        )
