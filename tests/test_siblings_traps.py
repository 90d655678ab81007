"""What programs do around siblings, and what of it must not make a difference: autograd, modes, traces, threads."""

from __future__ import annotations

import copy
import io
import sys
import threading
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import tritonq
from tests.support.kernel_inputs import assert_same
from tests.test_siblings import attention, fused_names, inputs, products, shares_memory


def pair(scheme: str = "w8a8") -> tuple[Any, Any]:
    """(a fused attention, the same before)."""
    plain = attention(scheme)
    return tritonq.fuse_siblings_(copy.deepcopy(plain)), plain


def trained() -> Tensor:
    return torch.full((32,), 3.0, dtype=torch.bfloat16, requires_grad=True)


# --- autograd --------------------------------------------------------------------------------------------------------


def test_something_trained_may_be_added_in_place():
    gradients: list[Any] = []
    for model in pair():
        scale = trained()
        k = model.k_proj(inputs())
        k += scale
        k.mul_(2).sum().backward()
        gradients.append(scale.grad)
    assert_same(*gradients)


def test_a_change_of_one_output_is_none_of_another():
    gradients: list[Any] = []
    for model in pair():
        scale, x = trained(), inputs()
        product = model.k_proj(x) * scale  # autograd keeps k
        model.q_proj(x).zero_()
        model.v_proj(x).zero_()
        product.sum().backward()
        gradients.append(scale.grad)
    assert_same(*gradients)


def test_inference_mode_ends_between_siblings():
    fused, plain = pair()
    x, scale = inputs(), trained()
    with torch.inference_mode():
        fused.q_proj(x)
    k = fused.k_proj(x)
    assert_same(k, plain.k_proj(x))
    (k * scale).sum().backward()  # which no tensor of inference mode can be kept for


# --- modes and traces ------------------------------------------------------------------------------------------------


def test_a_mode_ends_between_siblings():
    fused, plain = pair()
    x = inputs()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fused.q_proj(x)
    assert_same(fused.k_proj(x), plain.k_proj(x))
    fused.q_proj(x)
    traced = make_fx(fused.k_proj)(x)
    assert_same(traced(x + 1), plain.k_proj(x + 1))  # k was not taken for a constant


@pytest.mark.filterwarnings(
    "ignore"
)  # of both, which say that they are slow, old or blind to what Python decides
def test_traces_and_vmap():
    fused, plain = pair()
    x = inputs()
    fused.q_proj(x)
    assert_same(torch.jit.trace(fused, x)(x + 1), plain(x + 1))
    assert_same(torch.vmap(fused)(x), plain(x))


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")  # torch.export.save meets views
@pytest.mark.filterwarnings(
    "ignore:The given buffer is not writable:UserWarning"
)  # so does torch 2.11's load
@pytest.mark.parametrize("strict", [False, True])
def test_exported_as_if_not_fused(strict):
    fused, plain = pair()
    x = inputs()
    program, expected = (torch.export.export(model, (x,), strict=strict) for model in (fused, plain))
    assert [node.target for node in program.graph.nodes] == [node.target for node in expected.graph.nodes]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_same(torch.export.load(file).module()(x + 1), plain(x + 1))
    assert products(lambda: fused(x)) == 1


def test_threads_do_not_disturb_each_other():
    """Each has rounds of its own: nothing is computed twice, and an input that all share is nobody's alone."""
    fused, plain = pair()
    shared, wrong = inputs(), []
    expected, meet = plain(shared), threading.Barrier(2)

    def calls_in_turn() -> None:
        with torch.no_grad():
            q = fused.q_proj(shared)
            meet.wait()
            k = fused.k_proj(shared)
            meet.wait()
            found = torch.cat((q, k, fused.v_proj(shared)), dim=-1)
            for step in range(50):
                x = shared * step
                if not torch.equal(fused(x), plain(x)):
                    wrong.append(step)
        if not torch.equal(found, expected):
            wrong.append(-1)

    def run() -> None:
        threads = [threading.Thread(target=calls_in_turn) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert products(lambda: fused(shared)) == 1


# --- models that change ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_shallow_copy_takes_no_place():
    fused, plain = pair()
    x = inputs()
    copied = copy.copy(fused.k_proj)
    assert copied.siblings is None
    assert_same(copied(x), plain.k_proj(x))
    assert_same(fused(x), plain(x))
    assert products(lambda: fused(x)) == 1


@pytest.mark.parametrize("kept", [False, True])
@torch.no_grad()
def test_a_layer_that_was_replaced_is_joined_by_fusing_again(kept):
    fused, plain = pair()
    old = fused.k_proj if kept else None
    torch.manual_seed(1)
    layer = nn.Linear(64, 48).bfloat16().requires_grad_(False)
    for model in (fused, plain):
        model.k_proj = layer
        tritonq.quantize_(model, "w8a8")
    x = inputs()
    assert_same(fused(x), plain(x))
    tritonq.fuse_siblings_(fused)
    assert fused_names(fused) == (("q_proj", "k_proj", "v_proj"),)
    assert products(lambda: fused(x)) == 1
    assert_same(fused(x), plain(x))
    assert old is None or not shares_memory(old, fused.q_proj)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w8a16"])
def test_every_tensor_of_a_state_has_its_own_memory(scheme, tmp_path):
    """As safetensors' save_model wants it, which hubs call."""
    fused, plain = pair(scheme)
    for model, name in ((fused, "fused"), (plain, "plain")):
        save_model(model, str(tmp_path / name))
    found, expected = load_file(tmp_path / "fused"), load_file(tmp_path / "plain")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same(found[name], tensor)
