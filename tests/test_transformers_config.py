"""`TritonQConfig` itself: what it takes, what it refuses, how it reads and writes, when transformers is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tritonq
from tests.support import hosts
from tests.support.checkpoints import read_config, write_config
from tests.support.hosts import assert_same_state, directories, load
from tritonq import TritonQConfig

__all__ = ["directories"]
ROOT = Path(__file__).resolve().parents[1]


def test_options_are_the_presets_own() -> None:
    config = TritonQConfig("w4a16", group_size=64, symmetric=False)
    assert config.layers == {"_default": tritonq.W4A16(group_size=64, symmetric=False)}


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (["w3a16"], {}, ValueError, "config must be a QuantConfig or one of w8a16, w4a16.*found 'w3a16'"),
        ([7], {}, TypeError, "config must be a QuantConfig or one of"),
        (["w4a16"], {"groupsize": 64}, TypeError, "w4a16 takes group_size, symmetric, found groupsize"),
        (
            ["w8a8"],
            {"group_size": 64},
            TypeError,
            "w8a8 takes symmetric, activation_symmetric, found group_size",
        ),
        ([tritonq.W4A16()], {"group_size": 64}, TypeError, "group_size must go with one of w8a16"),
        ([], {"group_size": 64}, TypeError, "group_size needs a config, found config=None"),
        ([], {"ignore": []}, TypeError, "ignore needs a config"),
        (["w4a16"], {"ignore": "lm_head"}, TypeError, "ignore must be a list of patterns, found 'lm_head'"),
        (["w4a16"], {"ignore": ["re:("]}, ValueError, "ignore: a pattern must be a valid expression"),
        (["w4a16"], {"group_size": 0}, ValueError, "group_size must be 'auto' or an int"),
        (
            ["w8a8_static"],
            {},
            ValueError,
            "must need no calibration while a model is loaded, found w8a8_static",
        ),
        ([{"fc": "w5"}], {}, ValueError, r"config\['fc'\]: config must be .* found 'w5'"),
    ],
    ids=lambda value: str(value) if isinstance(value, (list, dict)) else "",
)
def test_bad_arguments(arguments: list[Any], options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        TritonQConfig(*arguments, **options)


@pytest.mark.parametrize(
    "config",
    [
        TritonQConfig("w4a8"),
        TritonQConfig("w4a16", ignore=["lm_head", nn.Bilinear], group_size=64),
        TritonQConfig({"re:.*mlp": "w4a16", "down_proj": None, "_default": tritonq.W8A8(symmetric=False)}),
    ],
    ids=["preset", "options", "patterns"],
)
def test_dictionary(config: TritonQConfig) -> None:
    fields = json.loads(json.dumps(config.to_dict()))
    assert fields["quant_method"] == "tritonq"
    again = TritonQConfig.from_dict(fields)
    assert again.layers == config.layers
    assert again.to_dict() == fields


def test_recipe_in_config_json(directories: Any, tmp_path: Path) -> None:
    """Float weights beside a tritonq quantization_config are quantized as it says, or as the caller says."""
    model = load(directories("llama"))
    model.save_pretrained(tmp_path)
    fields = read_config(tmp_path)
    write_config(tmp_path, {**fields, "quantization_config": {"quant_method": "tritonq", "config": "w8a16"}})
    assert_same_state(load(tmp_path), tritonq.quantize_(load(directories("llama")), "w8a16"))
    assert_same_state(load(tmp_path, TritonQConfig()), load(tmp_path))
    assert_same_state(load(tmp_path, TritonQConfig("w4a16")), tritonq.quantize_(model, "w4a16"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"config": "w8a16", "bits": 8}, "knows quant_method, config, layers, ignore, found bits"),
        ({}, r"must have config or layers, found \['quant_method'\]"),
        ({"config": "w8a16", "layers": {}}, "must have config or layers"),
        ({"layers": "w8a16"}, "layers must be a dictionary, found 'w8a16'"),
        ({"config": {"weight": {"bits": 3}}}, "bits must be 4 or 8, found 3"),
        ({"config": {"weight": {}, "kernel": 1}}, "found kernel"),
    ],
    ids=str,
)
def test_bad_recipe(wrong: dict[str, Any], message: str, directories: Any, tmp_path: Path) -> None:
    source = directories("llama")
    fields = {**read_config(source), "quantization_config": {"quant_method": "tritonq", **wrong}}
    write_config(tmp_path, fields)
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys, tritonq
assert "transformers" not in sys.modules
assert not hasattr(tritonq, "TritonConfig")
sys.modules["transformers"] = None
try:
    tritonq.TritonQConfig
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(code) == "tritonq.TritonQConfig needs transformers 5: pip install 'tritonq[hf]'\n"


def test_another_transformers_is_refused_by_its_version() -> None:
    code = """
import tritonq, transformers
from transformers.quantizers import auto
del auto.AutoHfQuantizer.merge_quantization_configs
transformers.__version__ = "9.1"
try:
    tritonq.TritonQConfig
except ImportError as error:
    print(error)
"""
    assert run(code).startswith(
        "tritonq.TritonQConfig is made for transformers 5 (tested with 5.23), found 9.1"
    )


def test_other_methods_are_as_before(directories: Any) -> None:
    """What transformers does with configs of its own, where ours is registered."""
    config = hosts.transformers.BitsAndBytesConfig(load_in_8bit=True)
    fields = {"quant_method": "tritonq", "config": "w8a16"}
    with pytest.raises(
        ValueError, match="quantized with TritonQConfig but you are passing a BitsAndBytesConfig"
    ):
        hosts.transformers.quantizers.auto.AutoHfQuantizer.merge_quantization_configs(fields, config)
