"""FakeQuantize: its rounding, its gradients, its switches, and that it survives what training does to modules."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tritonq
from tritonq.nn import QATLinear
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec

prepare_qat: Any = tritonq.prepare_qat
FakeQuantize: Any = tritonq.nn.FakeQuantize

STATIC = QuantSpec(8, False, "tensor")
WEIGHT_SPECS = {
    f"int{bits} {granularity} {'symmetric' if symmetric else 'affine'}": QuantSpec(
        bits, symmetric, granularity, 24 if granularity == "group" else None
    )
    for bits in (8, 4)
    for granularity in ("tensor", "channel", "group")
    for symmetric in (True, False)
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("learnable", [False, True], ids=["computed", "learned"])
@pytest.mark.parametrize("name", WEIGHT_SPECS)
def test_a_weight_is_rounded_as_deployed(name, learnable, dtype):
    spec, weight = WEIGHT_SPECS[name], torch.randn(10, 80).to(dtype)
    fake = FakeQuantize(spec, weight, learnable_scale=learnable)
    codes, scale, zero = qparams.quantize_weight(weight, spec)
    assert torch.equal(fake.quantize(weight), codes)
    assert fake.weight_qparams(weight)[0].dtype == dtype
    group = spec.resolve_group_size(80)
    expanded = None if zero is None else qparams.expand_groups(zero, 80, group)
    expected = qparams.dequantize(codes, qparams.expand_groups(scale, 80, group), expanded, dtype)
    assert torch.equal(fake(weight), expected)


def test_a_static_activation_follows_its_observer_and_then_stays():
    fake = FakeQuantize(QuantSpec(8, False, "tensor", observer="minmax"))
    first, second = torch.rand(4, 8), 10 * torch.randn(2, 3, 8)
    fake(first)
    assert torch.equal(fake.scale, fake.observer.calculate_qparams()[0])
    fake(second)
    both = torch.cat([first.reshape(-1), second.reshape(-1)])
    assert torch.allclose(fake.scale, (both.max() - both.min()) / 255)
    kept = fake.scale.clone()
    for stop in (fake.eval, fake.disable_observer):
        stop()
        fake(100 * first)
        assert torch.equal(fake.scale, kept)
        fake.train()
    fake.enable_observer()
    fake(100 * first)
    assert fake.scale > kept
    assert int(fake.observed_batches) == 3


def test_freeze_after_some_batches():
    fake = FakeQuantize(STATIC)
    fake.freeze_observer_after(2)
    fake(torch.randn(8, 4))
    fake(torch.randn(8, 4))
    kept = fake.scale.clone(), fake.zero_point.clone()
    fake(100 * torch.rand(8, 4))
    assert torch.equal(fake.scale, kept[0])
    assert torch.equal(fake.calculate_qparams()[1], kept[1])
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="batches must be an int ≥ 1 or None"):
            fake.freeze_observer_after(wrong)


def test_fake_quant_off_is_the_identity_and_observes():
    fake = FakeQuantize(STATIC)
    fake.disable_fake_quant()
    x = torch.randn(5, 7)
    assert fake(x) is x
    fake.enable_fake_quant()
    assert not torch.equal(fake(x), x)
    assert fake.has_data()


def test_the_gradient_passes_inside_the_grid_and_stops_outside():
    fake = FakeQuantize(STATIC)
    fake(torch.tensor([[-1.0, 1.0]]))
    fake.eval()
    x: Any = torch.tensor([[-5.0, -0.5, 0.0, 0.7, 5.0]], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 0]]


def test_learned_scale_and_zero_point_get_lsq_gradients():
    """Against autograd through rounding replaced by the identity plus a constant."""
    spec = QuantSpec(4, False, "group", 16)
    weight = torch.randn(6, 40)
    fake = FakeQuantize(spec, weight, learnable_scale=True, learnable_zero_point=True)
    with torch.no_grad():
        fake.scale.mul_(0.6)  # so that some elements lie outside
    upstream = torch.randn(6, 40)
    (fake(weight) * upstream).sum().backward()

    scale: Any = fake.scale.detach().double().requires_grad_()
    zero: Any = fake.zero_point.detach().double().requires_grad_()
    s, z = (qparams.expand_groups(value, 40, 16) for value in (scale, zero))
    v = weight.double() / s
    rounded = v + (torch.round(v) - v).detach() + z
    code = torch.where((rounded >= -8) & (rounded <= 7), rounded, rounded.detach().clamp(-8, 7))
    (((code - z) * s) * upstream.double()).sum().backward()
    factor = 1 / (weight.numel() / scale.numel() * 7) ** 0.5
    assert torch.allclose(fake.scale.grad.double(), factor * scale.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(fake.zero_point.grad.double(), factor * zero.grad, rtol=1e-4, atol=1e-5)
    assert fake.zero_point.grad.abs().sum() > 0


def test_a_learned_activation_scale_starts_from_the_first_batch():
    fake = FakeQuantize(STATIC, learnable_scale=True, learnable_zero_point=True)
    x = torch.randn(16, 8)
    observed = FakeQuantize(STATIC)
    assert torch.equal(fake(x), observed(x))
    assert torch.equal(fake.scale, observed.scale)
    with torch.no_grad():
        fake.scale.mul_(2)
    assert torch.equal(fake(x).detach(), fake(x).detach())
    assert torch.equal(fake.scale, 2 * observed.scale)  # the observer has stopped
    fake(x).square().sum().backward()
    assert torch.isfinite(fake.scale.grad).all()
    assert fake.scale.grad.abs().sum() > 0


@pytest.mark.parametrize("driven_to", [0.0, -1.0, 1e-30, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_put_back_counted_and_reported_once(driven_to):
    spec = QuantSpec(4, True, "channel")
    weight = torch.randn(5, 32)
    fake = FakeQuantize(spec, weight, learnable_scale=True, name="fc")
    before = fake.scale.detach().clone()
    with torch.no_grad():
        fake.scale[2] = driven_to
    # Even before the next forward, what would be deployed is valid, and what evaluation uses.
    assert (fake.weight_qparams(weight)[0] > 0).all()
    fake.eval()
    assert torch.isfinite(fake(weight)).all()
    assert int(fake.clamped_scales) == 0
    fake.train()
    with pytest.warns(UserWarning, match="fc: FakeQuantize: 1 learned scales"):
        out = fake(weight)
    assert torch.isfinite(out).all()
    assert int(fake.clamped_scales) == 1
    expected = before[2] if driven_to != driven_to or driven_to == float("inf") else before[2] / 1024
    assert fake.scale[2] == expected
    with torch.no_grad():
        fake.scale[1] = -1
    out = fake(weight)  # counted, and not reported again: warnings are errors here
    assert int(fake.clamped_scales) == 2
    out.sum().backward()
    assert torch.isfinite(fake.scale.grad).all()


def test_a_zero_point_that_is_not_finite_is_put_back():
    weight = torch.rand(3, 16)
    fake = FakeQuantize(
        QuantSpec(4, False, "channel"), weight, learnable_scale=True, learnable_zero_point=True
    )
    with torch.no_grad():
        fake.zero_point[0] = float("nan")
    with pytest.warns(UserWarning, match="1 learned"):
        fake(weight)
    assert fake.zero_point[0] == 0


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()])
def test_casting_a_model_leaves_its_grids_alone(cast):
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    p = prepare_qat(model, tritonq.W8A8Static(), learnable_scale=True)
    p(torch.randn(5, 16))
    before = {k: v.clone() for k, v in p.state_dict().items() if not k.endswith(("weight", "bias"))}
    cast(p)
    for name, value in p.state_dict().items():
        if name in before:
            assert value.dtype == before[name].dtype
            assert torch.equal(value, before[name])
    assert p[0].weight.dtype != torch.float32
    assert isinstance(p[0].weight_fake_quant.scale, nn.Parameter)


def test_state_dict_copy_and_pickle_keep_everything():
    def make() -> Any:
        return FakeQuantize(STATIC, learnable_scale=True)

    fake = make()
    fake(torch.randn(8, 8))
    fake.disable_observer()
    fake.disable_fake_quant()
    other = make()
    other.load_state_dict(fake.state_dict())
    for twin in (other, copy.deepcopy(fake), pickle.loads(pickle.dumps(fake))):
        assert (twin.observer_enabled, twin.fake_quant_enabled) == (False, False)
        twin.enable_fake_quant()
        assert twin.has_data()
        x = torch.randn(3, 8)
        scale, zero = fake.calculate_qparams()
        assert torch.equal(twin(x), qparams.dequantize(twin.quantize(x), scale, zero, x.dtype))


def test_autocast():
    model = prepare_qat(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)), "w8a8_static")
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(4, 32))
        out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    assert model[0].weight.grad.dtype == torch.float32
    assert model[0].activation_post_process.scale.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_observes_once_and_changes_nothing(reentrant):
    x = torch.randn(8, 16, requires_grad=True)
    outcomes = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        block = prepare_qat(
            nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), "w8a8_static", learnable_scale=True
        )
        for module in block.modules():
            if isinstance(module, FakeQuantize):
                module.freeze_observer_after(5)
        for _ in range(2):
            block.zero_grad()
            y = checkpoint(block, x, use_reentrant=reentrant) if checkpointed else block(x)
            y.square().sum().backward()
        grads = {name: parameter.grad for name, parameter in block.named_parameters()}
        outcomes.append((grads, block.state_dict()))
    (grads, state), (checkpointed_grads, checkpointed_state) = outcomes
    assert all(torch.equal(grads[name], checkpointed_grads[name]) for name in grads)
    assert all(torch.equal(state[name], checkpointed_state[name]) for name in state)
    assert int(state["0.activation_post_process.observed_batches"]) == 2


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("config", ["w8a8_static", "w4a8"])
def test_compiled_without_a_graph_break_it_computes_the_same(config, learnable):
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
    eager = prepare_qat(model, config, learnable_scale=learnable)
    other = copy.deepcopy(eager)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for step in range(3):
        x = torch.randn(6, 32) * (1 + step)
        expected, found = eager(x), compiled(x)
        assert torch.allclose(found, expected, atol=1e-6)
        expected.square().sum().backward()
        found.square().sum().backward()
    for (name, mine), (_, theirs) in zip(eager.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5), name
    for (name, mine), (_, theirs) in zip(eager.named_buffers(), other.named_buffers(), strict=True):
        assert torch.allclose(mine.double(), theirs.double()), name


def test_one_module_in_many_places_of_one_graph():
    fake, learned = FakeQuantize(STATIC), FakeQuantize(STATIC, learnable_scale=True)
    for module in (fake, learned):
        x: Any = torch.randn(4, 8, requires_grad=True)
        module(module(module(x) * 2).relu() + 1).sum().backward()
        assert torch.isfinite(x.grad).all()


def test_empty_and_scalar_inputs():
    fake = FakeQuantize(STATIC)
    fake(torch.randn(2, 4))
    assert fake(torch.empty(0, 4)).shape == (0, 4)
    assert fake(torch.tensor(0.5)).shape == ()
    assert int(fake.observed_batches) == 2
    dynamic = FakeQuantize(QuantSpec(8, True, "token", dynamic=True))
    assert dynamic(torch.empty(0, 4)).shape == (0, 4)


def test_with_args_is_read_as_torch_reads_it():
    activation = FakeQuantize.with_args(
        observer=tritonq.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    weight = FakeQuantize.with_args(
        observer=tritonq.PerChannelMinMaxObserver, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
    )
    model: Any = nn.Sequential(nn.Linear(8, 4))
    model.qconfig = tritonq.QConfig(activation=activation, weight=weight)
    p = prepare_qat(model)
    assert isinstance(p[0], QATLinear)
    assert p[0].config.scheme == "w8a8_static"
    assert p[0].activation_post_process is not None
    assert isinstance(p[0].activation_post_process.observer, tritonq.MovingAverageMinMaxObserver)


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"spec": 8}, TypeError, "spec must be a QuantSpec, found 8"),
        ({"learnable_scale": 1}, TypeError, "learnable_scale must be True or False, found 1"),
        (
            {"spec": QuantSpec(8, True, "token", dynamic=True), "learnable_scale": True},
            ValueError,
            "must be False for a dynamic activation",
        ),
        (
            {"spec": QuantSpec(8, True, "channel"), "learnable_scale": True},
            ValueError,
            "needs the weight, found weight=None",
        ),
        ({"learnable_zero_point": True}, ValueError, "needs an affine spec and learnable_scale=True"),
        (
            {"spec": QuantSpec(), "learnable_scale": True, "learnable_zero_point": True},
            ValueError,
            "needs an affine spec",
        ),
    ],
)
def test_words_it_has_no_use_for(words, error, match):
    with pytest.raises(error, match=match):
        FakeQuantize(**{"spec": STATIC, **words})


def test_evaluation_before_any_training_batch_says_so():
    fake = FakeQuantize(STATIC, name="fc").eval()
    with pytest.raises(ValueError, match="fc: FakeQuantize has observed no data; run a batch"):
        fake(torch.randn(2, 2))
    with pytest.raises(ValueError, match="observed no data"):
        fake.calculate_qparams()
