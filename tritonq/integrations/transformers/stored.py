"""Placeholders for quantized layers while transformers loads a checkpoint.

transformers assigns tensors to parameters by name, in any order and on any device. A StoredLayer has one parameter for
each tensor of the layer in the file, so transformers does renaming, sharding and placement. When all tensors are
loaded, they become the QuantizedLinear.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

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

#: Tensor names of experts that are quantized one by one.
_EXPERT = re.compile(r"\.experts\.\d+\..*\.(weight_scale|qweight)$")


class StoredLayer(nn.Module):
    """The tensors of one quantized layer with their names in the file: empty on the meta device, then filled.

    Attributes:
        linear: the float layer of the model, on the meta device.
        layout: how the layer is stored.
    """

    def __init__(self, linear: nn.Linear, layout: LayerFormat, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._linear, self.layout = [linear], layout  # in a list, because the Linear must not become a child
        self.training = linear.training
        self.register_parameter("bias", linear.bias)  # which the file may lack
        for local, tensor in tensors.items():
            self.register_parameter(local, nn.Parameter(tensor, requires_grad=False))
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # transformers is to initialize nothing here; some models look into their children to do so
        self._is_hf_initialized = True
        if "weight" not in tensors:
            weight = torch.empty(linear.weight.shape, dtype=linear.weight.dtype, device="meta")
            vars(weight)["_is_hf_initialized"] = True
            vars(self)["weight"] = weight

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
    """Replace each Linear that is quantized in the checkpoint by a StoredLayer.

    Returns:
        {name of a tensor: the place of its layer}.

    Raises:
        ValueError: experts are quantized, or no layer is; also as `read_format`.
    """
    layouts = read_format(quantization_config)
    found: dict[str, Place] = {}
    with _open(checkpoint_files) as files:
        _refuse_experts(model, files)
        names_in_files = NamesInFiles(files, model)
        for place in places(model):
            linear = place.module
            if not is_plain_linear(linear):
                continue
            assert isinstance(linear, nn.Linear)
            tensors = names_in_files.of_layer(place.names)
            names = [*place.names, *names_in_files.owners(place.names)]
            layout = layouts.layer(names, linear, tensors.__contains__)
            if layout is None:
                continue
            local_names = [*layout.tensors]
            if "bias" in tensors:  # may be zeros: old GPTQ writers gave every layer a bias
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
    """The edges under the key `tritonq` of the model's config.json; the key is removed.

    Raises:
        ValueError: the key is damaged, or the model has stubs.
    """
    extras = read_extras(vars(model.config).pop(KEY, None))  # it describes only the loaded files
    if extras.stubs or extras.hands_over:
        raise ValueError(
            "the checkpoint must have no layers between QuantStub and DeQuantStub, found some: use "
            "tritonq.load(directory, model)"
        )
    return extras.edges


def restore_edges(model: PreTrainedModel, edges: list[Edge]) -> None:
    """Make the layers hand over int8 again; errors as `check_edges`."""
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
    """The tensors that files have for the modules of a model, by transformers' own conversion of names."""

    def __init__(self, names: Iterable[str], model: PreTrainedModel) -> None:
        conversions = get_model_conversion_mapping(model)
        renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        converters = [each for each in conversions if isinstance(each, WeightConverter)]
        prefix, state = model.base_model_prefix, model.state_dict()
        self._modules: dict[str, str] = {}  # a layer's name in the files → in the model
        self._by_layer: dict[str, dict[str, str]] = {}
        for name in sorted(names):
            owner, _, local = name.rpartition(".")
            if owner not in self._modules:  # conversions are written for float weights
                renamed, _ = rename_source_key(f"{owner}.weight", renamings, converters, prefix, state)
                self._modules[owner] = renamed.rpartition(".")[0]
            self._by_layer.setdefault(self._modules[owner], {})[local] = name

    def of_layer(self, names: Iterable[str]) -> dict[str, str]:
        """{local name: name in the files} of a module, by its names in the model."""
        return next((self._by_layer[name] for name in names if name in self._by_layer), {})

    def owners(self, names: Iterable[str]) -> list[str]:
        """Under which names the files know a module."""
        known = set(names)
        return [owner for owner, module in self._modules.items() if module in known]


def _empty(files: TensorFiles, stored: str | None) -> Tensor:
    """A tensor on the meta device like the stored one. If none is stored, its shape cannot fit, so a check fails."""
    if stored is None:
        return torch.empty(0, device="meta")
    return torch.empty(files.shapes[stored], dtype=files.dtypes[stored], device="meta")


def _refuse_experts(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Raise if the files have experts quantized one by one, and the model stacks them into one parameter."""
    expert = next((name for name in sorted(names) if _EXPERT.search(name)), None)
    if expert is not None and next(stacked_weights(model), None) is not None:
        raise ValueError(
            f"experts must be in float, because the model stacks their weights into one parameter, found {expert}"
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
