"""prepare_qat → train → convert: what is replaced, what stays, and that it learns."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
import tritonq.demo.text
from tritonq import DeQuantStub, QATLinear, QuantizedLinear, QuantStub
from tritonq.nn import FakeQuantize

prepare_qat: Any = tritonq.prepare_qat
convert: Any = tritonq.convert

SCHEMES = ("w8a8", "w8a8_static", "w8a16", "w4a16", "w4a8")


def mlp() -> Any:
    return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8))


def train(model: nn.Module, steps: int = 3, lr: float = 1e-3) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    x, target, losses = torch.randn(64, 32), torch.randn(64, 8), []
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_learns_and_converts(scheme):
    model = mlp()
    p = prepare_qat(model, scheme)
    losses = train(p, 30)
    assert losses[-1] < 0.95 * losses[0]
    q = convert(p)
    assert isinstance(q[0], QuantizedLinear)
    assert q[0].config == p[0].config
    assert isinstance(p[0], QATLinear)  # convert has made a copy, and so has prepare_qat
    assert type(model[0]) is nn.Linear
    assert torch.equal(q[0].int_weight(), p[0].int_weight())
    assert not torch.equal(q[0].int_weight(), QuantizedLinear.from_float(model[0], p[0].config).int_weight())


def test_parameters_stay_the_same_objects_so_that_an_optimizer_stays_valid():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = list(model.parameters())
    p = prepare_qat(model, "w4a16", inplace=True)
    assert p is model
    assert all(a is b for a, b in zip(before, p.parameters(), strict=True))
    codes = p[0].int_weight()
    p(torch.randn(8, 32)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(p[0].int_weight(), codes)


def test_without_stubs_inputs_are_faked_once():
    p = prepare_qat(mlp(), "w8a8_static")
    assert [m.fakes for m in p if isinstance(m, QATLinear)] == ["input", "input"]
    x = torch.randn(4, 32)
    p(x)
    assert len([m for m in p.modules() if isinstance(m, FakeQuantize) and m.observer is not None]) == 2


def test_with_stubs_outputs_are_faked_once():
    p = prepare_qat(nn.Sequential(QuantStub(), *mlp(), DeQuantStub()), "w8a8_static")
    assert [m.fakes for m in p if isinstance(m, QATLinear)] == ["output", "output"]
    x = torch.randn(6, 32)
    seen = {}
    for index in (0, 1, 3):
        p[index].register_forward_hook(lambda m, a, out, index=index: seen.update({index: (a[0], out)}))
    y = p(x)
    stub = p[0].activation_post_process
    scale, zero = stub.calculate_qparams()
    assert torch.equal(
        seen[0][1], tritonq.numerics.qparams.dequantize(stub.quantize(x), scale, zero, x.dtype)
    )
    # The user's hook of a layer sees what the next one gets: values on the layer's grid.
    out = seen[3][1]
    assert out is y
    steps = out / p[3].activation_post_process.scale
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert torch.equal(seen[3][0], seen[1][1].relu())


def test_the_qconfig_way():
    model: Any = nn.Sequential(QuantStub(), *mlp(), DeQuantStub())
    model.qconfig = tritonq.get_default_qat_qconfig("fbgemm")
    assert model.qconfig == tritonq.default_qat_qconfig
    p = prepare_qat(model)
    train(p)
    p.apply(tritonq.disable_observer)
    p.eval()
    q = convert(p)
    x = torch.randn(50, 32)
    with torch.no_grad():
        assert torch.allclose(p(x), q(x), atol=1e-5)
    assert type(q[0]).__name__ == "Quantize"
    assert type(q[-1]).__name__ == "DeQuantize"
    with pytest.raises(ValueError, match="backend must be one of"):
        tritonq.get_default_qat_qconfig("abacus")


def test_torchs_own_qat_qconfig_is_understood():
    quantization = pytest.importorskip("torch.ao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        qconfig = quantization.QConfig(
            activation=quantization.FakeQuantize.with_args(
                observer=quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255
            ),
            weight=quantization.default_per_channel_weight_fake_quant,
        )
    model = mlp()
    model.qconfig = qconfig
    p = prepare_qat(model)
    assert p[0].config.scheme == "w8a8_static"
    assert isinstance(p[0].activation_post_process.observer, tritonq.MovingAverageMinMaxObserver)
    train(p)
    assert isinstance(convert(p)[0], QuantizedLinear)


def test_switches_for_apply():
    p = prepare_qat(mlp(), "w8a8_static")
    x = torch.randn(4, 32)
    p.apply(tritonq.disable_fake_quant)
    expected = p[2].weight @ (p[0].weight @ x.T + p[0].bias[:, None]).relu() + p[2].bias[:, None]
    assert torch.allclose(p(x), expected.T, atol=1e-5)
    p.apply(tritonq.enable_fake_quant)
    assert not torch.allclose(p(x), expected.T, atol=1e-5)
    p.apply(tritonq.disable_observer)
    before = p[0].activation_post_process.scale.clone()
    p(100 * x)
    assert torch.equal(before, p[0].activation_post_process.scale)
    p.apply(tritonq.enable_observer)
    p(100 * x)
    assert p[0].activation_post_process.scale > before


def test_learned_scales_reach_the_deployed_model():
    p = prepare_qat(
        mlp(), tritonq.W8A8Static(symmetric=False), learnable_scale=True, learnable_zero_point=True
    )
    names = [name for name, _ in p.named_parameters()]
    assert "0.weight_fake_quant.scale" in names
    assert "0.activation_post_process.zero_point" in names
    with torch.no_grad():
        p(torch.randn(5, 32))
        p[0].weight_fake_quant.scale.mul_(1.25)
        p[0].activation_post_process.scale.mul_(1.5)
        p[0].activation_post_process.zero_point.add_(3.4)
    q = convert(p)
    assert torch.equal(q[0].scales[0], p[0].weight_fake_quant.scale.detach()[:, 0])
    assert torch.equal(q[0].input_scale, p[0].activation_post_process.scale.detach())
    assert q[0].input_zero_point == p[0].activation_post_process.zero_point.round()
    only_scales = prepare_qat(mlp(), "w4a16", learnable_scale=True)
    assert not any(name.endswith("zero_point") for name, _ in only_scales.named_parameters())


def test_patterns_ignore_and_mixed_configs():
    model = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Linear(32, 32), "lm_head": nn.Linear(32, 8)})
    p = prepare_qat(model, {"a": "w4a16", "_default": "w8a8"})
    assert (p["a"].config.scheme, p["b"].config.scheme) == ("w4a16", "w8a8")
    assert type(p["lm_head"]) is nn.Linear
    p = prepare_qat(model, "w4a16", filter_fn=lambda module, name: name == "b")
    assert [type(m).__name__ for m in p.values()] == ["Linear", "QATLinear", "Linear"]


def test_hooks_flags_and_shared_layers_survive():
    shared = nn.Linear(32, 32)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(32, 8))
    calls = []
    shared.register_forward_hook(lambda module, args, out: calls.append(type(module).__name__))
    model[3].eval()
    p = prepare_qat(model, "w8a8_static", inplace=True)
    assert p[0] is p[2]
    assert (p[0].training, p[3].training) == (True, False)
    p[3].train()
    p(torch.randn(4, 32)).sum().backward()
    q = convert(p)
    assert q[0] is q[2]
    q(torch.randn(4, 32))
    assert calls == ["QATLinear"] * 2 + ["QuantizedLinear"] * 2


def test_a_state_dict_resumes_training_exactly():
    p = prepare_qat(mlp(), "w8a8_static", learnable_scale=True)
    train(p, 2, lr=1e-4)
    twin = prepare_qat(mlp(), "w8a8_static", learnable_scale=True)
    twin.load_state_dict(p.state_dict())
    for model in (p, twin):
        torch.manual_seed(7)
        train(model, 2, lr=1e-4)
    for (name, mine), (_, theirs) in zip(p.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name


def test_evaluation_changes_no_statistics():
    p = prepare_qat(mlp(), "w8a8_static")
    train(p)
    p.eval()
    before = {name: value.clone() for name, value in p.state_dict().items()}
    with torch.no_grad():
        p(1000 * torch.randn(4, 32))
    assert all(torch.equal(value, before[name]) for name, value in p.state_dict().items())


def test_a_weight_observer_is_used_in_training_and_deployment():
    spec = tritonq.QuantSpec(8, True, "channel", observer="moving_average_minmax")
    p = prepare_qat(mlp(), tritonq.QuantConfig(spec))
    train(p)
    assert torch.equal(convert(p)[0].int_weight(), p[0].int_weight())


def test_distillation():
    student: Any = torch.randn(4, 5, 7, requires_grad=True)
    teacher: Any = torch.randn(4, 5, 7, requires_grad=True)
    temperature: Any
    for temperature in (1.0, 2.5):
        loss = tritonq.qat.distill_loss(student, teacher, temperature)
        p = (teacher.detach().double() / temperature).softmax(-1)
        q = (student.detach().double() / temperature).softmax(-1)
        expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert tritonq.qat.distill_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"must have the student's shape \[4, 5, 7\], found \[5, 7\]"):
        tritonq.qat.distill_loss(student, teacher[0])
    for temperature in (0, -1, float("inf"), float("nan"), "warm"):
        with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
            tritonq.qat.distill_loss(student, teacher, temperature)


def load_example(name: str):
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_introductory_example():
    result = load_example("qat_introductory_mlp").main(["--rows", "1000"])
    assert result["last_loss"] < result["first_loss"]
    assert result["differing_weight_codes"] == 0
    assert result["sqnr"] >= 50
    assert result["logits_std"] > 0.01


def test_the_language_model_example_resumes_where_it_stopped(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    example = load_example("qat_language_model")
    monkeypatch.setattr(example, "BATCH", 1)
    monkeypatch.setattr(example, "CHECKPOINT_EVERY", 1)
    text = tritonq.demo.text.calibration_bytes()
    monkeypatch.setattr(example, "training_text", lambda: torch.tensor(list(text)))
    words = ["--schemes", "w4a16", "--steps", "3", "--heldout-bytes", "512"]
    (whole,) = example.main(words)
    assert len(whole["losses"]) == 3
    assert whole["rounded_bits_per_byte"] > whole["float_bits_per_byte"]

    save, saved = example.save_checkpoint, []

    def interrupted(*arguments):
        save(*arguments)
        saved.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "save_checkpoint", interrupted)
    files = [
        "--checkpoint",
        str(tmp_path),
        "--plot",
        str(tmp_path / "a.png"),
        "--json",
        str(tmp_path / "a.json"),
    ]
    with pytest.raises(KeyboardInterrupt):
        example.main([*words, *files])
    assert len(saved) == 1
    monkeypatch.setattr(example, "save_checkpoint", save)
    (resumed,) = example.main([*words, *files])
    assert resumed["losses"] == whole["losses"]
    assert resumed["trained_bits_per_byte"] == whole["trained_bits_per_byte"]
    assert (tmp_path / "a.png").stat().st_size > 0
    with pytest.raises(ValueError, match="is of a run with steps=3"):
        example.main([*words[:3], "4", *words[4:], *files])


def test_a_deep_copy_trains_on_its_own():
    p = prepare_qat(mlp(), "w8a8_static", learnable_scale=True)
    twin = copy.deepcopy(p)
    train(p, 1)
    assert not twin[0].activation_post_process.has_data()
    assert twin[0].weight is not p[0].weight
