"""Dynamic INT8 from layer to layer: what `fuse_activations_` finds, and that results stay what they were."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tritonq
from tests.support.kernel_inputs import assert_codes_close
from tests.test_static_flow import relative_error
from tritonq.nn import (
    QuantizedGatedMLP,
    QuantizedLinear,
    QuantizedMLP,
    QuantizedNorm,
    QuantizedProjections,
)
from tritonq.nn.quantized_tensor import QuantizedTensor

K = 32
SCHEMES = {
    "w8a8": tritonq.W8A8(),
    "affine": tritonq.W8A8(symmetric=False, activation_symmetric=False),
    "w4a8": tritonq.W4A8(group_size=32),
}


class Model(nn.Module):
    """Linears a, b, c and d, a norm, and a forward that is given."""

    def __init__(self, forward: Callable[[Model, Tensor], Any], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(K, K) for _ in range(4))
        self.norm = nn.RMSNorm(K, eps=1e-6) if norm is None else norm
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def block(m: Model, x: Tensor) -> Tensor:
    h = m.norm(x)
    return x + m.d(functional.silu(m.a(h)) * m.b(h)) + m.c(h).sigmoid()


def leaks(m: Model, x: Tensor) -> Tensor:
    h = m.norm(x)
    return m.a(h) + h


MODELS: dict[str, tuple[Callable[[Model, Tensor], Any], dict[str, str]]] = {
    "norm": (lambda m, x: (m.a(h := m.norm(x)), m.b(h.flatten(0, 1)), m.c(h[:, 1:])), {"norm": "norm → a, b, c"}),
    "a norm that is read in float too": (leaks, {}),
    "a norm that the model returns": (lambda m, x: (m.a(h := m.norm(x)), h), {}),
    "a norm whose features are taken apart": (lambda m, x: m.a(m.norm(x).flatten(0)[: 4 * K].view(4, K)), {}),
    "a norm read by a float layer": (lambda m, x: m.a(h := m.norm(x)) + functional.linear(h, m.b.weight), {}),
    "gated": (lambda m, x: m.c(functional.silu(m.a(x)) * m.b(x)), {"a": "a → silu → mul b → c", "b": "b → mul a → c"}),
    "gated the other way round": (
        lambda m, x: m.c(m.b(x) * functional.gelu(m.a(x))),
        {"a": "a → gelu → mul b → c", "b": "b → mul a → c"},
    ),
    "activation": (lambda m, x: m.b(functional.dropout(functional.gelu(m.a(x)), 0.5, False)), {"a": "a → gelu → b"}),
    "an activation that is kept": (lambda m, x: (m.b(h := m.a(x).relu()), h), {}),
    "straight": (lambda m, x: m.b(m.a(x)), {}),
    "a residual in between": (lambda m, x: m.b(x + m.a(x)), {}),
    "all": (block, {"norm": "norm → a, b, c", "a": "a → silu → mul b → d", "b": "b → mul a → d"}),
}  # fmt: skip


def edges_of(model: nn.Module) -> dict[str, str]:
    return {edge.producer: str(edge) for edge in tritonq.summary(model).edges}


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(x)
    return list(out) if isinstance(out, tuple) else [out]


def exact_norm(self: nn.RMSNorm, x: Tensor) -> Tensor:
    """The float32 values that the fused norm quantizes: what is compared is all that comes after."""
    rows = tritonq.reference.rms_norm(x.reshape(-1, K), self.weight, self.eps or 0.0)
    return rows.reshape(x.shape).to(x.dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_fused_and_that_results_stay(name, scheme, tmp_path, monkeypatch):
    forward, expected = MODELS[name]
    x = torch.randn(4, 5, K)
    model: Any = tritonq.quantize_(Model(forward).eval(), SCHEMES[scheme])
    apart = copy.deepcopy(model)
    if expected:
        assert tritonq.fuse_activations_(model, [x]) is model
    else:
        with pytest.warns(UserWarning, match="fuse_activations_ found nothing to fuse: "):
            tritonq.fuse_activations_(model, [x])
    assert edges_of(model) == expected
    assert isinstance(model.norm, QuantizedNorm) == ("norm" in expected)
    found, before = results(model, x), results(apart, x)
    for one, other in zip(found, before, strict=True):
        assert relative_error(one, other) < 1e-3  # torch sums a row in another order
    monkeypatch.setattr(nn.RMSNorm, "forward", exact_norm)
    assert all(map(torch.equal, results(model, x), results(apart, x)))
    monkeypatch.undo()

    if expected:
        tritonq.save(model, tmp_path)
        loaded = tritonq.load(tmp_path, Model(forward).eval())
        assert edges_of(loaded) == expected
        for copied in (loaded, copy.deepcopy(model)):
            assert all(map(torch.equal, results(copied, x), found))


@pytest.mark.parametrize(
    ("edge", "change", "message"),
    [
        (0, {"consumers": ["a", "e"]}, "'e' must be a dynamic INT8 layer as the others, found none"),
        (0, {"steps": ["gelu"]}, r"steps must be those between dynamic layers, found \['gelu'\]"),
        (1, {"steps": ["mul"], "partner": "d"}, "its partner must have an edge that names it in return, found 'd'"),
        (0, {"producer": "e"}, "must be an INT8 layer or a norm of the model, found neither"),
    ],
)  # fmt: skip
def test_damaged_edges_are_refused(edge, change, message, tmp_path):
    x = torch.randn(4, 5, K)
    tritonq.save(tritonq.fuse_activations_(tritonq.quantize_(Model(block).eval(), "w8a8"), [x]), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    edges = sorted(fields["tritonq"]["edges"], key=lambda edge: ("norm", "a", "b").index(edge["producer"]))
    edges[edge].update(change)
    fields["tritonq"]["edges"] = edges
    (tmp_path / "config.json").write_text(json.dumps(fields))
    empty = Model(block)
    with pytest.raises(ValueError, match=message):
        tritonq.load(tmp_path, empty)
    assert isinstance(empty.norm, nn.RMSNorm)


def test_fusing_twice_changes_nothing():
    x = torch.randn(4, 5, K)
    model: Any = tritonq.quantize_(Model(block).eval(), "w8a8")
    tritonq.fuse_activations_(model, [x])
    norm, edges, expected = model.norm, edges_of(model), results(model, x)
    tritonq.fuse_activations_(model, [x])
    assert model.norm is norm
    assert edges_of(model) == edges
    assert all(map(torch.equal, results(model, x), expected))


@pytest.mark.parametrize("order", ["activations first", "siblings first"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_siblings_are_fused_before_or_after(scheme, order, tmp_path):
    """norm → codes → one launch for a, b and c; what it leaves for the gate is a view."""
    x = torch.randn(4, 5, K)
    model: Any = tritonq.quantize_(Model(block).eval().requires_grad_(False), SCHEMES[scheme])
    expected = results(tritonq.fuse_activations_(copy.deepcopy(model), [x]), x)
    if order == "siblings first":
        tritonq.fuse_siblings_(model, [x])
    tritonq.fuse_activations_(model, [x])
    if order == "activations first":
        tritonq.fuse_siblings_(model, [x])
    assert edges_of(model) == MODELS["all"][1]
    assert "launched_with" in repr(model.a)
    assert all(map(torch.equal, results(model, x), expected))
    tritonq.save(model, tmp_path)
    loaded = tritonq.load(tmp_path, Model(block).eval())
    assert edges_of(loaded) == MODELS["all"][1]
    assert all(map(torch.equal, results(loaded, x), expected))


def test_rows_are_quantized_once(monkeypatch):
    x = torch.randn(4, 5, K)
    model = tritonq.fuse_activations_(tritonq.quantize_(Model(block).eval(), "w8a8"), [x])
    quantize = mock.Mock(wraps=tritonq.ops.quantize_per_token)
    monkeypatch.setattr(tritonq.ops, "quantize_per_token", quantize)
    model(x)
    assert not quantize.called


def test_compiled_without_graph_breaks():
    torch._dynamo.reset()
    x = torch.randn(4, 5, K)
    model = tritonq.fuse_activations_(tritonq.quantize_(Model(block).eval(), "w8a8"), [x])
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_a_row_that_is_not_finite_stays_alone():
    x = torch.randn(1, 5, K)
    model = tritonq.fuse_activations_(tritonq.quantize_(Model(block).eval(), "w8a8"), [x])
    clean = model(x)
    x[0, 3, 2] = torch.inf
    found = model(x)
    assert found[0, 3].isnan().all()
    assert torch.equal(found[0, [0, 1, 2, 4]], clean[0, [0, 1, 2, 4]])


def test_gradients_are_refused_as_before():
    x = torch.randn(4, 5, K, requires_grad=True)
    model = tritonq.fuse_activations_(tritonq.quantize_(Model(MODELS["norm"][0]).eval(), "w8a8"), [x])
    with pytest.raises(NotImplementedError, match="quantized activation"):
        model(x)[0].sum().backward()


def test_another_path_is_an_error():
    x = torch.randn(4, 5, K)
    model: Any = Model(lambda m, x: m.b(functional.gelu(m.a(x))) if len(x) == 4 else m.b(m.a(x)))
    tritonq.fuse_activations_(tritonq.quantize_(model.eval(), "w8a8"), [x])
    with pytest.raises(TypeError, match=r"must be float32.*found Deferred"):
        model(x[:3])
    model._forward = lambda m, x: m.b(functional.silu(m.a(x)))
    with pytest.raises(
        TypeError, match=r"'a' was converted .* gelu, found silu: give fuse_activations_ inputs"
    ):
        model(x)
    other = Model(lambda m, x: m.b(m.a(x).relu() if len(x) == 4 else m.a(x)))
    tritonq.quantize_(other.eval(), "w8a8")
    with pytest.warns(UserWarning, match="a: no activation follows that could quantize it"):
        tritonq.fuse_activations_(other, [x, x[:3]])


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (3, [], TypeError, "model must be a torch.nn.Module, found int"),
        (nn.Sequential(nn.Linear(4, 4)), [], ValueError, r"must hold dynamic INT8 layers \(w8a8, w4a8\), found none"),
        (Model(block), torch.ones(1), TypeError, "inputs must be an iterable of batches .* found Tensor"),
        (tritonq.quantize_(Model(block), "w8a8"), [], ValueError, "inputs must have at least one batch"),
        (tritonq.quantize_(Model(block), "w8a8"), [3], TypeError, "inputs batch 0 must be a tensor"),
    ],
)  # fmt: skip
def test_bad_arguments(model, inputs, error, message):
    with pytest.raises(error, match=message):
        tritonq.fuse_activations_(model, inputs)


def test_layers_of_mixed_symmetry_stay_apart():
    x = torch.randn(4, 5, K)
    model: Any = Model(lambda m, x: (m.a(h := m.norm(x)), m.b(h)))
    tritonq.quantize_(model, {"a": "w8a8", "_default": SCHEMES["affine"]})
    with pytest.warns(UserWarning, match="norm: of it and a and b some are symmetric and some affine"):
        tritonq.fuse_activations_(model, [x])


# --- modules ---------------------------------------------------------------------------------------------------------


def layer(scheme: str, features: tuple[int, int] = (K, K)) -> QuantizedLinear:
    return QuantizedLinear.from_float(nn.Linear(*features), SCHEMES[scheme], name="layer")


def tokens(x: Tensor, symmetric: bool) -> QuantizedTensor:
    codes, scale, zero = tritonq.ops.quantize_per_token(x.reshape(-1, K), symmetric)
    shape = (*x.shape[:-1], 1)
    return QuantizedTensor(
        codes.reshape(x.shape), scale.reshape(shape), None if symmetric else zero.reshape(shape), x.dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_takes_codes_with_scales_per_token(scheme, dtype):
    x, linear = torch.randn(3, 4, K).to(dtype), layer(scheme)
    q = tokens(x, linear.activation_symmetric)
    for operation in (
        lambda x: x,
        lambda x: x.transpose(0, 1),
        lambda x: x[::2, 1],
        lambda x: x[1, 2],
        lambda x: x[:, ::2].reshape(-1, K),
    ):
        found = linear(operation(q))
        assert found.dtype == dtype
        assert torch.equal(found, linear(operation(x)))


def test_a_layer_of_symmetric_activations_refuses_a_zero_point():
    with pytest.raises(TypeError, match=r"\(w4a8\) takes symmetric int8 activations, found .* DeQuantStub"):
        layer("w4a8")(tokens(torch.randn(3, K), False))
    static = tritonq.quantize_(nn.Sequential(nn.Linear(K, K)), "w8a8_static", calibration=[torch.randn(3, K)])
    q = tokens(torch.randn(3, K), True)
    assert static(q).shape == (3, K)  # a grid is a grid, whoever found it


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_a_norm_quantizes_per_token(kind, symmetric, residual):
    module: Any = nn.RMSNorm(K, eps=1e-6) if kind == "rms_norm" else nn.LayerNorm(K)
    nn.init.normal_(module.weight)
    norm = QuantizedNorm.from_float(module, symmetric=symmetric)
    x, r = torch.randn(2, 3, K).bfloat16(), torch.randn(2, 3, K).bfloat16()
    if residual:
        found, total = norm(x, r)
        assert torch.equal(total, x + r)
    else:
        found, total = norm(x), x
    reference = tritonq.reference
    rows = total.reshape(-1, K)
    if kind == "rms_norm":
        values = reference.rms_norm(rows, module.weight, 1e-6)
    else:
        values = reference.layer_norm(rows, module.weight, module.bias, 1e-5)
    codes, scale, zero = reference.quantize_per_token(values, symmetric)
    assert torch.equal(found.data, codes.reshape(x.shape))
    assert torch.equal(found.scale.flatten(), scale.flatten())
    assert (found.zero_point is None) == symmetric
    assert symmetric or torch.equal(found.zero_point.flatten(), zero.flatten())
    assert (found.dtype, found.per_token, norm.dynamic) == (torch.bfloat16, True, True)
    assert "per=token" in repr(norm)
    assert set(norm.state_dict()) == set(module.state_dict())


class NamedRMSNorm(nn.Module):
    """An RMSNorm as models write it, whose input has another name than nn.RMSNorm's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(K)), 1e-6

    def forward(self, hidden_states: Tensor) -> Tensor:
        return (
            hidden_states
            * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + self.eps)
            * self.weight
        )


def test_a_norm_is_called_by_the_names_that_it_was_called_by_before():
    model = Model(lambda m, x: m.a(m.norm(hidden_states=x)), NamedRMSNorm())
    tritonq.quantize_(model, "w8a8")
    x = torch.randn(5, K)
    before = model(x)
    tritonq.fuse_activations_(model, [x])
    assert edges_of(model) == {"norm": "norm → a"}
    for fused in (model, copy.deepcopy(model)):
        assert relative_error(fused(x), before) < 1e-6
    with pytest.raises(TypeError, match="takes input and residual, found y"):
        model.norm(x, y=x)


def test_a_norm_refuses_what_it_cannot_take():
    norm = QuantizedNorm.from_float(nn.LayerNorm(K), name="norm")
    x = torch.randn(2, K)
    with pytest.raises(
        TypeError, match=r"'norm': residual must be float32, float16 or bfloat16, found torch.int8"
    ):
        norm(x, x.to(torch.int8))
    with pytest.raises(
        ValueError, match=r"'norm': residual must have the input's shape \[2, 32\], found \[1, 32\]"
    ):
        norm(x, x[:1])
    with pytest.raises(TypeError, match=r"'' must be made of a LayerNorm or RMSNorm .* found BatchNorm1d"):
        QuantizedNorm.from_float(nn.BatchNorm1d(K))


def test_a_static_norm_adds_a_residual_too():
    x, r = torch.randn(3, K), torch.randn(3, K)
    grid = (torch.tensor([0.03]), torch.tensor([3], dtype=torch.int8))
    for module in (nn.RMSNorm(K, eps=1e-6), nn.LayerNorm(K)):
        norm = QuantizedNorm.from_float(module, None, grid, False)
        found, total = norm(x, r)
        assert torch.equal(total, x + r)
        assert_codes_close(found.data, norm(total).data)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_blocks_of_dynamic_layers(scheme):
    norm = QuantizedNorm.from_float(nn.RMSNorm(K, eps=1e-6), symmetric=scheme != "affine")
    gate, up, down = layer(scheme, (K, 48)), layer(scheme, (K, 48)), layer(scheme, (48, K))
    x = torch.randn(2, 3, K)
    gated = QuantizedGatedMLP(gate, up, down, "silu")
    assert torch.equal(gated(x), down(functional.silu(gate(x)) * up(x)))
    assert torch.equal(QuantizedMLP(gate, down, "gelu")(x), down(functional.gelu(gate(x))))
    found = QuantizedProjections([gate, up])(x)
    assert all(map(torch.equal, found, [gate(x), up(x)]))
    h = norm(x)
    assert torch.equal(gated(h), down(functional.silu(gate(h)) * up(h)))


def test_the_block_in_the_documentation():
    """Of docs/inference_code.md: its code as it stands there, against the same in plain layers."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "inference_code.md").read_text()
    (code,) = (part for part in page.split("```python\n") if "class Block" in part)
    names: dict[str, Any] = {}
    exec(code.partition("```")[0], names)
    norms = [nn.RMSNorm(K, eps=1e-6) for _ in range(2)]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (layer("w8a8") for _ in range(3))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v)

    mlp, attention = nn.Module(), Attention()
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = (layer("w8a8") for _ in range(3))
    x, residual = torch.randn(2, 5, K), torch.randn(2, 5, K)
    found, stream = names["Block"](norms[0], attention, norms[1], mlp)(x, residual)
    residual = x + residual
    h = norms[0](residual)
    h = attention(attention.q_proj(h), attention.k_proj(h), attention.v_proj(h))
    residual = h + residual
    h = norms[1](residual)
    expected = mlp.down_proj(functional.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
    assert relative_error(stream, residual) < 1e-3
    assert relative_error(found, expected) < 2e-3


def test_blocks_of_mixed_layers_are_refused():
    static: Any = tritonq.quantize_(
        nn.Sequential(nn.Linear(K, K)), "w8a8_static", calibration=[torch.randn(3, K)]
    )[0]
    with pytest.raises(
        ValueError, match="fc1 must be w8a8_static with a calibrated input, or all layers dynamic"
    ):
        QuantizedMLP(layer("w8a8"), static)
    weight_only: Any = tritonq.quantize_(nn.Sequential(nn.Linear(K, K)), "w8a16")[0]
    with pytest.raises(ValueError, match="fc2 must quantize its input to int8, found w8a16"):
        QuantizedMLP(layer("w8a8"), weight_only)


# --- tensors with scales per token -----------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_are_moved_with_their_scales(symmetric):
    q = tokens(torch.randn(2, 3, K), symmetric)
    assert q.per_token
    for operation in (
        lambda x: x.relu(),
        lambda x: x.reshape(6, K),
        lambda x: x.view(3, 2, K),
        lambda x: x.flatten(0, 1),
        lambda x: x.unflatten(1, (3, 1)),
        lambda x: x.transpose(0, 1),
        lambda x: x.transpose(-3, -2).contiguous(),
        lambda x: x[0],
        lambda x: x[1, 2],
        lambda x: x[:, 1:],
        lambda x: x[:, None],
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x.detach(),
        lambda x: x.to("cpu"),
        nn.Identity(),
    ):
        expected = operation(q.dequantize())
        assert torch.equal(operation(q).dequantize(), expected)
    for operation in (
        lambda x: x.flatten(),
        lambda x: x.reshape(2, -1),
        lambda x: x.unflatten(-1, (4, 8)),
        lambda x: x[..., 0],
        lambda x: x[..., :8],
        lambda x: x.transpose(0, 2),
    ):
        with pytest.raises(TypeError, match="DeQuantStub"):
            operation(q)
    with pytest.raises(
        ValueError, match="q_scale is one number for a whole tensor, found one scale per token"
    ):
        q.q_scale()
    assert "scale=per token" in repr(q)


def test_square_shapes_do_not_deceive():
    """Where there are as many rows as features, a column looks like a row."""
    q = tokens(torch.randn(K, K), True)
    for operation in (lambda x: x[:, 0], lambda x: x[:, 3]):
        with pytest.raises(TypeError, match="splits rows"):
            operation(q)
