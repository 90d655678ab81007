"""Which channels can be scaled: what is found, what is left alone and why, and that nothing is moved wrongly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.equalize_models import HEADS, WIDTH, Decoder, GemmaRMSNorm, assert_unchanged, parameters_of
from tritonq.optimize.equalize import Group, smoothing_groups


def found(model: nn.Module, batch: Tensor, **options) -> dict[str, tuple[str, ...]]:
    before = parameters_of(model)
    groups = smoothing_groups(model, batch, **options)
    assert_unchanged(model, before)
    return {group.source: group.readers for group in groups}


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm, GemmaRMSNorm])
def test_a_decoder(norm):
    groups = smoothing_groups(Decoder(norm), torch.randn(2, 5, WIDTH))
    expected = []
    for layer in ("layers.0", "layers.1"):
        expected += [
            Group(f"{layer}.norm1", (f"{layer}.q", f"{layer}.k", f"{layer}.v")),
            Group(f"{layer}.norm2", (f"{layer}.gate", f"{layer}.up")),
            Group(f"{layer}.v", (f"{layer}.o",)),
            Group(f"{layer}.up", (f"{layer}.down",)),
        ]
    assert set(groups) == set(expected)
    assert len(groups) == 8
    assert groups.skipped["norm"] == "lm_head is ignored"
    assert groups.skipped["layers.0.gate"] == "the input of layers.0.down is not proportional to it"
    assert groups.skipped["layers.1.k"] == "the input of layers.1.o is not proportional to it"
    assert "norm: left alone, lm_head is ignored" in str(groups)


def test_shared_value_heads_are_left_alone():
    groups = smoothing_groups(Decoder(key_heads=2), torch.randn(2, 5, WIDTH))
    width = 2 * WIDTH // HEADS
    assert groups.skipped["layers.0.v"] == f"the source has {width} channels, layers.0.o has {WIDTH} columns"
    assert len(groups) == 6


def test_ignore_replaces_its_default():
    assert found(Decoder(), torch.randn(1, 5, WIDTH), ignore=["re:.*down"]).keys() == {
        "layers.0.norm1", "layers.0.norm2", "layers.0.v", "layers.1.norm1", "layers.1.norm2", "layers.1.v", "norm",
    }  # fmt: skip


class Pair(nn.Module):
    """Two Linears behind a norm, and what `between` does on the way."""

    def __init__(self, between) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        y: Tensor = self.between(self, h, self.first(h))
        return y


def by_second(function):
    return lambda self, h, y: self.second(function(y))


@pytest.mark.parametrize(
    ("function", "works"),
    [
        (lambda y: y, True),
        (functional.relu, True),
        (lambda y: functional.leaky_relu(y, 0.3), True),
        (lambda y: y * 0.5, True),
        (lambda y: y.reshape(-1, 8), True),
        (lambda y: functional.dropout(y, 0.5, training=False), True),
        (functional.gelu, False),
        (functional.relu6, False),
        (lambda y: y + 1, False),
        (lambda y: y.flip(-1), False),  # channels change places
        (lambda y: y.softmax(-1), False),
        (lambda y: functional.layer_norm(y, (8,)), False),
    ],
    ids=["same", "relu", "leaky", "factor", "view", "dropout", "gelu", "relu6", "sum", "flip", "softmax", "norm"],
)  # fmt: skip
def test_what_lets_factors_through(function, works):
    groups = found(Pair(by_second(function)), 3 * torch.randn(8, 4, 8))
    assert groups == ({"norm": ("first",), "first": ("second",)} if works else {"norm": ("first",)})


def leak_norm(self, h, y):
    return self.second(y) + h


def leak_first(self, h, y):
    return self.second(y) + y


def into_list(self, h, y):
    """A reader that the recording of calls cannot follow: in place, through an attribute of the result."""
    z = self.second(y)
    z[..., 0].copy_(h[..., 0])
    return z


@pytest.mark.parametrize(
    ("between", "source"), [(leak_norm, "norm"), (leak_first, "first"), (into_list, "norm")]
)
def test_a_source_that_anything_else_reads_is_left_alone(between, source):
    groups = smoothing_groups(Pair(between), torch.randn(4, 8))
    assert [group.source for group in groups] == [{"norm": "first", "first": "norm"}[source]]
    assert source != "norm" or "norm" in groups.skipped


def test_tied_weights_and_norms_without_weights():
    model = Pair(by_second(functional.relu))
    model.second.weight = model.first.weight
    groups = smoothing_groups(model, torch.randn(4, 8))
    assert not groups.found
    assert groups.skipped["norm"] == "the weight of first is tied to second"
    model = Pair(by_second(functional.gelu))
    model.norm = nn.LayerNorm(8, elementwise_affine=False)
    assert smoothing_groups(model, torch.randn(4, 8)).skipped["norm"] == (
        "the norm has no weight to take the factors"
    )


def test_a_module_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.second = nn.RMSNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.norm(torch.relu(self.first(self.norm(x)))))
            return y

    groups = found(Twice(), torch.randn(4, 8))
    assert groups == {"norm": ("first", "second")}


def test_a_norm_that_computes_something_else_is_left_alone():
    class ScaledRMSNorm(GemmaRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    groups = smoothing_groups(Decoder(ScaledRMSNorm), torch.randn(1, 4, WIDTH))
    assert groups.skipped["layers.0.norm1"] == "ScaledRMSNorm is not one of the known norms"


def test_the_model_is_in_training_mode_again():
    model = Decoder().train()
    model.layers[1].eval()
    flags = [module.training for module in model.modules()]
    smoothing_groups(model, torch.randn(1, 4, WIDTH))
    assert [module.training for module in model.modules()] == flags
