"""What a QuantizedLinear holds: slabs while it runs, the layout of files wherever somebody looks.

The weight is packed in slabs (numerics/slabs.py). What `state_dict` returns and takes is the canonical layout of files
(compressed-tensors), converted on the way out and in:

    weight-only, int4   weight_packed int32 [N, ceil(K·bits/32)]    weight_scale [N, G]    weight_shape int64 [2]
                        weight_zero_point int32 [ceil(N·bits/32), G] if affine
                        weight_g_idx int32 [K], the group of each column, if columns are not grouped in order
    int8 × int8         weight int8 [N, K]                          weight_scale [N, 1]
                        weight_zero_point int8 [N, 1] if affine
    static              input_scale float32 [1]    input_zero_point int8 [1] if affine
    hands over int8     output_scale float32 [1]   output_zero_point int8 [1]
    bias                [N]
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.numerics import checkpoint_layout, qparams
from tritonq.numerics import slabs as layouts
from tritonq.numerics.checkpoint_layout import CodeReader
from tritonq.numerics.config import QuantConfig
from tritonq.util.fixed_dtype import FixedDtypeModule

#: Values of a weight that are repacked at once.
_BLOCK_VALUES = 1 << 20


class PackedWeight(FixedDtypeModule):
    """A quantized weight [N, K], its bias and the grids of a static layer's input and output.

    Attributes:
        in_features, out_features: K and N.
        config: the QuantConfig.
        group_size: columns that share a scale.
        layout: of the slabs.
        dtype: the float dtype that the layer stands for; follows `.to(dtype)`, unlike codes, scales and zero points.
        bias: Parameter [N] or None.
        packed_weight: the slabs, [N, ·].
        scales: [G, N] in the dtype that stores them; zero_points: int8 [G, N] or None.
        code_sums: int32 [N], Σ_k of the codes (int8 × int8 only, else None).
        input_order: int32 [K] or None: where groups are not runs of columns (GPTQ's activation order), slabs hold the
            columns sorted by group, and this is the order in which the input's features are taken.
        input_scale, input_zero_point, output_scale, output_zero_point: float32 [1] and int8 [1], or None.
        activation_symmetric: whether activations are quantized symmetrically, here and where they are handed over.
        weight_sqnr: signal to quantization noise of the weight in dB, None where it is not known.
    """

    packed_weight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    code_sums: Tensor | None
    input_order: Tensor | None
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

        def empty(*shape: int, dtype: torch.dtype, present: bool = True) -> Tensor | None:
            return torch.zeros(*shape, dtype=dtype, device=device) if present else None

        groups = self.layout.groups
        affine = not config.weight.symmetric
        sums = not config.weight_only and self.layout.form == "int8"
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        self.register_buffer("packed_weight", empty(out_features, self.layout.words, dtype=self.layout.dtype))
        self.register_buffer("scales", empty(groups, out_features, dtype=dtype))
        self.register_buffer("zero_points", empty(groups, out_features, dtype=torch.int8, present=affine))
        self.register_buffer("code_sums", empty(out_features, dtype=torch.int32, present=sums))
        self.register_buffer("input_order", None)
        for side, present in (("input", has_input_qparams), ("output", has_output_qparams)):
            self.register_buffer(f"{side}_scale", empty(1, dtype=torch.float32, present=present))
            self.register_buffer(f"{side}_zero_point", empty(1, dtype=torch.int8, present=present))

    def held(self, *names: str) -> Any:
        """Buffers by name. nn.Module's attributes find them too, at several times the cost, in each call of a layer."""
        buffers = self._buffers
        return tuple([buffers[name] for name in names])

    def held_bias(self) -> Tensor | None:
        """The bias, found as fast where it lies as usual."""
        parameters = self._parameters
        if "bias" in parameters:
            return parameters["bias"]
        return self.bias

    # --- inspection ------------------------------------------------------------------------------------------------

    def int_weight(self) -> Tensor:
        """The weight's codes, int8 [N, K]."""
        return self._in_columns_order(layouts.unpack(self.packed_weight, self.layout))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as float [N, K], in `dtype` (the layer's own if None)."""
        zero = None
        if self.zero_points is not None:
            zero = qparams.expand_groups(self.zero_points.t(), self.in_features, self.group_size)
        scale = qparams.expand_groups(self.scales.t(), self.in_features, self.group_size)
        codes = layouts.unpack(self.packed_weight, self.layout)
        return self._in_columns_order(qparams.dequantize(codes, scale, zero, dtype or self.dtype))

    def _in_columns_order(self, by_group: Tensor) -> Tensor:
        """[N, K] as the slabs hold it → with column k where the input has feature k."""
        if self.input_order is None:
            return by_group
        return torch.empty_like(by_group).index_copy_(1, self.input_order.long(), by_group)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight [N, K], computed at each access; read-only."""
        return self.dequantize()

    @property
    def weight_bytes(self) -> int:
        """Bytes that codes, scales, zero points, sums and the order of columns take now."""
        held = (self.packed_weight, self.scales, self.zero_points, self.code_sums, self.input_order)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    # --- moving, saving and loading -----------------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> PackedWeight:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed_weight.device)).dtype
        super()._apply(fn, recurse)
        return self

    def canonical_state(self) -> dict[str, Tensor]:
        """The layer's tensors in the layout of files, bias aside; see the module's docstring."""
        zero = None if self.zero_points is None else self.zero_points.t()
        state = checkpoint_layout.weight_state(
            self.config, self.int_weight(), self.scales.t().contiguous(), zero
        )
        if self.input_order is not None:
            state["weight_g_idx"] = checkpoint_layout.group_of_column(self.input_order, self.group_size)
        for side in ("input", "output"):
            scale, zero_point = self._buffers[f"{side}_scale"], self._buffers[f"{side}_zero_point"]
            if scale is not None and zero_point is not None:
                state[f"{side}_scale"] = scale
                if side == "output" or not self.activation_symmetric:
                    state[f"{side}_zero_point"] = zero_point
        return state

    def load_canonical_state(self, state: Mapping[str, Tensor]) -> None:
        """Take tensors in the layout of files (bias aside, others ignored), on the device that they are on.

        Raises:
            ValueError: for a tensor that is missing or has a wrong dtype, shape or value; the layer is unchanged then.
        """
        read_codes, scale, zero_point = checkpoint_layout.read_weight_state(
            self.config, self.in_features, self.out_features, state
        )
        order = checkpoint_layout.read_input_order(self.in_features, self.group_size, state)
        sides = {}
        for side in ("input", "output"):
            if self._buffers[f"{side}_scale"] is not None:
                affine = side == "output" or not self.activation_symmetric
                sides[side] = checkpoint_layout.read_activation_qparams(state, side, affine)
        self._set_codes(read_codes, scale, zero_point, order)
        for side, pair in sides.items():
            self._buffers[f"{side}_scale"], self._buffers[f"{side}_zero_point"] = pair
        self.weight_sqnr = None

    def _set_codes(
        self, read_codes: CodeReader, scale: Tensor, zero_point: Tensor | None, order: Tensor | None = None
    ) -> None:
        """Rows of codes int8 [·, K], scale [N or 1, G], zero point int8 [N or 1, G] or None → the buffers, all copies.

        Packed in blocks of rows, so that a large weight is there once, packed, and never as a whole in int8.
        """
        shape, device = (self.out_features, self.layout.groups), scale.device
        packed = torch.empty(self.out_features, self.layout.words, dtype=self.layout.dtype, device=device)
        sums = None
        if self._buffers["code_sums"] is not None:
            sums = torch.empty(self.out_features, dtype=torch.int32, device=device)
        step = max(1, _BLOCK_VALUES // self.in_features)
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            codes = read_codes(rows) if order is None else read_codes(rows).index_select(1, order)
            packed[rows] = layouts.pack(codes, self.layout)
            if sums is not None:
                sums[rows] = codes.sum(dim=1, dtype=torch.int32)
        copy = functools.partial(torch.clone, memory_format=torch.contiguous_format)
        self._buffers["packed_weight"] = packed
        self._buffers["scales"] = copy(scale.expand(shape).t())
        self._buffers["zero_points"] = None if zero_point is None else copy(zero_point.expand(shape).t())
        self._buffers["code_sums"] = sums
        self._buffers["input_order"] = order

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
        wanted |= {"weight_g_idx"} & own.keys()  # the state says whether columns are grouped in order
        missing_keys += [prefix + key for key in sorted(missing)]
        if strict:
            unexpected_keys += [prefix + key for key in own if key not in wanted]
        if missing:
            return
        assign = local_metadata.get("assign_to_params_buffers", False)
        device = self.packed_weight.device
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
