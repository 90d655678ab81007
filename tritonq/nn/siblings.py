"""Layers that read one input, computed by one launch.

Attention's q, k and v read the same tensor, as do gate and up of an MLP. Their weights, joined along N, are one layer
with as many outputs as all of them:

    packed_weight [Nq + Nk + Nv, ·]          rows are contiguous: each sibling's buffer is a view of its rows
    scales        [G, Nq + Nk + Nv]          each sibling's is a view of its columns

The model's code goes on to call q, k and v one after the other. The first call of a round computes all of them, and
the others return the columns that are theirs. What makes a result theirs is looked at in every call, and is:

    the same input object, not changed in place since, the same weights, and the same surroundings
    (tritonq/nn/rounds.py)

In any other case a sibling computes anew. So the order of calls does not matter, and siblings called alone, or on
different inputs, are right; only slower. To be no slower either, siblings predict: after a round that was not
completed, because they read different inputs, each runs on its own weights, until a round would have been complete.

What they return are tensors of their own to autograd that lie in one memory: no views, of which it would refuse some
changes in place, and with version counters of their own.

What torch itself does not see, this does not see either: writes through `.data`, by a kernel that declares none, or by
replaying a CUDA graph, into x and between two siblings' calls.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.nn.rounds import Progress, ProgressInThread, Round, autograd_records, state_of
from tritonq.ops.bypass import is_exporting

if TYPE_CHECKING:
    from tritonq.nn.linear import QuantizedLinear

#: What of a KernelWeight is joined, and along which dimension N lies.
_JOINED_ALONG = {"packed_weight": 0, "scales": 1, "zero_points": 1, "code_sums": 0}


class Siblings:
    """A group of layers; each has a place in it, and knows both (`layer.siblings`, `layer.sibling_index`).

    Args:
        layers: alike, as `are_alike` says. From now on their tensors are views of the joined ones.
        proven: a run has shown that they read one value.

    Attributes:
        whole: the joined layer, in no model; None while the siblings cannot be joined: one of them has gone, or is on
            another device. Then each runs alone.
    """

    def __init__(self, layers: Sequence[QuantizedLinear], proven: bool = False) -> None:
        self.proven = proven
        self.whole: QuantizedLinear | None = None
        self._members: list[weakref.ref[QuantizedLinear] | None] = [None] * len(layers)
        for index, layer in enumerate(layers):
            self.enter(index, layer)

    @property
    def members(self) -> list[QuantizedLinear | None]:
        """The layers that are here, None for those that have gone."""
        return [None if member is None else member() for member in self._members]

    def enter(self, index: int, layer: QuantizedLinear) -> None:
        """Take a place: at first, and again whenever the layer's tensors have become others."""
        layer.siblings, layer.sibling_index = self, index
        self._members[index] = weakref.ref(layer)
        self._join()

    def holds(self, layer: QuantizedLinear) -> bool:
        """Whether the layer's tensors are those that were joined."""
        if self.whole is None:
            return False
        held = self._held[layer.sibling_index]
        if torch.compiler.is_compiling():
            # One tensor of each layer: a trace guards all that it looks at, in every call.
            return layer._parameters["weight_scale"] is held.parameters["weight_scale"]
        parameters, buffers = layer._parameters, layer._buffers
        for name, tensor in held.parameters.items():
            if parameters[name] is not tensor:
                return False
        for name, tensor in held.buffers.items():
            if buffers[name] is not tensor:
                return False
        bias = layer.bias
        if bias is None or bias is not held.bias:
            return bias is held.bias
        return bias.untyped_storage()._cdata == held.bias_storage  # another one, if bias.data was assigned

    # --- joining and parting -------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Make `whole`, and the members' tensors views of it, if all are here and alike."""
        self.whole = None
        self._in_thread, self._in_trace = ProgressInThread(), Progress()
        self._held, self._weights = [], []
        layers = [layer for layer in self.members if layer is not None]
        if len(layers) < len(self._members) or not all(are_alike(layers[0], layer) for layer in layers[1:]):
            return
        with torch.inference_mode(False), torch.no_grad():
            whole = _joined(layers)
            self._sizes = [layer.out_features for layer in layers]
            for layer, end in zip(layers, itertools.accumulate(self._sizes), strict=True):
                _make_view(layer, whole, slice(end - layer.out_features, end))
        self._held = [_Held(layer) for layer in layers]
        weights = (*whole.kernel_weight(), *(layer.bias for layer in layers))
        self._weights = [tensor for tensor in weights if tensor is not None]
        self.whole = whole

    def part(self) -> None:
        """Give every member tensors of its own again; none of them is a sibling any more."""
        for layer in self.members:
            if layer is not None:
                with torch.inference_mode(False), torch.no_grad():
                    layer._parameters.update(own_parameters(layer))
                    layer._buffers.update(own_buffers(layer))
                    if layer.bias is not None:
                        layer.bias.data = layer.bias.data.clone()
                layer.siblings = None
        self.whole = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has places for all, and is joined again when copies of all members have entered."""
        return {"proven": self.proven, "count": len(self._members)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.proven, self.whole = state["proven"], None
        self._members = [None] * state["count"]

    # --- computing ------------------------------------------------------------------------------------------------

    def output(self, layer: QuantizedLinear, x: Tensor | QuantizedTensor) -> Tensor | None:
        """The layer's output for an input that it accepts; None where it has to compute that alone."""
        whole, index = self.whole, layer.sibling_index
        if torch.compiler.is_compiling() and is_exporting():
            return None
        if whole is None or autograd_records(x, layer.bias) or not self.holds(layer):
            return None
        state = state_of(x, self._weights, self.proven)
        if state is None:
            return None
        progress = self._in_trace if torch.compiler.is_compiling() else self._in_thread
        current = progress.round
        if current is not None and current.offers(index, x, state):
            out = current.left.pop(index)
            if not current.left:
                progress.round, progress.predicts_one_input = None, True
            return out
        if current is not None:
            progress.predicts_one_input = False
        progress.round = None
        outputs: dict[int, Tensor | None]
        if progress.predicts_one_input:
            joined: Any = whole.forward(x)  # [..., Nq + Nk + Nv]
            outputs = {at: part.data for at, part in enumerate(joined.split_with_sizes(self._sizes, -1))}
        else:
            outputs = dict.fromkeys(range(len(self._sizes)))
        out = outputs.pop(index)
        progress.round = Round(x, state, outputs)
        return out


class _Held:
    """A member's tensors as they were when they were joined."""

    def __init__(self, layer: QuantizedLinear) -> None:
        self.parameters = layer.weight_parameters()
        self.buffers = {name: tensor for name, tensor in layer._buffers.items() if tensor is not None}
        self.bias = layer.bias
        self.bias_storage = None if layer.bias is None else layer.bias.untyped_storage()._cdata


def are_alike(one: QuantizedLinear, other: QuantizedLinear) -> bool:
    """Whether two layers can be computed as one: scheme, groups, order of inputs, dtypes and device are the same."""
    return (
        not (_stays_alone(one) or _stays_alone(other))
        and _kind(one) == _kind(other)
        and (one.bias is None or one.bias is not other.bias)
        and _same(one.input_order, other.input_order)
        and _same(one.input_scale, other.input_scale)
        and _same(one.input_zero_point, other.input_zero_point)
    )


def own_parameters(layer: QuantizedLinear) -> dict[str, nn.Parameter]:
    """A layer's weight, as Parameters that share no memory with another layer's."""
    return {
        name: nn.Parameter(_dense_copy(tensor.detach()), requires_grad=False)
        for name, tensor in layer.weight_parameters().items()
    }


def own_buffers(layer: QuantizedLinear) -> dict[str, Tensor | None]:
    """The same of its buffers."""
    return {name: None if tensor is None else _dense_copy(tensor) for name, tensor in layer._buffers.items()}


def _dense_copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _stays_alone(layer: QuantizedLinear) -> bool:
    """A static layer that hands over int8 computes more than a product; an inference tensor cannot become a view."""
    hands_over = layer.config.static and (layer.edge is not None or layer.output_scale is not None)
    return hands_over or (layer.bias is not None and layer.bias.is_inference())


def _kind(layer: QuantizedLinear) -> tuple[Any, ...]:
    held = (layer.packed_weight, layer.scales, layer.zero_points, layer.code_sums, layer.input_scale)
    return (
        layer.layout,
        layer.dtype,
        layer.config.weight_only,
        layer.config.static,
        layer.activation_symmetric,
        layer.dtype if layer.bias is None else layer.bias.dtype,
        [None if tensor is None else (tensor.dtype, tensor.device) for tensor in held],
    )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal or both None. Tensors on the meta device may be: who fills them enters again."""
    if one is None or other is None:
        return one is other
    return one.is_meta or torch.equal(one, other)


def _joined(layers: Sequence[QuantizedLinear]) -> QuantizedLinear:
    """One layer that computes all of them."""
    first, features = layers[0], sum(layer.out_features for layer in layers)
    name = " + ".join(layer.module_name for layer in layers)
    words: dict[str, Any] = {"bias": False, "dtype": first.dtype, "device": "meta", "name": name}
    whole = type(first)(first.in_features, features, first.config, **words)
    whole._buffers.update(first._buffers)
    weights = [layer.kernel_weight() for layer in layers]
    joined: dict[str, Any] = {}
    for part, dimension in _JOINED_ALONG.items():
        tensors = [tensor for weight in weights if (tensor := getattr(weight, part)) is not None]
        joined[part] = torch.cat(tensors, dimension) if tensors else None
    whole.hold_weight(weights[0]._replace(**joined))
    if any(layer.bias is not None for layer in layers):
        # What a layer without bias adds is -0.0: v + -0.0 is v for every v, while -0.0 + 0.0 would be 0.0.
        zeros = weights[0].scales.new_full((features,), -0.0, dtype=first.dtype)
        biases = [zeros[: layer.out_features] if layer.bias is None else layer.bias.data for layer in layers]
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole


def _make_view(layer: QuantizedLinear, whole: QuantizedLinear, rows: slice) -> None:
    """Make a layer's tensors views of the joined ones."""
    joined = whole.kernel_weight()
    own: dict[str, Any] = {}
    for part, dimension in _JOINED_ALONG.items():
        tensor = getattr(joined, part)
        own[part] = None if tensor is None else tensor[(slice(None),) * dimension + (rows,)]
    layer.hold_weight(layer.kernel_weight()._replace(**own))
    if layer.bias is not None:
        assert whole.bias is not None
        layer.bias.data = whole.bias.data[rows]
