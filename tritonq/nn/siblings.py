"""Layers that read one input, computed by one launch.

Attention's q, k and v read the same tensor, as do gate and up of an MLP. Their weights, joined along N, are one layer
with as many outputs as all of them:

    packed_weight [Nq + Nk + Nv, ·]          rows are contiguous: each sibling's buffer is a view of its rows
    scales        [G, Nq + Nk + Nv]          each sibling's is a view of its columns

The model's code goes on to call q, k and v one after the other. The first call computes all of them and keeps the
outputs; the others take theirs, if they are called with

    the same input object, not changed in place since (torch's version counter)
    the same weights, not changed in place either
    the same thread, stream, graph capture, inference mode and dispatch modes

Otherwise a sibling computes all of them anew. So any order of calls and any inputs are right; siblings that read
different inputs are slower than layers alone. A sibling runs alone, as if it had no others,

    while autograd records: its gradients are its own
    while torch.compile or torch.export traces, whose programs then call each layer by itself; under torch.jit.trace
    and vmap
    on inputs made under torch.inference_mode, which carry no version, unless a recorded run has shown that nothing
    changes them in between

To autograd outputs are tensors of their own that share one memory: no views, of which it would refuse some changes in
place, and with version counters of their own.

torch does not see writes through `.data`, by a kernel that declares none, or by replaying a CUDA graph. If one of these
changes x between two siblings' calls, the second returns the old values.
"""

from __future__ import annotations

import itertools
import operator
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from tritonq.nn.handover import Edge
from tritonq.nn.input_version import input_tensors, input_version
from tritonq.nn.packed_weight import PackedWeight
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.ops.bypass import dispatch_modes

#: What of a KernelWeight is joined, and along which dimension N lies.
_JOINED_ALONG = {"packed_weight": 0, "scales": 1, "zero_points": 1, "code_sums": 0}


class JoinableWeight(PackedWeight):
    """A weight whose tensors may be views of a group's joined ones.

    Attributes:
        module_name: the layer's, for messages.
        edge: the hand-over of int8 to the next layers, None where there is none.
        siblings, sibling_index: the group and the place in it; None for a layer alone.
    """

    module_name: str
    edge: Edge | None
    siblings: Siblings | None = None
    sibling_index: int = 0

    def _apply(self, fn: Any, recurse: bool = True) -> JoinableWeight:
        super()._apply(fn, recurse)
        self._join_again()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._join_again()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has tensors of its own, until copies of all its siblings are there."""
        state = super().__getstate__()
        if self.siblings is not None:
            state["_parameters"] = {**self._parameters, **own_parameters(self)}
            state["_buffers"] = own_buffers(self)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._join_again()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.siblings is None or keep_vars:
            return
        for name, tensor in destination.items():
            if name.startswith(prefix) and tensor.untyped_storage().nbytes() != tensor.nbytes:
                destination[name] = tensor.clone()  # writers of files refuse a part of a storage

    def _join_again(self) -> None:
        """Take the place in the group again if the tensors are no longer the joined ones."""
        siblings, place = self.siblings, self.sibling_index
        if siblings is None or siblings.holds(self):
            return
        if siblings.members[place] not in (None, self):  # copy.copy made this one, in a place that is taken
            self.siblings = None
        else:
            siblings.enter(place, self)


class _Kept(threading.local):
    """The outputs that siblings have not taken yet, in each thread its own: those for the input `x` in one state."""

    x: Any = None  # a weak reference
    state: tuple[int, ...] = ()
    outputs: dict[int, Tensor] = {}  # noqa: RUF012 (replaced, never changed)


class Siblings:
    """A group of layers; each has a place in it, and knows both (`layer.siblings`, `layer.sibling_index`).

    Args:
        layers: alike, as `are_alike` says. From now on their tensors are views of the joined ones.
        proven: a run has shown that they read one value.

    Attributes:
        whole: the joined layer, in no model; None while the siblings cannot be joined: one of them has gone, or is on
            another device. Then each runs alone.
    """

    def __init__(self, layers: Sequence[JoinableWeight], proven: bool = False) -> None:
        self.proven = proven
        self.whole: JoinableWeight | None = None
        self._members: list[weakref.ref[JoinableWeight] | None] = [None] * len(layers)
        for index, layer in enumerate(layers):
            self.enter(index, layer)

    @property
    def members(self) -> list[JoinableWeight | None]:
        """The layers that are here, None for those that have gone."""
        return [None if member is None else member() for member in self._members]

    def enter(self, index: int, layer: JoinableWeight) -> None:
        """Take a place: at first, and again whenever the layer's tensors have become others."""
        layer.siblings, layer.sibling_index = self, index
        self._members[index] = weakref.ref(layer)
        self._join()

    def holds(self, layer: JoinableWeight) -> bool:
        """Whether the layer's tensors are those that were joined."""
        if self.whole is None:
            return False
        held, storage = self._held[layer.sibling_index]
        tensors, storage_now = _held(layer)
        return storage == storage_now and len(tensors) == len(held) and all(map(operator.is_, tensors, held))

    def _join(self) -> None:
        """Make `whole`, and the members' tensors views of it, if all are here and alike."""
        self.whole, self._kept = None, _Kept()
        layers = [layer for layer in self.members if layer is not None]
        if len(layers) < len(self._members) or not all(are_alike(layers[0], layer) for layer in layers[1:]):
            return
        with torch.inference_mode(False), torch.no_grad():
            whole = _joined(layers)
            self._sizes = [layer.out_features for layer in layers]
            for layer, end in zip(layers, itertools.accumulate(self._sizes), strict=True):
                _make_view(layer, whole, slice(end - layer.out_features, end))
        self._held = [_held(layer) for layer in layers]
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

    def output(self, layer: JoinableWeight, x: Tensor | QuantizedTensor) -> Tensor | None:
        """The layer's output for an input that it accepts; None where it has to compute that alone."""
        if torch.compiler.is_compiling() or self.whole is None or not self.holds(layer):
            return None
        state = self._state(x, layer.bias)
        if state is None:
            return None
        kept, index = self._kept, layer.sibling_index
        if index not in kept.outputs or kept.state != state or kept.x() is not x:
            joined: Any = self.whole(x)  # [..., Nq + Nk + Nv]
            kept.outputs = {at: part.data for at, part in enumerate(joined.split_with_sizes(self._sizes, -1))}
            kept.x = TensorWeakRef(x) if isinstance(x, Tensor) else weakref.ref(x)
            kept.state = state
        return kept.outputs.pop(index)

    def _state(self, x: Tensor | QuantizedTensor, bias: Tensor | None) -> tuple[int, ...] | None:
        """What must not change until the last sibling's call; None where each has to run alone."""
        tensors = input_tensors(x)
        reads = tensors if bias is None else (*tensors, bias)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in reads):
            return None
        version = input_version(x)
        if version is None or (tensors[0].is_inference() and not self.proven):
            return None
        state = [*version, *(tensor._version for tensor in self._weights)]
        state += (torch.is_inference_mode_enabled(), dispatch_modes())
        if tensors[0].is_cuda:
            state.append(torch.cuda.current_stream(tensors[0].device).cuda_stream)
            state.append(torch.cuda.is_current_stream_capturing())
        return tuple(state)


def _held(layer: JoinableWeight) -> tuple[list[Tensor | None], int]:
    """What tells a layer's tensors apart: they, and the bias's storage, another one if `bias.data` was assigned."""
    bias = layer.bias
    return [
        *layer._parameters.values(),
        *layer._buffers.values(),
        bias,
    ], 0 if bias is None else bias.untyped_storage()._cdata


def are_alike(one: JoinableWeight, other: JoinableWeight) -> bool:
    """Whether two layers can be computed as one: scheme, groups, order of inputs, dtypes and device are the same."""
    return (
        not (_stays_alone(one) or _stays_alone(other))
        and _kind(one) == _kind(other)
        and (one.bias is None or one.bias is not other.bias)
        and _same(one.input_order, other.input_order)
        and _same(one.input_scale, other.input_scale)
        and _same(one.input_zero_point, other.input_zero_point)
    )


def own_parameters(layer: JoinableWeight) -> dict[str, nn.Parameter]:
    """A layer's weight, as Parameters that share no memory with another layer's."""
    return {
        name: nn.Parameter(_dense_copy(tensor.detach()), requires_grad=False)
        for name, tensor in layer.weight_parameters().items()
    }


def own_buffers(layer: JoinableWeight) -> dict[str, Tensor | None]:
    """The same of its buffers."""
    return {name: None if tensor is None else _dense_copy(tensor) for name, tensor in layer._buffers.items()}


def _dense_copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _stays_alone(layer: JoinableWeight) -> bool:
    """A static layer that hands over int8 computes more than a product; an inference tensor cannot become a view."""
    hands_over = layer.config.static and (layer.edge is not None or layer.output_scale is not None)
    return hands_over or (layer.bias is not None and layer.bias.is_inference())


def _kind(layer: JoinableWeight) -> tuple[Any, ...]:
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


def _joined(layers: Sequence[JoinableWeight]) -> JoinableWeight:
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


def _make_view(layer: JoinableWeight, whole: JoinableWeight, rows: slice) -> None:
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
