"""Which layers are chosen, what is warned of, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import tritonq
from tritonq import QuantizedLinear


class Odd(nn.Linear):
    """A Linear that computes something else."""

    def forward(self, x):
        return super().forward(x) * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.router = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.router(x))


ALL = {"blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "router", "lm_head"}


def chosen(model: nn.Module) -> dict[str, str]:
    return {
        name: module.config.scheme
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }


def test_one_config_for_all_but_the_head():
    assert set(chosen(tritonq.quantize_(Net(), "w8a16"))) == ALL - {"lm_head"}


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        ([], ALL),
        (["router"], ALL - {"router"}),
        (("fc1", "lm_head"), ALL - {"lm_head", "blocks.0.fc1", "blocks.1.fc1"}),
        (["blocks.0.fc1"], ALL - {"blocks.0.fc1"}),
        (["re:.*fc[12]"], {"router", "lm_head"}),
        (["re:blocks"], {"router", "lm_head"}),
        ({"re:router$", "re:lm_"}, ALL - {"router", "lm_head"}),
    ],
)
def test_ignore_replaces_the_default(ignore, expected):
    assert set(chosen(tritonq.quantize_(Net(), "w8a16", ignore=ignore))) == expected


def test_filter_function():
    asked = []

    def keep(module: Any, name: str) -> bool:
        asked.append(name)
        return module.in_features == 16

    assert set(chosen(tritonq.quantize_(Net(), "w8a16", filter_fn=keep))) == {"blocks.0.fc2", "blocks.1.fc2"}
    assert set(asked) == ALL - {"lm_head"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"fc1": "w4a16", "_default": "w8a8"}, {"blocks.0.fc1": "w4a16", "router": "w8a8"}),
        ({"_default": "w8a8", "fc1": "w4a16"}, {"blocks.0.fc1": "w4a16", "router": "w8a8"}),
        (
            {"blocks.0.fc1": None, "fc1": "w4a16"},
            {"blocks.0.fc1": None, "blocks.1.fc1": "w4a16", "router": None},
        ),
        ({"fc1": "w4a16", "blocks.0.fc1": "w8a8"}, {"blocks.0.fc1": "w4a16"}),
        ({"re:.*fc": tritonq.W4A16(group_size=4)}, {"blocks.1.fc2": "w4a16", "router": None}),
        ({nn.Linear: "w8a16"}, dict.fromkeys(ALL - {"lm_head"}, "w8a16")),
        ({"Linear": "w8a16"}, dict.fromkeys(ALL - {"lm_head"}, "w8a16")),
        ({"router": tritonq.default_dynamic_qconfig}, {"router": "w8a8", "blocks.0.fc1": None}),
    ],
)
def test_first_match_wins(config, expected):
    found = chosen(tritonq.quantize_(Net(), config))
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.filterwarnings("ignore:.* of the weights stay in float:UserWarning")
def test_only_plain_linears_are_taken():
    model: Any = nn.ModuleDict(
        {
            "odd": Odd(8, 8),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
            "plain": nn.Linear(8, 8),
            "bilinear": nn.Bilinear(8, 8, 8),
        }
    )
    patched: Any = nn.Linear(8, 8)
    patched.forward = lambda x: x
    model["patched"] = patched
    assert set(chosen(tritonq.quantize_(model, "w8a16"))) == {"plain"}


def test_shared_modules_are_converted_once_and_stay_shared():
    shared = nn.Linear(8, 8)
    model: Any = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(8, 8)})
    tritonq.quantize_(model, "w8a16")
    assert isinstance(model["a"], QuantizedLinear)
    assert model["b"][0] is model["a"]
    model = nn.ModuleDict({"a": shared, "lm_head": shared, "c": nn.Linear(8, 8)})
    tritonq.quantize_(model, "w8a16")
    assert model["a"] is model["lm_head"] is shared


def tied() -> Any:
    model: Any = nn.ModuleDict(
        {"embedding": nn.Embedding(32, 8), "fc": nn.Linear(8, 8), "out": nn.Linear(8, 32)}
    )
    model["out"].weight = model["embedding"].weight
    return model


def test_tied_weights_are_untied_with_a_warning():
    model = tied()
    with pytest.warns(UserWarning, match="weight of out is tied to embedding") as caught:
        tritonq.quantize_(model, "w8a16")
    assert caught[0].filename == __file__
    assert isinstance(model["out"], QuantizedLinear)
    assert isinstance(model["embedding"].weight, nn.Parameter)
    tritonq.quantize_(tied(), "w8a16", ignore=["out"])


@pytest.mark.parametrize(
    ("config", "ignore", "pattern"),
    [
        ("w8a16", ["fc9"], "'fc9'"),
        ("w8a16", ["re:fc"], "'re:fc'"),
        ("w8a16", ["blocks"], "'blocks'"),
        ({"fc9": "w8a16", "_default": "w8a16"}, (), "'fc9'"),
        (
            {"lm_head": "w8a16", "_default": "w8a16"},
            ("lm_head",),
            "'lm_head' matches no Linear layer that is not ignored",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_warns(config, ignore, pattern):
    with pytest.warns(UserWarning, match=pattern) as caught:
        tritonq.quantize_(Net(), config, ignore=ignore)
    assert caught[0].filename == __file__


def test_a_typed_ignore_warns_where_the_same_default_does_not():
    model = nn.Sequential(nn.Linear(8, 8))
    for call in (tritonq.quantize_dynamic, lambda m, **words: tritonq.quantize_(m, "w8a8", **words)):
        with pytest.warns(UserWarning, match="ignore: the pattern 'lm_head' matches no") as caught:
            call(copy.deepcopy(model), ignore=["lm_head"])
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(("value", "kind"), [(3, TypeError), ("w9", ValueError)])
def test_a_bad_config_in_a_dictionary_is_found_by_its_key(value, kind):
    with pytest.raises(kind, match=r"^config\['router'\]: config must be a QuantConfig or one of .*found"):
        tritonq.quantize_(Net(), {"router": value})


def test_the_default_ignore_does_not_warn():
    tritonq.quantize_(nn.Sequential(nn.Linear(8, 8)), "w8a16")


def test_quantized_layers_are_passed_over():
    model: Any = Net()
    tritonq.quantize_(model, "w4a16", filter_fn=lambda module, name: "fc1" in name)
    tritonq.quantize_(model, {"fc1": "w8a8", "_default": "w8a16"})
    found = chosen(model)
    assert found["blocks.0.fc1"] == "w4a16"
    assert found["router"] == "w8a16"
    with pytest.raises(ValueError, match="leave none of the 1 Linear layers"):
        tritonq.quantize_(model, "w8a16")
    tritonq.quantize_(model, "w8a16", ignore=())
    with pytest.raises(ValueError, match="all 6 Linear layers are already quantized"):
        tritonq.quantize_(model, "w8a16")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"config": "w3a16"}, ValueError, "config must be a QuantConfig or one of .*found 'w3a16'"),
        ({"config": 8}, TypeError, "found 8"),
        ({"config": None}, TypeError, "found None"),
        ({"config": {"re:(": "w8a16"}}, ValueError, r"valid expression after 're:', found 're:\('"),
        ({"config": {3: "w8a16"}}, TypeError, "a pattern must be a name, a class or 're:…', found 3"),
        ({"config": {"fc1": "int8"}}, ValueError, "found 'int8'"),
        ({"ignore": "lm_head"}, TypeError, "ignore must be a list of patterns, found 'lm_head'"),
        ({"ignore": None}, TypeError, "ignore must be a list of patterns, found None"),
        ({"ignore": [""]}, TypeError, "found ''"),
        ({"filter_fn": "fc1"}, TypeError, "filter_fn must be a function .*found 'fc1'"),
        ({"ignore": [nn.Linear]}, ValueError, "nothing to quantize: .*none of the 6 Linear layers"),
        ({"config": {"_default": None}}, ValueError, "nothing to quantize"),
        ({"config": {}}, ValueError, "nothing to quantize"),
        ({"filter_fn": lambda module, name: False}, ValueError, "nothing to quantize"),
    ],
)
def test_bad_arguments(arguments, kind, message):
    model: Any = Net()
    before = dict(model.named_modules())
    with pytest.raises(kind, match=message):
        tritonq.quantize_(model, **{"config": "w8a16", **arguments})
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (lambda: nn.Linear(8, 8), ValueError, "found a Linear, .*QuantizedLinear.from_float"),
        (
            lambda: QuantizedLinear.from_float(nn.Linear(8, 8), tritonq.W8A8()),
            ValueError,
            "already quantized",
        ),
        (lambda: nn.Sequential(nn.ReLU()), ValueError, "has no plain nn.Linear"),
        (lambda: "model", TypeError, "model must be a torch.nn.Module, found str"),
        (lambda: nn.Linear, TypeError, "model must be a torch.nn.Module, found type"),
    ],
)
@pytest.mark.parametrize(
    "function", [tritonq.quantize_, tritonq.prepare, lambda model, _: tritonq.quantize_dynamic(model)]
)
def test_bad_models(model: Callable[[], nn.Module], kind, message, function):
    with pytest.raises(kind, match=message):
        function(model(), "w8a8")


def test_many_layers_do_not_take_quadratic_time():
    model: Any = nn.Sequential(*(nn.Linear(1, 1) for _ in range(3000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(tritonq.prepare(model, "w8a16", inplace=True)[2999], nn.Linear)
