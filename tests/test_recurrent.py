"""Recurrent layers and cells: torch's own with dequantized weights, and exact products of our codes, are the oracle."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import tritonq
from tritonq import QuantizedLinear, reference

LAYERS: dict[str, Any] = {
    "LSTM": lambda **words: nn.LSTM(7, 5, **words),
    "GRU": lambda **words: nn.GRU(7, 5, **words),
    "RNN_TANH": lambda **words: nn.RNN(7, 5, **words),
    "RNN_RELU": lambda **words: nn.RNN(7, 5, nonlinearity="relu", **words),
    "projected": lambda **words: nn.LSTM(7, 5, proj_size=3, **words),
}
CELLS: dict[str, Any] = {
    "LSTMCell": lambda **words: nn.LSTMCell(7, 5, **words),
    "GRUCell": lambda **words: nn.GRUCell(7, 5, **words),
    "RNNCell": lambda **words: nn.RNNCell(7, 5, **words),
    "RNNCell_relu": lambda **words: nn.RNNCell(7, 5, nonlinearity="relu", **words),
}


class Host(nn.Module):
    """A model with one layer, called `rnn`."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, *inputs: Any) -> Any:
        return self.rnn(*inputs)


def quantized(layer: nn.Module, scheme: Any = "w8a16") -> Any:
    return tritonq.quantize_(Host(copy.deepcopy(layer)).eval(), {"rnn": scheme}).rnn


def dequantized(layer: nn.Module, ours: nn.Module) -> Any:
    """The float layer with the weights that the quantized one stands for."""
    oracle = copy.deepcopy(layer).eval()
    for name, part in ours.named_children():
        assert isinstance(part, QuantizedLinear)
        kind, _, suffix = name.partition("_")
        weight = getattr(oracle, f"weight_{kind}" + (f"_{suffix}" if suffix else ""))
        weight.data = part.dequantize()
    return oracle


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors(part)]


def assert_close(found: Any, expected: Any, tolerance: float = 2e-6) -> None:
    for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def initial(layer: nn.RNNBase, batch: tuple[int, ...]) -> Any:
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    hidden = torch.randn(count, *batch, layer.proj_size or layer.hidden_size)
    return (hidden, torch.randn(count, *batch, layer.hidden_size)) if isinstance(layer, nn.LSTM) else hidden


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 3, "bias": False, "batch_first": True, "dropout": 0.5},
        {"bidirectional": True, "batch_first": True},
    ],
    ids=["one", "two_ways", "deep", "batch_first"],
)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_sequences_equal_torchs_with_dequantized_weights(kind, words):
    layer = LAYERS[kind](**words).eval()
    ours = quantized(layer)
    oracle = dequantized(layer, ours)
    x = torch.randn(4, 3, 7)
    batch = x.shape[0] if layer.batch_first else x.shape[1]
    with torch.no_grad():
        for inputs in (
            (x,),
            (x, initial(layer, (batch,))),
            (x[:, 0],),
            (x[:, 0], initial(layer, ())),
            (x[:1],),
            (x[:, :0] if not layer.batch_first else x[:0],),
        ):
            assert_close(ours(*inputs), oracle(*inputs))
        lengths = torch.tensor([2, 5, 1, 5])
        padded = torch.randn(4, 5, 7)
        packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
        assert_close(ours(packed), oracle(packed))
        found, expected = (
            each(packed, state)[0] for state in [initial(layer, (4,))] for each in (ours, oracle)
        )
        assert_close(found, expected)
        assert torch.equal(found.batch_sizes, expected.batch_sizes)
        assert torch.equal(found.unsorted_indices, expected.unsorted_indices)
        ordered = pack_sequence([padded[0, :3], padded[1, :2]])
        assert_close(ours(ordered), oracle(ordered))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_equal_torchs_with_dequantized_weights(kind, bias):
    cell = CELLS[kind](bias=bias)
    ours = quantized(cell)
    oracle = dequantized(cell, ours)
    x = torch.randn(3, 7)
    hidden = torch.randn(3, 5)
    state = (hidden, torch.randn(3, 5)) if kind == "LSTMCell" else hidden
    alone = tuple(part[0] for part in state) if kind == "LSTMCell" else hidden[0]
    with torch.no_grad():
        for inputs in ((x,), (x, state), (x[0],), (x[0], alone), (x[:0],)):
            assert_close(ours(*inputs), oracle(*inputs))


def exact_product(part: QuantizedLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """(the codes of x, x · Wᵀ + b computed of codes) as the numerics' contract has it."""
    codes, scale, _ = reference.quantize_per_token(x, True)
    sums = (codes.long() @ part.int_weight().long().t()).float()
    assert part.bias is not None
    return codes, sums * scale * part.scales.reshape(1, -1) + part.bias


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"])
def test_dynamic_codes_are_those_of_the_reference_at_every_step(kind):
    layer = LAYERS[kind]()
    ours = quantized(layer, "w8a8")
    seen: list[Tensor] = []
    ours.hh_l0.register_forward_pre_hook(
        lambda module, args: seen.append(reference.quantize_per_token(args[0], True)[0])
    )
    calls: list[int] = []
    ours.ih_l0.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    x, h, c = torch.randn(6, 3, 7), torch.randn(3, 5), torch.randn(3, 5)
    with torch.no_grad():
        output, _ = ours(x, (h[None], c[None]) if kind == "LSTM" else h[None])
        for index in range(6):
            gates = exact_product(ours.ih_l0, x[index])[1]
            codes, recurrent = exact_product(ours.hh_l0, h)
            assert torch.equal(seen[index], codes)
            if kind == "LSTM":
                i, f, g, o = (gates + recurrent).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif kind == "GRU":
                (r, z, n), (hr, hz, hn) = gates.chunk(3, 1), recurrent.chunk(3, 1)
                n = (n + (r + hr).sigmoid() * hn).tanh()
                h = (z + hz).sigmoid() * (h - n) + n
            else:
                h = (gates + recurrent).tanh() if kind == "RNN_TANH" else (gates + recurrent).relu()
            assert torch.equal(output[index], h)
    assert calls == [18]  # all steps' inputs in one product


def torch_dynamic(model: nn.Module) -> nn.Module:
    theirs = pytest.importorskip("torch.ao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.Linear}
        return theirs.quantize_dynamic(model, kinds, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.LSTM(64, 48, 2, bidirectional=True), (20, 5, 64)),
        (lambda: nn.GRU(64, 48, 2, batch_first=True), (5, 20, 64)),
        (lambda: nn.LSTMCell(64, 48), (9, 64)),
        (lambda: nn.GRUCell(64, 48), (9, 64)),
        (lambda: nn.RNNCell(64, 48), (9, 64)),
    ],
)
def test_the_error_is_no_larger_than_torchs(make, shape):
    model, x = Host(make()).eval(), torch.randn(shape)
    with torch.no_grad():
        expected = tensors(model(x))
        theirs = tensors(torch_dynamic(model)(x))
        ours = tensors(tritonq.quantize_dynamic(model)(x))

    def error(found: list[Tensor]) -> float:
        return sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True)) ** 0.5

    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    assert 0 < error(ours) <= error(theirs)


def every_kind() -> nn.ModuleDict:
    cells: dict[str, nn.Module] = {name: make() for name, make in CELLS.items()}
    return nn.ModuleDict({"fc": nn.Linear(8, 8), **{n: m() for n, m in LAYERS.items()}, **cells})


def taken(model: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}


@pytest.mark.filterwarnings("ignore:.* of the weights stay in float:UserWarning")
def test_what_quantize_dynamic_takes_by_default_and_by_name():
    default = {"fc", "LSTM", "GRU", "projected", *CELLS}
    assert taken(tritonq.quantize_dynamic(every_kind())) == default
    assert taken(tritonq.quantize_(every_kind(), "w8a16")) == default
    assert taken(tritonq.quantize_dynamic(every_kind(), {nn.GRU})) == {"GRU"}
    assert taken(tritonq.quantize_dynamic(every_kind(), {nn.RNN, nn.RNNCell})) == {
        *("RNN_TANH", "RNN_RELU", "RNNCell", "RNNCell_relu")
    }
    assert taken(tritonq.quantize_dynamic(every_kind(), {"RNN_RELU", "GRUCell"})) == {"RNN_RELU", "GRUCell"}
    assert taken(tritonq.quantize_(every_kind(), {"LSTM": None, "_default": "w8a16"})) == default - {
        *("LSTM", "projected")
    }
    assert taken(tritonq.quantize_(every_kind(), "w8a16", ignore=["GRU", nn.RNNCellBase])) == {
        *("fc", "LSTM", "projected")
    }


def test_inherited_configs_leave_rnn_alone():
    model = nn.ModuleDict({"block": every_kind()})
    found = tritonq.quantize_dynamic(model, {"block"})["block"]
    assert taken(found) == {"fc", "LSTM", "GRU", "projected", *CELLS}


def test_layers_that_compute_something_else_stay():
    class Own(nn.LSTM):
        def forward(self, *inputs: Any) -> Any:
            return super().forward(*inputs)

    model: Any = nn.ModuleDict({"own": Own(4, 4), "fc": nn.Linear(4, 4), "normed": nn.LSTM(4, 4)})
    nn.utils.parametrizations.weight_norm(model["normed"], "weight_hh_l0")
    assert taken(tritonq.quantize_dynamic(model)) == {"fc"}


@pytest.mark.filterwarnings("ignore:.* of the weights stay in float:UserWarning")
def test_static_configs_leave_recurrent_layers_in_float_or_are_refused():
    with pytest.raises(ValueError, match=r"LSTM 'LSTM' must have float or dynamic .*found w8a8_static"):
        tritonq.quantize_(every_kind(), {"LSTM": "w8a8_static"}, calibration=[torch.randn(2, 8)])
    host: Any = nn.Sequential(nn.Linear(7, 7), nn.LSTM(7, 5))
    tritonq.quantize_(host, "w8a8_static", calibration=[torch.randn(3, 7)])
    assert isinstance(host[1], nn.LSTM)


def test_a_prepared_model_and_training():
    model = Host(nn.LSTM(7, 5, 2, dropout=0.5))
    prepared = tritonq.prepare(model, "w8a8")
    assert isinstance(model.rnn, nn.LSTM)
    x = torch.randn(4, 3, 7)
    assert_close(prepared.eval()(x), model.eval()(x))  # not rounded yet
    direct = tritonq.quantize_dynamic(model)
    assert torch.equal(tritonq.convert(prepared)(x)[0], direct(x)[0])
    trained = tritonq.prepare_qat(model.train(), "w8a8")
    trained(x)[0].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in trained.named_parameters()}
    assert len(gradients) == 8
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    expected = trained.eval()(x)
    assert_close(tritonq.convert(trained)(x), expected)


def test_dropout_lies_between_layers_in_training_only():
    layer = nn.GRU(7, 5, 2, dropout=1.0)
    ours = quantized(layer)
    x = torch.randn(4, 3, 7)
    oracle = dequantized(layer, ours)
    assert_close(ours(x), oracle(x))
    assert_close(ours.train()(x), oracle.train()(x))  # everything between the layers is dropped


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w8a8", "w4a8"])
def test_saving_loading_copying_and_moving(tmp_path, scheme):
    float_model = nn.ModuleDict({"a": nn.LSTM(7, 5, bidirectional=True), "b": nn.GRUCell(5, 6, bias=False)})
    model: Any = tritonq.quantize_(copy.deepcopy(float_model).eval(), scheme)
    x, h = torch.randn(4, 3, 7), torch.randn(3, 5)
    expected = [*tensors(model["a"](x)), model["b"](h)]

    def assert_equal(other: Any) -> None:
        for ours, theirs in zip([*tensors(other["a"](x)), other["b"](h)], expected, strict=True):
            assert torch.equal(ours, theirs)

    names = set(model.state_dict())
    assert {"a.ih_l0.weight_scale", "a.hh_l0_reverse.bias", "b.hh.weight_scale"} <= names
    assert not any(name.startswith("a.weight") for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # K is no multiple of the group
        tritonq.save(model, tmp_path)
    loaded = tritonq.load(tmp_path, copy.deepcopy(float_model).eval())
    assert_equal(loaded)
    again = tritonq.quantize_(
        nn.ModuleDict({"a": nn.LSTM(7, 5, bidirectional=True), "b": nn.GRUCell(5, 6, False)}), scheme
    )
    again.load_state_dict(model.state_dict())
    assert_equal(again.eval())
    assert_equal(tritonq.load(tmp_path, again))
    assert_equal(copy.deepcopy(model))
    assert_equal(pickle.loads(pickle.dumps(model)))
    half: Any = copy.deepcopy(model).to(torch.bfloat16)
    assert half["a"](x.bfloat16())[0].dtype == torch.bfloat16
    assert torch.equal(half["a"].hh_l0.int_weight(), model["a"].hh_l0.int_weight())
    rows = {row.name: row.scheme for row in tritonq.summary(model).rows}
    assert rows["a.ih_l0_reverse"] == rows["b.hh"] == scheme


def test_a_failed_load_leaves_the_layer(tmp_path):
    tritonq.save(tritonq.quantize_(Host(nn.LSTM(7, 5)), "w8a16"), tmp_path)
    other: Any = Host(nn.LSTM(7, 6))
    layer: Any = other.rnn
    with pytest.raises(ValueError, match=r"rnn\.ih_l0"):
        tritonq.load(tmp_path, other)
    assert other.rnn is layer
    assert isinstance(layer(torch.randn(2, 7))[0], Tensor)


@pytest.mark.parametrize("inplace", [True, False])
def test_bad_weights_are_named_and_the_model_stays(inplace):
    model: Any = Host(nn.LSTM(7, 5))
    layer = model.rnn
    layer.weight_hh_l0.data[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"Linear 'rnn.hh_l0': weight must be finite, found 1 NaN"):
        tritonq.quantize_dynamic(model, inplace=inplace)
    with pytest.raises(ValueError, match=r"rnn.hh_l0"):
        tritonq.prepare(model, "w8a16", inplace=inplace)
    assert model.rnn is layer


def test_hooks_and_attributes_stay_and_float_weights_go():
    model: Any = Host(nn.LSTM(7, 5))
    model.rnn.tag = "mine"
    calls: list[int] = []
    handle = model.rnn.register_forward_hook(lambda *parts: calls.append(1))
    tritonq.quantize_(model, "w8a16")
    model.rnn.flatten_parameters()
    model(torch.randn(2, 7))
    handle.remove()
    model(torch.randn(2, 7))
    assert (model.rnn.tag, calls) == ("mine", [1])
    assert not hasattr(model.rnn, "_flat_weights")


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ((torch.zeros(2, 3, 6),), ValueError, r"LSTM 'rnn': input must have .*7 features.*\[2, 3, 6\]"),
        ((torch.zeros(7),), ValueError, r"2 or 3 dimensions .*found shape \[7\]"),
        ((torch.zeros(0, 3, 7),), ValueError, "at least one time step, found none"),
        ((torch.zeros(2, 3, 7, dtype=torch.int64),), TypeError, "floating-point tensor, found torch.int64"),
        (([[0.0] * 7],), TypeError, "found list"),
        ((torch.zeros(2, 3, 7), torch.zeros(1, 3, 5)), TypeError, r"hx must be a tuple \(h_0, c_0\)"),
        (
            (torch.zeros(2, 3, 7), (torch.zeros(1, 3, 5), torch.zeros(1, 2, 5))),
            ValueError,
            r"LSTM 'rnn': c_0 must have shape \[1, 3, 5\], found \[1, 2, 5\]",
        ),
    ],
)
def test_bad_inputs(inputs, kind, message):
    ours = quantized(nn.LSTM(7, 5))
    with pytest.raises(kind, match=message):
        ours(*inputs)


def test_bad_inputs_of_cells_and_a_layer_alone():
    cell = quantized(nn.GRUCell(7, 5))
    with pytest.raises(ValueError, match=r"GRUCell 'rnn': h_0 must have shape \[2, 5\], found \[2, 4\]"):
        cell(torch.zeros(2, 7), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"GRUCell 'rnn': input must have 1 or 2 dimensions"):
        cell(torch.zeros(2, 2, 7))
    with pytest.raises(
        ValueError, match=r"found LSTM, which cannot replace itself: wrap it in nn\.Sequential"
    ):
        tritonq.quantize_dynamic(nn.LSTM(4, 4))


def test_an_element_with_nan_touches_no_other():
    ours = quantized(nn.LSTM(7, 5), "w8a8")
    x = torch.randn(4, 3, 7)
    clean = ours(x)[0]
    x[1, 1, 2] = float("nan")
    found = ours(x)[0]
    assert torch.equal(found[:, [0, 2]], clean[:, [0, 2]])
    assert torch.equal(found[0, 1], clean[0, 1])
    assert found[1:, 1].isnan().all()
