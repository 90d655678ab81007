"""The table of layers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import tritonq


def model() -> Any:
    layers = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 8))
    return tritonq.quantize_(layers, {"0": "w4a16", "2": "w8a8"})


def test_rows():
    found = tritonq.summary(model())
    assert [
        (row.name, row.scheme, row.in_features, row.out_features, row.group_size) for row in found.rows
    ] == [
        ("0", "w4a16", 256, 64, 128),
        ("2", "w8a8", 64, 32, None),
        ("3", "float", 32, 8, None),
    ]
    int4, int8, plain = found.rows
    assert int4.weight_bytes == 256 * 64 // 2 + 4 * 2 * 64  # codes and float32 scales
    assert int8.weight_bytes == 64 * 32 + 4 * 32 + 4 * 32  # and sums of codes
    assert plain.weight_bytes == 2 * plain.float_bytes == 4 * 32 * 8
    assert int4.weight_sqnr is not None
    assert int8.weight_sqnr is not None
    assert 18 < int4.weight_sqnr < 30 < int8.weight_sqnr < 60
    assert plain.weight_sqnr is None
    assert found.weight_bytes == sum(row.weight_bytes for row in found.rows)


def test_table():
    lines = str(tritonq.summary(model())).splitlines()
    assert lines[0].split() == [
        "layer",
        "scheme",
        "in",
        "out",
        "group",
        "bytes",
        "fp16",
        "bytes",
        "SQNR",
        "dB",
    ]
    assert len({line.index("w4a16") for line in lines if "w4a16" in line} | {lines[0].index("scheme")}) == 1
    assert lines[-1].startswith("total")
    assert f"{tritonq.summary(model()).weight_bytes:,}" in lines[-1]


def test_dictionary_is_json():
    found = tritonq.summary(model()).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["layers"][0]["scheme"] == "w4a16"
    assert found["float_bytes"] == 2 * (256 * 64 + 64 * 32 + 32 * 8)


def test_no_linear_a_lone_linear_and_no_module():
    assert str(tritonq.summary(nn.ReLU())).splitlines()[-1].split() == ["total", "0", "0"]
    assert tritonq.summary(nn.Linear(4, 4)).rows[0].name == "(model)"
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, found Tensor"):
        tritonq.summary(torch.ones(3))  # type: ignore[arg-type]


def test_shared_layers_are_listed_once():
    shared = nn.Linear(4, 4)
    assert len(tritonq.summary(nn.Sequential(shared, shared)).rows) == 1


def test_every_parameter_is_counted():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Embedding(7, 64), nn.LayerNorm(64)
            self.fc, self.head = nn.Linear(64, 32), nn.Linear(64, 7, bias=False)
            self.head.weight = self.embed.weight
            self.experts = nn.Parameter(torch.zeros(2, 3, 4))

    found = tritonq.summary(tritonq.quantize_(Model(), "w8a16", ignore=["head", "embed"]))
    assert found.others == {"experts": 96, "norm.weight": 256, "norm.bias": 256, "fc.bias": 128}
    assert found.model_bytes == 64 * 32 + 4 * 32 + 4 * 7 * 64 + 736
    assert f"total of the model: {found.model_bytes:,} bytes" in str(found)
    assert "  experts: 96 bytes" in str(found)
