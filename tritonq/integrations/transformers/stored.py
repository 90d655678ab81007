"""Layers as a checkpoint stores them, on their way from transformers' loader to a QuantizedLinear.

transformers assigns tensors to parameters by name, in any order and on any device. A StoredLayer has a parameter for
each tensor that the file has for the layer, so that renaming, sharding and placement are transformers' business;
when all are there, they become the QuantizedLinear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from tritonq import canonical, packing, qparams
from tritonq.checkpoint import forms
from tritonq.checkpoint.compressed_tensors import Group, read_scheme
from tritonq.checkpoint.extras import KEY, read_extras
from tritonq.integrations.transformers.survey import stacked_weights
from tritonq.nn.linear import QuantizedLinear
from tritonq.patterns import Place, places
from tritonq.selection import is_plain_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: The tensor that every quantized layer has in a file.
MAIN = "weight_scale"
EXPERT = re.compile(rf"\.experts\.\d+\..*\.{MAIN}$")


class StoredLayer(nn.Module):
    """The tensors of one quantized layer under the names of its file: empty on the meta device, then filled.

    Attributes:
        in_features, out_features: K and N.
        group: how it is quantized.
        names: of the tensors, bias aside.
    """

    def __init__(self, linear: nn.Linear, group: Group, names: list[str]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.group, self.names = group, names
        self.bias = linear.bias
        self.training = linear.training
        self._is_hf_initialized = True  # transformers is to initialize nothing here
        bits = group.config.weight.bits
        width = packing.packed_width(self.in_features, bits) if group.packed else self.in_features
        groups = -(-self.in_features // group.config.weight.resolve_group_size(self.in_features))
        sizes = {"weight": (width, torch.int8), "weight_packed": (width, torch.int32)}
        for name in names:
            # Whole sizes only for the sake of `device_map="auto"`: shapes and dtypes are checked when all is there.
            columns, dtype = sizes.get(name, (groups, linear.weight.dtype))
            empty = torch.empty(self.out_features, columns, dtype=dtype, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def build(self, name: str, dtype: torch.dtype) -> QuantizedLinear:
        """The QuantizedLinear, on the device of the tensors.

        Args:
            name: the layer's, for messages.
            dtype: the model's.

        Raises:
            ValueError: a tensor has a wrong dtype, shape or value, naming layer and tensor.
        """
        state = {
            local: parameter.data for local, parameter in self._parameters.items() if parameter is not None
        }
        config = self.group.config
        layer = QuantizedLinear(
            self.in_features,
            self.out_features,
            config,
            bias=False,
            dtype=dtype,
            device="meta",
            has_input_qparams="input_scale" in state,
            name=name,
        )
        try:
            if self.bias is not None:
                bias = canonical.expect(state, "bias", (self.out_features,), qparams.FLOAT_DTYPES)
                if not torch.isfinite(bias).all():
                    raise ValueError("bias must be finite, found NaN or Inf")
                layer.bias = self.bias
            stored = {local: state[local] for local in self.names}
            layer.load_canonical_state(
                forms.to_canonical(config, self.group.packed, self.in_features, self.out_features, stored)
            )
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        return layer


def place_stored_layers(
    model: PreTrainedModel, quantization_config: Mapping[str, Any], checkpoint_files: list[str]
) -> dict[str, Place]:
    """Put a StoredLayer in the place of each Linear that the checkpoint has quantized.

    Returns:
        {name of a tensor: the place of its layer}.

    Raises:
        ValueError: layers hand over int8, experts are quantized, or no layer is.
    """
    scheme = read_scheme(quantization_config)
    extras = read_extras(vars(model.config).pop(KEY, None))  # it speaks of the files that are loaded
    if extras.stubs or extras.hands_over:
        raise ValueError(
            "the checkpoint must have float between its layers, found some that hand over int8: use "
            "tritonq.load(directory, model)"
        )
    stored_names = _stored_names(checkpoint_files)
    _refuse_experts(model, stored_names)
    ends = {".".join(name.split(".")[-2:]) for name in stored_names}
    found: dict[str, Place] = {}
    for place in places(model):
        linear, leaf = place.module, place.name.rpartition(".")[2]
        if not is_plain_linear(linear) or f"{leaf}.{MAIN}" not in ends:
            continue
        assert isinstance(linear, nn.Linear)
        names = [other for name in place.names for other in _names_in_files(name, model.base_model_prefix)]
        group = scheme.group_of(names, [cls.__name__ for cls in type(linear).__mro__])
        if group is not None:
            stored = StoredLayer(linear, group, _tensor_names(group, leaf, ends))
            place.put(stored)
            new = Place(stored, place.names, place.parents)
            found |= {f"{name}.{local}": new for name in place.names for local in stored.names}
    if not found:
        raise ValueError(
            "the checkpoint must have quantized layers, found no Linear of the model in a config group"
        )
    return found


def _refuse_experts(model: PreTrainedModel, stored_names: set[str]) -> None:
    """Raise if the files have quantized experts, each apart, and the model stacks them into one parameter."""
    expert = next((name for name in sorted(stored_names) if EXPERT.search(name)), None)
    if expert is not None and next(stacked_weights(model), None) is not None:
        raise ValueError(
            f"experts must be in float, since the model stacks their weights into one parameter, found {expert}"
        )


def _names_in_files(name: str, prefix: str) -> list[str]:
    """A module's name here, in the whole model where this is its base, and in the base where this is the whole."""
    return [name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")]


def _tensor_names(group: Group, leaf: str, ends: set[str]) -> list[str]:
    """The tensors of a layer, bias aside.

    Args:
        group: how it is quantized.
        leaf: the last part of its name.
        ends: the last two parts of all names in the files, which may have other prefixes there than in the model.
    """
    config = group.config
    names = forms.weight_names(config, group.packed)
    if config.static and config.activation is not None:
        names += ["input_scale", *([] if config.activation.symmetric else ["input_zero_point"])]
    optional = ["weight_g_idx", *forms.needless_names(config)]
    return names + [local for local in optional if f"{leaf}.{local}" in ends]


def _stored_names(checkpoint_files: list[str]) -> set[str]:
    names: set[str] = set()
    for file in checkpoint_files:
        if not str(file).endswith(".safetensors"):
            raise ValueError(
                f"quantized weights must be in .safetensors files, found {file}: pickles are never read"
            )
        with safe_open(file, framework="pt", device="cpu") as opened:
            names |= set(opened.keys())
    return names
