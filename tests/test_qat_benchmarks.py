"""The benchmarks of quantization-aware training: they compare before they time, and give no time to what is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import fake_quantize, qat_step
from benchmarks.llama_block import SHAPES, BlockShape


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("tritonq.util.timing._CPU_BUDGET_SECONDS", 0)
    monkeypatch.setattr(qat_step, "STEPS", 1)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setitem(SHAPES, "smollm2-135m", BlockShape(32, 64, 4, 2))


def test_a_training_step(tmp_path, capsys):
    file = tmp_path / "results.json"
    assert qat_step.main(["--shape", "smollm2-135m", "--tokens", "8", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["scheme"] for row in rows] == list(qat_step.SCHEMES)
    assert all(row["ratio"] > 0 and row["sqnr"] > 100 for row in rows)
    assert "QAT / float" in capsys.readouterr().out


def test_a_broken_promise_gets_no_time(monkeypatch, capsys):
    monkeypatch.setattr(qat_step, "ALLOWED_SQNR", float("inf"))
    arguments = ["--shape", "smollm2-135m", "--tokens", "8", "--schemes", "w8a8"]
    assert qat_step.main(arguments) == 1
    assert "WRONG" in capsys.readouterr().out


def test_fake_quantization(tmp_path):
    file = tmp_path / "results.json"
    assert fake_quantize.main(["--shape", "24x256", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["spec"], row["way"]) for row in rows][:4] == [
        ("", "copy"),
        ("int8 channel", "tritonq"),
        ("int8 channel", "compiled"),
        ("int8 channel", "torch"),
    ]
    assert all(row["forward_microseconds"] > 0 for row in rows)


def test_fake_quantization_that_differs_gets_no_time(monkeypatch, capsys):
    original = fake_quantize.ops.fake_quantize
    monkeypatch.setattr(fake_quantize.ops, "fake_quantize", lambda x, *grid: original(x, *grid) * 1.01)
    assert fake_quantize.main(["--shape", "8x256"]) == 1
    assert "WRONG" in capsys.readouterr().out
