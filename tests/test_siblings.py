"""Layers that read one input and are computed by one launch: the same numbers, in whatever way they are called."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tritonq
from tests.support.kernel_inputs import assert_same
from tests.support.quantized_layers import SCHEMES
from tritonq import ops
from tritonq.nn import QuantizedLinear

K = 64
OPERATORS: tuple[Any, ...] = (
    ops.weight_only_linear,
    ops.int8_linear,
    ops.int8_linear_dynamic,
    ops.int4_int8_linear,
    ops.int4_int8_linear_dynamic,
)
PRODUCTS = {operator.overload for operator in OPERATORS}


class Attention(nn.Module):
    """q, k and v; v without bias. `between` runs between q and k, on their input."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(K, 64), nn.Linear(K, 32)
        self.v_proj = nn.Linear(K, 30, bias=False)
        self.between: Callable[[Tensor], Any] = lambda x: None

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x)
        self.between(x)
        return torch.cat((q, self.k_proj(x), self.v_proj(x)), dim=-1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.gate, self.up, self.down = nn.Linear(126, K), nn.Linear(126, K), nn.Linear(K, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention(x * 1)
        return self.down(self.gate(h).relu() * self.up(h))


def block(scheme: Any = "w4a16", dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    model = Block().to(dtype).eval().requires_grad_(False)
    config = SCHEMES.get(scheme, scheme)
    if "static" in str(scheme):
        return tritonq.quantize_(model, config, calibration=[inputs(dtype)], chain=False)
    return tritonq.quantize_(model, config)


def inputs(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(2, 3, K, generator=torch.Generator().manual_seed(1)).to(dtype)


def attention(scheme: Any = "w4a16") -> Any:
    return block(scheme).attention


class Products(TorchDispatchMode):
    """Counts the products that run inside."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in PRODUCTS
        return func(*args, **(kwargs or {}))


def products(call: Callable[[], Any]) -> int:
    with torch.no_grad(), Products() as counter:
        call()
    return counter.count


def fused_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    return tritonq.summary(model).siblings


def shares_memory(*layers: QuantizedLinear) -> bool:
    return len({layer.packed_weight.untyped_storage().data_ptr() for layer in layers}) == 1


QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_launch_gives_the_same_bits(scheme):
    model, x = block(scheme), inputs()
    expected, state = model(x), copy.deepcopy(model.state_dict())
    bytes_before = tritonq.summary(model).weight_bytes
    assert tritonq.fuse_siblings_(model) is model
    assert fused_names(model) == (QKV, ("gate", "up"))
    assert products(lambda: model(x)) == 3
    assert_same(model(x).view(torch.int16), expected.view(torch.int16))  # 0.0 is not -0.0 here
    attention = model.attention
    assert shares_memory(attention.q_proj, attention.k_proj, attention.v_proj)
    assert tritonq.summary(model).weight_bytes == bytes_before
    for name, tensor in model.state_dict().items():
        assert_same(tensor, state[name])
    assert "launched_with=attention.q_proj + attention.k_proj" in repr(attention.v_proj)
    assert "attention.q_proj + attention.k_proj + attention.v_proj" in str(tritonq.summary(model))
    assert tritonq.unfuse_siblings_(model) is model
    assert products(lambda: model(x)) == 6
    assert not fused_names(model)
    assert not shares_memory(attention.q_proj, attention.k_proj)
    assert attention.k_proj.scales.is_contiguous()
    assert_same(model(x), expected)


def test_a_layer_without_bias_keeps_its_zeros():
    model = attention("w8a16")
    tritonq.fuse_siblings_(model)
    whole = model.q_proj.siblings.whole
    assert torch.signbit(whole.bias[-30:]).all()
    assert not whole.bias[-30:].any()


def test_float32_sums_may_differ_in_their_order_alone():
    model, x = block("w4a16", torch.float32), inputs(torch.float32)
    expected = model(x)
    torch.testing.assert_close(tritonq.fuse_siblings_(model)(x), expected, rtol=1e-5, atol=1e-6)


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "change",
    [lambda x: x.mul_(2), lambda x: x.view(-1)[5:].zero_(), lambda x: x.copy_(x.flip(0))],
    ids=["itself", "a view", "copied"],
)
@torch.no_grad()
def test_an_input_changed_in_between_is_read_again(change, compiled):
    model = attention()
    model.between = change
    expected = model(inputs())
    tritonq.fuse_siblings_(model)
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    for _ in range(3):
        assert_same(run(inputs()), expected)


@torch.no_grad()
def test_any_order_alone_and_on_other_inputs():
    model, x, other = attention(), inputs(), inputs() + 1
    layers = {"q": model.q_proj, "k": model.k_proj, "v": model.v_proj}
    expected = {name: (layer(x), layer(other)) for name, layer in layers.items()}
    tritonq.fuse_siblings_(model)
    for names in ("v k q", "k q v", "q q k v", "k", "q v", "v q k", "q k v"):
        for name in names.split():
            assert_same(layers[name](x), expected[name][0])
        for name in names.split():
            for value, result in zip((x, other), expected[name], strict=True):
                assert_same(layers[name](value), result)
    for name, layer in layers.items():  # an equal input is another one
        assert_same(layer(x.clone()), expected[name][0])


@torch.no_grad()
def test_an_exception_in_between():
    model, x = attention(), inputs()
    expected = model(x)
    tritonq.fuse_siblings_(model)
    handle = model.k_proj.register_forward_pre_hook(mock.Mock(side_effect=RuntimeError("once")))
    with pytest.raises(RuntimeError, match="once"):
        model(x)
    handle.remove()
    assert_same(model(x), expected)
    with pytest.raises(ValueError, match="must have 64 features last"):
        model(x[..., 1:])
    assert_same(model(x), expected)


@torch.no_grad()
def test_hooks_see_their_own_layer():
    model, x = attention(), inputs()
    model.k_proj.register_forward_pre_hook(lambda layer, args: (args[0] * 3,))
    model.v_proj.register_forward_hook(lambda layer, args, output: output.neg_())
    expected = model(x)
    assert_same(tritonq.fuse_siblings_(model)(x), expected)


@torch.no_grad()
def test_weights_changed_in_between_are_used():
    model, x = attention(), inputs()
    tritonq.fuse_siblings_(model)
    model.between = lambda _: model.k_proj.bias.add_(1)
    for _ in range(2):
        found = model(x)[..., 64:96]
        assert_same(found, model.k_proj(x.clone()))
    model.between = lambda _: setattr(model.k_proj.bias, "data", torch.zeros(32, dtype=torch.bfloat16))
    assert_same(model(x)[..., 64:96], model.k_proj(x))
    assert fused_names(model) == (("q_proj", "v_proj"),)


class Cross(Attention):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat((self.q_proj(x), self.k_proj(context), self.v_proj(context)), dim=-1)


@torch.no_grad()
def test_layers_that_read_different_inputs():
    model, pair = tritonq.quantize_(Cross().bfloat16(), "w8a8"), (inputs(), inputs() + 1)
    expected, same = model(*pair), model(pair[0], pair[0])
    tritonq.fuse_siblings_(model)
    for _ in range(2):
        assert_same(model(*pair), expected)
        assert_same(model(pair[0], pair[0]), same)
    assert products(lambda: model(pair[0], pair[0])) == 1
    tritonq.fuse_siblings_(model, [pair])
    assert fused_names(model) == (("k_proj", "v_proj"),)
    assert products(lambda: model(*pair)) == 2  # and none of them is computed for nothing
    assert_same(model(*pair), expected)


@pytest.mark.parametrize("name", ["encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "attn2"])
@torch.no_grad()
def test_a_cross_attention_is_known_by_its_name(name):
    model: Any = nn.ModuleDict({"self_attn": Attention(), name: Cross()}).bfloat16().requires_grad_(False)
    tritonq.quantize_(model, "w8a8")
    expected = model[name](inputs(), inputs() + 1)
    tritonq.fuse_siblings_(model)
    assert fused_names(model) == (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        (f"{name}.k_proj", f"{name}.v_proj"),
    )
    x, context = inputs(), inputs() + 1
    assert products(lambda: model[name](x, context)) == 2
    assert_same(model[name](x, context), expected)


def test_gradients_are_those_of_the_layers():
    model, x = attention(), inputs().requires_grad_()

    def gradient() -> Tensor:
        return torch.autograd.grad(model(x).float().square().sum(), x)[0]

    expected = gradient()
    tritonq.fuse_siblings_(model)
    assert_same(gradient(), expected)
    model.k_proj.bias.requires_grad_()
    model(inputs()).sum().backward()
    assert model.k_proj.bias.grad is not None


def test_inference_mode_trusts_a_run_alone():
    model, x = attention(), inputs()
    expected = model(x)
    with torch.inference_mode():
        tritonq.fuse_siblings_(model)
        assert_same(model(x * 1), expected)
        assert products(lambda: model(x * 1)) == 3
        model.between = lambda x: x.mul_(2)
        doubled = model(x * 1)
    assert_same(doubled[..., :64], expected[..., :64])
    assert not torch.equal(doubled[..., 64:], expected[..., 64:])
    model.between = lambda x: None
    tritonq.fuse_siblings_(model, [inputs()])
    with torch.inference_mode():
        assert_same(model(x * 1), expected)
        assert products(lambda: model(x * 1)) == 1


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "w8a8", "w8a8_static", "w4a8"])
def test_compiled_without_a_break(scheme):
    """Each layer by itself: six products."""
    model, x = block(scheme), inputs()
    expected = model(x)
    tritonq.fuse_siblings_(model)
    counts = []

    def backend(graph: Any, examples: Any) -> Any:
        counts.append(sum(node.target in PRODUCTS for node in graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for _ in range(3):
            assert_same(compiled(x), expected)
    assert counts == [6]


@torch.no_grad()
def test_a_graph_that_ends_between_siblings():
    model, x = attention(), inputs()
    expected = model(x)
    tritonq.fuse_siblings_(model)
    model.between = lambda x: (torch._dynamo.graph_break(), x.data.mul_(1), torch._dynamo.graph_break())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for factor in (1, 2, 1):
        assert_same(compiled(x * factor) / factor, expected if factor == 1 else model(x * 2) / 2)


# --- copies, moves, files ---------------------------------------------------------------------------------------------


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        through_torch_save,
        lambda model: model.half().bfloat16(),
        lambda model: model.to("meta").to_empty(device="cpu"),
        lambda model: model,
    ],
    ids=["deepcopy", "pickle", "torch.save", "half", "to_empty", "nothing"],
)
@torch.no_grad()
def test_copies_are_fused_again(copied):
    model = block()
    del model.attention.between  # a lambda, which cannot be pickled
    state, ones = copy.deepcopy(model.state_dict()), torch.ones(3, 126, dtype=torch.bfloat16)
    expected = model.gate(ones), model.up(ones)
    tritonq.fuse_siblings_(model)
    again = copied(model)
    assert fused_names(again) == (QKV, ("gate", "up"))
    again.load_state_dict(state)
    assert fused_names(again) == (QKV, ("gate", "up"))
    assert shares_memory(again.gate, again.up)
    assert again is model or not shares_memory(again.gate, model.gate)
    assert_same(again.gate(ones), expected[0])
    assert_same(again.up(ones), expected[1])
    assert products(lambda: (again.gate(ones), again.up(ones))) == 1
    for name, tensor in again.state_dict().items():
        assert_same(tensor, state[name])


@torch.no_grad()
def test_a_copy_of_one_layer_is_alone():
    model, x = attention("w4a16 g24 affine"), inputs()
    expected = model.k_proj(x)
    tritonq.fuse_siblings_(model)
    lone = copy.deepcopy(model.k_proj)
    assert lone.packed_weight.untyped_storage().nbytes() == lone.packed_weight.nbytes
    assert_same(lone(x), expected)
    assert "launched_with" not in repr(lone)
    model.q_proj = nn.Identity()  # a sibling that has gone
    assert_same(model.k_proj(x), expected)
    assert_same(model.v_proj(x), model.v_proj(x.clone()))


@torch.no_grad()
def test_replaced_tensors_are_used():
    model, x = attention(), inputs()
    tritonq.fuse_siblings_(model)
    zeros = {"k_proj.weight_scale": torch.zeros_like(model.k_proj._parameters["weight_scale"])}
    found = torch.func.functional_call(model, zeros, (x,))
    assert_same(found[..., 64:96], model.k_proj.bias.expand(2, 3, 32))
    model(x)
    assert products(lambda: model(x)) == 1


@torch.no_grad()
def test_saved_and_loaded_before_and_after(tmp_path):
    model, x = block(), inputs()
    expected = model(x)
    tritonq.save(model, tmp_path / "plain")
    tritonq.fuse_siblings_(model)
    tritonq.save(model, tmp_path / "fused")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "fused")]
    assert files[0] == files[1]
    other = tritonq.load(tmp_path / "fused", block())
    assert not fused_names(other)
    assert_same(tritonq.fuse_siblings_(other)(x), expected)
    fused = tritonq.fuse_siblings_(block("w8a8"))  # of another scheme
    assert_same(tritonq.load(tmp_path / "plain", fused)(x), expected)
    assert fused_names(fused) == (QKV, ("gate", "up"))
    assert products(lambda: fused(x)) == 3


@pytest.mark.parametrize(
    "scheme", [SCHEMES["w4a16 g24 affine"], tritonq.W4A8(group_size=32)], ids=["w4a16", "w4a8"]
)
@pytest.mark.usefixtures("kernels_can_run")
@torch.no_grad()
def test_kernels_are_given_dense_scales_of_a_layer_alone(scheme, device, monkeypatch):
    model, x = attention(scheme).to(device), inputs(torch.float32).to(device)
    for layer in (ops.int4, ops.weight_only):
        monkeypatch.setattr(layer, "uses_kernels", lambda x: True)
    expected = model.k_proj(x)
    tritonq.fuse_siblings_(model)
    assert not model.k_proj.scales.is_contiguous()
    with mock.patch.object(model.k_proj.siblings, "output", return_value=None):
        assert_same(model.k_proj(x), expected)
    assert_same(model.k_proj(x), expected)


# --- which -----------------------------------------------------------------------------------------------------------


def reverse_order(layer: QuantizedLinear) -> None:
    """Take the input's features from the last to the first."""
    order = torch.arange(layer.in_features, dtype=torch.int32).flip(0)
    layer.hold_weight(layer.kernel_weight()._replace(input_order=order))


def test_only_layers_that_are_alike():
    configs = {"k_proj": "w8a16", "gate": tritonq.W4A16(group_size=32), "_default": "w4a16"}
    model = tritonq.quantize_(Block(), configs)
    tritonq.fuse_siblings_(model)
    assert fused_names(model) == (("attention.q_proj", "attention.v_proj"),)
    for change in (reverse_order, lambda layer: setattr(layer, "dtype", torch.float16)):
        model = block()
        change(model.attention.q_proj)
        tritonq.fuse_siblings_(model)
        assert fused_names(model)[0] == ("attention.k_proj", "attention.v_proj")


@torch.no_grad()
def test_a_common_order_of_columns():
    model, x = attention(), inputs()
    for layer in (model.q_proj, model.k_proj, model.v_proj):
        reverse_order(layer)
    expected = model(x)
    tritonq.fuse_siblings_(model)
    assert products(lambda: model(x)) == 1
    assert_same(model(x), expected)


def test_chained_layers_are_left_alone():
    model: Any = Block().eval().requires_grad_(False)
    tritonq.quantize_(model, "w8a8_static", calibration=[inputs(torch.float32)])
    expected = model(inputs(torch.float32))
    assert [edge.producer for edge in tritonq.summary(model).edges]
    tritonq.fuse_siblings_(model)
    assert fused_names(model) == (QKV,)
    assert_same(model(inputs(torch.float32)), expected)
    model.attention.k_proj.hand_over(None, (torch.ones(1), torch.zeros(1, dtype=torch.int8)))
    assert not fused_names(model)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_codes_that_a_norm_and_an_activation_hand_over(scheme):
    model = nn.Sequential(nn.RMSNorm(K), Block()).eval().requires_grad_(False)
    x = inputs(torch.float32)
    tritonq.fuse_activations_(tritonq.quantize_(model, scheme), [x])
    assert len(tritonq.summary(model).edges) == 2
    expected = model(x)
    tritonq.fuse_siblings_(model)
    assert products(lambda: model(x)) == 3
    assert_same(model(x), expected)
    torch._dynamo.reset()
    assert_same(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    tritonq.fuse_siblings_(model, [x])
    assert fused_names(model) == (
        ("1.attention.q_proj", "1.attention.k_proj", "1.attention.v_proj"),
        ("1.gate", "1.up"),
    )
    assert_same(model(x), expected)


def test_a_run_finds_siblings_of_any_name():
    class Mixer(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self["q_proj"](self["first"](x) + self["other"](x))
            another: Tensor = self["k_proj"](h.relu_())
            return h + another

    mixer = Mixer({name: nn.Linear(K, K) for name in ("first", "other", "q_proj", "k_proj")}).eval()
    model: nn.Module = tritonq.quantize_(nn.Sequential(mixer), "w8a8")
    x = inputs(torch.float32)
    expected = model(x)
    tritonq.fuse_siblings_(model)
    assert fused_names(model) == (("0.q_proj", "0.k_proj"),)
    tritonq.fuse_siblings_(model, [x])
    assert fused_names(model) == (("0.first", "0.other"),)
    assert_same(model(x), expected)


def test_bad_calls():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, found list"):
        tritonq.fuse_siblings_([])  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"must hold quantized layers, found none: call quantize_ first"):
        tritonq.fuse_siblings_(Block())
    with pytest.raises(TypeError, match=r"inputs must be an iterable of batches .*, found Tensor"):
        tritonq.fuse_siblings_(block(), inputs())
    with pytest.raises(TypeError, match=r"batch 0 must be a tensor, tuple, list or dictionary, found int"):
        tritonq.fuse_siblings_(block(), [3])
    with pytest.raises(ValueError, match="inputs must have at least one batch, found none"):
        tritonq.fuse_siblings_(block(), [])
    lonely = tritonq.quantize_(nn.Sequential(nn.Linear(K, K)), "w8a8")
    with pytest.warns(UserWarning, match="none of the 1 quantized layers has siblings"):
        tritonq.fuse_siblings_(lonely)
    with pytest.raises(TypeError, match="found int"):
        tritonq.unfuse_siblings_(1)  # type: ignore[type-var]
