"""Siblings: layers that read the same input and share one launch.

Attention's q, k and v read the same tensor; so do gate and up of an MLP. Their weights are joined along N:

    packed_weight [Nq + Nk + Nv, ·]          each sibling's weight is a view of its rows, which are contiguous
    scales        [G, Nq + Nk + Nv]          each sibling's scales are a view of its columns

The model's code still calls q, k and v one after another. The first call computes all outputs and keeps them. Each
later call takes its output if these are the same:

    the input object, unchanged since (by torch's version counter)
    the weights, unchanged since
    the thread, stream, graph capture, inference mode and dispatch modes

If not, the call computes all outputs again. So results are right for any order of calls and any inputs, but siblings
that read different inputs are slower than separate layers. A sibling computes only its own output

    while autograd records
    while torch.compile or torch.export traces, and under torch.jit.trace and vmap
    for inputs made under torch.inference_mode, which have no version counter, unless a recorded run has shown that
    nothing changes them between the calls

The outputs share one memory, but autograd does not see them as views, because it refuses some changes of views in
place. Each output has a separate version counter.

torch does not see writes through `.data`, by a kernel that declares none, or by the replay of a CUDA graph. If one of
these changes x between the calls of two siblings, the second returns the old values.
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

#: The tensors of a KernelWeight that are joined, and the dimension of N in each.
_JOINED_ALONG = {"packed_weight": 0, "scales": 1, "zero_points": 1, "code_sums": 0}


class JoinableWeight(PackedWeight):
    """A weight whose tensors may be views of a group's joined tensors.

    Attributes:
        module_name: the layer's name, for messages.
        edge: the hand-over of int8 to the next layers, or None.
        siblings, sibling_index: the group, or None, and the layer's index in it.
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
        """A copy has separate tensors until all its siblings are copied too."""
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
                destination[name] = tensor.clone()  # file writers refuse a part of a larger storage

    def _join_again(self) -> None:
        """Join the group again if the layer's tensors are no longer views of the joined ones."""
        siblings, place = self.siblings, self.sibling_index
        if siblings is None or siblings.holds(self):
            return
        if siblings.members[place] not in (None, self):  # self is a copy; the original has the place
            self.siblings = None
        else:
            siblings.enter(place, self)


class _Kept(threading.local):
    """The outputs for input `x` in one state that siblings have not taken yet, per thread."""

    x: Any = None  # a weak reference
    state: tuple[int, ...] = ()
    outputs: dict[int, Tensor] = {}  # noqa: RUF012 (replaced, never changed)


class Siblings:
    """A group of layers. Each layer knows its group and its index in it: `layer.siblings`, `layer.sibling_index`.

    Args:
        layers: alike by `are_alike`. Their tensors become views of the joined tensors.
        proven: a run has shown that they read the same value.

    Attributes:
        whole: the joined layer, which is in no model. None while the layers cannot be joined, because one was deleted
            or is on another device; then each runs alone.
    """

    def __init__(self, layers: Sequence[JoinableWeight], proven: bool = False) -> None:
        self.proven = proven
        self.whole: JoinableWeight | None = None
        self._members: list[weakref.ref[JoinableWeight] | None] = [None] * len(layers)
        for index, layer in enumerate(layers):
            self.enter(index, layer)

    @property
    def members(self) -> list[JoinableWeight | None]:
        """The layers, with None for each that was deleted."""
        return [None if member is None else member() for member in self._members]

    def enter(self, index: int, layer: JoinableWeight) -> None:
        """Put a layer into the group: at first, and again whenever its tensors were replaced."""
        layer.siblings, layer.sibling_index = self, index
        self._members[index] = weakref.ref(layer)
        self._join()

    def holds(self, layer: JoinableWeight) -> bool:
        """Whether the layer's tensors are still views of the joined ones."""
        if self.whole is None:
            return False
        held, storage = self._held[layer.sibling_index]
        tensors, storage_now = _held(layer)
        return storage == storage_now and len(tensors) == len(held) and all(map(operator.is_, tensors, held))

    def _join(self) -> None:
        """If all members exist and are alike, make `whole`, and make their tensors views of it."""
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
        """Dissolve the group: copy every member's tensors, so that the layers are separate again."""
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
        """The layer's output for this input; None if the layer must compute it alone."""
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
        """The state that must not change until the last sibling's call; None if each must run alone."""
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
    """The layer's tensors, and the storage of its bias, which an assignment to `bias.data` changes."""
    bias = layer.bias
    return [
        *layer._parameters.values(),
        *layer._buffers.values(),
        bias,
    ], 0 if bias is None else bias.untyped_storage()._cdata


def are_alike(one: JoinableWeight, other: JoinableWeight) -> bool:
    """Whether two layers can be joined: their scheme, groups, order of inputs, dtypes and device are the same."""
    return (
        not (_stays_alone(one) or _stays_alone(other))
        and _kind(one) == _kind(other)
        and (one.bias is None or one.bias is not other.bias)
        and _same(one.input_order, other.input_order)
        and _same(one.input_scale, other.input_scale)
        and _same(one.input_zero_point, other.input_zero_point)
    )


def own_parameters(layer: JoinableWeight) -> dict[str, nn.Parameter]:
    """Copies of a layer's weight that share no memory with another layer's, as Parameters."""
    return {
        name: nn.Parameter(_dense_copy(tensor.detach()), requires_grad=False)
        for name, tensor in layer.weight_parameters().items()
    }


def own_buffers(layer: JoinableWeight) -> dict[str, Tensor | None]:
    """Copies of a layer's buffers that share no memory with another layer's."""
    return {name: None if tensor is None else _dense_copy(tensor) for name, tensor in layer._buffers.items()}


def _dense_copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _stays_alone(layer: JoinableWeight) -> bool:
    """True for a static layer that hands over int8, which computes more than a product, and for an inference-mode bias,
    which cannot become a view.
    """
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
    """Equal, or both None. Meta tensors count as equal: filling them joins the layer again, with another check."""
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
        # A layer without bias gets bias -0.0: v + -0.0 is v for every v, but -0.0 + 0.0 is 0.0.
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
