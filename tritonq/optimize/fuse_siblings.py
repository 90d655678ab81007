"""`fuse_siblings_` computes q, k and v in one launch, gate and up in one launch. It finds such layers

    by name    children of one module whose names are those of siblings in common models (`FAMILIES`)
    by runs    children of one module that read the same value in every call

A wrong name does no harm: siblings check in every call that their input is the same (tritonq/nn/siblings.py). In a
cross-attention, where q does not read the input of k and v, only k and v are siblings.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.nn.siblings import Siblings, are_alike
from tritonq.select.calibrate import check_calibration, check_not_empty, evaluation, run_batch
from tritonq.select.patterns import Place, places

#: Names of siblings. q, k, v: Llama and most later models; BERT, ViT; DeBERTa; diffusers; T5; Meta's code; DistilBERT;
#: DeepSeek. Then gate and up.
FAMILIES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("gate_proj", "up_proj"),
    ("gate", "up"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
#: Names of cross-attentions, where q does not read the input of k and v: BART and Whisper; T5; BERT; others; diffusers.
_CROSS_ATTENTION = re.compile(
    r"encoder_attn|EncDecAttention|cross_?attn|cross_?attention|attn2$", re.IGNORECASE
)
_Module = TypeVar("_Module", bound=nn.Module)


def fuse_siblings_(model: _Module, inputs: Iterable[Any] | None = None) -> _Module:
    """Compute quantized layers that read the same input in one launch. Changes the model in place.

    Each layer's tensors become views of joined tensors. The model's code, its layers and their names stay the same, and
    so does what `state_dict`, `save` and `save_pretrained` write. Fuse last, when the model is on the device where it
    will run. Layers that you move, load or copy later are joined again. `unfuse_siblings_` undoes it.

    With int8 activations, results are bit-equal to those of separate layers. With float activations (w8a16, w4a16) the
    float32 sums may be added in another order, as they are for another batch size. Outputs are slices of one tensor, so
    they are strided if they have more than one row.

    Args:
        model: quantized.
        inputs: batches, run as m(x) if a tensor, m(*x) if a tuple or list, m(**x) if a dictionary. Layers of one
            module that read the same values in all runs are fused, whatever their names. Only layers found this way
            run in one launch under torch.inference_mode too. None finds layers by name (`FAMILIES`), and keeps the
            groups that are already fused.

    Returns:
        The model; `summary` and `repr` show what was fused.

    Warns:
        UserWarning: no layer has siblings.

    Raises:
        TypeError: `model` is not a module, or a batch has a type that cannot be run.
        ValueError: the model has no quantized layer, or there is no batch. Then the model is unchanged.
    """
    layers = _quantized_places(model)
    if not layers:
        raise ValueError("model must hold quantized layers, found none: call quantize_ first")
    if inputs is None:
        _part_incomplete(layers)
        families = _families_by_name(layers)
    else:
        families = _families_by_runs(model, layers, inputs)
        unfuse_siblings_(model)
    for family in families:
        for group in _alike(family):
            Siblings(group, proven=inputs is not None)
    if not any(_layer(place).siblings for place in layers):
        warnings.warn(
            f"none of the {len(layers)} quantized layers has siblings of the same scheme and group size",
            UserWarning,
            stacklevel=2,
        )
    return model


def unfuse_siblings_(model: _Module) -> _Module:
    """Undo `fuse_siblings_` in place: every layer gets separate tensors and a separate launch again.

    Returns:
        The model.

    Raises:
        TypeError: `model` is not a module.
    """
    for place in _quantized_places(model):
        siblings = _layer(place).siblings
        if siblings is not None:
            siblings.part()
    return model


def siblings_of(everything: Iterable[Place]) -> list[tuple[str, ...]]:
    """The names of the layers that share a launch, one tuple per group."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for place in everything:
        layer = place.module
        if isinstance(layer, QuantizedLinear) and layer.siblings is not None and layer.siblings.holds(layer):
            groups[id(layer.siblings)].append(place.name)
    return [tuple(names) for names in groups.values()]


def _quantized_places(model: object) -> list[Place]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    return [place for place in places(model) if isinstance(place.module, QuantizedLinear)]


def _part_incomplete(layers: list[Place]) -> None:
    """Split groups that are incomplete: a layer is no longer in the model, or no longer uses the joined tensors."""
    here = {_layer(place) for place in layers}
    for layer in here:
        siblings = layer.siblings
        if siblings is not None and not all(
            member in here and siblings.holds(member) for member in siblings.members
        ):
            siblings.part()


def _layer(place: Place) -> QuantizedLinear:
    assert isinstance(place.module, QuantizedLinear)
    return place.module


def _families_by_name(layers: list[Place]) -> list[list[QuantizedLinear]]:
    children: defaultdict[int, dict[str, QuantizedLinear]] = defaultdict(dict)
    crossing: set[int] = set()
    for place in layers:
        parent, attribute = place.parents[0]
        if _layer(place).siblings is None:
            children[id(parent)][attribute] = _layer(place)
        if _CROSS_ATTENTION.search(place.name.rpartition(".")[0]):
            crossing.add(id(parent))
    return [
        [named[name] for name in (family[1:] if parent in crossing else family) if name in named]
        for parent, named in children.items()
        for family in FAMILIES
    ]


def _families_by_runs(
    model: nn.Module, layers: list[Place], inputs: Iterable[Any]
) -> list[list[QuantizedLinear]]:
    read = _read_in_runs(model, layers, inputs)
    families: defaultdict[tuple[Any, ...], list[QuantizedLinear]] = defaultdict(list)
    for place in layers:
        values = read[_layer(place)]
        if values:
            families[id(place.parents[0][0]), tuple(values)].append(_layer(place))
    return list(families.values())


def _read_in_runs(
    model: nn.Module, layers: list[Place], inputs: Iterable[Any]
) -> dict[nn.Module, list[tuple[int, int]]]:
    """{layer: [(number of its input tensor, that tensor's version counter), one per call]}."""
    check_calibration(inputs, "inputs")
    read: dict[nn.Module, list[tuple[int, int]]] = {place.module: [] for place in layers}
    numbers, count = WeakIdKeyDictionary(), itertools.count()

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        version = (x.data if isinstance(x, QuantizedTensor) else x)._version
        read[layer].append((numbers.setdefault(x, next(count)), version))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in read]
    runs = 0
    try:
        with torch.inference_mode(False), evaluation(model), torch.compiler.set_stance("force_eager"):
            for batch in inputs:
                run_batch(model, batch, runs, "inputs")
                runs += 1
    finally:
        for hook in hooks:
            hook.remove()
    check_not_empty(runs, "inputs")
    return read


def _alike(family: list[QuantizedLinear]) -> list[list[QuantizedLinear]]:
    """The layers of a family that can be joined, in groups of at least two."""
    groups: list[list[QuantizedLinear]] = []
    for layer in family:
        group = next((group for group in groups if are_alike(group[0], layer)), None)
        if group is None:
            groups.append([layer])
        else:
            group.append(layer)
    return [group for group in groups if len(group) > 1]
