"""Floats × int8 and int4 on the CPU engine: every instruction set, within the rounding of a float32 sum."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import tritonq
from tests.support.cpu_engines import NAMES, engine_of, poison_memory
from tritonq import ops
from tritonq.cpu.engine import Engine
from tritonq.numerics import qparams, slabs
from tritonq.ops import backends

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Of Σ|x||w|: a float32 sum of up to a thousand numbers, in lanes, rounds by less.
_TOLERANCE = 1e-6
_ROWS = (1, 2, 3, 4, 5, 7, 13, 19, 100)


class Case:
    """A weight in slabs with its scales, and rows that it is multiplied with."""

    def __init__(self, draw: random.Random) -> None:
        form = draw.choice(("int8", "int4_words"))
        self.rows, self.features = draw.choice(_ROWS), draw.choice((1, 3, 4, 31, 33, 70))
        columns = draw.choice((1, 5, 16, 47, 64, 100, 257, 640, 1030))
        self.layout = slabs.slab_layout(
            form, columns, min(draw.choice((columns, 7, 16, 32, 64, 128)), columns)
        )
        self.dtype = draw.choice(_DTYPES)
        low, high = (-128, 128) if form == "int8" else (-8, 8)
        self.codes = torch.randint(low, high, (self.features, columns), dtype=torch.int8)
        shape = (self.layout.groups, self.features)
        self.scale = (torch.rand(shape) * 0.01 + 1e-3).to(self.dtype)
        self.zero = draw.choice((None, torch.randint(low, high, shape, dtype=torch.int8)))
        self.bias = draw.choice((None, torch.randn(self.features).to(self.dtype)))
        self.x = torch.randn(self.rows, columns).to(self.dtype)
        self.where = (
            f"{form} {self.rows} x {self.features} x {columns} in {self.layout.group_size}, {self.dtype}"
        )

    def dequantized(self) -> Tensor:
        """The weight in float64."""

        def expanded(per_group: Tensor) -> Tensor:
            return qparams.expand_groups(per_group.t(), self.codes.shape[1], self.layout.group_size)

        zero = None if self.zero is None else expanded(self.zero)
        return qparams.dequantize(self.codes, expanded(self.scale), zero, torch.float32).double()

    def computed(self, engine: Engine, x: Tensor, dtype: torch.dtype) -> Tensor:
        """By the engine."""
        weight = slabs.pack(self.codes, self.layout)
        operands = (x, weight, self.scale, self.zero, self.bias, self.layout, dtype)
        return engine.weight_only.weight_only_linear(engine, *operands)


@pytest.mark.parametrize("name", NAMES)
def test_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, draw = engine_of(name), random.Random(2)
    poison_memory(monkeypatch)
    for _ in range(8):
        case = Case(draw)
        weight, x = case.dequantized(), case.x.double()
        bias = torch.zeros(()) if case.bias is None else case.bias.double()
        found = case.computed(engine, case.x, torch.float32)
        error = (found.double() - (x @ weight.t() + bias)).abs()
        assert (error <= _TOLERANCE * (x.abs() @ weight.abs().t() + bias.abs())).all(), case.where
        assert torch.equal(case.computed(engine, case.x, case.dtype), found.to(case.dtype)), case.where
        row = draw.randrange(case.rows)
        alone = case.computed(engine, case.x[row : row + 1], torch.float32)
        assert torch.equal(alone, found[row : row + 1]), f"{case.where}: row {row} depends on the others"


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("rows", [1, 19])
def test_threads_change_no_bit(rows: int, threads: int) -> None:
    if ops.backend("cpu") != "cpu":
        pytest.skip("there is no engine for this CPU")
    layers = [
        tritonq.quantize_(torch.nn.Sequential(torch.nn.Linear(640, 700)), scheme, ignore=())
        for scheme in ("w8a16", "w4a16", "w8a8")
    ]
    x, before = torch.randn(rows, 640), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [layer(x) for layer in layers]
        torch.set_num_threads(threads)
        found = [layer(x) for layer in layers]
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_operators_with_and_without_the_engine(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ops.backend("cpu") != "cpu":
        pytest.skip("there is no engine for this CPU")
    layer = tritonq.quantize_(torch.nn.Sequential(torch.nn.Linear(200, 37)), scheme, ignore=())
    x = torch.randn(6, 200)
    found = layer(x)
    monkeypatch.setattr(backends, "engine", lambda: None)
    torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-5)
