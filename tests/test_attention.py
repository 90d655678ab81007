"""nn.MultiheadAttention, quantized: torch's own with dequantized weights is the oracle."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from tritonq import QuantizedLinear, reference

PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Host(nn.Module):
    """A model with one attention, called `attention`."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *inputs: Any, **words: Any) -> Any:
        return self.attention(*inputs, **words)


def quantized(attention: nn.Module, scheme: str = "w8a16") -> Any:
    return tritonq.quantize_(Host(copy.deepcopy(attention)), scheme).attention


def dequantized(attention: nn.MultiheadAttention, ours: Any) -> Any:
    """The float layer with the weights that the quantized one stands for."""
    oracle: Any = copy.deepcopy(attention)
    weights = [getattr(ours, part).dequantize() for part in PARTS]
    if oracle.in_proj_weight is not None:
        oracle.in_proj_weight.data = torch.cat(weights[:3])
    else:
        for part, weight in zip(PARTS[:3], weights[:3], strict=True):
            getattr(oracle, f"{part}_weight").data = weight
    oracle.out_proj.weight.data = weights[3]
    return oracle


def assert_close(found: Any, expected: Any, tolerance: float = 5e-6) -> None:
    assert (found[1] is None) == (expected[1] is None)
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "widths": {"kdim": 10, "vdim": 7, "batch_first": True},
    "extra_keys": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout": {"dropout": 0.5},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("need_weights", [True, False])
def test_equals_torchs_with_dequantized_weights(case, need_weights):
    attention = nn.MultiheadAttention(12, 3, **CASES[case]).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases start as zeros
    ours = quantized(attention)
    oracle = dequantized(attention, ours)
    shapes = [(12, 5), (attention.kdim, 7), (attention.vdim, 7)]
    q, k, v = (
        torch.randn(2, length, width) if attention.batch_first else torch.randn(length, 2, width)
        for width, length in shapes
    )
    padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    added = torch.zeros(2, 7).masked_fill(padding, float("-inf"))
    one = torch.rand(5, 7) > 0.8
    one[:, 0] = False  # each query keeps a key
    each = torch.randn(6, 5, 7)
    words: dict[str, Any]
    with torch.no_grad():
        for words in (
            {},
            {"key_padding_mask": padding},
            {"attn_mask": one},
            {"attn_mask": each, "key_padding_mask": added, "average_attn_weights": False},
            {"attn_mask": one, "key_padding_mask": padding},
        ):
            words["need_weights"] = need_weights
            assert_close(ours(q, k, v, **words), oracle(q, k, v, **words))
        alone = [torch.randn(length, width) for width, length in shapes]
        words = {"need_weights": need_weights, "attn_mask": torch.randn(5, 7), "key_padding_mask": added[1]}
        found, expected = ours(*alone, **words), oracle(*alone, **words)
        assert found[0].shape == expected[0].shape == (5, 12)
        assert_close(found, expected)


def test_a_causal_mask_and_a_module_that_attends_to_itself():
    attention = nn.MultiheadAttention(12, 3).eval()
    ours = quantized(attention)
    oracle = dequantized(attention, ours)
    x, mask = torch.randn(5, 2, 12), nn.Transformer.generate_square_subsequent_mask(5)
    words: dict[str, Any] = {"attn_mask": mask, "is_causal": True, "need_weights": False}
    assert_close(ours(x, x, x, **words), oracle(x, x, x, **words))
    x[4] = 7.0
    assert torch.equal(
        ours(x, x, x, **words)[0][:4],
        ours(x[:4], x[:4], x[:4], need_weights=False, attn_mask=mask[:4, :4])[0],
    )


def test_dynamic_codes_are_those_of_the_reference():
    ours = quantized(nn.MultiheadAttention(12, 3), "w8a8")
    x = torch.randn(5, 2, 12)
    q = ours.q_proj(x)
    codes, scale, _ = reference.quantize_per_token(x.reshape(-1, 12), True)
    sums = (codes.long() @ ours.q_proj.int_weight().long().t()).float()
    assert torch.equal(q.reshape(-1, 12), sums * scale * ours.q_proj.scales.reshape(1, -1) + ours.q_proj.bias)


def test_the_error_is_that_of_int8():
    attention = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    x = torch.randn(4, 20, 64)
    with torch.no_grad():
        expected = attention(x, x, x)[0]
        found = quantized(attention, "w8a8")(x, x, x)[0]
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_encoders_and_decoders_call_it(scheme):
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 2, 2, 32, batch_first=True).eval()
    q = tritonq.quantize_(copy.deepcopy(model), scheme)
    calls: list[str] = []
    for name, part in q.named_modules():
        if isinstance(part, QuantizedLinear):
            part.register_forward_hook(lambda *ignored, name=name: calls.append(name))
    source, target = torch.randn(3, 5, 16), torch.randn(3, 4, 16)
    with torch.no_grad():
        expected, found = model(source, target), q(source, target)
    assert len(calls) == 2 * (4 + 2) + 2 * (2 * 4 + 2)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("same", [True, False])
def test_saving_loading_copying(tmp_path, same):
    words = {} if same else {"kdim": 8, "vdim": 20}
    x, y, z = (
        torch.randn(5, 2, 12),
        torch.randn(5, 2, 12 if same else 8),
        torch.randn(5, 2, 12 if same else 20),
    )
    float_model = Host(nn.MultiheadAttention(12, 3, **words, add_bias_kv=True)).eval()
    model = tritonq.quantize_(copy.deepcopy(float_model), "w8a8")
    expected = model(x, y, z)[0]
    names = {name.split(".")[1] for name in model.state_dict()}
    assert names == {*PARTS, "bias_k", "bias_v"}
    tritonq.save(model, tmp_path)
    with torch.device("meta"):
        empty = Host(nn.MultiheadAttention(12, 3, **words, add_bias_kv=True)).eval()
    for target in (empty, float_model, copy.deepcopy(model)):
        assert torch.equal(tritonq.load(tmp_path, target)(x, y, z)[0], expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x, y, z)[0], expected)
    assert [row.name for row in tritonq.summary(model).rows] == [f"attention.{part}" for part in PARTS]
    again = tritonq.quantize_(Host(nn.MultiheadAttention(12, 3, **words, add_bias_kv=True)).eval(), "w8a8")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, y, z)[0], expected)


@pytest.mark.filterwarnings("ignore:.* of the weights stay in float:UserWarning")
def test_training_and_what_is_left_alone():
    model = Host(nn.MultiheadAttention(12, 3, dropout=0.5))
    trained = tritonq.prepare_qat(model, "w8a8")
    x = torch.randn(5, 2, 12)
    trained(x, x, x)[0].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in trained.named_parameters()}
    assert set(gradients) == {f"attention.{part}.{kind}" for part in PARTS for kind in ("weight", "bias")}
    for part in PARTS:
        gradient = gradients[f"attention.{part}.weight"]
        assert gradient is not None
        assert gradient.abs().sum() > 0

    class Own(nn.MultiheadAttention):
        def forward(self, *inputs: Any, **words: Any) -> Any:
            return super().forward(*inputs, **words)

    both = nn.ModuleDict({"own": Own(8, 2), "fc": nn.Linear(8, 8)})
    tritonq.quantize_(both, "w8a16")
    assert isinstance(both["own"], Own)


@pytest.mark.filterwarnings("ignore:.* of the weights stay in float:UserWarning")
def test_models_of_transformers_are_split_only_where_that_is_named():
    class Like(Host):
        def _init_weights(self, module: nn.Module) -> None:
            raise AssertionError

    model: Any = nn.ModuleDict({"like": Like(nn.MultiheadAttention(8, 2)), "fc": nn.Linear(8, 8)})
    tritonq.quantize_(model, "w8a16")
    assert not hasattr(model["like"].attention, "q_proj")
    tritonq.quantize_(model, {"attention": "w8a16"})
    assert isinstance(model["like"].attention.q_proj, QuantizedLinear)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


@pytest.mark.parametrize(
    ("inputs", "words", "kind", "message"),
    [
        (
            (zeros(5, 2, 11), zeros(7, 2, 12), zeros(7, 2, 12)),
            {},
            ValueError,
            "'attention': query must have .* 12",
        ),
        ((zeros(5, 2, 12), zeros(7, 12), zeros(7, 12)), {}, ValueError, "as many dimensions each, found"),
        ((zeros(5, 2, 12), zeros(7, 3, 12), zeros(7, 3, 12)), {}, ValueError, "all have the query's batch"),
        (
            (zeros(5, 2, 12), zeros(7, 2, 12), zeros(6, 2, 12)),
            {},
            ValueError,
            "key and value must be as long",
        ),
        (
            (zeros(5, 12).long(), zeros(7, 12), zeros(7, 12)),
            {},
            TypeError,
            r"query must be .* found torch\.int64",
        ),
        ((zeros(5, 12), zeros(7, 12), zeros(7, 12)), {"is_causal": True}, ValueError, "is_causal needs"),
        (
            (zeros(5, 12), zeros(7, 12), zeros(7, 12)),
            {"attn_mask": zeros(7, 5)},
            ValueError,
            r"attn_mask must be \[5, 7\] or \[3, 5, 7\], found \[7, 5\]",
        ),
        (
            (zeros(5, 2, 12), zeros(7, 2, 12), zeros(7, 2, 12)),
            {"key_padding_mask": zeros(7)},
            ValueError,
            r"key_padding_mask must be \[2, 7\], found \[7\]",
        ),
        (
            (zeros(5, 12), zeros(7, 12), zeros(7, 12)),
            {"attn_mask": zeros(5, 7).int()},
            TypeError,
            r"attn_mask must be bool or float, found torch\.int32",
        ),
    ],
)
def test_bad_inputs(inputs, words, kind, message):
    with pytest.raises(kind, match=message):
        quantized(nn.MultiheadAttention(12, 3))(*inputs, **words)


def test_bad_weights_are_named_and_the_layer_stays():
    model = Host(nn.MultiheadAttention(12, 3))
    attention: Any = model.attention
    attention.in_proj_weight.data[30] = float("inf")
    with pytest.raises(ValueError, match=r"Linear 'attention\.v_proj': weight must be finite, found 12 NaN"):
        tritonq.quantize_(model, "w8a8")
    assert model.attention is attention


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("prepared", [True, False])
def test_an_encoder_of_which_only_attention_is_quantized(prepared):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    found = tritonq.prepare(model, "w8a8", ignore=["linear1", "linear2"])
    if not prepared:
        found = tritonq.convert(found)
    with torch.no_grad():
        difference = found(x, src_key_padding_mask=padding) - model(x, src_key_padding_mask=padding)
    error = difference[~padding].norm()
    assert error < 1e-5 if prepared else 0 < error < 0.5
