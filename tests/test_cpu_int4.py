"""int8 × int4 on the CPU engine: every instruction set, bit for bit what the reference computes."""

from __future__ import annotations

import random

import pytest
import torch

import tritonq
from tests.support.cpu_engines import NAMES, engine_of, poison_memory, same_bits
from tritonq import ops, reference
from tritonq.numerics import slabs
from tritonq.ops import backends

#: A product compiles for each of these: slabs of 64 and 32 columns, one group and several, groups apart from blocks.
_GROUPS = (None, 128, 64, 32, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_products(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, draw = engine_of(name), random.Random(3)
    poison_memory(monkeypatch)
    for case in range(40):
        rows, features = draw.choice((1, 2, 4, 5, 9, 13, 100)), draw.choice((1, 3, 31, 33, 70))
        columns = draw.choice((1, 5, 47, 64, 128, 250, 384, 1030))
        group = draw.choice(_GROUPS) or columns
        layout = slabs.slab_layout("int4_bytes", columns, min(group, columns))
        codes = torch.randint(-8, 8, (features, columns), dtype=torch.int8)
        scale = (torch.rand(layout.groups, features) * 0.01 + 1e-3).to(dtype)
        bias = torch.randn(features).to(dtype) if dtype == torch.float32 else None
        x = torch.randn(rows, columns).to(dtype)
        if case % 8 == 0:
            x[draw.randrange(rows), draw.randrange(columns)] = draw.choice((torch.nan, torch.inf))
        weight = slabs.pack(codes, layout)
        where = f"case {case}: {rows} x {features} x {columns} in groups of {group}"
        quantized, x_scale, _ = reference.quantize_per_token(x, True)
        for operand in (quantized, torch.full_like(quantized, -128)):
            product = (operand, x_scale, codes, scale.t(), bias, layout.group_size, dtype)
            found = engine.int4.int4_int8_linear(engine, operand, x_scale, weight, scale, bias, layout, dtype)
            assert same_bits(found, reference.int4_int8_linear(*product)), where
        dynamic = engine.int4.int4_int8_linear_dynamic(engine, x, weight, scale, bias, layout)
        product = (quantized, x_scale, codes, scale.t(), bias, layout.group_size, dtype)
        assert same_bits(dynamic, reference.int4_int8_linear(*product)), where


def test_layers_with_and_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    if ops.backend("cpu") != "cpu":
        pytest.skip("there is no engine for this CPU")
    model = torch.nn.Sequential(torch.nn.Linear(200, 37), torch.nn.SiLU(), torch.nn.Linear(37, 5))
    tritonq.quantize_(model, "w4a8", ignore=())
    x = torch.randn(2, 3, 200)
    found = model(x)
    monkeypatch.setattr(backends, "engine", lambda: None)
    assert same_bits(found, model(x))
