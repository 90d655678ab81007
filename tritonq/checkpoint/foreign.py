"""Presents checkpoints of GPTQ and AWQ as if compressed-tensors had written them.

Both methods write the same tensors for a layer of N outputs, K inputs and G groups, with unsigned codes q and zero
points z:

    scales [G, N]    qweight, qzeros: int32 words, packed in the method's way    w = scales · (q - z)

compressed-tensors stores a signed code as code + 2^(bits - 1), so its packed fields equal q and z. Only the packing
differs, never a value. `ForeignTensors` derives names, shapes and dtypes from the files' headers and the order of
columns. It translates a tensor when it is read. No weight is ever converted to float.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tritonq.checkpoint.compressed_tensors import Group, Scheme
from tritonq.checkpoint.fields import check_type, shown
from tritonq.checkpoint.files import TensorFiles
from tritonq.numerics import checkpoint_layout, int32_words
from tritonq.numerics.config import QuantConfig, QuantSpec
from tritonq.numerics.qparams import FLOAT_DTYPES

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_MAIN = ".qweight"
Reader = Callable[[], Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a layer in a quantization_config.

    Attributes:
        bits: 4 or 8.
        group_size: columns that share a scale; -1 for all of them.
        symmetric: every zero point is the middle of the codes, so none is kept.
        ordered: the columns of a group need not be adjacent; g_idx has the group of each column.
    """

    bits: int
    group_size: int
    symmetric: bool
    ordered: bool = False

    @property
    def config(self) -> QuantConfig:
        """The settings as a QuantConfig."""
        granularity = "channel" if self.group_size == -1 else "group"
        group_size = None if self.group_size == -1 else self.group_size
        return QuantConfig(QuantSpec(self.bits, self.symmetric, granularity, group_size))


class ForeignLayer(abc.ABC):
    """One layer of the files. Its headers are checked now, its values when they are read.

    Attributes:
        settings: how it is quantized.
        in_features, out_features: K and N.
        order: of columns sorted by group; None if they are in order, which is common even with desc_act.

    Raises:
        ValueError: the message names the tensor, what was found, and what the other tensors and the settings allow.
    """

    def __init__(self, name: str, settings: Settings, source: TensorFiles) -> None:
        self.name, self.settings, self.source = name, settings, source
        for part in ("qweight", "qzeros", "scales", *(["g_idx"] if settings.ordered else [])):
            if f"{name}.{part}" not in source:
                raise ValueError(f"{self.where('qweight')} needs {name}.{part}, which the files lack")
        shape = source.shapes[f"{name}.qweight"]
        if len(shape) != 2 or 0 in shape:
            raise ValueError(
                f"{self.where('qweight')} must have two dimensions, found {source.describe(f'{name}.qweight')}"
            )
        self.out_features, self.in_features = self._sizes()
        self.group_size = self.in_features if settings.group_size == -1 else settings.group_size
        self.groups = -(-self.in_features // self.group_size)
        self._check("qweight", (torch.int32,), self._weight_words)
        self._check("scales", FLOAT_DTYPES, (self.groups, self.out_features))
        self._check("qzeros", (torch.int32,), (self.groups, self._zero_words))
        self.order = None
        if f"{name}.g_idx" in source:
            self._check("g_idx", (torch.int32,), (self.in_features,))
            self.order = self._read_order()

    @abc.abstractmethod
    def _sizes(self) -> tuple[int, int]:
        """(N, K), from the headers."""

    @property
    @abc.abstractmethod
    def _weight_words(self) -> tuple[int, int]:
        """The shape that qweight must have."""

    @property
    def _zero_words(self) -> int:
        """The number of words in a row of qzeros."""
        return int32_words.packed_width(self.out_features, self.settings.bits)

    @abc.abstractmethod
    def read_packed(self) -> Tensor:
        """The codes packed as in compressed-tensors, int32 [N, ceil(K · bits / 32)]."""

    @abc.abstractmethod
    def read_zeros(self) -> Tensor:
        """The unsigned zero points, uint8 [G, N]."""

    def translated(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Reader]]:
        """The layer's tensors in compressed-tensors' layout, without bias: (local name, shape, dtype, reader)."""
        rows, bits = self.out_features, self.settings.bits
        width = int32_words.packed_width(self.in_features, bits)
        dtype = self.source.dtypes[f"{self.name}.scales"]
        assert dtype is not None
        yield "weight_packed", (rows, width), torch.int32, self.read_packed
        yield "weight_shape", (2,), torch.int64, lambda: torch.tensor([rows, self.in_features])
        yield "weight_scale", (rows, self.groups), dtype, self._read_scale
        if not self.settings.symmetric:
            shape = (int32_words.packed_width(rows, bits), self.groups)
            yield "weight_zero_point", shape, torch.int32, self._read_zero_point
        if self.order is not None:
            yield "weight_g_idx", (self.in_features,), torch.int32, lambda: self.get("g_idx")

    def _read_order(self) -> Tensor | None:
        where = self.where("g_idx")
        order = checkpoint_layout.read_input_order(
            self.in_features, self.group_size, {where: self.get("g_idx")}, where
        )
        if order is not None and not self.settings.ordered:
            raise ValueError(
                f"{where} must hold column // {self.group_size} without desc_act, found another order"
            )
        return order

    def _read_scale(self) -> Tensor:
        """[N, G], after a check that the dropped tensors carry no information."""
        middle = 1 << (self.settings.bits - 1)
        if self.settings.symmetric and bool(((zeros := self.read_zeros()) != middle).any()):
            raise ValueError(
                f"{self.where('qzeros')} must hold only zero points of {middle} in a symmetric checkpoint, found "
                f"{int(zeros.amin())} … {int(zeros.amax())}: quantization_config is wrong about symmetry"
            )
        scales = self.get("scales")
        checkpoint_layout.check_scale(scales, self.where("scales"))
        return scales.t().contiguous()

    def _read_zero_point(self) -> Tensor:
        return int32_words.pack_fields(self.read_zeros(), self.settings.bits).t().contiguous()

    def get(self, part: str) -> Tensor:
        """One of the layer's tensors as it is in the files."""
        return self.source.get(f"{self.name}.{part}")

    def where(self, part: str) -> str:
        """The names of file and tensor, for messages."""
        file = self.source.file_of.get(f"{self.name}.{part}", self.source.file_of[f"{self.name}.qweight"])
        return f"{file}: {self.name}.{part}"

    def _check(self, part: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
        name = f"{self.name}.{part}"
        if self.source.shapes[name] != shape or self.source.dtypes[name] not in dtypes:
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(
                f"{self.where(part)} must be {allowed} {list(shape)} for {self.out_features} × {self.in_features} "
                f"values of {self.settings.bits} bits in groups of {self.group_size}, found "
                f"{self.source.describe(name)}: bits and group_size must be those that the files were written with"
            )


class Method(Protocol):
    """A parsed quantization_config of GPTQ or AWQ."""

    def layer(self, name: str, source: TensorFiles) -> ForeignLayer:
        """The layer of this name in the files."""


class ForeignTensors(TensorFiles):
    """The tensors of a GPTQ or AWQ checkpoint under the names and in the layout of compressed-tensors.

    Attributes:
        shapes, dtypes, file_of: as for TensorFiles, of the translated tensors.
        scheme: the layers' config groups.
        ordered: the layers with a weight_g_idx, because the columns of a group are not adjacent.
    """

    def __init__(self, method: Method, source: TensorFiles) -> None:
        self.shapes, self.dtypes, self.file_of = {}, {}, {}
        self._source = source
        self._readers: dict[str, Reader] = {}
        self.ordered: list[str] = []
        members: dict[QuantConfig, list[str]] = {}
        for name in source:
            owner, _, part = name.rpartition(".")
            if name.endswith(_MAIN):
                layer = method.layer(owner, source)
                members.setdefault(layer.settings.config, []).append(owner)
                if layer.order is not None:
                    self.ordered.append(owner)
                for local, shape, dtype, reader in layer.translated():
                    self._add(f"{owner}.{local}", shape, dtype, source.file_of[name], reader)
            elif part not in _PARTS or f"{owner}{_MAIN}" not in source:
                self._add(name, source.shapes[name], source.dtypes[name], source.file_of[name], None)
        if not members:
            raise ValueError("the files must hold a layer's qweight, found none")
        groups = (
            Group(f"group_{index}", tuple(names), config, packed=True)
            for index, (config, names) in enumerate(members.items())
        )
        self.scheme = Scheme(tuple(groups), ignore=())

    def _add(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None, file: str, reader: Reader | None
    ) -> None:
        if name in self.file_of:
            raise ValueError(
                f"{file}: {name} must be there once, found it beside a qweight that becomes it too"
            )
        self.shapes[name], self.dtypes[name], self.file_of[name] = shape, dtype, file
        if reader is not None:
            self._readers[name] = reader

    def get(self, name: str) -> Tensor:
        """The tensor, translated now. Its memory may be the file's map, so copy it to keep it."""
        reader = self._readers.get(name)
        return self._source.get(name) if reader is None else reader()


# --- what both kinds of quantization_config have ----------------------------------------------------------------------


def read_bits(value: Any, allowed: tuple[int, ...], where: str) -> int:
    """The number of bits, an int among those allowed."""
    if type(value) is not int or value not in allowed:
        raise ValueError(f"{where}: bits must be {' or '.join(map(str, allowed))}, found {shown(value)}")
    return value


def read_group_size(value: Any, where: str) -> int:
    """-1 or a positive int."""
    if type(value) is not int or (value < 1 and value != -1):
        raise ValueError(f"{where}: group_size must be -1 or a positive integer, found {shown(value)}")
    return value


def read_flag(fields: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    """A boolean that may be missing or null."""
    value = fields.get(key)
    if value is None:
        return default
    check_type(value, bool, f"{where}: {key}", "true or false")
    return bool(value)
