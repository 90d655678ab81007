"""Plans what `load` does to a model: the replacement of each module, and the place of each tensor.

A plan needs only names, shapes and dtypes; no tensor is read. Every tensor that the model needs must be in the files,
and every tensor in the files must be needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tritonq.checkpoint import forms
from tritonq.checkpoint.compressed_tensors import LINEAR_CLASSES, Group, Scheme
from tritonq.checkpoint.extras import Extras
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.stored_edges import check_edges, tensors_of_others
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.stubs import Quantize, is_dequant_stub, is_quant_stub
from tritonq.select.patterns import Place, named_modules, places
from tritonq.select.select import PLAN, is_plain_linear

_NAMES_IN_MESSAGES = 5
#: Rotary frequencies, which older versions of transformers saved and newer ones compute.
_COMPUTED = "rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """A Linear or QuantizedLinear that a new QuantizedLinear replaces.

    Attributes:
        place: its place in the model.
        group: how it is quantized.
        tensors: local name ("weight_packed") → the stored tensor.
    """

    place: Place
    group: Group
    tensors: dict[str, str]


@dataclasses.dataclass(frozen=True)
class StubPlan:
    """A QuantStub or Quantize that a new Quantize replaces; attributes as for LayerPlan."""

    place: Place
    symmetric: bool
    tensors: dict[str, str]


@dataclasses.dataclass
class Slot:
    """A parameter or buffer of a module that stays, all its places, and the stored tensor for it."""

    tensor: Tensor
    names: list[str]
    owners: list[tuple[nn.Module, str]]
    stored: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole plan; `dequant_stubs` become DeQuantize modules."""

    layers: list[LayerPlan]
    stubs: list[StubPlan]
    dequant_stubs: list[Place]
    slots: list[Slot]


def make_plan(model: nn.Module, scheme: Scheme, extras: Extras, tensors: TensorFiles) -> Plan:
    """Match a model with a checkpoint.

    Raises:
        ValueError: tensors are missing, superfluous or of another shape or kind; a quantized layer is no plain Linear;
            a buffer would stay on the meta device.
    """
    _check_ties(extras, tensors)
    finder = _Finder(extras, tensors)
    everything = places(model)
    for place in everything:
        if hasattr(place.module, PLAN):
            raise ValueError(f"{place.name} is prepared: load into the float model or into the converted one")
    layers = [plan for place in everything if (plan := _plan_layer(place, scheme, finder)) is not None]
    _check_layers(everything, layers)
    stubs = _plan_stubs(everything, layers, extras, finder)
    static = any(layer.group.config.static for layer in layers)
    dequant_stubs = [place for place in everything if static and is_dequant_stub(place.module)]
    replaced = {id(plan.place.module) for plan in layers} | {id(plan.place.module) for plan in stubs}
    slots = _slots(model, replaced)
    for slot in slots:
        slot.stored = finder.find_any(slot.names)
    finder.finish(bool(layers))
    for slot in slots:
        _check_slot(slot, tensors)
    _check_extras(extras, layers, tensors)
    by_name = {name: layer for layer in layers for name in layer.place.names}
    check_edges(
        extras.edges,
        everything,
        {name: layer.group.config for name, layer in by_name.items()},
        [name for name, layer in by_name.items() if "input_scale" in layer.tensors],
    )
    return Plan(layers, stubs, dequant_stubs, _tie(slots))


class _Finder:
    """Looks up tensors by the model's names for them, and records which were used."""

    def __init__(self, extras: Extras, tensors: TensorFiles) -> None:
        self.tied, self.tensors = extras.tied, tensors
        self.missing: list[str] = []
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self.tensors or name in self.tied

    def find(self, name: str) -> str:
        """The name of the stored tensor; "" if there is none, which `finish` reports."""
        return self.find_any([name])

    def find_any(self, names: list[str]) -> str:
        """The stored tensor for something with several names; all stored ones count as used."""
        found = [self.tied.get(name, name) for name in names if self.has(name)]
        self.used.update(found)
        if not found:
            self.missing.append(names[0])
            return ""
        return found[0]

    def finish(self, fits_somewhere: bool) -> None:
        """Raise unless everything was found and everything stored was used."""
        superfluous = [
            name for name in self.tensors if name not in self.used and not name.endswith(_COMPUTED)
        ]
        problems = []
        if not fits_somewhere:
            problems.append("no Linear of the model belongs to a config group")
        if self.missing:
            problems.append(f"the model needs {_listed(self.missing)}, which the files lack")
        if superfluous:
            problems.append(f"the files hold {_listed(superfluous)}, which the model does not have")
        if problems:
            raise ValueError(f"checkpoint and model must have the same tensors: {'; '.join(problems)}")


def _plan_layer(place: Place, scheme: Scheme, finder: _Finder) -> LayerPlan | None:
    module = place.module
    if not isinstance(module, QuantizedLinear) and not is_plain_linear(module):
        return None
    is_float = not isinstance(module, QuantizedLinear)
    classes = [cls.__name__ for cls in type(module).__mro__] if is_float else LINEAR_CLASSES
    group = scheme.group_of(place.names, classes)
    if group is None:
        return None
    name = next((name for name in place.names if finder.has(f"{name}.weight_scale")), place.name)
    wanted = forms.weight_names(group.config, group.packed)
    # Old GPTQ writers gave every layer a bias, of zeros if the model has none.
    if finder.has(f"{name}.bias") or module.bias is not None:
        wanted.append("bias")
    activation = group.config.activation
    if activation is not None and group.config.static:
        hands_over = finder.has(f"{name}.output_scale")
        if finder.has(f"{name}.input_scale") or not hands_over:
            wanted += ["input_scale", *([] if activation.symmetric else ["input_zero_point"])]
        if hands_over:
            wanted += ["output_scale", "output_zero_point"]
    optional = ["weight_g_idx", *forms.needless_names(group.config)]
    wanted += [local for local in optional if finder.has(f"{name}.{local}")]
    return LayerPlan(place, group, {local: finder.find(f"{name}.{local}") for local in wanted})


def _plan_stubs(
    everything: list[Place], layers: list[LayerPlan], extras: Extras, finder: _Finder
) -> list[StubPlan]:
    activations = [layer.group.config.activation for layer in layers if layer.group.config.static]
    all_symmetric = bool(activations) and all(spec is not None and spec.symmetric for spec in activations)
    plans = []
    for place in everything:
        if not isinstance(place.module, Quantize) and not is_quant_stub(place.module):
            continue
        name = next((name for name in place.names if finder.has(f"{name}.scale")), place.name)
        if (
            not isinstance(place.module, Quantize)
            and name not in extras.stubs
            and not finder.has(f"{name}.scale")
        ):
            continue  # a stub that was never converted
        found = {local: finder.find(f"{name}.{local}") for local in ("scale", "zero_point")}
        plans.append(StubPlan(place, extras.stubs.get(name, all_symmetric), found))
    planned = {name for plan in plans for name in plan.place.names}
    for name in extras.stubs:
        if name not in planned:
            raise ValueError(f"tritonq.stubs names {name!r}, which is no QuantStub of the model")
    return plans


def _slots(model: nn.Module, replaced: set[int]) -> list[Slot]:
    """Every parameter and persistent buffer of the modules that stay, each once even if it has several names."""
    found: dict[int, Slot] = {}
    for module_name, module in named_modules(model):
        if id(module) in replaced:
            continue
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or attribute in tensors_of_others(module):
                continue
            name = f"{module_name}.{attribute}" if module_name else attribute
            if attribute in module._non_persistent_buffers_set:
                if tensor.is_meta:
                    raise ValueError(
                        f"{name} is a buffer on the meta device that no checkpoint holds (persistent=False): build the "
                        "model with its buffers on a real device"
                    )
                continue
            slot = found.setdefault(id(tensor), Slot(tensor, [], []))
            slot.names.append(name)
            slot.owners.append((module, attribute))
    return list(found.values())


def _tie(slots: list[Slot]) -> list[Slot]:
    """Merge slots with the same stored tensor on the same device: they were tied when they were saved."""
    merged: dict[tuple[str, torch.device, bool], Slot] = {}
    for slot in slots:
        key = (slot.stored, slot.tensor.device, isinstance(slot.tensor, nn.Parameter))
        if key in merged:
            merged[key].names += slot.names
            merged[key].owners += slot.owners
        else:
            merged[key] = slot
    return list(merged.values())


def _check_ties(extras: Extras, tensors: TensorFiles) -> None:
    for alias, name in extras.tied.items():
        if alias in tensors or name not in tensors:
            raise ValueError(
                f"tritonq.tied must name a tensor that is stored for one that is not, found {alias!r}: {name!r}"
            )


def _check_slot(slot: Slot, tensors: TensorFiles) -> None:
    """Raise unless the stored tensor fits. Its floating-point dtype may differ, and then replaces the model's."""
    shape, dtype = tensors.shapes[slot.stored], tensors.dtypes[slot.stored]
    same_kind = dtype is not None and (
        dtype == slot.tensor.dtype or (_is_usual_float(dtype) and _is_usual_float(slot.tensor.dtype))
    )
    if shape != tuple(slot.tensor.shape) or not same_kind:
        wanted = f"{str(slot.tensor.dtype).removeprefix('torch.')} {list(slot.tensor.shape)}"
        where = f"{tensors.file_of[slot.stored]}: {slot.stored}"
        raise ValueError(f"{where} must be {wanted}, found {tensors.describe(slot.stored)}")


def _is_usual_float(dtype: torch.dtype) -> bool:
    return dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _check_layers(everything: list[Place], layers: list[LayerPlan]) -> None:
    """Raise if a layer is quantized in the model but not in the checkpoint."""
    planned = {id(layer.place.module) for layer in layers}
    for place in everything:
        if isinstance(place.module, QuantizedLinear) and id(place.module) not in planned:
            raise ValueError(
                f"{place.name} is a QuantizedLinear in the model, but not quantized in the checkpoint"
            )


def _check_extras(extras: Extras, layers: list[LayerPlan], tensors: TensorFiles) -> None:
    """Raise if the `tritonq` key names layers that do not exist."""
    known = {name for layer in layers for name in layer.place.names}
    spoken_of: dict[str, Iterable[str]] = {
        "dtypes": extras.dtypes,
        "hands_over": extras.hands_over or (),
        "observers": extras.observers,
    }
    for part, names in spoken_of.items():
        for name in names:
            if name not in known:
                raise ValueError(f"tritonq.{part} names {name!r}, which is no quantized layer of the model")
    for name in extras.hands_over or ():
        if f"{name}.output_scale" not in tensors and f"{name}.output_scale" not in extras.tied:
            raise ValueError(f"tritonq.hands_over names {name!r}, whose output_scale is missing")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_IN_MESSAGES])
    rest = len(names) - _NAMES_IN_MESSAGES
    return shown if rest <= 0 else f"{shown} and {rest} more"
