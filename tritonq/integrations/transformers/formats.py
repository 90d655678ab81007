"""The storage formats of quantized layers: the names of a layer's tensors, and their conversion to tritonq's layout.

A format has a `layer` for each Linear that is quantized in the files. In compressed-tensors, config groups name these
layers. In GPTQ and AWQ, they are the layers with a `qweight`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from tritonq.checkpoint import forms
from tritonq.checkpoint.compressed_tensors import Group, Scheme
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.foreign import ForeignTensors, Method
from tritonq.checkpoint.source import read_quantization_config
from tritonq.numerics.config import QuantConfig

#: local name of a tensor → True if the files have it for the layer
Has = Callable[[str], bool]


class LayerFormat(Protocol):
    """How one layer is stored."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """The local names of its tensors, without bias."""

    def to_canonical(
        self, name: str, linear: nn.Linear, state: Mapping[str, Tensor]
    ) -> tuple[QuantConfig, dict[str, Tensor]]:
        """Its config, and its tensors in the layout of checkpoint_layout.py, of those in the file by local name.

        Raises:
            ValueError: beginning with the tensor's local name.
        """


class Format(Protocol):
    """How all layers are stored."""

    def layer(self, names: list[str], linear: nn.Linear, has: Has) -> LayerFormat | None:
        """The layer with these names; None if it is in float."""


def read_format(quantization_config: dict[str, Any]) -> Format:
    """The format of a quantization_config; errors as `read_quantization_config`."""
    _, read = read_quantization_config(quantization_config)
    return CompressedTensors(read) if isinstance(read, Scheme) else Foreign(read)


@dataclasses.dataclass(frozen=True)
class CompressedTensors:
    """Layers in config groups."""

    scheme: Scheme

    def layer(self, names: list[str], linear: nn.Linear, has: Has) -> LayerFormat | None:
        group = self.scheme.group_of(names, [cls.__name__ for cls in type(linear).__mro__])
        if group is None or not (has("weight_scale") or has("weight_packed")):
            return None
        config = group.config
        tensors = forms.weight_names(config, group.packed)
        if config.static and config.activation is not None:
            tensors += ["input_scale", *([] if config.activation.symmetric else ["input_zero_point"])]
        tensors += [local for local in ("weight_g_idx", *forms.needless_names(config)) if has(local)]
        return CompressedTensorsLayer(group, tuple(tensors))


@dataclasses.dataclass(frozen=True)
class CompressedTensorsLayer:
    """A layer in a config group."""

    group: Group
    tensors: tuple[str, ...]

    def to_canonical(
        self, name: str, linear: nn.Linear, state: Mapping[str, Tensor]
    ) -> tuple[QuantConfig, dict[str, Tensor]]:
        config, packed = self.group.config, self.group.packed
        return config, forms.to_canonical(config, packed, linear.in_features, linear.out_features, state)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Layers of GPTQ or AWQ."""

    method: Method

    def layer(self, names: list[str], linear: nn.Linear, has: Has) -> LayerFormat | None:
        if not has("qweight"):
            return None
        return ForeignLayer(
            self.method, ("qweight", "qzeros", "scales", *(["g_idx"] if has("g_idx") else []))
        )


@dataclasses.dataclass(frozen=True)
class ForeignLayer:
    """A layer of GPTQ or AWQ, translated as tritonq/checkpoint/foreign.py does for files."""

    method: Method
    tensors: tuple[str, ...]

    def to_canonical(
        self, name: str, linear: nn.Linear, state: Mapping[str, Tensor]
    ) -> tuple[QuantConfig, dict[str, Tensor]]:
        device = state["qweight"].device
        held = Held({f"{name}.{local}": tensor.cpu() for local, tensor in state.items()})
        try:
            translated = ForeignTensors(self.method, held)
            (group,) = translated.scheme.groups
            tensors = {stored.rpartition(".")[2]: translated.get(stored).to(device) for stored in translated}
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"{Held.FILE}: {name}.")) from None
        return group.config, forms.to_canonical(
            group.config, group.packed, linear.in_features, linear.out_features, tensors
        )


class Held(TensorFiles):
    """Tensors in memory, presented as if they were in a file."""

    #: Its name in messages.
    FILE = "the checkpoint"

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__({})
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self.file_of = dict.fromkeys(tensors, self.FILE)
        self._tensors = tensors

    def get(self, name: str) -> Tensor:
        return self._tensors[name]
