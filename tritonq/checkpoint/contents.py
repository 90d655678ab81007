"""The contents of a model's checkpoint: the fields of config.json, and the tensors by name, in order.

This works on the meta device too, with shapes instead of values. So the size of every file is known before the first
weight is read (tritonq/streaming).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tritonq.checkpoint import compressed_tensors
from tritonq.checkpoint.extras import Extras
from tritonq.checkpoint.stored_edges import check_ends, tensors_of_others
from tritonq.flow.model_edges import edges_of
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.stubs import Quantize
from tritonq.numerics.config import QuantConfig
from tritonq.numerics.qparams import FLOAT_DTYPES
from tritonq.select.patterns import Place, named_modules, places
from tritonq.select.select import PLAN


class Stored(NamedTuple):
    """A tensor of a checkpoint: its name there, its module, and its name in the module."""

    name: str
    tensor: Tensor
    module: nn.Module
    local: str


def describe(model: nn.Module) -> tuple[dict[str, Any], Extras]:
    """The fields of a quantized model's config.json, and the contents of its key `tritonq`.

    Ties are missing: `stored_tensors` finds them.

    Warns:
        UserWarning: names layers that `load` reads but other compressed-tensors readers refuse.

    Raises:
        TypeError, ValueError: the model cannot be saved; the message names the module.
    """
    everything = places(model)
    layers = {place.name: place.module for place in everything if isinstance(place.module, QuantizedLinear)}
    _check_model(model, everything, layers)
    plain = {
        name: compressed_tensors.plain_config(layer.config, layer.in_features)
        for name, layer in layers.items()
    }
    ignore = [place.name for place in everything if isinstance(place.module, nn.Linear)]
    ordered = [name for name, layer in layers.items() if layer.input_order is not None]
    config = _host_config(model)
    config["quantization_config"] = compressed_tensors.scheme_to_dict(plain, ordered, ignore)
    columns = {name: layer.in_features for name, layer in layers.items()}
    warn_of_refused(plain, columns, ordered, stacklevel=3)
    return config, _describe(everything, layers, plain)


def memory_of(tensor: Tensor) -> Hashable:
    """A key that is equal for two living tensors exactly if they are the same view of the same memory."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def stored_tensors(
    model: nn.Module, tied: dict[str, str], identity: Callable[[Tensor], Hashable] = memory_of
) -> Iterator[Stored]:
    """The tensors of `state_dict`, computed one module at a time, each once.

    Args:
        model: quantized layers give their tensors in the checkpoint's layout.
        tied: gets the names of tensors that were already stored: alias → stored name.
        identity: a key that is equal for tied tensors; `memory_of` if there are values, `id` on the meta device.
    """
    sharable = {identity(tensor) for module in model.modules() for tensor in _sharable(module)}
    names_of: dict[Hashable, str] = {}
    prefix_of: dict[int, str] = {}
    for module_name, module in named_modules(model):
        prefix = f"{module_name}." if module_name else ""
        first_prefix = prefix_of.setdefault(id(module), prefix)
        state: dict[str, Tensor] = {}
        module._save_to_state_dict(state, prefix, keep_vars=True)
        for local in tensors_of_others(module):
            state.pop(prefix + local, None)
        for name, tensor in state.items():
            _check_tensor(name, tensor)
            local = name[len(prefix) :]
            key = identity(tensor)
            if first_prefix != prefix:
                first = first_prefix + local
                tied[name] = tied.get(first, first)
            elif key in sharable and names_of.setdefault(key, name) != name:
                tied[name] = names_of[key]
            else:
                yield Stored(name, tensor, module, local)


def _sharable(module: nn.Module) -> list[Tensor]:
    """A module's tensors that are stored only once if another module shares them.

    Scales and codes of quantized layers are not shared: readers expect scales at every layer, and codes are computed
    for the file anyway.
    """
    if isinstance(module, QuantizedLinear):
        return [] if module.bias is None else [module.bias]
    if isinstance(module, Quantize):
        return []
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None and tensor.numel()]


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, found {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor with values, found {tensor.layout}")


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
    """Everything that compressed-tensors cannot express. Ties are added when tensors are written."""
    extras = Extras(edges=edges_of(everything))
    check_ends(extras.edges, layers)
    extras.hands_over = [
        name for name, layer in layers.items() if layer.output_scale is not None and layer.edge is None
    ]
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


def _host_config(model: nn.Module) -> dict[str, Any]:
    """The model's own configuration, with what `save_pretrained` of transformers would add."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(to_dict):
        return {}
    fields = dict(to_dict())
    fields.pop("_name_or_path", None)  # a path on the owner's machine
    fields["architectures"] = fields.get("architectures") or [type(model).__name__]
    dtype = getattr(model, "dtype", None)
    if isinstance(dtype, torch.dtype):
        fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = str(dtype).removeprefix("torch.")
    try:
        json.dumps(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.config.to_dict() must return JSON values: {error}") from None
    return fields


def warn_of_refused(
    layers: Mapping[str, QuantConfig], columns: Mapping[str, int], ordered: Collection[str], stacklevel: int
) -> None:
    """Warn about layers that other readers of the format refuse.

    Args:
        layers, ordered: as for `compressed_tensors.scheme_to_dict`.
        columns: module name → K.
        stacklevel: of the warning, as if it were given here.
    """
    short = []
    for name, config in layers.items():
        group_size = config.weight.resolve_group_size(columns[name])
        if columns[name] % group_size:
            short.append(f"{name} (K = {columns[name]}, group {group_size})")
    if short:
        warnings.warn(
            f"other compressed-tensors readers refuse {', '.join(short)}: their last group is shorter; a group_size "
            "that divides K avoids it",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
    if ordered:
        warnings.warn(
            f"compressed-tensors 0.20 refuses {', '.join(ordered)}: their groups are in activation order (actorder "
            "'group'), which vLLM and older versions read",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
