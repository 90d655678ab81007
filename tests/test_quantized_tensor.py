"""What a QuantizedTensor does, and that it refuses everything else by naming DeQuantStub."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import tritonq
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.nn.stubs import DeQuantize, DeQuantStub, Quantize, QuantStub

SCALE, ZERO_POINT = 0.1, -3


def quantized(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    data = torch.randint(-128, 128, shape, dtype=torch.int8)
    return QuantizedTensor(data, torch.tensor([SCALE]), torch.tensor([ZERO_POINT], dtype=torch.int8), dtype)


def same(found: object, expected: torch.Tensor) -> None:
    assert isinstance(found, QuantizedTensor)
    assert torch.equal(found.dequantize(), expected)


def test_values_and_words():
    q = quantized(2, 3, 4, dtype=torch.bfloat16)
    expected = ((q.data.float() - ZERO_POINT) * torch.tensor(SCALE)).to(torch.bfloat16)
    assert torch.equal(q.dequantize(), expected)
    assert torch.equal(torch.dequantize(q), expected)
    assert q.int_repr() is q.data
    assert q.q_scale() == pytest.approx(SCALE)
    assert q.q_zero_point() == ZERO_POINT
    assert q.dtype == torch.bfloat16
    assert (q.shape, q.size(), q.size(-1), q.dim(), q.ndim, q.numel(), len(q)) == (
        (2, 3, 4),
        (2, 3, 4),
        4,
        3,
        3,
        24,
        2,
    )
    assert q.device == torch.device("cpu")
    assert "scale=0.1, zero_point=-3" in repr(q) == f"{q}"


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.relu(),
        torch.relu,
        functional.relu,
        nn.ReLU(),
        lambda x: x.reshape(6, 4),
        lambda x: x.reshape((4, -1)),
        lambda x: torch.reshape(x, (-1,)),
        lambda x: x.view(2, 12),
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, 0, 1),
        nn.Flatten(),
        lambda x: x.transpose(0, 1),
        lambda x: torch.transpose(x, 1, 0),
        lambda x: x.transpose(-3, -2),
        lambda x: torch.flatten(input=x, start_dim=1),
        lambda x: torch.relu(input=x),
        lambda x: functional.relu(input=x),
        lambda x: torch.reshape(input=x, shape=(4, 6)),
        lambda x: x.reshape(shape=(4, 6)),
        lambda x: x.view(size=(4, 6)),
        lambda x: torch.transpose(input=x, dim0=0, dim1=1),
        lambda x: functional.dropout(input=x, training=False),
        lambda x: x.unflatten(-1, (2, 2)),
        lambda x: torch.unflatten(x, 1, (3, 1)),
        nn.Unflatten(2, (2, 2)),
        lambda x: x[0],
        lambda x: x[:, 1:, ::2],
        lambda x: x[..., None, 2],
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x.contiguous(),
        lambda x: x.detach(),
        lambda x: x.to("cpu"),
        lambda x: x.to(torch.device("cpu"), non_blocking=True),
        nn.Identity(),
        nn.Dropout().eval(),
        lambda x: functional.dropout(x, 0.5, training=False),
        lambda x: nn.ReLU(inplace=True)(x.reshape(4, 6)),
        lambda x: torch.relu_(x),
    ],
)
def test_what_is_allowed_means_what_it_means_for_floats(operation):
    q = quantized(2, 3, 4)
    expected = operation(q.dequantize())
    same(operation(q), expected)


def test_relu_in_place_writes_to_the_tensor_and_its_views():
    q = quantized(8)
    view = q[:4]
    assert functional.relu(q, inplace=True) is q
    assert int(q.data.min()) >= ZERO_POINT
    assert int(view.data.min()) >= ZERO_POINT


def test_scalars_and_empty_tensors():
    scalar = quantized(4)[1]
    same(scalar.relu(), scalar.dequantize().relu())
    assert scalar.dequantize().shape == ()
    assert quantized(0, 4).relu().shape == (0, 4)


@pytest.mark.parametrize(
    "operation",
    [
        operator.add,
        operator.mul,
        operator.matmul,
        operator.truediv,
        operator.iadd,
        operator.eq,
        operator.lt,
        lambda q, x: x + q,
        lambda q, x: 2 * q,
        lambda q, x: x @ q,
        lambda q, x: -q,
        lambda q, x: abs(q),
        lambda q, x: bool(q),
        lambda q, x: float(q),
        lambda q, x: q.__setitem__(0, 1),
        lambda q, x: 1 in q,
        lambda q, x: torch.sigmoid(q),
        lambda q, x: torch.add(x, q),
        lambda q, x: torch.cat([q, q]),
        lambda q, x: functional.linear(q, x),
        lambda q, x: functional.gelu(q),
        lambda q, x: nn.Linear(4, 4)(q),
        lambda q, x: nn.LayerNorm(4)(q),
        lambda q, x: functional.dropout(q),
        lambda q, x: nn.Dropout()(q),
        lambda q, x: x[q],
        lambda q, x: q.transpose(0, 2),
        lambda q, x: q.transpose(-1, 0),
        lambda q, x: q.view(torch.uint8),
        lambda q, x: q.to(torch.float16),
        lambda q, x: q.view(dtype=torch.uint8),
        lambda q, x: round(q),
        lambda q, x: round(q, 2),
        lambda q, x: q << 1,
        lambda q, x: 1 >> q,
        lambda q, x: divmod(q, 2),
        lambda q, x: divmod(2, q),
        lambda q, x: f"{q:.3f}",
        lambda q, x: q.transpose("a", "b"),
        lambda q, x: q.unflatten("a", (1, 2)),
        lambda q, x: torch.sigmoid(input=q),
    ],
)
def test_everything_else_names_dequantstub(operation):
    with pytest.raises(TypeError, match=r"QuantizedTensor.*DeQuantStub"):
        operation(quantized(2, 3, 4), torch.randn(4, 4))


def test_missing_attributes_are_attribute_errors():
    q = quantized(2)
    assert not hasattr(q, "softmax")
    with pytest.raises(AttributeError, match=r"attribute 'mean'.*DeQuantStub"):
        q.mean()


def test_copies_and_pickles():
    q = quantized(2, 3)
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        same(other, q.dequantize())
    assert hash(q) == hash(q)
    assert list(map(len, q)) == [3, 3]


def test_stubs_are_identities():
    x = torch.randn(3)
    assert QuantStub()(x) is x
    assert DeQuantStub()(x) is x


def between_stubs() -> Any:
    quantize = Quantize(torch.tensor([SCALE]), torch.tensor([ZERO_POINT], dtype=torch.int8), symmetric=False)
    return nn.Sequential(quantize, nn.ReLU(), nn.Flatten(1), nn.Dropout(), nn.Identity(), DeQuantize()).eval()


def test_quantize_and_dequantize():
    model = between_stubs()
    x = torch.randn(2, 3, 4)
    found = model(x)
    assert (found - x.relu().flatten(1)).abs().max() <= SCALE / 2 + 1e-6
    assert DeQuantize()(x) is x
    with pytest.raises(TypeError, match="two QuantStubs in a row"):
        nn.Sequential(model[0], model[0])(x)
    assert "scale=0.1, zero_point=-3" in repr(model)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.ones(2, 4, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, 4, dtype=torch.bool), "torch.bool"),
        (torch.ones(2, 4, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(2, 4, dtype=torch.float64), "torch.float64"),
        ([[0.5]], "list"),
        (None, "NoneType"),
    ],
    ids=["int", "bool", "complex", "double", "list", "none"],
)
def test_a_converted_stub_takes_floats_alone(x, found):
    prepared = tritonq.prepare(tritonq.QuantWrapper(nn.Linear(4, 4)), "w8a8_static")
    prepared(torch.randn(2, 4))
    message = f"Quantize 'quant': input must be float32, float16 or bfloat16, found {found}"
    with pytest.raises(TypeError, match=message):
        tritonq.convert(prepared)(x)


def test_grid_survives_half_and_state_dict():
    model = between_stubs().half()
    assert model[0].scale.dtype == torch.float32
    assert model(torch.randn(2, 3).half()).dtype == torch.float16
    assert set(model.state_dict()) == {"0.scale", "0.zero_point"}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    model = between_stubs()
    x = torch.randn(2, 3, 4)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), model(x))
    head = torch.compile(model[:3], backend=backend, fullgraph=True)
    tail = torch.compile(model[3:], backend=backend, fullgraph=True)
    assert torch.equal(tail(head(x)), model(x))
