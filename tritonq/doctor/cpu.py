"""Checks of the CPU's results, with which every kernel is compared, against float64 and int64."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tritonq import reference
from tritonq.doctor.checks import Outcome, compared
from tritonq.nn import QuantizedLinear
from tritonq.numerics import config, slabs
from tritonq.reference.integers import int_matmul

_COLUMNS = 2000


@dataclasses.dataclass(frozen=True)
class CpuCheck:
    """A function that returns (the result, the expected result)."""

    name: str
    compute: Callable[[], tuple[Tensor, Tensor]]
    exact: bool = True
    path: str = "reference"

    def run(self, device: str, repeats: int) -> Outcome:
        """Compare, always on the CPU."""
        _, expected = self.compute()
        return compared(lambda: (self.compute()[0],), (expected,), self.exact, repeats)


def cpu_checks() -> Iterator[CpuCheck]:
    """Integer products, packing, quantization, and a layer in each scheme."""
    yield CpuCheck("products of extreme int8 codes", _extreme_products)
    for form, low, high in (("int4_words", -8, 7), ("int4_bytes", -8, 7), ("int8", -128, 127)):
        yield CpuCheck(f"packing, {form}", functools.partial(_packing, form, low, high))
    yield CpuCheck("quantize per token", _per_token)
    for name in ("w8a16", "w4a16", "w8a8", "w4a8"):
        yield CpuCheck(f"a layer in {name}", functools.partial(_layer, name), exact=False)


def _extreme_products() -> tuple[Tensor, Tensor]:
    """Long sums of extreme products such as -128 · -128, which a processor that saturates at 16 bits gets wrong."""
    extreme = torch.tensor([-128, 127], dtype=torch.int8)
    x = extreme.repeat(32, _COLUMNS // 2)
    w = torch.cat([x[:16], x[:16].flip(1)])
    return int_matmul(x, w).long(), x.long() @ w.long().t()


def _packing(form: str, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Every code, in a layout that pads groups and rows."""
    codes = torch.arange(7 * 314).reshape(7, 314).remainder(high - low + 1).add(low).to(torch.int8)
    layout = slabs.slab_layout(form, 314, 100)
    return slabs.unpack(slabs.pack(codes, layout), layout), codes


def _per_token() -> tuple[Tensor, Tensor]:
    """The number of values further than half a step from their code; expected 0."""
    x = torch.randn(50, _COLUMNS, generator=torch.Generator().manual_seed(0))
    codes, scale, zero = reference.quantize_per_token(x, False)
    error = ((codes.double() - zero.double()) * scale.double() - x.double()).abs()
    return (error > 0.5001 * scale).sum(), torch.tensor(0)


def _layer(name: str) -> tuple[Tensor, Tensor]:
    """A quantized layer, and the float64 product of its dequantized codes."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(_COLUMNS, 130, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(130, _COLUMNS, generator=generator))
        layer = QuantizedLinear.from_float(linear, config.PRESETS[name]())
        x = torch.randn(33, _COLUMNS, generator=generator)
        found = layer(x)
        if layer.config.activation is not None:
            codes, scale, zero = reference.quantize_per_token(x, layer.config.activation.symmetric)
            x = (codes.float() - zero.float()) * scale
        return found, (x.double() @ layer.dequantize(torch.float32).double().t()).float()
