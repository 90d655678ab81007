"""config.json as an attacker, a stranger or a broken disk writes it: one clear sentence, and the target untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import Block, quantized, read_config, refuse, write_config
from tritonq import checkpoint
from tritonq.numerics.config import W4A16


@pytest.fixture
def w4a16(tmp_path: Path) -> Path:
    """Block with fc1 and fc2 in affine int4, groups of 32."""
    checkpoint.save(quantized(Block(), W4A16(group_size=32, symmetric=False)), tmp_path)
    return tmp_path


def test_directory(tmp_path: Path) -> None:
    refuse(
        tmp_path / "nowhere", "nowhere must be a checkpoint directory, found nothing", kind=FileNotFoundError
    )
    (tmp_path / "file").write_text("")
    refuse(tmp_path / "file", "file must be a checkpoint directory, found a file")
    refuse(tmp_path, "config.json is missing", kind=FileNotFoundError)
    (tmp_path / "config.json").mkdir()
    refuse(tmp_path, "config.json must be a file, found something else")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2", b"\xff\xfe", '{"a": 1}}', "[" * 100_000, '{"a": ' + "9" * 10_000 + "}"],
    ids=["empty", "cut", "list", "bytes", "excess", "deep", "digits"],
)
def test_config_that_is_no_json(text: str | bytes, w4a16: Path) -> None:
    (w4a16 / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refuse(w4a16, "config.json must hold JSON")


@pytest.mark.parametrize("fields", [[], None, 3, "text"], ids=str)
def test_config_that_is_no_dictionary(fields: Any, w4a16: Path) -> None:
    write_config(w4a16, fields)
    refuse(w4a16, "config.json must hold a JSON dictionary")


def test_config_without_quantization(w4a16: Path) -> None:
    write_config(w4a16, {"model_type": "llama"})
    refuse(w4a16, "config.json must have a quantization_config, found none")


def at(*path: str) -> Callable[[dict[str, Any], Any], None]:
    """A function that puts a value at a place in config.json."""

    def put(fields: dict[str, Any], value: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value

    return put


METHOD = at("quantization_config", "quant_method")
GROUPS = at("quantization_config", "config_groups")
GROUP = ("quantization_config", "config_groups", "group_0")
WEIGHTS = (*GROUP, "weights")
HOSTILE: list[tuple[Callable[[dict[str, Any], Any], None], Any, str]] = [
    (at("quantization_config"), [], "quantization_config must be a dictionary, found []"),
    (METHOD, "exl3", "quant_method must be one of 'compressed-tensors', 'gptq', 'awq', found \"exl3\""),
    (METHOD, None, "quant_method must be one of 'compressed-tensors', 'gptq', 'awq', found null"),
    (at("quantization_config", "format"), "marlin-24", "format must be one of pack-quantized, int-quantized"),
    (at("quantization_config", "format"), {"a": 1}, "format must be one of"),
    (at("quantization_config", "format"), "int-quantized", "the model needs fc1.weight"),
    (at("quantization_config", "quantization_status"), "frozen", "quantization_status must be 'compressed'"),
    (at("quantization_config", "kv_cache_scheme"), {"num_bits": 8}, "kv_cache_scheme must be absent or null"),
    (at("quantization_config", "transform_config"), {"u": 1}, "transform_config must be absent or null"),
    (at("quantization_config", "ignore"), "lm_head", "ignore must be a list of names"),
    (at("quantization_config", "ignore"), [1], "ignore must be a list of names"),
    (at("quantization_config", "ignore"), ["re:("], "must be a valid expression"),
    (at("quantization_config", "ignore"), ["re:.*"], "no Linear of the model belongs to a config group"),
    (GROUPS, {}, "config_groups must be a dictionary of groups, found {}"),
    (GROUPS, [], "config_groups must be a dictionary of groups"),
    (GROUPS, {"W4A16": ["Linear"]}, 'config_groups["W4A16"] must be a dictionary'),
    (at(*GROUP, "surprise"), 1, 'found "surprise"'),
    (at(*GROUP, "targets"), None, "targets must be a list of names, found null"),
    (at(*GROUP, "targets"), [], "targets must name at least one module"),
    (at(*GROUP, "targets"), ["fc9"], "no Linear of the model belongs to a config group"),
    (at(*GROUP, "output_activations"), {"num_bits": 8}, "output_activations must be null"),
    (at(*GROUP, "format"), "mixed-precision", "format must be one of"),
    (at(*GROUP, "input_activations"), {"num_bits": 8, "strategy": "token"}, "activation's granularity"),
    (
        at(*GROUP, "input_activations"),
        {"num_bits": 4, "strategy": "token", "dynamic": True},
        "8 bits, found 4",
    ),
    (
        at(*GROUP, "input_activations"),
        {"num_bits": 8, "type": "float"},
        "type must be 'int', found \"float\"",
    ),
    (at(*WEIGHTS), None, "weights must be a dictionary, found null"),
    (at(*WEIGHTS, "surprise"), 1, 'found "surprise"'),
    (at(*WEIGHTS, "num_bits"), 3, "num_bits must be 4 or 8, found 3"),
    (at(*WEIGHTS, "num_bits"), 4.0, "num_bits must be 4 or 8, found 4.0"),
    (at(*WEIGHTS, "num_bits"), True, "num_bits must be 4 or 8, found true"),
    (at(*WEIGHTS, "num_bits"), 10**30, "num_bits must be 4 or 8, found 1000"),
    (at(*WEIGHTS, "num_bits"), 8, "weight_packed must be int32 [96, 16], found int32 [96, 8]"),
    (at(*WEIGHTS, "type"), "float", "type must be 'int'"),
    (at(*WEIGHTS, "symmetric"), "yes", "symmetric must be True or False"),
    (at(*WEIGHTS, "symmetric"), True, "weight_zero_point must be absent or zero in a symmetric scheme"),
    (at(*WEIGHTS, "strategy"), "block", "strategy must be 'tensor', 'channel', 'group' or 'token'"),
    (at(*WEIGHTS, "strategy"), "token", "group_size must be None with strategy 'token'"),
    (at(*WEIGHTS, "strategy"), "channel", "group_size must be None"),
    (at(*WEIGHTS, "group_size"), 0, "group_size must be"),
    (at(*WEIGHTS, "group_size"), -5, "found -5"),
    (at(*WEIGHTS, "group_size"), 1.5, "group_size must be an integer or null, found 1.5"),
    (at(*WEIGHTS, "group_size"), "128", 'group_size must be an integer or null, found "128"'),
    (at(*WEIGHTS, "group_size"), 10**40, "group_size must be"),
    (at(*WEIGHTS, "group_size"), None, "group_size must be"),
    (
        at(*WEIGHTS, "group_size"),
        64,
        "fc1.weight_scale must be float32 or float16 or bfloat16 [96, 1], found",
    ),
    (
        at(*WEIGHTS, "group_size"),
        16,
        "fc1.weight_scale must be float32 or float16 or bfloat16 [96, 4], found",
    ),
    (at(*WEIGHTS, "dynamic"), True, "dynamic"),
    (at(*WEIGHTS, "block_structure"), [1, 1], "block_structure must be null"),
    (at(*WEIGHTS, "actorder"), "row", "actorder must be null, 'weight' or 'group', found \"row\""),
    (at("tritonq"), [], "tritonq must be a dictionary"),
    (at("tritonq", "version"), 2, "tritonq.version must be 1, found 2"),
    (at("tritonq", "version"), "1", 'tritonq.version must be 1, found "1"'),
    (at("tritonq", "surprise"), 1, 'found ["surprise"]'),
    (at("tritonq", "tied"), ["a"], "tritonq.tied must be a dictionary of names"),
    (at("tritonq", "tied"), {"fc1.bias": "fc1.bias"}, "tritonq.tied must name a tensor that is stored"),
    (at("tritonq", "tied"), {"a": "nowhere"}, "tritonq.tied must name a tensor that is stored"),
    (at("tritonq", "dtypes"), {"float8": []}, "tritonq.dtypes must be keyed by float32, float16, bfloat16"),
    (at("tritonq", "dtypes"), {"float16": ["nowhere"]}, "tritonq.dtypes names 'nowhere'"),
    (at("tritonq", "stubs"), {"fc1": True}, "tritonq.stubs['fc1'] must be"),
    (
        at("tritonq", "stubs"),
        {"fc1": {"symmetric": True}},
        "tritonq.stubs names 'fc1', which is no QuantStub",
    ),
    (at("tritonq", "hands_over"), "fc1", "tritonq.hands_over must be a list of names"),
    (at("tritonq", "hands_over"), ["fc1"], "tritonq.hands_over names 'fc1', whose output_scale is missing"),
    (
        at("tritonq", "observers"),
        [{"weight": 1, "activation": None, "layers": []}],
        "tritonq.observers must be",
    ),
]


@pytest.mark.parametrize(
    ("put", "value", "fragment"), HOSTILE, ids=[f"{n}-{f[:40]}" for n, (_, _, f) in enumerate(HOSTILE)]
)
def test_hostile_config(
    put: Callable[[dict[str, Any], Any], None], value: Any, fragment: str, w4a16: Path
) -> None:
    fields = read_config(w4a16)
    put(fields, value)
    write_config(w4a16, fields)
    refuse(w4a16, fragment)


def test_unknown_keys_are_named(w4a16: Path) -> None:
    """At the top they may be anybody's, as compressed-tensors has it; in a group they are refused (above)."""
    fields = read_config(w4a16)
    fields["quantization_config"]["rotated"] = True
    write_config(w4a16, fields)
    with pytest.warns(UserWarning, match=r'the keys \["rotated"\] are unknown and ignored') as caught:
        assert checkpoint.info(w4a16).layers == 2
    assert caught[0].filename == __file__


def test_config_is_a_link_to_elsewhere(w4a16: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "config.json"
    (w4a16 / "config.json").rename(elsewhere)
    (w4a16 / "config.json").symlink_to(elsewhere)
    refuse(w4a16, "config.json must be in the directory, found a link to")
