"""The benchmark of a static Llama block: what it counts, and that it prints no time for a wrong result."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import static_block
from benchmarks.llama_block import SHAPES, BlockShape


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SHAPES, "smollm2-135m", BlockShape(32, 64, 4, 2))


def test_a_chained_block_moves_less(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tritonq.util.timing._CPU_BUDGET_SECONDS", 0)
    file = tmp_path / "results.json"
    arguments = ["--shape", "smollm2-135m", "--tokens", "8", "--json", str(file)]
    assert static_block.main(arguments) == 0
    rows = {row["scheme"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == list(static_block.SCHEMES)
    # Both norms, both sums, and the product of gate and up.
    assert rows["static, chained"]["edges"] == 5
    assert rows["static, chained"]["activation_megabytes"] < 0.7 * rows["static"]["activation_megabytes"]
    assert rows["static, chained"]["error"] < 1.1 * rows["static"]["error"] < 0.05
    assert "static, chained" in capsys.readouterr().out


def test_a_wrong_result_gets_no_time(capsys, monkeypatch):
    monkeypatch.setattr(static_block, "ALLOWED_ERROR", 1e-6)
    assert static_block.main(["--shape", "smollm2-135m", "--tokens", "8"]) == 1
    assert capsys.readouterr().out.count("WRONG") == 3


def test_bytes_of_operators():
    model, x = nn.Sequential(nn.Linear(8, 4), nn.Flatten(0), nn.ReLU()).eval(), torch.randn(2, 8)
    with torch.no_grad():
        # Linear: 16 floats in, 8 out; flatten is a view; relu: 8 in, 8 out.
        assert static_block.activation_bytes(model, x) == 4 * (16 + 8 + 8 + 8)
