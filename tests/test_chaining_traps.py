"""Where handing over int8 would go wrong: what only looks like a norm, tensors overwritten or broadcast, Ctrl-C."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tritonq
from tests.test_chaining import K, Model, convert, edges_of, prepared, results
from tests.test_static_flow import relative_error


def agrees(model: Any, x: Tensor, tolerance: float = 2e-3) -> dict[str, str]:
    """The edges of a prepared model, after a comparison with what it computes without them."""
    chained, apart = convert(model), convert(model, chain=False)
    for found, expected in zip(results(chained, x), results(apart, x), strict=True):
        assert relative_error(found, expected) < tolerance
    return edges_of(chained)


class TripledNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3


class FloatNorm(nn.LayerNorm):
    """As CLIP's: another forward that computes the same."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class OuterEpsilonRMSNorm(nn.Module):
    """ε behind the root: the same but for small rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(K)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps)


class WholeRMSNorm(OuterEpsilonRMSNorm):
    """Over all dimensions but the first, not the last alone."""

    def forward(self, x: Tensor) -> Tensor:
        dims = tuple(range(1, x.dim()))
        return self.weight * x * torch.rsqrt(x.square().mean(dims, keepdim=True) + self.eps)


class FusedRMSNorm(OuterEpsilonRMSNorm):
    """As vLLM's: with a residual it returns two tensors."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        x = x if residual is None else x + residual
        y = self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return y if residual is None else (y, x)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def parametrized() -> nn.Module:
    norm = nn.LayerNorm(K)
    nn.utils.parametrize.register_parametrization(norm, "weight", Doubled())
    return norm


def patched() -> nn.Module:
    norm = nn.LayerNorm(K)
    norm.forward = lambda input: nn.LayerNorm.forward(norm, input) * 4  # type: ignore[method-assign]
    return norm


@pytest.mark.parametrize(
    "norm", [TripledNorm(K), OuterEpsilonRMSNorm(), WholeRMSNorm(), parametrized(), patched()], ids=repr
)
def test_what_only_looks_like_a_norm_stays_as_it_is(norm):
    model = Model(lambda m, x: m.a(m.norm(x)))
    model.norm = norm
    model = tritonq.prepare(model, "w8a8_static")
    x = torch.randn(4, 5, K) * 1e-3
    results(model, x)
    assert agrees(model, x) == {}


def test_norms_with_a_forward_of_their_own_that_computes_the_same():
    model = Model(lambda m, x: m.a(m.norm(x)) * m.norm.eps * m.norm.normalized_shape[0])
    model.norm = FloatNorm(K)
    model = tritonq.prepare(model, "w8a8_static")
    x = torch.randn(4, 5, K)
    results(model, x)
    assert agrees(model, x) == {"norm": "norm → a"}


def test_norms_of_two_tensors_stay_float():
    def forward(m: Model, x: Tensor) -> Tensor:
        h, r = m.norm(x, x)
        return m.a(h) * r.mean()

    model = Model(forward)
    model.norm = FusedRMSNorm()  # type: ignore[assignment]
    model = tritonq.prepare(model, "w8a8_static")
    x = torch.randn(4, 5, K)
    results(model, x)
    assert agrees(model, x) == {}


def overwritten_input(m: Model, x: Tensor) -> Tensor:
    x = x.clone()
    y = m.a(x)
    x.zero_()
    return m.b(functional.gelu(y))


def overwritten_residual(m: Model, x: Tensor) -> Tensor:
    r = x.clone()
    y = r + m.a(x)
    r.zero_()
    return m.b(functional.gelu(y))


def overwritten_by_index(x: Tensor) -> None:
    x[..., 0] = 5


def overwritten_between_factors(m: Model, x: Tensor) -> Tensor:
    """gate and up may read different values, of which the one kernel for both would know one."""
    x = x.clone()
    gate = functional.silu(m.a(x))
    m.change(x)  # type: ignore[operator]
    return m.c(gate * m.b(x))


@pytest.mark.parametrize(
    ("change", "chains"),
    [
        (overwritten_by_index, False),
        (lambda x: x.view(-1).mul_(2), False),
        (lambda x: x.clone().zero_(), True),
    ],
    ids=["index", "view", "not at all"],
)
def test_factors_whose_input_changes_in_between(change, chains):
    model = Model(overwritten_between_factors)
    model.change = change
    model.d = nn.Identity()  # type: ignore[assignment]
    model = tritonq.prepare(model.eval(), "w8a8_static")
    x = torch.randn(4, 5, K)
    results(model, x)
    assert ("a" in agrees(model, x)) == chains


def test_factors_whose_input_changes_later_on():
    """Not in the runs that were recorded: an error, and no wrong number."""
    model = Model(overwritten_between_factors)
    model.change = lambda x: None  # type: ignore[assignment]
    model.d = nn.Identity()  # type: ignore[assignment]
    model = tritonq.prepare(model.eval(), "w8a8_static")
    x = torch.randn(4, 5, K)
    results(model, x)
    chained: Any = convert(model)
    assert "a" in edges_of(chained)
    chained.change = overwritten_by_index
    with pytest.raises(TypeError, match=r"'a' was converted to hand over int8 through mul, found mul"):
        chained(x)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (overwritten_input, {"a": "a → gelu → b"}),
        (overwritten_residual, {"a": "a → add → float"}),
        (lambda m, x: m.b(functional.relu(m.a(x[:, :1]) + x)), {}),  # a time embedding, added to every row
        (lambda m, x: m.c(functional.silu(m.a(x)) * m.d(x)), {}),  # a gate for the whole row
        (lambda m, x: m.b(m.a(x) + torch.ones(K, dtype=torch.int64)), {}),
        (lambda m, x: m.b(h := m.a(x)) * torch.numel(h), {}),
    ],
)
def test_tensors_overwritten_broadcast_or_of_another_kind(forward, expected):
    model = Model(forward)
    model.d = nn.Linear(K, 1)
    model = tritonq.prepare(model.eval(), "w8a8_static")
    x = torch.randn(4, 5, K)
    results(model, x)
    assert agrees(model, x) == expected


@pytest.mark.parametrize("add", [torch.add, Tensor.add, lambda h, y: h + y])
def test_int8_residuals_however_they_are_added(add):
    def forward(m: Model, x: Tensor) -> Tensor:
        h = functional.relu(m.a(x))
        return m.c(functional.relu(h.add(m.b(h)) if add is Tensor.add else add(h, m.b(h))))

    model, x = prepared(forward)
    assert agrees(model, x, 3e-2) == {"a": "a → relu → b", "b": "b → add → relu → c"}


def test_dropout_of_nothing_in_training_mode():
    model, x = prepared(
        lambda m, x: m.c(functional.dropout(m.b(functional.dropout(functional.gelu(m.a(x)), 0.0)), p=0.0))
    )
    assert agrees(model, x) == {"a": "a → gelu → b", "b": "b → c"}


@pytest.mark.parametrize(
    ("misuse", "word"),
    [
        (lambda y: y != 0, "__ne__"),
        (lambda y: -y, "__neg__"),
        (bool, "__bool__"),
        (lambda y: y[0], "__getitem__"),
    ],
)
def test_operators_on_what_waits_for_its_activation_are_refused_by_name(misuse, word):
    model, x = prepared(lambda m, x: m.b(functional.gelu(m.a(x))))
    with pytest.raises(TypeError, match=f"QuantizedLinear 'a' was converted .* found the operator {word}"):
        misuse(convert(model).a(x))


def test_an_interrupted_calibration_leaves_nothing_behind():
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    modes = torch._C._len_torch_function_stack()
    model = nn.Sequential(nn.Linear(K, K), Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tritonq.quantize_(model, "w8a8_static", calibration=[torch.randn(2, K)])
    assert torch._C._len_torch_function_stack() == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert set(vars(model)) == set(vars(nn.Sequential()))


class Keeps(nn.Module):
    """Its output leaves in ways that no call shows."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Linear(K, K), nn.Linear(K, K), way

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        if self.way == "attribute":
            self.kept = h
        if self.way == "object":
            return type("Output", (), {"hidden": h, "last": self.b(h)})()
        return self.b(h)


@pytest.mark.parametrize("way", ["attribute", "object"])
def test_what_the_model_keeps_stays_float(way):
    model = tritonq.prepare(Keeps(way), "w8a8_static")
    with torch.no_grad():
        model(torch.randn(2, K))
    summary = tritonq.summary(tritonq.convert(model))
    assert not summary.edges
    assert summary.float_outputs["a"] == "the model returns or keeps it"
    model = tritonq.prepare(Keeps("neither"), "w8a8_static")
    with torch.no_grad():
        model(torch.randn(2, K))
    assert edges_of(tritonq.convert(model)) == {"a": "a → b"}


class Stack(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(K, K) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = functional.relu(layer(x))
        return x


def stack(count: int) -> Any:
    model = tritonq.prepare(Stack(count), "w8a8_static")
    with torch.no_grad():
        model(torch.randn(4, K))
    return tritonq.convert(model)


def test_names_of_a_model_that_was_taken_apart(tmp_path):
    model, x = stack(4), torch.randn(4, K)
    model.layers = model.layers[2:]
    assert edges_of(model) == {"layers.0": "layers.0 → relu → layers.1"}
    tritonq.save(model, tmp_path)
    assert torch.equal(tritonq.load(tmp_path, Stack(2))(x), model(x))


def test_copies_of_a_model_side_by_side():
    models = nn.ModuleDict({"left": stack(2), "right": stack(2)})
    assert edges_of(models) == {
        "left.layers.0": "left.layers.0 → relu → left.layers.1",
        "right.layers.0": "right.layers.0 → relu → right.layers.1",
    }


def test_a_model_that_lost_a_reader_is_not_saved(tmp_path):
    model = stack(3)
    model.layers = model.layers[:2]
    with pytest.raises(ValueError, match=r"layers\.1 hands int8 to layers\.2, which the model does not hold"):
        tritonq.save(model, tmp_path / "directory")
    assert not (tmp_path / "directory").exists()


def test_factors_with_different_grids_are_not_loaded(tmp_path):
    model, _ = prepared(lambda m, x: m.c(functional.silu(m.a(x)) * m.b(x)))
    chained = convert(model)
    chained.b.input_scale.mul_(2)
    tritonq.save(chained, tmp_path)
    fresh = Model(model._forward).eval()
    with pytest.raises(
        ValueError, match=r"edges\['a'\]: a and b must have one input_scale and input_zero_point"
    ):
        tritonq.load(tmp_path, fresh)
    assert type(fresh.a) is nn.Linear
