"""GPTQ checkpoints: what is loaded is, bit by bit, what the description of the format says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.checkpoints import Block, load, refuse
from tests.support.foreign_checkpoints import Weight, gptq_tensors, random_weight, words, write
from tests.support.kernel_inputs import assert_same
from tritonq import checkpoint
from tritonq.checkpoint.files import open_tensors
from tritonq.checkpoint.foreign import ForeignTensors
from tritonq.checkpoint.gptq import read_gptq
from tritonq.nn import QuantizedLinear


def config(**changes: Any) -> dict[str, Any]:
    """A quantization_config; None takes a key away."""
    fields = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, **changes}
    return {key: value for key, value in fields.items() if value is not None}


def weights(**words: Any) -> dict[str, Weight]:
    """Those of Block's two layers."""
    return {"fc1": random_weight(96, 64, **words), "fc2": random_weight(33, 96, **words)}


def tensors_of(model: nn.Module, layers: dict[str, Weight], zeros: str = "field") -> dict[str, Tensor]:
    """All tensors of a model whose layers are quantized so."""
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.removesuffix(".weight") not in layers
    }
    for layer, weight in layers.items():
        tensors |= {f"{layer}.{part}": tensor for part, tensor in gptq_tensors(weight, zeros).items()}
    return tensors


SHAPES: dict[str, dict[str, Any]] = {
    "4-bit": {"bits": 4, "group_size": 32, "symmetric": True},
    "4-bit affine": {"bits": 4, "group_size": 32, "symmetric": False},
    "4-bit channel": {"bits": 4, "group_size": -1, "symmetric": False},
    "4-bit one large group": {"bits": 4, "group_size": 128, "symmetric": True},
    "8-bit": {"bits": 8, "group_size": 32, "symmetric": True},
    "8-bit affine channel": {"bits": 8, "group_size": -1, "symmetric": False},
    "4-bit ordered": {"bits": 4, "group_size": 32, "symmetric": True, "ordered": True},
    "8-bit affine ordered": {"bits": 8, "group_size": 16, "symmetric": False, "ordered": True},
}


@pytest.mark.parametrize("version", ["v1", "v1 of gptqmodel", "v2"])
@pytest.mark.parametrize("case", SHAPES)
def test_every_value(case: str, version: str, tmp_path: Path) -> None:
    shape = SHAPES[case]
    layers, model = weights(**shape), Block()
    zeros = {"v1": "field", "v1 of gptqmodel": "word", "v2": "true"}[version]
    says = config(
        bits=shape["bits"],
        group_size=shape["group_size"],
        sym=shape["symmetric"],
        desc_act=shape.get("ordered", False),
        checkpoint_format="gptq_v2" if version == "v2" else "gptq",
        meta={"quantizer": ["optimum:1.24", "gptqmodel:2.2.0"]} if zeros == "word" else None,
    )
    write(tmp_path, says, tensors_of(model, layers, zeros), shards=2)
    with torch.device("meta"):
        empty = Block()
    empty.unsaved = torch.ones(1)
    q = load(tmp_path, empty)
    for name, weight in layers.items():
        layer = q.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        assert_same(layer.int_weight(), (weight.codes - (1 << (weight.bits - 1))).to(torch.int8))
        assert_same(layer.dequantize(torch.float32), weight.dequantized())
        assert (layer.zero_points is None) == shape["symmetric"]
        assert (layer.input_order is not None) == shape.get("ordered", False)
        assert layer.scales.dtype == torch.float16
    assert_same(q.lm_head.weight, model.lm_head.weight)
    x = torch.randn(3, 64)
    assert_same(load(tmp_path, Block())(x), q(x))
    info = checkpoint.info(tmp_path)
    assert (info.method, info.layers) == ("gptq", 2)
    assert info.parameters == sum(tensor.numel() for tensor in model.state_dict().values())


@given(
    bits=st.sampled_from([4, 8]),
    rows=st.integers(2, 40),
    columns=st.integers(1, 70),
    group_size=st.sampled_from([-1, 8, 24]),
    symmetric=st.booleans(),
    ordered=st.booleans(),
    zeros=st.sampled_from(["field", "word", "true"]),
    seed=st.integers(0, 2**31),
)
def test_every_shape(
    bits: int,
    rows: int,
    columns: int,
    group_size: int,
    symmetric: bool,
    ordered: bool,
    zeros: str,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """K and N anything, since g_idx says how many columns there are; a shorter last group too."""
    torch.manual_seed(seed)
    weight = random_weight(rows, columns, bits, group_size, symmetric, ordered)
    says = config(
        bits=bits,
        group_size=group_size,
        sym=symmetric,
        desc_act=ordered,
        checkpoint_format="gptq_v2" if zeros == "true" else None,
        meta={"quantizer": "gptqmodel:1.0"} if zeros == "word" else None,
    )
    directory = tmp_path_factory.mktemp("gptq")
    write(directory, says, {f"0.{name}": tensor for name, tensor in gptq_tensors(weight, zeros).items()})
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(columns, rows, bias=False))
    layer = checkpoint.load(directory, model).get_submodule("0")
    assert isinstance(layer, QuantizedLinear)
    assert_same(layer.dequantize(torch.float32), weight.dequantized())


def test_golden_words() -> None:
    """Values 0 … 7, lowest bits first; the packed words of compressed-tensors are the same."""
    assert words([list(range(8))], 4).tolist() == [[0x76543210]]
    assert words([[1, 2, 3, 4]], 8).tolist() == [[0x04030201]]


def test_zero_points_of_zero(tmp_path: Path) -> None:
    """The largest field of the older format stands for 0; a word that was borrowed from gives all eight back."""
    fields = {"field": 0xFFFFFFFF - (1 << 32), "word": 0x00000000 - 0x11111111}
    for zeros, word in fields.items():
        weight = random_weight(8, 8, 4, -1, symmetric=False)
        weight.zeros[:] = 0
        tensors = {f"0.{name}": tensor for name, tensor in gptq_tensors(weight, zeros).items()}
        assert tensors["0.qzeros"].tolist() == [[word]]
        meta = {"quantizer": ["gptqmodel:5.0"]} if zeros == "word" else None
        write(tmp_path, config(group_size=-1, sym=False, meta=meta), tensors)
        with open_tensors(tmp_path) as source:
            found = ForeignTensors(read_gptq(config(group_size=-1, sym=False, meta=meta)), source)
            assert found.get("0.weight_zero_point").tolist() == [[0]]


def test_where_the_config_may_be(tmp_path: Path) -> None:
    """quantize_config.json, without the method's name; and a file of tensors with any name."""
    layers, model = weights(bits=4, group_size=32, symmetric=True), Block()
    write(tmp_path, None, tensors_of(model, layers))
    old: dict[str, Any] = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": True}
    old |= {
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "gptq_model-4bit-32g",
    }
    (tmp_path / "quantize_config.json").write_text(json.dumps(old))
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-32g.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    for _ in range(2):
        assert_same(load(tmp_path, Block()).fc1.dequantize(torch.float32), layers["fc1"].dequantized())
        info = checkpoint.info(tmp_path)
        assert "quantize_config.json" in info.files
        (tmp_path / "config.json").unlink(missing_ok=True)


def test_overrides_of_single_layers(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: the first expression that fits from the start counts, and says what differs."""
    layers = {
        "fc1": random_weight(96, 64, 8, 16, symmetric=False),
        "fc2": random_weight(33, 96, 4, 32, symmetric=True),
    }
    dynamic = {"-:.*lm_head": {}, "+:fc1$": {"bits": 8, "group_size": 16, "sym": False}, "fc.*": {}}
    write(tmp_path, config(dynamic=dynamic), tensors_of(Block(), layers))
    q = load(tmp_path, Block())
    for name, weight in layers.items():
        assert_same(q.get_submodule(name).dequantize(torch.float32), weight.dequantized())
    schemes = {group.scheme: group.layers for group in checkpoint.info(tmp_path).groups}
    assert schemes == {"w8a16": ("fc1",), "w4a16": ("fc2",)}


def test_what_older_writers_added(tmp_path: Path) -> None:
    """A bias of zeros for a layer that has none, and rotary frequencies, are not missed."""
    layers = weights(bits=4, group_size=32, symmetric=True)
    tensors = tensors_of(Block(), layers)
    tensors["fc2.bias"] = torch.zeros(33)
    tensors["attention.rotary_emb.inv_freq"] = torch.ones(4)
    write(tmp_path, config(), tensors)
    q = load(tmp_path, Block())
    assert q.fc2.bias is None
    tensors["fc2.bias"][3] = 1
    write(tmp_path, config(), tensors)
    refuse(tmp_path, "fc2.bias must be zero, since the model's layer has none, found other values")


def test_a_group_index_may_be_missing_or_in_order(tmp_path: Path) -> None:
    layers = weights(bits=4, group_size=32, symmetric=True)
    tensors = tensors_of(Block(), layers)
    write(tmp_path, config(desc_act=True), tensors)
    assert load(tmp_path, Block()).fc1.input_order is None
    del tensors["fc1.g_idx"], tensors["fc2.g_idx"]
    write(tmp_path, config(), tensors)
    assert_same(load(tmp_path, Block()).fc1.dequantize(torch.float32), layers["fc1"].dequantized())
    write(tmp_path, config(desc_act=True), tensors)
    refuse(tmp_path, "fc1.qweight needs fc1.g_idx, which the files lack")


# --- what is refused --------------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"bits": 3}, "bits must be 4 or 8, found 3"),
    "no bits": ({"bits": None}, "bits must be 4 or 8, found null"),
    "group size 0": ({"group_size": 0}, "group_size must be -1 or a positive integer, found 0"),
    "no group size": ({"group_size": None}, "group_size must be -1 or a positive integer, found null"),
    "sym": ({"sym": "yes"}, 'sym must be true or false, found "yes"'),
    "marlin": ({"checkpoint_format": "marlin"}, "must be 'gptq' or 'gptq_v2', found \"marlin\""),
    "planar": ({"format": "gptq_p"}, "must be 'gptq' or 'gptq_v2', found \"gptq_p\""),
    "old marlin": ({"is_marlin_format": True}, "is_marlin_format must be false, found true"),
    "two formats": (
        {"format": "gptq", "checkpoint_format": "gptq_v2"},
        "checkpoint_format and format must agree",
    ),
    "format": ({"checkpoint_format": 2}, "checkpoint_format must be a name, found 2"),
    "words": ({"pack_dtype": "int64"}, "pack_dtype must be 'int32', found \"int64\""),
    "adapter": ({"adapter": {"path": "x"}}, "adapter must be absent or null"),
    "rotation": ({"rotation": "hadamard"}, "rotation must be absent or null"),
    "dynamic": ({"dynamic": [1]}, "dynamic must be a dictionary, found [1]"),
    "expression": ({"dynamic": {"fc(": {}}}, "dynamic must be keyed by valid expressions"),
    "override": ({"dynamic": {"fc1": {"bits": 2}}}, 'dynamic["fc1"]: bits must be 4 or 8, found 2'),
    "other bits": ({"bits": 8}, "fc1.qweight must be int32 [16, 96] for 96 × 64 values of 8 bits"),
    "smaller groups": ({"group_size": 16}, "fc1.scales must be float32 or float16 or bfloat16 [4, 96] for"),
    "one group": (
        {"group_size": -1},
        "in groups of 64, found float16 [2, 96]: bits and group_size must be those",
    ),
    "symmetric": (
        {"sym": True},
        "fc1.qzeros must hold only zero points of 8 in a symmetric checkpoint, found 0 … 15",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = CONFIGS[case]
    layers = weights(bits=4, group_size=32, symmetric=False)
    write(tmp_path, config(**{"sym": False, **changes}), tensors_of(Block(), layers))
    refuse(tmp_path, message)


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    """Every writer has keys of its own, of which nearly all say how codes were found."""
    layers = weights(bits=4, group_size=32, symmetric=True)
    write(tmp_path, config(planes=2, damp_percent=0.1), tensors_of(Block(), layers))
    with pytest.warns(
        UserWarning, match=r'quantization_config: the keys \["planes"\] are unknown and ignored'
    ) as caught:
        load(tmp_path, Block())
    assert len(caught) == 1
    assert caught[0].filename == str(Path(__file__).parent / "support" / "checkpoints.py")
    write(tmp_path, config(), tensors_of(Block(), layers))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, Block())


PARTS = ("qweight", "qzeros", "scales", "g_idx")
TENSORS: dict[str, tuple[Any, str]] = {
    "no scales": (lambda t: t.pop("fc1.scales"), "fc1.qweight needs fc1.scales, which the files lack"),
    "no zeros": (lambda t: t.pop("fc1.qzeros"), "fc1.qweight needs fc1.qzeros, which the files lack"),
    "words": (lambda t: t.update({"fc1.qweight": t["fc1.qweight"].long()}), "fc1.qweight must be int32 [8, 96]"),
    "flat": (lambda t: t.update({"fc1.qweight": t["fc1.qweight"].flatten()}), "must have two dimensions"),
    "scales": (lambda t: t.update({"fc1.scales": t["fc1.scales"].double()}), "found float64 [2, 96]"),
    "scales' sign": (lambda t: t["fc1.scales"].neg_(), "fc1.scales must be finite and not negative"),
    "scales NaN": (lambda t: t["fc1.scales"].fill_(torch.nan), "fc1.scales must be finite and not negative"),
    "zeros": (lambda t: t.update({"fc1.qzeros": t["fc1.qzeros"][:, :-1].clone()}), "fc1.qzeros must be int32 [2, 12]"),
    "index": (lambda t: t["fc1.g_idx"].neg_(), "fc1.g_idx must hold groups 0 … 1, found -1 … 0"),
    "uneven": (lambda t: t["fc1.g_idx"].fill_(1), "each group 32 columns and the last one the rest, found 0, 64"),
    "index's length": (lambda t: t.update({"fc1.g_idx": t["fc1.g_idx"][:-8].clone()}), "must be int32 [7, 96]"),
    "index's dtype": (lambda t: t.update({"fc1.g_idx": t["fc1.g_idx"].long()}), "fc1.g_idx must be int32 [64]"),
    "twice": (lambda t: t.update({"fc1.weight_packed": torch.ones(1)}), "fc1.weight_packed must be there once"),
    "another": (lambda t: t.update({"fc9.scales": torch.ones(1)}), "the files hold fc9.scales, which the model"),
    "not a layer": (
        lambda t: t.update({f"norm.{part}": t[f"fc1.{part}"].clone() for part in PARTS}),
        "the files hold norm.weight_packed",
    ),
    "no layer": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("fc")],
        "the files must hold a layer's qweight, found none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(case: str, tmp_path: Path) -> None:
    change, message = TENSORS[case]
    tensors = tensors_of(Block(), weights(bits=4, group_size=32, symmetric=False))
    change(tensors)
    write(tmp_path, config(sym=False, desc_act=True), tensors)
    refuse(tmp_path, message)


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    layers = weights(bits=4, group_size=32, symmetric=True)
    write(tmp_path, config(), tensors_of(Block(), layers))
    refuse(tmp_path, "fc1.weight_shape must be [96, 128], found [96, 64]", model=Block(columns=128))
    refuse(tmp_path, "the model needs 0.weight", model=nn.Sequential(nn.Linear(64, 96)))
    tensors = tensors_of(Block(), layers)
    tensors["fc1.g_idx"] = tensors["fc1.g_idx"].flip(0)
    write(tmp_path, config(), tensors)
    refuse(tmp_path, "fc1.g_idx must hold column // 32 without desc_act, found another order")
