"""The recorded calls of a model, and the norms among them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonq.flow.record import Dataflow, record
from tritonq.nn.norm_kinds import is_norm, norm_of


class Block(nn.Module):
    """A norm read by three Linears, one of them through an index, and a gated MLP with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(x)
        q = self.q(h).view(*h.shape[:2], 4, 2).transpose(1, 2)
        x = x + self.v(h)
        x = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        return x, q @ self.k(h[:, :1]).view(-1, 1, 2, 4)


def of_module(flow: Dataflow, name: str) -> int:
    (call,) = flow.calls_of(name)
    return call.makes[0]


def test_what_reads_a_norm():
    flow = record(Block(), torch.randn(2, 4, 8))
    modules, functions, returned = flow.ends(of_module(flow, "norm"))
    assert {call.name for call in modules} == {"q", "k", "v"}
    assert not functions
    assert not returned


def test_moving_elements_is_followed_and_computing_is_not():
    flow = record(Block(), torch.randn(2, 4, 8))
    modules, functions, _ = flow.ends(of_module(flow, "q"))
    assert not modules
    assert [call.name for call in functions] == ["matmul"]
    assert [call.step for call in flow.readers[of_module(flow, "gate")]] == ["silu"]
    assert [call.step for call in flow.readers[of_module(flow, "up")]] == ["mul"]
    assert [call.step for call in flow.readers[of_module(flow, "v")]] == ["add"]


def test_what_is_returned_is_known():
    flow = record(nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Identity()), torch.randn(2, 8))
    assert flow.ends(of_module(flow, "0")) == ([], [], True)


def test_a_tensor_changed_in_place_is_another_value():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y += 1
            return self.second(y)

    flow = record(Model(), torch.randn(2, 8))
    modules, functions, _ = flow.ends(of_module(flow, "first"))
    assert not modules
    assert len(functions) == 1


def test_users_hooks_read_what_they_read():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda module, args, output: print(output.mean()))
    model[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    flow = record(model, torch.randn(2, 8))
    assert [call.name for call in flow.calls if not call.is_module and call.name != "__repr__"] == [
        "mean",
        "mul",
    ]


def test_a_failing_forward_leaves_no_hooks():
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("meant")

    model = nn.Sequential(nn.Linear(8, 8), Fails(8, 8))
    with pytest.raises(RuntimeError, match="meant"):
        record(model, torch.randn(2, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class LlamaRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8))
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * values.to(x.dtype)


class GemmaRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        values = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (values * (1 + self.weight)).type_as(x)


class ScaledRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_norms_are_told_by_what_they_compute(device):
    llama, gemma, scaled = (norm_of(cls().to(device)) for cls in (LlamaRMSNorm, GemmaRMSNorm, ScaledRMSNorm))
    assert llama is not None
    assert gemma is not None
    assert (llama.weight_offset, gemma.weight_offset) == (0, 1)
    assert scaled is None


@pytest.mark.parametrize("module", [nn.LayerNorm(8), nn.RMSNorm(8), nn.RMSNorm(8, elementwise_affine=False)])
def test_torchs_norms(module):
    norm = norm_of(module)
    assert norm is not None
    x = torch.randn(3, 8)
    torch.testing.assert_close(
        norm(x, module.weight, getattr(module, "bias", None)), module(x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("module", [nn.LayerNorm((4, 8)), nn.BatchNorm1d(8), nn.Linear(8, 8)])
def test_what_is_no_norm_over_the_last_dimension(module):
    assert not is_norm(module)
    assert norm_of(module) is None
