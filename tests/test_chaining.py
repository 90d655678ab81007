"""Which edges are found, in models of every shape, and that they compute what the unchained model computes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tritonq
from tests.test_static_flow import relative_error
from tritonq.nn.norm import QuantizedNorm

K = 16


class Model(nn.Module):
    """Linears a, b, c and d, a norm, and a forward that is given."""

    def __init__(self, forward: Callable[[Model, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(K, K) for _ in range(4))
        self.norm = nn.LayerNorm(K)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def relu_block(m: Model, x: Tensor) -> Tensor:
    h = functional.relu(m.a(x))
    h = functional.relu(h + m.b(h))
    return m.d(functional.relu(h + m.c(h)))


def leaks(m: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x)
    return m.b(h), h


MODELS: dict[str, tuple[Callable[[Model, Tensor], Any], dict[str, str]]] = {
    "straight": (lambda m, x: m.b(m.a(x)), {"a": "a → b"}),
    "relu": (lambda m, x: m.b(m.a(x).relu()), {"a": "a → relu → b"}),
    "gelu": (lambda m, x: m.b(functional.gelu(m.a(x))), {"a": "a → gelu → b"}),
    "gelu tanh": (
        lambda m, x: m.b(functional.gelu(m.a(x), approximate="tanh")),
        {"a": "a → gelu_tanh → b"},
    ),
    "silu, dropout, reshapes": (
        lambda m, x: m.b(functional.dropout(functional.silu(m.a(x)), 0.5, m.training).flatten(0, 1)),
        {"a": "a → silu → b"},
    ),
    "dropout before": (
        lambda m, x: m.b(functional.silu(functional.dropout(m.a(x), 0.5, m.training))),
        {"a": "a → silu → b"},
    ),
    "two readers": (lambda m, x: (m.b(h := m.a(x)), m.c(h.flatten(0, 1))), {"a": "a → b, c"}),
    "norm": (lambda m, x: (m.a(h := m.norm(x)), m.b(h), m.c(h)), {"norm": "norm → a, b, c"}),
    "gated": (
        lambda m, x: m.c(functional.silu(m.a(x)) * m.b(x)),
        {"a": "a → silu → mul b → c", "b": "b → mul a → c"},
    ),
    "gated the other way round": (
        lambda m, x: m.c(m.b(x) * functional.gelu(m.a(x))),
        {"a": "a → gelu → mul b → c", "b": "b → mul a → c"},
    ),
    "gated without activation": (
        lambda m, x: m.c(m.a(x) * m.b(x)),
        {"a": "a → mul b → c", "b": "b → mul a → c"},
    ),
    "gated behind a norm": (
        lambda m, x: m.c(functional.relu(m.a(h := m.norm(x))) * m.b(h)),
        {"norm": "norm → a, b", "a": "a → relu → mul b → c", "b": "b → mul a → c"},
    ),
    "residual in float": (lambda m, x: m.b(x + m.a(x)), {"a": "a → add → b"}),
    "residual, activation": (lambda m, x: m.b(functional.gelu(m.a(x) + x)), {"a": "a → add → gelu → b"}),
    "residual that stays float": (lambda m, x: (x + m.a(x)).sigmoid(), {"a": "a → add → float"}),
    "int8 residuals": (
        relu_block,
        {"a": "a → relu → b", "b": "b → add → relu → c", "c": "c → add → relu → d"},
    ),
    "two layers' sum": (lambda m, x: m.c(m.a(x) + m.b(x)), {"b": "b → add → c"}),
}


def prepared(forward: Callable[[Model, Tensor], Any], config: Any = "w8a8_static") -> tuple[Any, Tensor]:
    x = torch.randn(4, 5, K)
    model = tritonq.prepare(Model(forward).eval(), config)
    with torch.no_grad():
        model(x)
    return model, x


def convert(model: Any, **words: Any) -> Any:
    """Layers that a forward leaves out are not what is tested here."""
    return tritonq.convert(model, unobserved="dynamic", **words)


def edges_of(model: nn.Module) -> dict[str, str]:
    return {edge.producer: str(edge) for edge in tritonq.summary(model).edges}


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(x)
    return list(out) if isinstance(out, tuple) else [out]


@pytest.mark.parametrize("name", MODELS)
def test_edges(name, tmp_path):
    forward, expected = MODELS[name]
    model, x = prepared(forward)
    chained, apart = convert(model), convert(model, chain=False)
    assert edges_of(chained) == expected
    assert edges_of(apart) == {}
    outputs = results(chained, x)
    for found, unchained, exact in zip(outputs, results(apart, x), results(model, x), strict=True):
        # One more rounding at most, where a residual is int8.
        assert relative_error(found, exact) < 1.6 * relative_error(unchained, exact) + 1e-3
        if name != "int8 residuals":
            assert relative_error(found, unchained) < 2e-3

    tritonq.save(chained, tmp_path)
    with torch.device("meta"):
        empty = Model(forward).eval()
    loaded = tritonq.load(tmp_path, empty)
    assert edges_of(loaded) == expected
    for copied in (loaded, copy.deepcopy(chained), tritonq.load(tmp_path, convert(model))):
        assert all(map(torch.equal, results(copied, x), outputs))


@pytest.mark.parametrize("name", ["silu, dropout, reshapes", "gated behind a norm", "int8 residuals"])
def test_compiled_without_graph_breaks(name):
    model, x = prepared(MODELS[name][0])
    chained = convert(model)
    torch._dynamo.reset()
    compiled: Any = torch.compile(chained, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, results(compiled, x), results(chained, x)))


FLOATS: dict[str, tuple[Callable[[Model, Tensor], Any], str, str]] = {
    "returned": (leaks, "a", "the model returns or keeps it"),
    "read in float": (lambda m, x: m.b(h := m.a(x)) * h.mean(), "a", "mean reads its values"),
    "unknown activation": (lambda m, x: m.b(m.a(x).tanh()), "a", "tanh reads its values"),
    "read by a norm": (lambda m, x: m.b(m.norm(m.a(x))), "a", "norm reads it in float"),
    "never read": (lambda m, x: (m.a(x), m.b(x))[1], "a", "no quantized layer reads it"),
    "a view before": (lambda m, x: m.b(functional.relu(m.a(x).flatten(0, 1))), "a", "relu reads its values"),
    "activation and plain": (
        lambda m, x: m.b(h := m.a(x)) + m.c(functional.relu(h)),
        "a",
        "relu reads its values",
    ),
    "squared": (lambda m, x: m.b((h := m.a(x)) * h), "a", "it is multiplied by itself or by a number"),
    "doubled": (lambda m, x: m.b(m.a(x) * 2), "a", "it is multiplied by itself or by a number"),
    "other inputs": (
        lambda m, x: m.c(functional.silu(m.a(x)) * m.b(x + 1)),
        "a",
        "it is multiplied by b, which reads another input",
    ),
    "times a float": (
        lambda m, x: m.c(functional.silu(m.a(x)) * x),
        "a",
        "it is multiplied by something else than a quantized layer's output",
    ),
    "three steps": (
        lambda m, x: m.c(functional.relu(functional.gelu(functional.relu(m.a(x))))),
        "a",
        "no epilogue computes relu, gelu, relu",
    ),
    "strange order": (
        lambda m, x: m.c(x + m.a(x).relu()),
        "a",
        "no layer's epilogue can compute the sum that reads it",
    ),
}


@pytest.mark.parametrize("name", FLOATS)
def test_what_stays_float_and_why(name):
    forward, layer, reason = FLOATS[name]
    model, x = prepared(forward)
    chained, apart = convert(model), convert(model, chain=False)
    assert layer not in edges_of(chained)
    summary = tritonq.summary(chained)
    assert summary.float_outputs[layer] == reason
    assert f"{layer}: {reason}" in str(summary)
    for found, unchained in zip(results(chained, x), results(apart, x), strict=True):
        assert relative_error(found, unchained) < 2e-3


def test_the_second_factor_says_why_the_first_is_float():
    model, _ = prepared(lambda m, x: (m.c(functional.silu(m.a(x)) * (h := m.b(x))), h))
    reasons = tritonq.summary(convert(model)).float_outputs
    assert reasons["a"] == "it is multiplied by b, which stays float: the model returns or keeps it"


def test_int8_goes_from_layer_to_layer():
    model, x = prepared(lambda m, x: m.b(functional.gelu(m.a(x))))
    chained = convert(model)
    seen = []
    chained.b.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    chained(x)
    assert isinstance(seen[0], tritonq.QuantizedTensor)
    assert seen[0].data.dtype == torch.int8
    assert torch.equal(seen[0].scale, chained.b.input_scale)


def test_norms_become_norms_that_hand_over_int8():
    model, x = prepared(lambda m, x: m.a(m.norm(x)))
    weight = model.norm.weight
    chained = convert(model, inplace=True)
    assert isinstance(chained.norm, QuantizedNorm)
    assert chained.norm.weight is weight
    assert "hands_over=int8" in repr(chained)
    with pytest.raises(TypeError, match=r"QuantizedNorm 'norm': input must be float32.* found torch.int32"):
        chained.norm(x.int())
    with pytest.raises(ValueError, match=r"must have 16 features last, found shape \[4, 5, 3\]"):
        chained.norm(x[..., :3])


def test_readers_share_one_grid():
    """c sees half of what b sees; the edge's grid covers both."""
    model, _ = prepared(lambda m, x: (m.b(h := m.a(x)), m.c(h[:2])))
    apart, chained = convert(model, chain=False), convert(model)
    assert not torch.equal(apart.b.input_scale, apart.c.input_scale)
    assert torch.equal(chained.b.input_scale, chained.c.input_scale)
    assert torch.equal(chained.b.input_scale, apart.b.input_scale)
    assert torch.equal(chained.a.output_scale, chained.b.input_scale)


def test_readers_with_different_schemes_share_none():
    symmetric = tritonq.W8A8Static(activation_symmetric=True)
    model, _ = prepared(
        lambda m, x: (m.b(h := m.a(x)), m.c(h)), {"b": symmetric, "_default": tritonq.W8A8Static()}
    )
    reasons = tritonq.summary(convert(model)).float_outputs
    assert reasons["a"] == "b and c do not share a grid: their observers or schemes differ"


def test_layers_that_are_not_static_are_no_ends():
    model, _ = prepared(lambda m, x: m.c(m.b(m.a(x))), {"b": "w4a16", "_default": "w8a8_static"})
    summary = tritonq.summary(convert(model))
    assert summary.edges == ()
    assert summary.float_outputs["a"] == "b reads it in float"


def test_layers_that_calibration_never_reached():
    model, x = prepared(lambda m, x: m.b(m.a(x)) if x.shape[0] == 4 else m.c(x))
    chained = convert(model)
    assert edges_of(chained) == {"a": "a → b"}
    assert chained(x[:2]).dtype == torch.float32


def test_runs_that_take_different_ways_must_agree():
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.c(m.b(h)) if x.shape[0] == 4 else m.c(h.tanh())

    model, x = prepared(forward)
    assert edges_of(convert(model)) == {"a": "a → b", "b": "b → c"}
    model(x[:2])
    assert edges_of(convert(model)) == {"b": "b → c"}
    assert "tanh" in tritonq.summary(convert(model)).float_outputs["a"]


def test_a_way_that_calibration_did_not_take_is_refused_and_not_computed():
    model, x = prepared(lambda m, x: m.b(functional.gelu(m.a(x)) if x.shape[0] == 4 else m.a(x).tanh()))
    chained = convert(model)
    with pytest.raises(AttributeError, match=r"Linear 'a' was .* through gelu, found attribute 'tanh'"):
        chained(x[:2])
    model, x = prepared(
        lambda m, x: m.b(functional.silu(m.a(x)) if x.shape[0] == 4 else functional.gelu(m.a(x)))
    )
    with pytest.raises(TypeError, match=r"through silu, found gelu"):
        convert(model)(x[:2])
    model, x = prepared(lambda m, x: m.b(m.a(x) + (x if x.shape[0] == 4 else x[None])))
    with pytest.raises(TypeError, match=r"through add, found add with shape \[1, 2, 5, 16\] to \[2, 5, 16\]"):
        convert(model)(x[:2])


def test_many_different_runs_prove_nothing():
    model, _ = prepared(lambda m, x: sum(m.b(m.a(x)) for _ in range(x.shape[0])))
    for rows in range(1, 20):
        model(torch.randn(rows, 5, K))
    assert edges_of(convert(model)) == {}
    reasons = tritonq.summary(convert(model)).float_outputs
    assert reasons["a"].startswith("calibration proved nothing")


def test_a_model_that_ran_in_parts_only_stays_float():
    model = tritonq.prepare(nn.Sequential(nn.Linear(K, K), nn.Linear(K, K)), "w8a8_static")
    model[1](model[0](torch.randn(4, K)))
    assert set(tritonq.summary(convert(model)).float_outputs) == {"0", "1"}
    assert tritonq.summary(convert(model, chain=False)).float_outputs == {}


def test_prepared_models_in_other_models():
    model, _ = prepared(lambda m, x: m.b(m.a(x)))
    outer = nn.ModuleDict({"inner": model})
    assert edges_of(convert(outer)) == {"inner.a": "inner.a → inner.b"}


@pytest.mark.parametrize("compiled", ["a part", "all", "afterwards"])
def test_compiled_models(compiled):
    """Compiled parts are seen through; what is compiled as a whole is calibrated, and stays apart."""

    def compile_(module: nn.Module) -> Any:
        return torch.compile(module, backend="eager", fullgraph=True)

    torch._dynamo.reset()
    inner: Any = nn.Sequential(nn.Linear(K, K), nn.ReLU(), nn.Linear(K, K))
    model: Any = nn.Sequential(compile_(inner) if compiled == "a part" else inner)
    model = compile_(model) if compiled == "all" else model
    model = tritonq.prepare(model, "w8a8_static")
    runs = compile_(model) if compiled == "afterwards" else model
    for _ in range(2):
        runs(torch.randn(4, K))
    summary = tritonq.summary(convert(model))
    if compiled == "a part":
        assert [edge.steps for edge in summary.edges] == [("relu",)]
    else:
        assert all(
            reason.startswith("calibration proved nothing") for reason in summary.float_outputs.values()
        )
        assert len(summary.float_outputs) == 2


def test_long_chains_of_int8_residuals():
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(400))

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = functional.relu(x + layer(x))
            return x

    model = tritonq.prepare(Deep(), "w8a8_static")
    model(torch.randn(2, 4))
    edges = edges_of(convert(model))
    assert edges["layers.398"] == "layers.398 → add → float"  # its sum is read by the last, which stays float
    assert len(edges) == 400


def test_quantize_chains_too_unless_told_not_to():
    x = torch.randn(4, K)
    for chain, expected in ((True, {"0": "0 → relu → 2"}), (False, {})):
        model = nn.Sequential(nn.Linear(K, K), nn.ReLU(), nn.Linear(K, K))
        tritonq.quantize_(model, "w8a8_static", calibration=[x], chain=chain)
        assert edges_of(model) == expected
        assert not hasattr(model, "recorded_flows")
        assert not model._forward_hooks
    with pytest.raises(TypeError, match="chain must be True or False, found 'yes'"):
        tritonq.quantize_(nn.Sequential(nn.Linear(K, K)), "w8a8_static", calibration=[x], chain="yes")  # type: ignore[arg-type]


def test_prepared_models_are_copied_and_pickled_with_what_they_recorded():
    model = tritonq.prepare(nn.Sequential(nn.Linear(K, K), nn.ReLU(), nn.Linear(K, K)), "w8a8_static")
    model(torch.randn(4, K))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert edges_of(convert(other)) == {"0": "0 → relu → 2"}


def test_names_follow_a_model_into_another(tmp_path):
    model, x = prepared(lambda m, x: m.c(functional.silu(m.a(x)) * m.b(x)))
    outer = nn.Sequential(convert(model))
    tritonq.save(outer, tmp_path)
    other = nn.Sequential(Model(model._forward).eval())
    tritonq.load(tmp_path, other)
    assert edges_of(other)["0.a"] == "0.a → silu → mul 0.b → 0.c"
    assert torch.equal(other(x), outer(x))


def test_a_chained_model_refuses_to_train_its_input():
    model, x = prepared(lambda m, x: m.b(functional.gelu(m.a(m.norm(x)))))
    y = convert(model)(x.requires_grad_())
    with pytest.raises(NotImplementedError, match="has no gradient with respect to its quantized activation"):
        y.sum().backward()
