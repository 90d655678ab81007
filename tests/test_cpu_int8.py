"""int8 × int8 on the CPU engine: every instruction set, bit for bit what the reference computes.

`TRITONQ_CPU_CASES=100000` draws as many cases as a release is checked with.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from torch import Tensor

import tritonq
from tests.support.cpu_engines import NAMES, engine_of, poison_memory, same_bits
from tritonq import ops, reference
from tritonq.ops import backends

CASES = int(os.environ.get("TRITONQ_CPU_CASES", "100"))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def codes(rows: int, columns: int, draw: random.Random) -> Tensor:
    """Codes of the whole range, or extreme ones in long runs of one sign."""
    if draw.random() < 0.5:
        return torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    extremes = torch.tensor([-128, 127], dtype=torch.int8)
    return extremes[
        torch.randint(0, 2, (rows, 1)).expand(rows, columns) ^ (torch.rand(rows, columns) < 0.05).long()
    ]


def weight(features: int, columns: int, draw: random.Random) -> Tensor:
    """As a layer holds it: rows padded to 16 with code 0."""
    padded = torch.zeros(features, -(-columns // 16) * 16, dtype=torch.int8)
    padded[:, :columns] = codes(features, columns, draw)
    return padded


@pytest.mark.parametrize("name", NAMES)
def test_adversarial_cases(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, draw = engine_of(name), random.Random(0)
    poison_memory(monkeypatch)
    for case in range(CASES):
        rows, features = (
            draw.choice((1, 2, 3, 4, 5, 6, 7, 8, 13, 33)),
            draw.choice((1, 2, 3, 4, 5, 31, 32, 33, 70)),
        )
        columns = draw.choice((1, 3, 15, 16, 17, 48, 63, 64, 65, 130, 300, 1100))
        w = weight(features, columns, draw)
        sums = w.sum(dim=1, dtype=torch.int32)
        x = codes(rows, columns, draw)
        x_zero = draw.choice((None, codes(1, 1, draw)[0], codes(rows, 1, draw)))
        w_zero = draw.choice((None, codes(1, features, draw)))
        expected = reference.int8_accumulate(x, x_zero, w[:, :columns], w_zero)
        where = f"case {case}: {rows} x {features} x {columns}"
        assert torch.equal(engine.int8.accumulate(engine, x, x_zero, w, w_zero, sums), expected), where
        if case % 4:
            continue
        scale, bias = torch.rand(1, features) * 0.01 + 1e-3, draw.choice((None, torch.randn(features)))
        x_scale = torch.rand(1 if x_zero is not None and x_zero.numel() == 1 else (rows, 1)) + 0.01
        operands = (x, x_scale, x_zero, w, scale, w_zero, sums, bias)
        out = reference.int8_output(expected, x_scale, scale, bias, torch.float32)
        assert same_bits(engine.int8.int8_linear(engine, *operands, torch.float32), out), where
        grid = (torch.rand(1) + 1e-3, codes(1, 1, draw)[0], draw.random() < 0.5)
        activation = draw.choice(("none", "relu"))
        handed = reference.int8_output_requantize(expected, x_scale, scale, bias, *grid, activation)
        found = engine.int8.int8_linear_requantize(engine, *operands, *grid, activation == "relu")
        assert torch.equal(found, handed), where


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_dynamic(name: str, dtype: torch.dtype, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, draw = engine_of(name), random.Random(1)
    poison_memory(monkeypatch)
    for _ in range(24):
        rows, features, columns = draw.choice((1, 5, 19)), draw.choice((3, 32, 45)), draw.choice((7, 64, 321))
        w = weight(features, columns, draw)
        x = (torch.randn(rows, columns) * 10 ** draw.uniform(-6, 4)).to(dtype)
        x[0] = draw.choice((0.0, -1.0, 65504.0, torch.finfo(dtype).tiny, -torch.finfo(dtype).tiny / 2))
        if rows > 1:
            x[-1, draw.randrange(columns)] = draw.choice((torch.nan, torch.inf, -torch.inf))
        strided = draw.choice((x, x.t().contiguous().t(), torch.cat([x, x], dim=1)[:, :columns]))
        scale, bias = (torch.rand(1, features) * 0.01).to(dtype), torch.randn(features).to(dtype)
        found = engine.int8.int8_linear_dynamic(
            engine, strided, symmetric, w, scale, None, w.sum(dim=1, dtype=torch.int32), bias
        )
        quantized, x_scale, x_zero = reference.quantize_per_token(x, symmetric)
        operands = (quantized, x_scale, None if symmetric else x_zero, w[:, :columns], scale, None, bias)
        assert same_bits(found, reference.int8_linear(*operands, dtype)), (rows, features, columns)
        assert rows == 1 or found[-1].isnan().all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_quantization(
    name: str, dtype: torch.dtype, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(name)
    poison_memory(monkeypatch)
    x = (torch.randn(5, 77) * 3).to(dtype)
    x[1, 3], x[2, 76], x[3, :2] = torch.nan, -torch.inf, torch.inf
    scale, zero = torch.tensor([0.05]), torch.tensor([-7], dtype=torch.int8)
    found = engine.quantize.quantize_per_tensor(engine, x, scale, zero, symmetric)
    assert torch.equal(found, reference.quantize_per_tensor(x, scale, zero, symmetric))
    tokens = engine.quantize.quantize_per_token(engine, x[:, ::2], symmetric)
    assert all(map(same_bits, tokens, reference.quantize_per_token(x[:, ::2], symmetric)))


@pytest.mark.parametrize("config", ["w8a8", "w8a8_static"])
def test_layers_with_and_without_the_engine(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ops.backend("cpu") != "cpu":
        pytest.skip("there is no engine for this CPU")
    x = torch.randn(2, 3, 100)
    model = torch.nn.Sequential(
        torch.nn.Linear(100, 37), torch.nn.GELU(), torch.nn.Linear(37, 5), torch.nn.ReLU()
    )
    tritonq.quantize_(model, config, ignore=(), calibration=[x] if config == "w8a8_static" else None)
    found = model(x)
    monkeypatch.setattr(backends, "engine", lambda: None)
    assert ops.backend("cpu") == "reference"
    assert same_bits(found, model(x))
