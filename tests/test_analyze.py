"""tritonq.analyze: every number against a plain computation, on models small enough to compute it in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tritonq.quantize.prepare import OBSERVER
from tritonq.select.select import PLAN

K, HIDDEN, N = 64, 48, 32


class Branches(nn.Module):
    """Two layers in a row, one beside them that is called by keyword, and one that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(K, HIDDEN)
        self.second = nn.Linear(HIDDEN, N)
        self.beside = nn.Linear(K, N, bias=False)
        self.never = nn.Linear(K, N)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.second(self.first(x).relu()) + self.beside(input=x)}


@pytest.fixture
def model() -> Branches:
    return Branches().train()


@pytest.fixture
def data() -> list[Tensor]:
    batches = [torch.randn(5, K), torch.randn(2, 3, K), torch.randn(0, K), torch.randn(1, K)]
    batches[1][..., 7] *= 30  # one column of outliers
    return batches


def sqnr(exact: Tensor, rounded: Tensor) -> float:
    return float(10 * torch.log10(exact.double().square().sum() / (exact - rounded).double().square().sum()))


def analyze(*arguments: Any, **words: Any) -> Any:
    """As Any: that what was reached has numbers is what the tests are about."""
    return tritonq.analyze(*arguments, **words)


def rows_of(found: tritonq.Analysis) -> dict[str, Any]:
    return {row.name: row for row in found.rows}


@pytest.mark.parametrize("config", ["w8a16", "w4a16", "w8a8", "w8a8_static", "w4a8"])
def test_numbers(model, data, config):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = analyze(model, config, data, filter_fn=lambda _, name: name != "never")
    assert [row.name for row in found.rows] == ["first", "second", "beside"]
    assert found.batches == 4
    x = torch.cat([batch.reshape(-1, K) for batch in data])
    with torch.no_grad():
        inputs = {"first": x, "second": model.first(x).relu(), "beside": x}
    for row in found.rows:
        linear, entering = model.get_submodule(row.name), inputs[row.name]
        # The layer alone in a model: quantize_ is the oracle.
        alone = tritonq.quantize_(nn.Sequential(linear), config, calibration=[entering])
        with torch.no_grad():
            assert row.quantized.output_sqnr == pytest.approx(
                sqnr(linear(entering), alone(entering)), abs=0.01
            )
        assert row.quantized.weight_sqnr == alone[0].weight_sqnr
        assert row.quantized.weight_bytes == alone[0].weight_bytes
        assert row.float_bytes == 4 * linear.in_features * linear.out_features
        assert row.input_amax == pytest.approx(float(entering.abs().max()))
        assert row.outlier_ratio == pytest.approx(
            float(entering.abs().max() / entering.square().mean().sqrt())
        )
        columns = entering.abs().amax(dim=0)
        assert row.channel_ratio == pytest.approx(float(columns.max() / columns.median()))
        assert row.quantized.error == pytest.approx(10 ** (-row.quantized.output_sqnr / 10))
        assert (row.higher.scheme, row.higher.error, row.higher.weight_bytes) == (
            "float",
            0.0,
            row.float_bytes,
        )
    # Nothing is left on the model.
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for module in model.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not hasattr(module, PLAN)
        assert OBSERVER not in module._modules


def test_input_per_token_and_per_tensor(model, data):
    x = torch.cat([batch.reshape(-1, K) for batch in data])
    token = x.abs().amax(dim=1, keepdim=True) / 127
    expected = sqnr(x, (x / token).round() * token)
    found = rows_of(analyze(model, "w8a8", data))["first"]
    assert found.quantized.input_sqnr == pytest.approx(expected, abs=1e-3)
    low, high = float(x.min()), float(x.max())
    step = (high - low) / 255
    zero = round(-128 - low / step)
    expected = sqnr(x, (((x / step).round() + zero).clamp(-128, 127) - zero) * step)
    found = rows_of(analyze(model, "w8a8_static", iter(data)))["first"]  # gone through twice all the same
    assert found.quantized.input_sqnr == pytest.approx(expected, abs=1e-3)
    assert rows_of(analyze(model, "w8a16", data))["first"].quantized.input_sqnr is None


def test_batch_split_does_not_matter(model, data):
    whole = [torch.cat([batch.reshape(-1, K) for batch in data])]
    once, split = (analyze(model, "w8a8_static", batches).to_dict() for batches in (whole, data))
    for one, other in zip(once["layers"][:3], split["layers"][:3], strict=True):
        for name in ("input_amax", "outlier_ratio", "channel_ratio"):
            assert one[name] == pytest.approx(other[name], rel=1e-6)
        for name in ("weight_sqnr", "input_sqnr", "output_sqnr"):
            assert one["quantized"][name] == pytest.approx(other["quantized"][name], rel=1e-4)


def test_outliers_are_seen(model, data):
    row = rows_of(analyze(model, "w8a8_static", data))["first"]
    assert row.channel_ratio > 10
    plain = rows_of(analyze(model, "w8a8_static", [torch.randn(12, K)]))["first"]
    assert plain.channel_ratio < 3
    assert plain.outlier_ratio < row.outlier_ratio
    assert plain.quantized.input_sqnr > row.quantized.input_sqnr + 6
    # What the docstring of outlier_ratio says, for a symmetric grid of a range that is used whole.
    config = tritonq.W8A8Static(activation_symmetric=True)
    row = rows_of(analyze(model, config, [torch.randn(500, K)]))["first"]
    assert row.quantized.input_sqnr == pytest.approx(52.9 - 20 * math.log10(row.outlier_ratio), abs=0.5)


def test_a_layer_never_reached(model, data):
    for config in ("w8a8_static", "w4a16"):
        found = analyze(model, config, data)
        row = rows_of(found)["never"]
        assert not row.reached
        assert row.quantized.weight_sqnr > 15
        assert (row.input_amax, row.quantized.output_sqnr, row.quantized.error) == (None, None, None)
        assert found.worst_first()[-1] is row
        assert str(found).endswith("not reached by the data: never")
        json.dumps(found.to_dict(), allow_nan=False)


def test_end_to_end(model, data):
    found = analyze(model, "w4a16", data, end_to_end=True, higher="w8a16")
    x = torch.cat([batch.reshape(-1, K) for batch in data])
    with torch.no_grad():
        exact = model(x)["logits"]
        for name in ("first", "second", "beside"):
            row = rows_of(found)[name]
            for effect in (row.quantized, row.higher):
                copy: Any = Branches()
                copy.load_state_dict(model.state_dict())
                tritonq.quantize_(copy, {name: effect.config})
                assert effect.model_sqnr == pytest.approx(sqnr(exact, copy(x)["logits"]), abs=0.01)
                assert effect.error == pytest.approx(10 ** (-effect.model_sqnr / 10))
    assert rows_of(found)["never"].quantized.model_sqnr is None


@pytest.mark.parametrize(
    "wrap", [lambda y: y, lambda y: (torch.ones(2, dtype=torch.int64), [y]), lambda y: {"a": y}]
)
def test_end_to_end_finds_the_output(wrap):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(K, N))

        def forward(self, x: Tensor) -> Any:
            return wrap(self.inner(x))

    (row,) = analyze(Wrapped(), "w4a16", [torch.randn(3, K)], end_to_end=True).rows
    assert row.quantized.model_sqnr == row.quantized.output_sqnr


def test_metric(model, data):
    x, wanted = torch.randn(40, K), torch.randn(40, N)

    def loss(network: nn.Module) -> Tensor:
        assert not network.training
        assert not torch.is_grad_enabled()
        return (network(x)["logits"] - wanted).square().mean()

    found = analyze(model, "w4a16", data, metric=loss)
    with torch.no_grad():
        exact = float(loss(model.eval()))
        assert found.metric == pytest.approx(exact)
        for name in ("first", "second", "beside"):
            copy: Any = Branches().eval()
            copy.load_state_dict(model.state_dict())
            tritonq.quantize_(copy, {name: "w4a16"})
            effect = rows_of(found)[name].quantized
            assert effect.metric_change == pytest.approx(float(loss(copy)) - exact, abs=1e-6)
            assert effect.error == effect.metric_change
    assert f"metric of the float model {exact:.6g}" in str(found)


def test_a_shared_layer_is_one_row():
    shared = nn.Linear(K, K)
    (row,) = analyze(nn.Sequential(shared, nn.ReLU(), shared), "w4a16", [torch.randn(9, K)]).rows
    assert row.name == "0"
    assert row.quantized.output_sqnr > 15


def test_stubs_take_no_part(data):
    class Stubs(Branches):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = tritonq.QuantStub(), tritonq.DeQuantStub()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.dequant(super().forward(self.quant(x))["logits"])}

    with_stubs, without = Stubs(), Branches()
    without.load_state_dict(with_stubs.state_dict())
    found, expected = (analyze(model, "w8a8_static", data).to_dict() for model in (with_stubs, without))
    assert found == expected
    assert not any(hasattr(module, PLAN) for module in with_stubs.modules())


def test_dtypes_and_configs_by_pattern(model, data):
    batches = [batch.bfloat16() for batch in data]
    with pytest.warns(UserWarning, match="'nowhere' matches no Linear layer"):
        found = analyze(
            model.bfloat16(),
            {"first": None, "second": "w8a8", "nowhere": "w8a16", "_default": "w4a16"},
            batches,
        )
    assert {row.name: row.quantized.scheme for row in found.rows} == {
        "second": "w8a8",
        "beside": "w4a16",
        "never": "w4a16",
    }
    assert all(row.float_bytes == 2 * row.in_features * row.out_features for row in found.rows)


def test_encoder_layers_of_torch_are_reached():
    """Their fused path would read weights instead of calling Linears."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    found = rows_of(analyze(nn.Sequential(layer), "w8a8_static", [torch.randn(2, 5, 32)]))
    assert found["0.linear1"].reached
    assert found["0.linear2"].reached


@pytest.mark.parametrize("case", ["input", "output", "static"])
def test_data_that_is_not_finite_names_the_layer(model, data, case):
    if case == "output":
        with torch.no_grad():
            model.first.weight.fill_(3e38)
        match = r"first: analyze needs finite activations, found NaN or Inf in its output"
    else:
        data[1][0, 0, 0] = math.nan
        match = r"first: .*found NaN or Inf"
    with pytest.raises(ValueError, match=match):
        analyze(model, "w8a8_static" if case == "static" else "w4a16", data)
    assert not any(hasattr(module, PLAN) or module._forward_hooks for module in model.modules())


def test_the_first_layer_that_ran_is_blamed(data):
    """The data is bad, not what a layer further back made of it, wherever that stands in the model."""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(N, 3), nn.Linear(K, N)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    data[0][0, 0] = math.inf
    with pytest.raises(
        ValueError, match="first: analyze needs finite activations, found NaN or Inf in its input"
    ):
        analyze(Backwards(), "w8a8", data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": []}, ValueError, "data must have at least one batch, found none"),
        ({"data": [], "config": "w8a8_static"}, ValueError, "data must have at least one batch, found none"),
        ({"data": torch.ones(2, K)}, TypeError, "data must be an iterable of batches .* found Tensor"),
        ({"data": [3]}, TypeError, "data batch 0 must be a tensor, tuple, list or dictionary, found int"),
        ({"config": {"first": None}}, ValueError, "nothing to quantize"),
        ({"config": "w3"}, ValueError, "config must be .* found 'w3'"),
        ({"higher": "w9"}, ValueError, "higher: config must be .* found 'w9'"),
        ({"metric": 3}, TypeError, "metric must be a function of the model or None, found 3"),
        ({"metric": max, "end_to_end": True}, ValueError, "end_to_end must be False with a metric"),
        ({"end_to_end": 1}, TypeError, "end_to_end must be True or False, found 1"),
        ({"metric": lambda _: math.nan}, ValueError, "the float model: the metric must be finite, found nan"),
        ({"model": nn.Linear(3, 3)}, ValueError, "found a Linear, which cannot replace itself"),
    ],
)
def test_bad_arguments(model, arguments, error, message):
    given: dict[str, Any] = {"model": model, "config": "w4a16", "data": [torch.randn(2, K)], **arguments}
    with pytest.raises(error, match=message):
        analyze(**given)
    assert not any(hasattr(module, PLAN) or module._forward_hooks for module in model.modules())


def test_a_model_without_float_output(model, data):
    class Choice(nn.Module):
        inner: Any

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)["logits"].argmax(-1)

    with pytest.raises(TypeError, match="end_to_end needs a model that returns a floating-point tensor"):
        analyze(Choice(), "w4a16", data, end_to_end=True)


def test_table_and_json(model, data, tmp_path: Path):
    found = analyze(model, "w8a8_static", data, higher="w8a16")
    header, _, *lines = str(found).splitlines()
    assert header.split("  ")[0] == "layer"
    assert [line.split()[0] for line in lines[:4]] == [row.name for row in found.worst_first()]
    errors = [row.quantized.error for row in found.worst_first()[:-1]]
    assert errors == sorted(errors, reverse=True)
    assert "model dB" not in header
    assert "input dB" not in str(analyze(model, "w4a16", data))
    file = tmp_path / "found.json"
    found.to_json(file)
    assert json.loads(file.read_text()) == found.to_dict()
    assert list(tmp_path.iterdir()) == [file]
    fields = found.to_dict()
    assert (
        fields["weight_bytes"] == found.weight_bytes == sum(row.quantized.weight_bytes for row in found.rows)
    )
    assert [layer["quantized"]["scheme"] for layer in fields["layers"]] == ["w8a8_static"] * 4
    assert fields["layers"][0]["higher"]["scheme"] == "w8a16"
    with pytest.raises(ValueError, match=r"the folder of .* does not exist"):
        found.to_json(tmp_path / "nowhere" / "found.json")


def test_exact_layers_are_json_too():
    """A layer whose codes lose nothing has no SQNR that JSON could hold, and error 0."""
    model: Any = nn.Sequential(nn.Linear(K, N, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-127, 128, (N, K)))
        model[0].weight[:, 0] = 127
    found = analyze(model, "w8a16", [torch.zeros(4, K), torch.ones(1, K)])
    assert found.rows[0].quantized.output_sqnr == math.inf
    layer = json.loads(json.dumps(found.to_dict(), allow_nan=False))["layers"][0]
    assert (layer["quantized"]["output_sqnr"], layer["quantized"]["error"]) == (None, 0.0)
    found = analyze(model, "w8a8_static", [torch.zeros(4, K)])
    assert found.rows[0].outlier_ratio == 1.0


def test_plot(model, data, tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = analyze(model, "w8a8_static", data)
    for suffix, begins in ((".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")):
        found.plot(tmp_path / f"found{suffix}")
        assert (tmp_path / f"found{suffix}").read_bytes().startswith(begins)
    with pytest.raises(
        ValueError, match=r"plot needs a file that ends in .png, .svg, .pdf, found '.*found.txt'"
    ):
        found.plot(tmp_path / "found.txt")
    assert len(list(tmp_path.iterdir())) == 3


def test_plot_of_many_layers(data, tmp_path: Path):
    """200 layers in blocks: a line a kind of layer over depth, in a panel each for weight, input and output."""
    pytest.importorskip("matplotlib")
    from tritonq.analysis.plot import draw

    block = lambda: nn.ModuleDict({kind: nn.Linear(8, 8) for kind in ("q", "k", "v", "o")})  # noqa: E731

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers: Any = nn.ModuleList(block() for _ in range(50))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                for linear in layer.values():
                    x = x + linear(x)
            return x

    found = analyze(Blocks(), "w8a8", [torch.randn(3, 8)])
    panels: Any = draw(found.rows).axes
    assert [panel.get_title("left") for panel in panels] == ["weight", "input", "output"]
    for panel, side in zip(panels, ("weight_sqnr", "input_sqnr", "output_sqnr"), strict=True):
        assert [line.get_label() for line in panel.lines] == ["q", "k", "v", "o"]
        for line, kind in zip(panel.lines, "qkvo", strict=True):
            values = [getattr(row.quantized, side) for row in found.rows if row.name.endswith(kind)]
            assert list(line.get_ydata()) == values
            assert list(line.get_xdata()) == list(range(50))
    flat = nn.Sequential(*(nn.Linear(8, 8) for _ in range(41)))
    rows = draw(analyze(flat, "w4a16", [torch.randn(3, 8)]).rows).axes[0]
    assert len(rows.get_yticklabels()) == 41
