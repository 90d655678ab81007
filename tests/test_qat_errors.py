"""What goes wrong in quantization-aware training is said in one sentence, and changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tritonq import QATLinear

prepare_qat: Any = tritonq.prepare_qat
convert: Any = tritonq.convert
quantize_: Any = tritonq.quantize_


def mlp() -> Any:
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))


def step(model: nn.Module, lr: float = 1e-3) -> torch.Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss = model(torch.randn(20, 16)).square().sum()
    loss.backward()
    optimizer.step()
    return loss


def test_a_model_in_eval_mode():
    model = mlp().eval()
    with pytest.raises(
        ValueError, match=r"needs a model in training mode, found one in eval mode: call model\.train"
    ):
        prepare_qat(model, "w8a8", inplace=True)
    assert type(model[0]) is nn.Linear


def test_bad_words():
    for word in ("learnable_scale", "learnable_zero_point", "inplace"):
        with pytest.raises(TypeError, match=f"{word} must be True or False, found 'yes'"):
            prepare_qat(mlp(), "w8a8", **{word: "yes"})
    with pytest.raises(ValueError, match="learnable_zero_point needs learnable_scale=True"):
        prepare_qat(mlp(), "w8a8", learnable_zero_point=True)
    with pytest.raises(ValueError, match="needs an affine weight or static activation, found none"):
        prepare_qat(mlp(), "w4a16", learnable_scale=True, learnable_zero_point=True)
    with pytest.raises(ValueError, match="prepare_qat needs a config, or a model with qconfig attributes"):
        prepare_qat(mlp())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, found str"):
        prepare_qat("model", "w8a8")
    with pytest.raises(ValueError, match="cannot replace itself"):
        prepare_qat(nn.Linear(4, 4), "w8a8")


def test_a_layer_that_cannot_be_quantized_leaves_the_others_alone():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="Linear '2': weight must be finite, found 1 NaN"):
        prepare_qat(model, "w8a8", inplace=True)
    assert type(model[0]) is nn.Linear


def test_prepared_twice():
    p = prepare_qat(mlp(), "w8a8")
    with pytest.raises(ValueError, match=r"the model is already prepared \(0, …\): convert it"):
        prepare_qat(p, "w8a8")
    with pytest.raises(ValueError, match=r"the model is already prepared \(0, …\): convert it"):
        quantize_(p, "w8a8")


def test_convert_without_training():
    p = prepare_qat(mlp(), "w8a8_static")
    with pytest.raises(ValueError, match="2 of 2 layers have observed no data: 0, 2; run calibration"):
        convert(p)
    assert isinstance(p[0], QATLinear)
    q = convert(p, unobserved="dynamic")
    assert q[0].config.dynamic
    # Nothing to observe: what was rounded is what there is, as round to nearest.
    fresh = prepare_qat(mlp(), "w4a16")
    assert torch.equal(convert(fresh)[0].int_weight(), fresh[0].int_weight())


def test_eval_before_training_names_the_layer():
    p = prepare_qat(mlp(), "w8a8_static").eval()
    with pytest.raises(ValueError, match="0: FakeQuantize has observed no data; run a batch"):
        p(torch.randn(2, 16))


def test_a_nan_gradient_reaches_the_weight_and_convert_says_where():
    p = prepare_qat(mlp(), "w4a16")
    p[0].weight.register_hook(lambda gradient: gradient.index_fill(1, torch.tensor([3]), float("nan")))
    step(p)
    out = p(torch.randn(4, 16))
    assert torch.isnan(out).any()  # as in float training: seen in the loss
    with pytest.raises(ValueError, match="Linear '0': weight must be finite, found 12 NaN or Inf values"):
        convert(p)


def test_a_nan_activation_is_refused_where_it_is_observed():
    p = prepare_qat(mlp(), "w8a8_static")
    with pytest.raises(
        ValueError, match="0: MovingAverageMinMaxObserver needs finite data, found NaN or Inf"
    ):
        p(torch.full((2, 16), float("nan")))
    assert not p[0].activation_post_process.has_data()


def test_a_nan_token_stays_in_its_row():
    p = prepare_qat(mlp(), "w8a8")
    x = torch.randn(3, 16)
    x[1, 4] = float("inf")
    rows = torch.isnan(p(x)).all(dim=1)
    assert rows.tolist() == [False, True, False]


@pytest.mark.parametrize("driven_to", [0.0, -3.0, float("nan")])
def test_scales_driven_out_of_range_by_the_optimizer(driven_to):
    p = prepare_qat(mlp(), "w8a8_static", learnable_scale=True)
    step(p, lr=0.0)
    scales = [p[0].weight_fake_quant.scale, p[2].activation_post_process.scale]
    optimizer = torch.optim.SGD(scales, lr=1.0)
    for scale in scales:
        scale.grad = scale.detach() - driven_to
    optimizer.step()
    with pytest.warns(UserWarning, match="were put back; lower the learning rate") as caught:
        assert torch.isfinite(p(torch.randn(4, 16))).all()
    assert len(caught) == 2
    assert int(p[0].weight_fake_quant.clamped_scales) == 12
    assert int(p[2].activation_post_process.clamped_scales) == 1
    q = convert(p.eval())
    assert (q[0].scales > 0).all()
    assert q[2].input_scale > 0
    x = torch.randn(4, 16)
    with torch.no_grad():
        assert torch.allclose(q(x), p(x), rtol=1e-3, atol=1e-4)


def test_scales_out_of_range_at_the_last_step_are_put_right_by_convert():
    p = prepare_qat(mlp(), "w4a16", learnable_scale=True)
    with torch.no_grad():
        p[0].weight_fake_quant.scale.fill_(-1)
    q = convert(p)
    assert (q[0].scales > 0).all()
    assert torch.equal(q[0].int_weight(), p[0].int_weight())


def test_layers_taken_out_or_replaced_before_convert_are_named():
    p = prepare_qat(nn.Sequential(*mlp(), nn.Linear(8, 4), nn.Linear(4, 4)), "w4a16")
    p[2] = nn.Linear(12, 8)
    del p[4]
    p.append(nn.Linear(4, 2))
    with pytest.warns(
        UserWarning, match="2 of 4 modules prepared in the model are no longer .* stay as they are: 2, 4"
    ):
        q = convert(p)
    assert [type(m).__name__ for m in q] == ["QuantizedLinear", "ReLU", "Linear", "QuantizedLinear", "Linear"]


def test_a_part_of_a_prepared_model_can_be_converted_alone():
    p = prepare_qat(nn.ModuleDict({"encoder": mlp(), "decoder": mlp()}), "w4a16")
    q = convert(p["encoder"])
    assert isinstance(q[0], tritonq.QuantizedLinear)
    wrapped = convert(nn.ModuleDict({"module": p}))
    assert isinstance(wrapped["module"]["decoder"][2], tritonq.QuantizedLinear)


def test_another_weight_under_learned_scales():
    p = prepare_qat(mlp(), "w8a16", learnable_scale=True)
    p[0].weight = nn.Parameter(p[0].weight.detach()[:10].clone())
    match = r"0: FakeQuantize: a weight of shape \[10, 16\] needs scales of shape \[10, 1\], found \[12, 1\]"
    with pytest.raises(ValueError, match=match):
        p(torch.randn(2, 16))
    with pytest.raises(ValueError, match=match):
        convert(p)


def test_bad_inputs_of_a_layer():
    layer = QATLinear.from_float(nn.Linear(16, 4), tritonq.W8A8(), name="fc")
    with pytest.raises(
        ValueError, match=r"QATLinear 'fc': input must have 16 features last, found shape \[2, 15\]"
    ):
        layer(torch.randn(2, 15))
    for wrong, found in ((torch.zeros(2, 16, dtype=torch.int8), r"torch\.int8"), ([1.0], "list")):
        with pytest.raises(TypeError, match=f"input must be a float tensor, found {found}"):
            layer(wrong)
    with pytest.raises(ValueError, match="fakes must be 'input' or 'output', found 'both'"):
        QATLinear.from_float(nn.Linear(16, 4), tritonq.W8A8(), fakes="both")


def test_a_second_derivative_is_refused():
    p = prepare_qat(mlp(), "w8a8")
    x = torch.randn(2, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(p(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.square().sum().backward()


def test_a_failed_convert_changes_nothing():
    p = prepare_qat(mlp(), "w8a8_static")
    p[0](torch.randn(4, 16))  # only the first layer has seen data
    before = copy.deepcopy(p.state_dict())
    with pytest.raises(ValueError, match="1 of 2 layers have observed no data: 2"):
        convert(p, inplace=True)
    assert all(torch.equal(value, before[name]) for name, value in p.state_dict().items())
    p(torch.randn(4, 16))
    assert isinstance(convert(p, inplace=True)[2], tritonq.QuantizedLinear)
