"""Layers as a checkpoint stores them, on their way from transformers' loader to a QuantizedLinear.

transformers assigns tensors to parameters by name, in any order and on any device. A StoredLayer has a parameter for
each tensor that the file has for the layer, so that renaming, sharding and placement are transformers' business;
when all are there, they become the QuantizedLinear.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tritonq.checkpoint.extras import KEY, read_extras
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.stored_edges import apply_edges, check_edges, check_grids
from tritonq.integrations.transformers.formats import LayerFormat, read_format
from tritonq.integrations.transformers.survey import stacked_weights
from tritonq.nn.handover import Edge
from tritonq.nn.linear import QuantizedLinear
from tritonq.select.patterns import Place, places
from tritonq.select.select import is_plain_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: A quantized expert of its own in a file.
_EXPERT = re.compile(r"\.experts\.\d+\..*\.(weight_scale|qweight)$")


class StoredLayer(nn.Module):
    """The tensors of one quantized layer under the names of its file: empty on the meta device, then filled.

    Attributes:
        linear: the float layer of the model, on the meta device.
        layout: how the layer is stored.
    """

    def __init__(self, linear: nn.Linear, layout: LayerFormat, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._linear, self.layout = [linear], layout  # a list, or the Linear would be a child
        self.training = linear.training
        self.register_parameter("bias", linear.bias)  # which the file may lack
        for local, tensor in tensors.items():
            self.register_parameter(local, nn.Parameter(tensor, requires_grad=False))
        self._is_hf_initialized = True  # transformers is to initialize nothing here

    def build(self, name: str, dtype: torch.dtype) -> QuantizedLinear:
        """The QuantizedLinear, on the device of the tensors.

        Args:
            name: the layer's, for messages.
            dtype: the model's.

        Raises:
            ValueError: a tensor has a wrong dtype, shape or value, naming layer and tensor.
        """
        (linear,) = self._linear
        stored = {local: self.get_parameter(local).data for local in self.layout.tensors}
        try:
            config, state = self.layout.to_canonical(name, linear, stored)
            bias = self._parameters["bias"]
            if bias is not None:
                state["bias"] = bias
            layer = QuantizedLinear.from_state(
                linear.in_features,
                linear.out_features,
                config,
                state,
                bias=linear.bias is not None,
                dtype=dtype,
                name=name,
            )
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        return layer


def place_stored_layers(
    model: PreTrainedModel, quantization_config: dict[str, Any], checkpoint_files: list[str]
) -> dict[str, Place]:
    """Put a StoredLayer in the place of each Linear that the checkpoint has quantized.

    Returns:
        {name of a tensor: the place of its layer}.

    Raises:
        ValueError: experts are quantized, or no layer is; or as `read_format`.
    """
    layouts = read_format(quantization_config)
    found: dict[str, Place] = {}
    with _open(checkpoint_files) as files:
        _refuse_experts(model, files)
        names_in_files = NamesInFiles(files, model.base_model_prefix)
        for place in places(model):
            linear = place.module
            if not is_plain_linear(linear):
                continue
            assert isinstance(linear, nn.Linear)
            tensors = names_in_files.of_layer(place.name)
            names = [other for name in place.names for other in names_in_files.variants(name)]
            layout = layouts.layer(names, linear, tensors.__contains__)
            if layout is None:
                continue
            local_names = [*layout.tensors]
            if "bias" in tensors:  # also one of zeros: GPTQ writers of old gave every layer one
                local_names.append("bias")
            empty = {local: _empty(files, tensors.get(local)) for local in local_names}
            stored = Place(StoredLayer(linear, layout, empty), place.names, place.parents)
            stored.put(stored.module)
            found |= {f"{name}.{local}": stored for name in place.names for local in local_names}
    if not found:
        raise ValueError(
            "the checkpoint must have quantized layers, found no Linear of the model in a config group"
        )
    return found


def read_edges(model: PreTrainedModel) -> list[Edge]:
    """The hand-overs of int8 that the key `tritonq` of the model's config.json names; the key is taken out.

    Raises:
        ValueError: the key is damaged, or the model has stubs.
    """
    extras = read_extras(vars(model.config).pop(KEY, None))  # it speaks of the files that are loaded
    if extras.stubs or extras.hands_over:
        raise ValueError(
            "the checkpoint must have no layers between QuantStub and DeQuantStub, found some: use "
            "tritonq.load(directory, model)"
        )
    return extras.edges


def restore_edges(model: PreTrainedModel, edges: list[Edge]) -> None:
    """Let the layers hand over int8 again; errors as `check_edges`."""
    everything = places(model)
    layers = {
        name: place.module
        for place in everything
        if isinstance(place.module, QuantizedLinear)
        for name in place.names
    }
    has_grid = [name for name, layer in layers.items() if layer.input_scale is not None]
    check_edges(edges, everything, {name: layer.config for name, layer in layers.items()}, has_grid)
    check_grids(edges, layers)
    apply_edges(edges, everything)


class NamesInFiles:
    """The tensors that a checkpoint's files have for the modules of a model, whatever transformers renames."""

    def __init__(self, names: Iterable[str], prefix: str) -> None:
        """`prefix` is the model's `base_model_prefix`."""
        self._prefix = prefix
        self._by_layer: dict[str, dict[str, str]] = {}
        self._by_last_part: dict[str, dict[str, str]] = {}
        for name in names:
            owner, _, local = name.rpartition(".")
            self._by_layer.setdefault(owner, {})[local] = name
            self._by_last_part.setdefault(owner.rpartition(".")[2], {})[local] = name

    def variants(self, name: str) -> list[str]:
        """A module's name here, in the whole model where this is its base, and in the base where this is the whole."""
        return [name, f"{self._prefix}.{name}", name.removeprefix(f"{self._prefix}.")]

    def of_layer(self, name: str) -> dict[str, str]:
        """{local name: name in the files} of a module, or of others with the same last part where it is renamed."""
        for variant in self.variants(name):
            if variant in self._by_layer:
                return self._by_layer[variant]
        return self._by_last_part.get(name.rpartition(".")[2], {})


def _empty(files: TensorFiles, stored: str | None) -> Tensor:
    """What a stored tensor will be, on the meta device; something empty where there is none, which will be noticed."""
    if stored is None:
        return torch.empty(0, device="meta")
    return torch.empty(files.shapes[stored], dtype=files.dtypes[stored], device="meta")


def _refuse_experts(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Raise if the files have quantized experts, each apart, and the model stacks them into one parameter."""
    expert = next((name for name in sorted(names) if _EXPERT.search(name)), None)
    if expert is not None and next(stacked_weights(model), None) is not None:
        raise ValueError(
            f"experts must be in float, since the model stacks their weights into one parameter, found {expert}"
        )


@contextlib.contextmanager
def _open(checkpoint_files: list[str]) -> Iterator[TensorFiles]:
    with contextlib.ExitStack() as stack:
        opened = {}
        for file in map(str, checkpoint_files):
            if not file.endswith(".safetensors"):
                raise ValueError(
                    f"quantized weights must be in .safetensors files, found {file}: pickles are never read"
                )
            opened[file] = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
        yield TensorFiles(opened)
