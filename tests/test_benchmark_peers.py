"""The adapters of other libraries in `python3 -m benchmarks.linear`.

Those in torch itself compute here. The others need a GPU or are not installed: modules that record their calls stand in
for them, and what is asserted is what the libraries' own sources ask for.
"""

from __future__ import annotations

import sys
import types
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.linear.contender import FLOAT, Built, Contender
from benchmarks.linear.peers import PEERS, torchao
from benchmarks.linear.run import checked, empty_row, random_linear
from benchmarks.linear.shapes import Shape

SHAPE = Shape("", 64, 256)
CPU = torch.device("cpu")


def peer(by: str) -> Contender:
    (found,) = [contender for contender in PEERS if contender.by == by]
    return found


@pytest.fixture
def linear() -> nn.Linear:
    return random_linear(SHAPE, CPU, torch.bfloat16)


def error_of(contender: Contender, linear: nn.Linear, m: int) -> float:
    with torch.no_grad():
        row, _ = checked(
            empty_row(contender, SHAPE, m), [contender.build(linear)], linear, contender.tolerance
        )
    assert row.status == "measured", row
    assert row.error is not None
    return row.error


@pytest.fixture
def stand_in(monkeypatch):
    """A function that puts modules, with what they hold, where imports find them."""

    def put(**modules: dict[str, object]) -> None:
        for name, contents in modules.items():
            module = types.ModuleType(name.replace("__", "."))
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


def test_each_has_a_name_of_its_own_and_says_what_it_needs():
    names = [contender.by for contender in PEERS]
    assert len(set(names)) == len(names)
    packages = {
        "torch",
        "torchao",
        "gemlite",
        "humming",
        "bitsandbytes",
        "onnxruntime",
        "torch.ao.quantization",
    }
    assert {contender.package for contender in PEERS} == packages


def test_absence():
    absent = Contender("x", "w8a8", Built, 0.0, package="no_such_package")
    assert absent.missing(CPU, torch.bfloat16) == "no_such_package is not installed"
    needy = Contender("x", "w8a8", Built, 0.0, needs_gpu=True)
    assert needy.missing(CPU, torch.bfloat16) == "it needs a GPU"
    assert needy.missing(torch.device("cuda"), torch.bfloat16) is None
    assert peer("tinygemm").missing(CPU, torch.float16) == "it takes no float16"


class TestInTorch:
    def test_float(self, linear):
        assert error_of(peer(FLOAT), linear, 5) < 3e-3

    def test_float_copies_the_weight(self, linear):
        built = peer(FLOAT).build(linear)
        x = torch.randn(2, 256, dtype=torch.bfloat16)
        before = built.call(x)
        nn.init.zeros_(linear.weight)
        assert torch.equal(built.call(x), before)

    @pytest.mark.parametrize("m", [1, 17, 40])
    def test_int_mm(self, linear, m):
        assert 1e-3 < error_of(peer("int_mm"), linear, m) < 2e-2

    def test_int_mm_multiplies_alone(self, linear):
        built = peer("int_mm").build(linear)
        prepared = built.prepare(torch.randn(3, 256, dtype=torch.bfloat16))
        out = built.call(prepared)
        assert prepared[0].dtype == torch.int8
        assert (out.dtype, out.shape) == (torch.int32, (32, 64))  # cuBLAS takes no fewer rows than 17

    @pytest.mark.parametrize("m", [1, 9])
    def test_tinygemm(self, linear, m):
        assert 2e-2 < error_of(peer("tinygemm"), linear, m) < 0.15

    def test_tinygemm_on_a_gpu_packs_even_columns_high(self, linear, monkeypatch):
        given: dict[str, Any] = {}

        def pack(pairs, inner_k_tiles):
            given.update(pairs=pairs, inner_k_tiles=inner_k_tiles)
            return "packed"

        def product(x, packed, group_size, scales_and_zeros):
            codes = torch.stack((given["pairs"] >> 4, given["pairs"] & 15), dim=-1).flatten(1)
            scale, zero = (part.t().repeat_interleave(group_size, 1) for part in scales_and_zeros.unbind(-1))
            assert packed == "packed"
            return functional.linear(x, (codes.to(x.dtype) - 8) * scale + zero)

        monkeypatch.setattr(torch, "_convert_weight_to_int4pack", pack)
        monkeypatch.setattr(torch, "_weight_int4pack_mm", product)
        monkeypatch.setattr(nn.Parameter, "is_cuda", True)
        assert 2e-2 < error_of(peer("tinygemm"), linear, 4) < 0.15
        assert (given["inner_k_tiles"], given["pairs"].dtype) == (8, torch.uint8)


class TestTorchao:
    """torchao.quantization.quantize_(module, config) replaces the weight of the module itself."""

    @pytest.fixture
    def quantize(self, stand_in):
        quantize = mock.Mock()
        names = ("Int4WeightOnlyConfig", "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")
        configs = {name: mock.Mock(side_effect=lambda *a, name=name, **k: (name, a, k)) for name in names}
        stand_in(torchao={}, torchao__quantization={"quantize_": quantize, **configs})
        return quantize

    def test_int4(self, quantize, linear):
        assert error_of(peer("torchao_w4"), linear, 2) < 3e-3  # the stand-in quantizes nothing
        module, config = quantize.call_args.args
        assert config == ("Int4WeightOnlyConfig", (128,), {"int4_packing_format": "tile_packed_to_4d"})
        assert torch.equal(module.weight, linear.weight)
        assert module.weight.data_ptr() != linear.weight.data_ptr()

    @pytest.mark.parametrize(
        ("by", "name"),
        [
            ("torchao_w8", "Int8WeightOnlyConfig"),
            ("torchao_a8w8", "Int8DynamicActivationInt8WeightConfig"),
        ],
    )
    def test_int8_is_compiled_once_for_all_copies(self, by, name, quantize, linear, monkeypatch):
        compiled = mock.Mock(side_effect=lambda function, **words: function)
        monkeypatch.setattr(torch, "compile", compiled)
        torchao._compiled_linear.cache_clear()
        for _ in range(2):
            assert error_of(peer(by), linear, 2) < 3e-3
        torchao._compiled_linear.cache_clear()
        assert quantize.call_args.args[1][0] == name
        assert compiled.call_count == 1
        assert compiled.call_args.kwargs == {"dynamic": False}


class TestGemlite:
    """gemlite.helper: a helper(device, dtype).from_weights(…); int4 is (W_q - zeros) · scales, W_q uint8 [N, K]."""

    def test_int4(self, stand_in, linear):
        def from_weights(codes, scales, zeros):
            assert codes.dtype == torch.uint8
            assert codes.shape == (64, 256)
            assert int(codes.max()) <= 15
            assert scales.dtype == zeros.dtype == torch.bfloat16
            assert scales.shape == zeros.shape == (64, 2)  # it takes K · N / numel for the group size
            scales, zeros = (t.repeat_interleave(128, 1) for t in (scales, zeros))
            weight = (codes.to(torch.bfloat16) - zeros) * scales
            return lambda x: functional.linear(x, weight)

        helper = mock.Mock(return_value=mock.Mock(from_weights=from_weights))
        stand_in(gemlite={}, gemlite__helper={"A16W4_HQQ_INT": helper})
        assert 2e-2 < error_of(peer("gemlite_w4"), linear, 3) < 0.15
        helper.assert_called_with(device="cpu", dtype=torch.bfloat16)

    @pytest.mark.parametrize(
        ("by", "name"), [("gemlite_w8", "A16W8_INT8"), ("gemlite_a8w8", "A8W8_int8_dynamic")]
    )
    def test_int8_quantizes_the_weight_itself(self, by, name, stand_in, linear):
        def from_weights(weight):
            assert weight.shape == (64, 256)
            return lambda x: functional.linear(x, weight)

        helper = mock.Mock(return_value=mock.Mock(from_weights=from_weights))
        stand_in(gemlite={}, gemlite__helper={name: helper})
        assert error_of(peer(by), linear, 3) < 3e-3
        helper.assert_called_with(device="cpu", dtype=torch.bfloat16)


class TestHumming:
    """humming.layer.HummingLayer: load_from_unquantized(weight), then transform(), then calls."""

    @pytest.mark.parametrize(
        ("by", "weight", "activation"),
        [
            ("humming_w4", {"dtype": "int4", "group_size": 128}, None),
            ("humming_w8", {"dtype": "int8", "group_size": 0}, None),
            ("humming_a8w8", {"dtype": "int8", "group_size": 0}, {"dtype": "int8"}),
            ("humming_w4a8", {"dtype": "int4", "group_size": 0}, {"dtype": "int8"}),
            ("humming_w4g_a8", {"dtype": "int4", "group_size": 128}, {"dtype": "int8"}),
        ],
    )
    def test_each(self, by, weight, activation, stand_in, linear):
        made = []

        class HummingLayer(nn.Module):
            def __init__(self, **words):
                super().__init__()
                self.words, self.steps = words, []
                made.append(self)

            def load_from_unquantized(self, tensor):
                self.steps.append("load")
                self.loaded = tensor

            def transform(self):
                self.steps.append("transform")

            def forward(self, x):
                return functional.linear(x, self.loaded)

        stand_in(humming={}, humming__layer={"HummingLayer": HummingLayer})
        assert error_of(peer(by), linear, 3) < 3e-3
        (layer,) = made
        assert layer.steps == ["load", "transform"]
        assert layer.words == {
            "shape_n": 64,
            "shape_k": 256,
            "weight_config": weight,
            "input_config": activation,
            "torch_dtype": torch.bfloat16,
        }


class TestBitsandbytes:
    """bitsandbytes.nn: parameters quantize in `.to(device)`, Int8Params only on the way from a CPU."""

    @pytest.fixture
    def made(self, stand_in):
        made = []

        class Layer(nn.Linear):
            def __init__(self, inputs, outputs, bias, device, **words):
                super().__init__(inputs, outputs, bias, device)
                self.words = words
                made.append(self)

        def parameter(data, requires_grad, **words):
            result = nn.Parameter(data, requires_grad)
            vars(result)["words"] = words
            return result

        layers: dict[str, object] = {"Linear8bitLt": Layer, "Linear4bit": Layer}
        contents = {**layers, "Int8Params": parameter, "Params4bit": parameter}
        stand_in(bitsandbytes={}, bitsandbytes__nn=contents)
        return made

    def test_int8(self, made, linear):
        assert error_of(peer("bnb_int8"), linear, 3) < 3e-3
        (layer,) = made
        assert layer.words == {"has_fp16_weights": False}
        assert layer.weight.words == {"has_fp16_weights": False}
        assert not layer.training

    def test_nf4(self, made, linear):
        assert error_of(peer("bnb_nf4"), linear, 3) < 3e-3
        (layer,) = made
        words = {"quant_type": "nf4", "compress_statistics": False}
        assert layer.words == {**words, "compute_dtype": torch.bfloat16}
        assert layer.weight.words == {**words, "module": layer}
        assert layer.weight.data_ptr() != linear.weight.data_ptr()
