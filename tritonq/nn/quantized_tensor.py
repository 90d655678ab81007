"""`QuantizedTensor`: an int8 activation between two quantized layers.

    value = (data - zero_point) · scale

    static     one scale [1] and one zero point for the whole tensor, from calibration
    dynamic    a scale [..., 1] for every row of features, from the row itself ("per token")

It is a plain class, not a tensor subclass. It supports operations that keep scale and zero point: max with zero, and
moving elements (per token: whole rows). Any other operation raises an error that names DeQuantStub. torch functions
reach it through `__torch_function__`, so nn.ReLU, nn.Flatten, nn.Identity and nn.Dropout in eval mode accept it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tritonq.numerics.qparams import dequantize
from tritonq.util.operator_overloads import refuse_operators

#: Attributes and methods that do not read values.
METADATA = frozenset({"shape", "dtype", "device", "ndim", "size", "dim", "numel", "__len__"})
ALLOWED = "relu, reshape, view, flatten, unflatten, transpose of leading dimensions, dropout in eval mode and indexing"


class QuantizedTensor:
    """int8 codes with their scale and zero point.

    Args:
        data: the signed codes, int8, any shape.
        scale: float32 [1]; per token, data's shape with 1 as last dimension. > 0, or NaN for a row that was not finite.
        zero_point: int8 of scale's shape, the code of 0.0; None for 0.
        dtype: the floating-point dtype that `dequantize` returns.
    """

    data: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, data: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> None:
        self.data = data
        self.scale = scale
        self.zero_point = zero_point
        self._dtype = dtype

    def dequantize(self) -> Tensor:
        """The values as a tensor of `dtype`: (data - zero_point) · scale in float32, rounded once."""
        values = dequantize(self.data, self.scale, self.zero_point, self._dtype)
        return values.reshape(self.data.shape)  # the scale's shape [1] has broadcast a scalar to [1]

    def int_repr(self) -> Tensor:
        """The int8 codes (torch's name)."""
        return self.data

    def q_scale(self) -> float:
        """The scale as a number (torch's name); a ValueError if every token has its own scale."""
        return float(self._of_tensor("q_scale", self.scale))

    def q_zero_point(self) -> int:
        """The zero point as a number in the signed range (torch's name); a ValueError like `q_scale`."""
        return 0 if self.zero_point is None else int(self._of_tensor("q_zero_point", self.zero_point))

    def _of_tensor(self, word: str, values: Tensor) -> Tensor:
        if self.per_token:
            raise ValueError(
                f"{word} is one number for a whole tensor, found one scale per token: read .scale"
            )
        return values

    @property
    def per_token(self) -> bool:
        """True if every row has its own scale. A one-dimensional tensor is one row."""
        return self.scale.dim() > 1

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype the values stand for; the codes are int8."""
        return self._dtype

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def device(self) -> torch.device:
        return self.data.device

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.data.shape if dim is None else self.data.shape[dim]

    def dim(self) -> int:
        return self.data.ndim

    def numel(self) -> int:
        return self.data.numel()

    def __len__(self) -> int:
        return len(self.data)

    def relu(self, inplace: bool = False) -> QuantizedTensor:
        """max(value, 0), on codes: max(data, zero_point)."""
        codes = self.data.clamp(min=0) if self.zero_point is None else self.data.maximum(self.zero_point)
        codes = codes.reshape(self.data.shape)  # a scalar has broadcast to the zero point's [1]
        if not inplace:
            return QuantizedTensor(codes, self.scale, self.zero_point, self._dtype)
        self.data.copy_(codes)
        return self

    def relu_(self) -> QuantizedTensor:
        """`relu` in place."""
        return self.relu(inplace=True)

    def reshape(self, *sizes: Any, **words: Any) -> QuantizedTensor:
        return self._reshaped(self.data.reshape(*sizes, **words), "reshape")

    def view(self, *sizes: Any, **words: Any) -> QuantizedTensor:
        if any(isinstance(size, torch.dtype) for size in (*sizes, *words.values())):
            raise refusal("view(dtype)")
        return self._reshaped(self.data.view(*sizes, **words), "view")

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> QuantizedTensor:
        return self._reshaped(self.data.flatten(start_dim, end_dim), "flatten")

    def unflatten(self, dim: Any, sizes: Any) -> QuantizedTensor:
        """Split one dimension into several, for nn.Unflatten."""
        if not isinstance(dim, int):
            raise refusal(f"unflatten({dim!r}, …) by a name")
        return self._reshaped(self.data.unflatten(dim, sizes), "unflatten")

    def transpose(self, dim0: Any, dim1: Any) -> QuantizedTensor:
        """Swap two dimensions. Neither may be the last, which holds the features."""
        if not (isinstance(dim0, int) and isinstance(dim1, int)):
            raise refusal(f"transpose({dim0!r}, {dim1!r}) by names")
        last = self.data.ndim - 1
        if last in (dim0 % max(last + 1, 1), dim1 % max(last + 1, 1)) and dim0 != dim1:
            raise refusal(f"transpose({dim0}, {dim1}) of {last + 1} dimensions")
        return self._each(lambda part: part.transpose(dim0, dim1))

    def dropout(self, p: float = 0.5, training: bool = True, inplace: bool = False) -> QuantizedTensor:
        """Return the tensor itself, in eval mode or with p = 0."""
        if training and p > 0:
            raise refusal("dropout in training mode")
        return self

    def add(self, other: Any) -> Any:
        """The sum with the output of a layer whose epilogue computes it; other sums are refused."""
        return self + other

    def contiguous(self) -> QuantizedTensor:
        return self._each(Tensor.contiguous)

    def detach(self) -> QuantizedTensor:
        return QuantizedTensor(self.data.detach(), self.scale.detach(), self.zero_point, self._dtype)

    def to(self, device: Any, *, non_blocking: bool = False) -> QuantizedTensor:
        """Move codes, scale and zero point to a device."""
        if not isinstance(device, (torch.device, str, int)):
            raise refusal(f"to({device!r})")
        return QuantizedTensor(
            self.data.to(device, non_blocking=non_blocking),
            self.scale.to(device, non_blocking=non_blocking),
            None if self.zero_point is None else self.zero_point.to(device, non_blocking=non_blocking),
            self._dtype,
        )

    def __getitem__(self, index: Any) -> QuantizedTensor:
        data = self.data[index]
        picked = None
        with contextlib.suppress(IndexError):  # of a feature, which scales per token do not have
            picked = self._each(lambda part: data if part is self.data else part[index])
        shape = _token_shape(data, self.data.shape[-1:]) if self.per_token else self.scale.shape
        if picked is None or picked.scale.shape != shape:
            raise refusal("an index that splits rows, which have one scale each")
        return picked

    def _each(self, move: Callable[[Tensor], Tensor]) -> QuantizedTensor:
        """Move elements, and per token their scales and zero points with them."""
        if not self.per_token:
            return QuantizedTensor(move(self.data), self.scale, self.zero_point, self._dtype)
        zero_point = None if self.zero_point is None else move(self.zero_point)
        return QuantizedTensor(move(self.data), move(self.scale), zero_point, self._dtype)

    def _reshaped(self, data: Tensor, what: str) -> QuantizedTensor:
        """The tensor with its codes in the shape of `data`; per token, that must keep rows whole."""
        if not self.per_token:
            return QuantizedTensor(data, self.scale, self.zero_point, self._dtype)
        shape = _token_shape(data, self.data.shape[-1:])
        if shape is None:
            raise refusal(f"{what} that splits rows, which have one scale each")
        zero_point = None if self.zero_point is None else self.zero_point.reshape(shape)
        return QuantizedTensor(data, self.scale.reshape(shape), zero_point, self._dtype)

    def __repr__(self) -> str:
        grid = "per token" if self.per_token else f"{self.q_scale():.6g}, zero_point={self.q_zero_point()}"
        return f"QuantizedTensor(shape={tuple(self.shape)}, scale={grid}, dtype={self._dtype}, device='{self.device}')"

    def __format__(self, spec: str) -> str:
        if spec:
            raise refusal(f"the format {spec!r}")
        return repr(self)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        method, words = _METHODS.get(func), dict(kwargs or {})
        if any(getattr(operand, "takes_residual", False) for operand in args):
            return NotImplemented  # torch then asks the other object
        this, *others = args or (words.pop("input", None),)
        if method is None or not isinstance(this, QuantizedTensor):
            raise refusal(getattr(func, "__name__", str(func)))
        return getattr(this, method)(*others, **words)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_refusal_text(f"attribute {name!r}"))

    __hash__ = object.__hash__


def refusal(what: str) -> TypeError:
    """The error for anything a QuantizedTensor does not do."""
    return TypeError(_refusal_text(what))


def _refusal_text(what: str) -> str:
    return (
        f"a QuantizedTensor (int8) does not support {what}, only {ALLOWED}; put a DeQuantStub before it, or "
        "convert(…, chain=False) in a model without stubs"
    )


def _token_shape(data: Tensor, features: torch.Size) -> torch.Size | None:
    """The shape of scales per token of `data`; None if its rows do not have these features."""
    return torch.Size((*data.shape[:-1], 1)) if data.shape[-1:] == features else None


_METHODS: dict[Callable[..., Any], str] = {
    torch.relu: "relu",
    torch.relu_: "relu_",
    functional.relu: "relu",
    torch.reshape: "reshape",
    torch.flatten: "flatten",
    torch.unflatten: "unflatten",
    torch.transpose: "transpose",
    functional.dropout: "dropout",
    torch.detach: "detach",
    torch.dequantize: "dequantize",
}


def _refuse(self: QuantizedTensor, name: str, operands: tuple[Any, ...]) -> Any:
    if name == "__add__" and getattr(operands[0], "takes_residual", False):
        # A layer whose epilogue waits for this sum. Python would ask it next, torch.compile does not up to torch 2.11.
        return operands[0].__radd__(self)
    raise refusal(f"the operator {name}")


refuse_operators(QuantizedTensor, _refuse)
