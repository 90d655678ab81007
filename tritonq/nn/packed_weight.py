"""The tensors of a QuantizedLinear: frozen Parameters with the names of checkpoint files, in one of two layouts.

So a host finds what it expects of a layer: `next(parameters())` is a floating-point scale, DDP broadcasts once, FSDP2
shards rows, and accelerate moves the packed bytes by name. Kernels need another layout than files. A Parameter in the
kernels' layout has one more dimension, so its shape always tells its layout.

    name                files (compressed-tensors)                       kernels
    weight_scale        [N, G], per tensor [1]                           [G, N, 1]
    weight_packed       int32 [N, ceil(K·bits/32)]                       int32 [N, 1, ·], the bytes of a row's slabs
    or weight           int8 [N, K], for int8 × int8                     int8 [N, 1, ·]
    weight_zero_point   int32 [ceil(N·bits/32), G] or int8 [N, 1]        int8 [G, N, 1], if affine
    weight_g_idx        int32 [K], the group of each column              int32 [K, 1], the columns sorted by group
    weight_shape        int64 [2], beside weight_packed                  the same
    bias                [N]                                              the same

Quantized and loaded weights have the kernels' layout. Empty layers, and tensors that a host assigns by name, have the
files' layout; the first call repacks them. `state_dict` returns and takes the files' layout. Slabs: numerics/slabs.py.

The grids of a static layer's activations are buffers, also with their names in files:

    input_scale float32 [1]     input_zero_point int8 [1] (not in files if symmetric)
    output_scale float32 [1]    output_zero_point int8 [1], if it hands over int8
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tritonq.nn.host_tensors import gathered, is_offloaded, is_sharded
from tritonq.nn.read_only_weight import read_only
from tritonq.numerics import checkpoint_layout, qparams
from tritonq.numerics import slabs as layouts
from tritonq.numerics.checkpoint_layout import CodeReader
from tritonq.numerics.config import QuantConfig
from tritonq.util.fixed_dtype import FixedDtypeModule

#: Values of a weight to repack at a time.
_BLOCK_VALUES = 1 << 20
#: accelerate sets this attribute on a module before it moves the module's tensors by their names in `state_dict`.
_HOOKED = "_old_forward"


class KernelWeight(NamedTuple):
    """A weight as kernels read it.

    Attributes:
        packed_weight: the slabs, [N, ·].
        scales: [G, N] in the dtype that stores them; zero_points: int8 [G, N] or None.
        code_sums: int32 [N], Σ_k of the codes (int8 × int8 only, else None).
        input_order: int32 [K] or None. If the columns of a group are not adjacent (GPTQ's activation order), slabs hold
            the columns sorted by group, and the input's features must be taken in this order.
    """

    packed_weight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    code_sums: Tensor | None
    input_order: Tensor | None


class _Found(NamedTuple):
    """The cached weight for kernels, with the Parameters and the version of the codes that it was made from."""

    codes: Tensor
    scale: Tensor
    version: int | None
    weight: KernelWeight


class PackedWeight(FixedDtypeModule):
    """A quantized weight [N, K], its bias and the grids of a static layer's input and output.

    Attributes:
        in_features, out_features: K and N.
        config: the QuantConfig.
        group_size: columns that share a scale.
        layout: of the slabs.
        dtype: the layer's float dtype; follows `.to(dtype)`, unlike codes, scales and zero points.
        bias: Parameter [N] or None.
        packed_weight, scales, zero_points, code_sums, input_order: those of `kernel_weight()`.
        input_scale, input_zero_point, output_scale, output_zero_point: float32 [1] and int8 [1], or None.
        activation_symmetric: True if activations are quantized symmetrically, here and by the layers that read them.
        weight_sqnr: signal to quantization noise of the weight in dB; None if unknown.
    """

    input_scale: Tensor | None
    input_zero_point: Tensor | None
    output_scale: Tensor | None
    output_zero_point: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: QuantConfig,
        *,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        has_input_qparams: bool = False,
        has_output_qparams: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.config = in_features, out_features, config
        self.dtype = dtype
        self.group_size = config.weight.resolve_group_size(in_features)
        self.layout = layouts.slab_layout(layouts.weight_form(config), in_features, self.group_size)
        self.weight_sqnr: float | None = None
        self.activation_symmetric = config.activation is not None and config.activation.symmetric
        self._codes_name = "weight_packed" if checkpoint_layout.is_packed(config) else "weight"
        self._has_sums = not config.weight_only and self.layout.form == "int8"
        self._found: _Found | None = None

        for name, tensor in checkpoint_layout.empty_weight_state(
            config, in_features, out_features, dtype, device
        ).items():
            self._hold(name, tensor)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        for side, present in (("input", has_input_qparams), ("output", has_output_qparams)):
            scale = torch.zeros(1, dtype=torch.float32, device=device) if present else None
            zero = torch.zeros(1, dtype=torch.int8, device=device) if present else None
            self.register_buffer(f"{side}_scale", scale)
            self.register_buffer(f"{side}_zero_point", zero)

    def _hold(self, name: str, tensor: Tensor | None) -> None:
        """Register a frozen Parameter; None removes it. nn.Module refuses `weight`, because it is also a property."""
        if tensor is None:
            self._parameters.pop(name, None)
        else:
            self._parameters[name] = nn.Parameter(tensor, requires_grad=False)

    def _stores_zero_point(self, side: str) -> bool:
        """True if files have a zero point for this side, "input" or "output"."""
        return side == "output" or not self.activation_symmetric

    # --- for kernels ------------------------------------------------------------------------------------------------

    def kernel_weight(self) -> KernelWeight:
        """The weight for kernels: views of the Parameters, made again only if these have changed."""
        parameters, found = self._parameters, self._found
        if torch.compiler.is_compiling():
            return self._traced()
        if (
            found is not None
            and found.codes is parameters[self._codes_name]
            and found.scale is parameters["weight_scale"]
            and (found.version is None or found.version == found.codes._version)
        ):
            return found.weight
        return self._find()

    def held_bias(self) -> Tensor | None:
        """The bias, read faster than through nn.Module's attributes in the usual case."""
        parameters = self._parameters
        if "bias" in parameters:
            return parameters["bias"]
        return self.bias

    def grid(self, side: str) -> tuple[Tensor | None, Tensor | None]:
        """Scale and zero point of the "input" or the "output", read as fast."""
        buffers = self._buffers
        return buffers[f"{side}_scale"], buffers[f"{side}_zero_point"]

    @property
    def in_kernel_layout(self) -> bool:
        """True if the Parameters have the kernels' layout, False if the files'."""
        return self._weight_parameter("weight_scale").dim() == 3

    def _find(self) -> KernelWeight:
        with torch.inference_mode(False), torch.no_grad():
            sharded = is_sharded(self._weight_parameter("weight_scale"))
            if self.in_kernel_layout:
                weight = self._view_of_parameters()
                if not sharded:
                    self._remember(weight)
                return weight
            weight = self._repacked()
            if not sharded and not is_offloaded(self):
                self.hold_weight(weight)
            return weight  # not cached if sharded or offloaded: the host removes its tensors after the call

    def _remember(self, weight: KernelWeight) -> None:
        codes = self._weight_parameter(self._codes_name)
        version = codes._version if self._has_sums and not codes.is_inference() else None
        self._found = _Found(codes, self._weight_parameter("weight_scale"), version, weight)

    def _traced(self) -> KernelWeight:
        """`kernel_weight` in a trace. The Parameters are its inputs; torch.compile assumes that they do not move."""
        if not self.in_kernel_layout:
            return self._repacked()
        sums = None
        if self._has_sums:
            found, parameters = self._found, self._parameters
            if found is not None and found.codes is parameters[self._codes_name]:
                sums = found.weight.code_sums
        return self._view_of_parameters(sums)

    def _weight_parameter(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        assert parameter is not None
        return parameter

    def _view_of_parameters(self, sums: Tensor | None = None) -> KernelWeight:
        held = {name: gathered(tensor.detach()) for name, tensor in self.weight_parameters().items()}
        zero, order = held.get("weight_zero_point"), held.get("weight_g_idx")
        packed = held[self._codes_name].view(self.layout.dtype).squeeze(1)
        if sums is None and self._has_sums:
            sums = packed.sum(dim=1, dtype=torch.int32)  # padding is 0
        return KernelWeight(
            packed,
            held["weight_scale"].squeeze(2),
            None if zero is None else zero.squeeze(2),
            sums,
            None if order is None else order.squeeze(1),
        )

    def _repacked(self) -> KernelWeight:
        """Parameters in the files' layout → the weight for kernels."""
        state = {name: gathered(tensor.detach()) for name, tensor in self.weight_parameters().items()}
        return self._packed(*self._read(state))

    def weight_parameters(self) -> dict[str, Tensor]:
        """The Parameters of codes, scales and zero points, by name."""
        return {
            name: tensor
            for name, tensor in self._parameters.items()
            if tensor is not None and name.startswith("weight")
        }

    def _read(self, state: Mapping[str, Tensor]) -> tuple[CodeReader, Tensor, Tensor | None, Tensor | None]:
        weight = checkpoint_layout.read_weight_state(self.config, self.in_features, self.out_features, state)
        return *weight, checkpoint_layout.read_input_order(self.in_features, self.group_size, state)

    def _packed(
        self, read_codes: CodeReader, scale: Tensor, zero_point: Tensor | None, order: Tensor | None = None
    ) -> KernelWeight:
        """Rows of codes int8 [·, K], scale [N or 1, G], zero point int8 [N or 1, G] or None → the same for kernels.

        It packs blocks of rows, so that memory never holds a whole large weight as unpacked int8.
        """
        shape, device = (self.out_features, self.layout.groups), scale.device
        packed = torch.empty(self.out_features, self.layout.words, dtype=self.layout.dtype, device=device)
        step = max(1, _BLOCK_VALUES // self.in_features)
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            codes = read_codes(rows) if order is None else read_codes(rows).index_select(1, order)
            packed[rows] = layouts.pack(codes, self.layout)
        sums = packed.sum(dim=1, dtype=torch.int32) if self._has_sums else None  # padding is 0
        copy = functools.partial(torch.clone, memory_format=torch.contiguous_format)
        zero_points = None if zero_point is None else copy(zero_point.expand(shape).t())
        return KernelWeight(packed, copy(scale.expand(shape).t()), zero_points, sums, order)

    def hold_weight(self, weight: KernelWeight) -> None:
        """Register a weight in the kernels' layout as Parameters, without copying."""
        codes = weight.packed_weight
        if self._codes_name == "weight_packed":
            codes = codes.view(torch.int32)  # as in files; some collective operations do not support int16
            shape = torch.tensor([self.out_features, self.in_features], dtype=torch.int64)
            self._hold("weight_shape", shape.to(codes.device))
        self._hold("weight_scale", weight.scales.unsqueeze(2))
        self._hold(self._codes_name, codes.unsqueeze(1))
        self._hold(
            "weight_zero_point", None if weight.zero_points is None else weight.zero_points.unsqueeze(2)
        )
        self._hold("weight_g_idx", None if weight.input_order is None else weight.input_order.unsqueeze(1))
        self._remember(weight)

    def show_file_layout(self) -> None:
        """Switch to the files' layout, for a host that moves tensors by their names in `state_dict`."""
        if self.in_kernel_layout:
            for name, tensor in self._weight_state().items():
                self._hold(name, tensor)
            self._found = None

    packed_weight = property(lambda self: self.kernel_weight().packed_weight)
    scales = property(lambda self: self.kernel_weight().scales)
    zero_points = property(lambda self: self.kernel_weight().zero_points)
    code_sums = property(lambda self: self.kernel_weight().code_sums)
    input_order = property(lambda self: self.kernel_weight().input_order)

    # --- inspection ------------------------------------------------------------------------------------------------

    def int_weight(self) -> Tensor:
        """The weight's codes, int8 [N, K]."""
        weight = self.kernel_weight()
        return _in_columns_order(layouts.unpack(weight.packed_weight, self.layout), weight.input_order)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as float [N, K], in `dtype` (None: the layer's)."""
        return self._dequantized(self.kernel_weight(), dtype)

    def dequantize_rows(self, indices: Tensor) -> Tensor:
        """Some rows of the weight, by index [M], as float [M, K]; only they are unpacked."""
        weight = self.kernel_weight()
        if not len(indices):
            return torch.empty(0, self.in_features, dtype=self.dtype, device=indices.device)
        zero = None if weight.zero_points is None else weight.zero_points.index_select(1, indices)
        packed, scales = weight.packed_weight.index_select(0, indices), weight.scales.index_select(1, indices)
        return self._dequantized(weight._replace(packed_weight=packed, scales=scales, zero_points=zero), None)

    def _dequantized(self, weight: KernelWeight, dtype: torch.dtype | None) -> Tensor:
        zero = None
        if weight.zero_points is not None:
            zero = qparams.expand_groups(weight.zero_points.t(), self.in_features, self.group_size)
        scale = qparams.expand_groups(weight.scales.t(), self.in_features, self.group_size)
        codes = layouts.unpack(weight.packed_weight, self.layout)
        values = qparams.dequantize(codes, scale, zero, dtype or self.dtype)
        return _in_columns_order(values, weight.input_order)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight [N, K], computed at each access; writing to it raises.

        A host that fills the layer, or moves its tensors by their names in files, gets the stored codes instead.
        """
        if "weight" in self._parameters and not self.in_kernel_layout:
            held = self.weight_parameters()
            if _HOOKED in vars(self) or any(tensor.is_meta for tensor in held.values()):
                return held["weight"]
        return read_only(self.dequantize())

    @property
    def weight_bytes(self) -> int:
        """Current bytes of codes, scales, zero points, sums and the order of columns."""
        held = [tensor for name, tensor in self.weight_parameters().items() if name != "weight_shape"]
        return sum(tensor.nbytes for tensor in held) + 4 * self.out_features * self._has_sums

    # --- moving, saving and loading -----------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse assignments that would be lost. If accelerate hooks the layer, switch to the files' layout."""
        if name == "weight" and not (isinstance(value, Tensor) and value.dtype == torch.int8):
            raise AttributeError(
                f"the weight of a {type(self).__name__} is read-only, found an assignment: put an nn.Linear in the "
                "layer's place, or quantize again from a float weight"
            )
        if name == _HOOKED:
            self.show_file_layout()
        super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedWeight:
        device = self._weight_parameter("weight_scale").device
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=device)).dtype
        fixed = {id(tensor) for tensor in self.weight_parameters().values()}

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return (
                moved if id(tensor) not in fixed or moved.dtype == tensor.dtype else tensor.to(moved.device)
            )

        super()._apply(move, recurse)
        self._find_again()
        return self

    def _find_again(self) -> None:
        """Update the cache after the Parameters have changed: now, because the next call may be traced."""
        self._found = None
        if self.in_kernel_layout and not is_sharded(self._weight_parameter("weight_scale")):
            self._find()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._find_again()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_found": None}

    def canonical_state(self) -> dict[str, Tensor]:
        """The layer's tensors in the files' layout, without bias; see the module's docstring."""
        state = self._weight_state()
        for side in ("input", "output"):
            scale, zero_point = self._buffers[f"{side}_scale"], self._buffers[f"{side}_zero_point"]
            if scale is not None and zero_point is not None:
                state[f"{side}_scale"] = scale
                if self._stores_zero_point(side):
                    state[f"{side}_zero_point"] = zero_point
        return state

    def _weight_state(self) -> dict[str, Tensor]:
        if not self.in_kernel_layout:
            return {name: gathered(tensor.detach()) for name, tensor in self.weight_parameters().items()}
        weight = self._view_of_parameters()
        zero = None if weight.zero_points is None else weight.zero_points.t()
        codes = _in_columns_order(layouts.unpack(weight.packed_weight, self.layout), weight.input_order)
        state = checkpoint_layout.weight_state(self.config, codes, weight.scales.t().contiguous(), zero)
        if weight.input_order is not None:
            state["weight_g_idx"] = checkpoint_layout.group_of_column(weight.input_order, self.group_size)
        return state

    def load_canonical_state(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors in the files' layout, without bias, on their device; other tensors are ignored.

        Raises:
            ValueError: a tensor is missing or has a wrong dtype, shape or value. The layer is then unchanged.
        """
        read = self._read(state)
        sides = {}
        for side in ("input", "output"):
            if self._buffers[f"{side}_scale"] is not None:
                sides[side] = checkpoint_layout.read_activation_qparams(
                    state, side, self._stores_zero_point(side)
                )
        self.hold_weight(self._packed(*read))
        for side, pair in sides.items():
            self._buffers[f"{side}_scale"], self._buffers[f"{side}_zero_point"] = pair
        self.weight_sqnr = None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.canonical_state().items():
            destination[prefix + name] = tensor
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        wanted = {*self.canonical_state(), *(["bias"] if self.bias is not None else [])}
        missing = wanted - own.keys()
        wanted |= {"weight_g_idx"} & own.keys()  # only the state tells whether columns are sorted by group
        missing_keys += [prefix + key for key in sorted(missing)]
        if strict:
            unexpected_keys += [prefix + key for key in own if key not in wanted]
        if missing:
            return
        assign = local_metadata.get("assign_to_params_buffers", False)
        device = self._weight_parameter("weight_scale").device
        try:
            if self.bias is not None:
                bias = checkpoint_layout.expect(own, "bias", (self.out_features,), qparams.FLOAT_DTYPES)
                if not bias.is_meta and not torch.isfinite(bias).all():
                    raise ValueError("bias must be finite, found NaN or Inf")
            self.load_canonical_state({key: own[key] if assign else own[key].to(device) for key in wanted})
        except ValueError as error:
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")
            return
        if self.bias is not None and assign:
            self.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)
        elif self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)


def _in_columns_order(by_group: Tensor, order: Tensor | None) -> Tensor:
    """[N, K] in the slabs' order of columns → in the order of the input's features."""
    if order is None:
        return by_group
    return torch.empty_like(by_group).index_copy_(1, order.long(), by_group)
