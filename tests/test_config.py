"""QuantSpec and QuantConfig: what they accept, what they say about the rest, and how they travel."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tritonq.numerics import config
from tritonq.numerics.config import QuantConfig, QuantSpec

MAX = config.MAX_GROUP_SIZE


def group_sizes() -> st.SearchStrategy[Any]:
    return st.one_of(st.just("auto"), st.integers(1, MAX))


@st.composite
def weight_specs(draw: st.DrawFn) -> QuantSpec:
    granularity = draw(st.sampled_from(["tensor", "channel", "group"]))
    group_size = draw(group_sizes()) if granularity == "group" else None
    observer = draw(st.sampled_from([None, "minmax", "mse"]))
    return QuantSpec(
        draw(st.sampled_from([4, 8])), draw(st.booleans()), granularity, group_size, observer=observer
    )


@st.composite
def configs(draw: st.DrawFn) -> QuantConfig:
    weight = draw(weight_specs())
    dynamic = draw(st.booleans())
    granularity = "token" if dynamic else "tensor"
    activation = draw(
        st.sampled_from([None, QuantSpec(8, draw(st.booleans()), granularity, dynamic=dynamic)])
    )
    try:
        return QuantConfig(weight, activation)
    except ValueError:  # no kernel multiplies this pair
        return QuantConfig(weight)


@given(weight_specs())
def test_a_spec_survives_its_dictionary_and_json(spec: QuantSpec) -> None:
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(configs())
def test_a_config_survives_its_dictionary_json_and_pickle(made: QuantConfig) -> None:
    again = QuantConfig.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert hash(again) == hash(made)
    assert pickle.loads(pickle.dumps(made)) == made
    assert (made.weight_only, made.dynamic, made.static).count(True) == 1


def test_a_dictionary_may_leave_out_what_has_a_default() -> None:
    assert QuantConfig.from_dict({"weight": {"granularity": "channel"}}) == config.W8A16()


def test_an_observer_class_becomes_its_name() -> None:
    class MyObserver:
        pass

    made = config.W8A8Static(observer=MyObserver)
    assert made.activation is not None
    assert made.activation.to_dict()["observer"] == "MyObserver"
    assert QuantConfig.from_dict(made.to_dict()).to_dict() == made.to_dict()


def test_specs_and_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec().bits = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.W8A8().weight = QuantSpec()  # type: ignore[misc]


def test_equal_configs_are_one_key() -> None:
    assert {config.W4A16(group_size=64): 1, config.W4A16(group_size=64): 2, config.W4A16(): 3} == {
        config.W4A16(group_size=64): 2,
        config.W4A16(): 3,
    }


@pytest.mark.parametrize(
    ("name", "weight", "activation"),
    [
        ("w8a16", QuantSpec(8, True, "channel"), None),
        ("w4a16", QuantSpec(4, True, "group", "auto"), None),
        ("w8a8", QuantSpec(8, True, "channel"), QuantSpec(8, True, "token", dynamic=True)),
        ("w8a8_static", QuantSpec(8, True, "channel"), QuantSpec(8, False, "tensor")),
        ("w4a8", QuantSpec(4, True, "group", "auto"), QuantSpec(8, True, "token", dynamic=True)),
    ],
)
def test_presets(name: str, weight: QuantSpec, activation: QuantSpec | None) -> None:
    made = config.as_config(name)
    assert made == QuantConfig(weight, activation) == config.as_config(name.upper())
    assert made.scheme == name
    assert config.as_config(made) is made


@pytest.mark.parametrize("group_size", [None, -1])
def test_no_group_size_is_one_scale_per_channel(group_size: int | None) -> None:
    assert config.W4A16(group_size=group_size).weight == QuantSpec(4, True, "channel")


@pytest.mark.parametrize(
    ("bits", "symmetric", "lowest", "highest"),
    [(8, True, -127, 127), (8, False, -128, 127), (4, True, -8, 7), (4, False, -8, 7)],
)
def test_code_ranges(bits: int, symmetric: bool, lowest: int, highest: int) -> None:
    spec = QuantSpec(bits, symmetric)
    assert (spec.qmin, spec.qmax) == (lowest, highest)


@pytest.mark.parametrize(
    ("group_size", "in_features", "resolved"),
    [
        ("auto", 4096, 128),
        ("auto", 576, 64),
        ("auto", 96, 32),
        ("auto", 314, 128),
        ("auto", 64, 64),
        ("auto", 31, 31),
        (100, 314, 100),
        (1000, 314, 314),
        (1, 314, 1),
        (MAX, 1, 1),
    ],
)
def test_group_size_of_a_layer(group_size: int | str, in_features: int, resolved: int) -> None:
    assert QuantSpec(4, True, "group", group_size).resolve_group_size(in_features) == resolved


def test_other_granularities_have_one_group() -> None:
    assert QuantSpec(8, True, "channel").resolve_group_size(314) == 314
    assert QuantSpec(8, True, "tensor").resolve_group_size(314) == 314


@pytest.mark.parametrize("bits", [3, 0, 16, -8, 4.0, "8", None, True, [4]])
def test_bits(bits: Any) -> None:
    with pytest.raises(ValueError, match="bits must be 4 or 8") as error:
        QuantSpec(bits=bits)
    assert repr(bits) in str(error.value)


@pytest.mark.parametrize(
    ("group_size", "kind"),
    [
        (0, ValueError),
        (-5, ValueError),
        (-1, ValueError),
        (MAX + 1, ValueError),
        (1.5, TypeError),
        (128.0, TypeError),
        ("128", TypeError),
        ("Auto", TypeError),
        (True, TypeError),
        (None, TypeError),
        ([128], TypeError),
    ],
)
def test_group_size(group_size: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"group_size must be 'auto' or an int in 1 … 131,071 with") as error:
        QuantSpec(4, True, "group", group_size)
    assert repr(group_size) in str(error.value)
    if group_size not in (None, -1):
        for preset in (config.W4A16, config.W8A16, config.W4A8):
            with pytest.raises(kind, match="group_size"):
                preset(group_size=group_size)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"granularity": "row"}, ValueError, ["granularity", "tensor, channel, group, token", "'row'"]),
        ({"granularity": None}, ValueError, ["granularity", "tensor, channel, group, token", "None"]),
        ({"granularity": ["group"]}, ValueError, ["granularity", "['group']"]),
        ({"symmetric": 1}, TypeError, ["symmetric", "True or False", "1"]),
        ({"symmetric": "yes"}, TypeError, ["symmetric", "True or False", "'yes'"]),
        ({"dynamic": None}, TypeError, ["dynamic", "True or False", "None"]),
        ({"group_size": 128}, ValueError, ["group_size", "None", "'tensor'", "128"]),
        ({"granularity": "channel", "group_size": "auto"}, ValueError, ["group_size", "'channel'", "'auto'"]),
        ({"observer": 3}, TypeError, ["observer", "name", "class", "3"]),
        ({"observer": {"name": "minmax"}}, TypeError, ["observer", "{'name': 'minmax'}"]),
    ],
)
def test_fields_of_a_spec(fields: dict[str, Any], kind: type[Exception], words: list[str]) -> None:
    for build in (lambda: QuantSpec(**fields), lambda: QuantSpec.from_dict(fields)):
        with pytest.raises(kind) as error:
            build()
        for word in ["QuantSpec", *words]:
            assert word in str(error.value)


CHANNEL, TOKEN = QuantSpec(8, True, "channel"), QuantSpec(8, True, "token", dynamic=True)
STATIC = QuantSpec(8, False, "tensor")
INT4 = QuantSpec(4, True, "group", 128)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("w8a16",), TypeError, ["weight", "QuantSpec", "'w8a16'"]),
        ((None,), TypeError, ["weight", "QuantSpec", "None"]),
        ((QuantSpec(8, True, "token"),), ValueError, ["tensor, channel or group", "'token'"]),
        ((dataclasses.replace(CHANNEL, dynamic=True),), ValueError, ["dynamic=False", "True"]),
        ((CHANNEL, None, "gptq!"), ValueError, ["algorithm", "None", "'gptq!'"]),
        ((CHANNEL, "int8"), TypeError, ["activation", "QuantSpec or None", "'int8'"]),
        ((CHANNEL, QuantSpec(4, True, "token", dynamic=True)), ValueError, ["8 bits", "4"]),
        (
            (CHANNEL, QuantSpec(8, True, "tensor", dynamic=True)),
            ValueError,
            ["dynamic", "'token'", "'tensor'"],
        ),
        ((CHANNEL, QuantSpec(8, True, "token")), ValueError, ["static", "'tensor'", "'token'"]),
        ((CHANNEL, CHANNEL), ValueError, ["static", "'tensor'", "'channel'"]),
        ((QuantSpec(8, True, "group", 64), TOKEN), ValueError, ["'channel' or 'tensor'", "'group'"]),
        (
            (dataclasses.replace(INT4, symmetric=False), TOKEN),
            ValueError,
            ["symmetric weight", "symmetric=False"],
        ),
        ((INT4, STATIC), ValueError, ["int4", "dynamic", "dynamic=False"]),
        ((INT4, dataclasses.replace(TOKEN, symmetric=False)), ValueError, ["int4", "symmetric=False"]),
    ],
)
def test_configs_that_no_kernel_computes(
    arguments: tuple[Any, ...], kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as error:
        QuantConfig(*arguments)
    for word in ["QuantConfig", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["w2a16", "", "w8a8-static", "int8"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="w8a16, w4a16, w8a8, w8a8_static, w4a8") as error:
        config.as_config(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("value", [None, 8, torch.int8, QuantSpec(), {"weight": {}}])
def test_what_is_no_config(value: Any) -> None:
    with pytest.raises(TypeError, match="w8a16, w4a16, w8a8, w8a8_static, w4a8") as error:
        config.as_config(value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"weight": {"bits": 8}, "weights": {}}, ValueError, ["weights", "activation, algorithm, weight"]),
        ({"weight": {"bits": 8, "num_bits": 8}}, ValueError, ["num_bits", "bits"]),
        ({"weight": 8}, TypeError, ["dictionary", "8"]),
        ({"weight": {}, "activation": ["int8"]}, TypeError, ["dictionary", "['int8']"]),
        ({"weight": None}, TypeError, ["weight", "None"]),
        ({}, ValueError, ["QuantConfig.from_dict needs weight, found no key"]),
        ({"algorithm": None}, ValueError, ["QuantConfig.from_dict needs weight, found algorithm"]),
        ("w8a8", TypeError, ["dictionary", "'w8a8'"]),
        ({1: 2, "weight": {}}, ValueError, ["1"]),
    ],
)
def test_dictionaries_that_are_no_config(fields: Any, kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as error:
        QuantConfig.from_dict(fields)
    for word in words:
        assert word in str(error.value)
