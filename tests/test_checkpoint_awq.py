"""AWQ checkpoints in the layout "gemm": what is loaded is, bit by bit, what the description of the format says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.checkpoints import load, refuse
from tests.support.foreign_checkpoints import AWQ_COLUMNS, Weight, awq_tensors, random_weight, words, write
from tests.support.kernel_inputs import assert_same
from tritonq import checkpoint
from tritonq.nn import QuantizedLinear
from tritonq.numerics import int32_words


class Pair(nn.Module):
    """Two quantized layers, one with a bias, and a head that stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 40)
        self.down = nn.Linear(40, 64, bias=False)
        self.lm_head = nn.Linear(64, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.down(torch.relu(self.up(x))))


def config(**changes: Any) -> dict[str, Any]:
    """A quantization_config; None takes a key away."""
    fields = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 8,
        "zero_point": True,
        "version": "gemm",
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not None}


def weights(group_size: int = 8, symmetric: bool = False) -> dict[str, Weight]:
    return {
        "up": random_weight(40, 64, 4, group_size, symmetric),
        "down": random_weight(64, 40, 4, group_size, symmetric),
    }


def tensors_of(model: nn.Module, layers: dict[str, Weight]) -> dict[str, Tensor]:
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.removesuffix(".weight") not in layers
    }
    for layer, weight in layers.items():
        tensors |= {f"{layer}.{part}": tensor for part, tensor in awq_tensors(weight).items()}
    return tensors


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [8, -1])
def test_every_value(group_size: int, symmetric: bool, tmp_path: Path) -> None:
    layers, model = weights(group_size, symmetric), Pair()
    write(
        tmp_path, config(group_size=group_size, zero_point=not symmetric), tensors_of(model, layers), shards=2
    )
    with torch.device("meta"):
        empty = Pair()
    q = load(tmp_path, empty)
    for name, weight in layers.items():
        layer = q.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        assert_same(layer.int_weight(), (weight.codes - 8).to(torch.int8))
        assert_same(layer.dequantize(torch.float32), weight.dequantized())
        assert (layer.zero_points is None) == symmetric
    assert_same(q.up.bias, model.up.bias)
    info = checkpoint.info(tmp_path)
    assert (info.method, info.layers) == ("awq", 2)


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    group_size=st.sampled_from([-1, 8, 24]),
    seed=st.integers(0, 2**31),
)
def test_every_shape(
    rows: int, columns: int, group_size: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """N a multiple of 8, which the layout wants; K anything."""
    torch.manual_seed(seed)
    weight = random_weight(8 * rows, columns, 4, group_size, symmetric=False)
    directory = tmp_path_factory.mktemp("awq")
    tensors = {f"0.{name}": tensor for name, tensor in awq_tensors(weight).items()}
    write(directory, config(group_size=group_size), tensors)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(columns, 8 * rows, bias=False))
    layer = checkpoint.load(directory, model).get_submodule("0")
    assert isinstance(layer, QuantizedLinear)
    assert_same(layer.dequantize(torch.float32), weight.dequantized())


def test_golden_words() -> None:
    """Values 0 … 7 in AWQ's order."""
    word = words([list(range(8))], 4, AWQ_COLUMNS)
    assert word.tolist() == [[0x75316420]]
    assert int32_words.unpack_awq(word).tolist() == [list(range(8))]


def test_the_older_config(tmp_path: Path) -> None:
    """quant_config.json with AutoAWQ's own words."""
    layers = weights()
    write(tmp_path, None, tensors_of(Pair(), layers))
    old = {
        "zero_point": True,
        "q_group_size": 8,
        "w_bit": 4,
        "version": "GEMM",
        "modules_to_not_convert": None,
    }
    (tmp_path / "quant_config.json").write_text(json.dumps(old))
    assert_same(load(tmp_path, Pair()).up.dequantize(torch.float32), layers["up"].dequantized())


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "gemv": ({"version": "gemv"}, "version must be 'gemm', found \"gemv\""),
    "gemv_fast": ({"version": "GEMV_FAST"}, "version must be 'gemm', found \"gemv_fast\""),
    "marlin": ({"version": None, "format": "marlin"}, "version must be 'gemm', found \"marlin\""),
    "llm-awq": ({"backend": "llm-awq"}, "version must be 'gemm', found 'llm-awq' as backend"),
    "disagree": ({"format": "gemv"}, 'version and format must agree, found ["gemm", "gemv"]'),
    "bits": ({"bits": 8}, "bits must be 4, found 8"),
    "no bits": ({"bits": None}, "bits must be 4, found null"),
    "group size": ({"group_size": "8"}, 'group_size must be -1 or a positive integer, found "8"'),
    "zero point": ({"zero_point": 1}, "zero_point must be true or false, found 1"),
    "larger groups": ({"group_size": 16}, "down.scales must be float32 or float16 or bfloat16 [3, 64]"),
    "symmetric": (
        {"zero_point": False},
        "up.qzeros must hold only zero points of 8 in a symmetric checkpoint",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = CONFIGS[case]
    write(tmp_path, config(**changes), tensors_of(Pair(), weights()))
    refuse(tmp_path, message, model=Pair())


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    write(tmp_path, config(interleaved=True), tensors_of(Pair(), weights()))
    with pytest.warns(UserWarning, match=r'the keys \["interleaved"\] are unknown and ignored'):
        load(tmp_path, Pair())


def test_tensors_that_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of(Pair(), weights())
    for name, change, message in (
        (
            "up.qweight",
            lambda t: t.t().contiguous(),
            "up.scales must be float32 or float16 or bfloat16 [1, 512]",
        ),
        ("up.qzeros", lambda t: t.long(), "up.qzeros must be int32 [8, 5]"),
        (
            "up.scales",
            lambda t: t * torch.inf,
            "up.scales must be finite and not negative, found NaN or Inf",
        ),
    ):
        write(tmp_path, config(), {**tensors, name: change(tensors[name])})
        refuse(tmp_path, message, model=Pair())
