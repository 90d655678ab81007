"""Quantized embeddings: torch's own with dequantized tables are the oracle, bit for bit."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tritonq import QuantizedLinear

V, D = 37, 50
SCHEMES: dict[str, Any] = {
    "w8a16": "w8a16",
    "affine": tritonq.W8A16(symmetric=False),
    "groups": tritonq.W8A16(group_size=16),
    "w4a16": "w4a16",
    "int4_affine": tritonq.W4A16(group_size=20, symmetric=False),
    "int4_rows": tritonq.W4A16(group_size=-1),
    "w4a8": "w4a8",
}


class Tied(nn.Module):
    """An embedding and a head with one weight."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V, bias=bias)
        self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.fc(self.embed(ids)))


def quantized(table: nn.Module, scheme: Any = "w8a16") -> Any:
    return tritonq.quantize_(nn.ModuleDict({"table": copy.deepcopy(table)}), {"table": scheme})["table"]


def dequantized(table: Any, ours: Any) -> Any:
    oracle = copy.deepcopy(table)
    oracle.weight.data = ours.rows.dequantize()
    return oracle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_gathered_as_from_the_dequantized_table(scheme, dtype):
    table = nn.Embedding(V, D, padding_idx=3).to(dtype)
    ours = quantized(table, SCHEMES[scheme])
    assert isinstance(ours.rows, QuantizedLinear)
    oracle = dequantized(table, ours)
    for ids in (
        torch.randint(V, (5, 2, 3)),
        torch.tensor(V - 1),
        torch.empty(0, 4, dtype=torch.int64),
        torch.tensor([3, 3, 0], dtype=torch.int32),
    ):
        found = ours(ids)
        assert found.dtype == dtype
        assert torch.equal(found, oracle(ids))
    bits = ours.rows.config.weight.bits
    error = (ours(torch.arange(V)).float() - table.weight.float()).norm() / table.weight.float().norm()
    assert 0 < error < (0.02 if bits == 8 else 0.2)


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
def test_bags(mode, padding, last):
    table = nn.EmbeddingBag(V, D, mode=mode, padding_idx=padding, include_last_offset=last)
    ours = quantized(table, "w4a16")
    oracle = dequantized(table, ours)
    ids = torch.cat([torch.randint(V, (11,)), torch.tensor([3, 3])])
    offsets = torch.tensor([0, 4, 4, 9, 13] if last else [0, 4, 4, 9])
    assert torch.equal(ours(ids, offsets), oracle(ids, offsets))
    if not last:
        square = torch.randint(V, (4, 6))
        assert torch.equal(ours(square), oracle(square))
    if mode == "sum":
        weights = torch.randn(13)
        found, expected = (each(ids, offsets, per_sample_weights=weights) for each in (ours, oracle))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_embeddings_are_taken_where_they_are_named():
    def model() -> Any:
        tables = {"a": nn.Embedding(V, D), "bag": nn.EmbeddingBag(V, D), "fc": nn.Linear(D, D)}
        return nn.ModuleDict({**tables, "normed": nn.Embedding(V, D, max_norm=1.0)})

    def taken(found: nn.Module) -> set[str]:
        return {name for name, part in found.named_modules() if isinstance(part, QuantizedLinear)}

    assert taken(tritonq.quantize_dynamic(model())) == {"fc"}
    assert taken(tritonq.quantize_(model(), "w8a16")) == {"fc"}
    assert taken(tritonq.quantize_(model(), {"re:.*": "w8a16"})) == {"fc"}
    both = {"a.rows", "bag.rows"}
    found = tritonq.quantize_dynamic(model(), dtype=torch.quint8)
    assert taken(found) == both
    assert found["a"].rows.config == tritonq.W8A16(symmetric=False)
    assert taken(tritonq.quantize_dynamic(model(), {nn.Embedding}, dtype=torch.quint8)) == {"a.rows"}
    assert taken(tritonq.quantize_(model(), {nn.Embedding: "w4a16", "_default": "w8a8"})) == {"a.rows", "fc"}
    with pytest.raises(ValueError, match=r"Embedding 'a' must have float or dynamic .*found w8a8_static"):
        tritonq.quantize_(model(), {"a": "w8a8_static"}, calibration=[torch.randn(2, D)])


@pytest.mark.filterwarnings("ignore")
def test_the_error_is_torchs_but_for_rounded_zero_points():
    theirs = pytest.importorskip("torch.ao.quantization")
    table = nn.ModuleDict({"table": nn.Embedding(V, D)})
    ids = torch.arange(V)
    expected = table["table"](ids)
    spec = {nn.Embedding: theirs.float_qparams_weight_only_qconfig}
    torchs = theirs.quantize_dynamic(table, spec, dtype=torch.quint8)["table"](ids)
    ours = tritonq.quantize_dynamic(table, {nn.Embedding}, dtype=torch.quint8)
    error, limit = ((found - expected).norm() for found in (ours["table"](ids), torchs))
    assert 0 < error <= limit * 1.05  # torch's zero points are floats


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w8a8"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_tied_head_is_quantized_once_and_stays_tied(scheme, bias, tmp_path):
    model: Any = tritonq.quantize_(Tied(bias).eval(), {nn.Embedding: scheme, "_default": scheme})
    assert model.embed.rows is model.head
    ids = torch.randint(V, (2, 6))
    expected = model(ids)
    assert torch.equal(model.embed(ids), model.head.dequantize()[ids])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # K is no multiple of the group
        tritonq.save(model, tmp_path)
    info = tritonq.info(tmp_path)
    assert info is not None
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size < V * D + D * D + 4 * (V + D) * 4 + 4096  # the table is there once
    separate = Tied(bias).eval()
    separate.head.weight = nn.Parameter(torch.randn(V, D))
    for target in (Tied(bias).eval(), separate, copy.deepcopy(model)):
        loaded: Any = tritonq.load(tmp_path, target)
        assert loaded.embed.rows is loaded.head
        assert torch.equal(loaded(ids), expected)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.embed.rows is copied.head
        assert torch.equal(copied(ids), expected)
    again: Any = tritonq.quantize_(Tied(bias).eval(), {nn.Embedding: scheme, "_default": scheme})
    again.load_state_dict(model.state_dict())
    assert again.embed.rows is again.head
    assert torch.equal(again(ids), expected)
    assert len(tritonq.summary(model).rows) == 2


def test_a_head_of_another_scheme_gets_a_weight_of_its_own():
    with pytest.warns(UserWarning, match="weight of embed is tied to head|weight of head is tied to embed"):
        model: Any = tritonq.quantize_(Tied(), {nn.Embedding: "w4a16", "_default": "w8a16"})
    assert (model.embed.rows.config.scheme, model.head.config.scheme) == ("w4a16", "w8a16")


def test_preparing_training_and_saving_alone(tmp_path):
    model: Any = Tied()
    config = {nn.Embedding: "w8a16", "_default": "w8a16"}
    ids = torch.randint(V, (2, 6))
    prepared: Any = tritonq.prepare(model, config)
    torch.testing.assert_close(prepared(ids), model(ids))
    assert torch.equal(tritonq.convert(prepared)(ids), tritonq.quantize_(copy.deepcopy(model), config)(ids))
    trained: Any = tritonq.prepare_qat(model, config)
    assert trained.embed.rows is trained.head
    trained(ids).square().sum().backward()
    assert trained.head.weight.grad.abs().sum() > 0
    converted: Any = tritonq.convert(trained.eval())
    assert torch.equal(converted.embed(ids), trained.embed(ids))
    alone = tritonq.quantize_dynamic(nn.ModuleDict({"t": nn.Embedding(V, D)}), dtype=torch.quint8)
    assert set(alone.state_dict()) == {
        f"t.rows.weight_{part}" for part in ("scale", "packed", "shape", "zero_point")
    }
    tritonq.save(alone, tmp_path)
    with torch.device("meta"):
        empty = nn.ModuleDict({"t": nn.Embedding(V, D)})
    assert torch.equal(tritonq.load(tmp_path, empty)["t"](ids), alone["t"](ids))  # type: ignore[index]


def test_bad_input():
    ours = quantized(nn.Embedding(V, D))
    with pytest.raises(
        TypeError, match=r"Embedding 'table': indices must be int32 or int64, found torch\.float32"
    ):
        ours(torch.zeros(2))
    with pytest.raises(IndexError, match=r"'table': indices must lie in 0 … 36, found 37"):
        ours(torch.tensor([1, V]))
    with pytest.raises(IndexError, match="found -1"):
        ours(torch.tensor([-1, 2]))
    model: Any = nn.ModuleDict({"table": nn.Embedding(V, D)})
    model["table"].weight.data[1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"Linear 'table\.rows': weight must be finite, found 1 NaN"):
        tritonq.quantize_(model, {"table": "w8a16"})
    assert isinstance(model["table"], nn.Embedding)
