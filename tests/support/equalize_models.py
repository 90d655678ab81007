"""Small models for the tests of tritonq.equalize."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, HIDDEN = 32, 4, 48


class Block(nn.Module):
    """A pre-norm decoder block; `key_heads` < HEADS shares keys and values among heads."""

    def __init__(self, norm: type[nn.Module] = nn.RMSNorm, key_heads: int = HEADS) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.norm1, self.norm2 = norm(WIDTH), norm(WIDTH)
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, key_heads * size), nn.Linear(WIDTH, key_heads * size)
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            layer(h).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        k, v = (part.repeat_interleave(HEADS // part.shape[1], dim=1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(-2))
        h = self.norm2(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Two blocks, a final norm and a head."""

    layers: Any

    def __init__(self, norm: type[nn.Module] = nn.RMSNorm, key_heads: int = HEADS) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(norm, key_heads), Block(norm, key_heads))
        self.norm = norm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, 64)
        for module in self.modules():  # fresh norms are all alike
            if hasattr(module, "eps") or hasattr(module, "variance_epsilon"):
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(self.layers(x)))
        return logits


class GemmaRMSNorm(nn.Module):
    """(1 + weight), as Gemma's models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        values = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (values * (1 + self.weight.float())).to(x.dtype)


def outlying(model: Decoder) -> Decoder:
    """Make three channels of every norm's output thirty times larger: what large language models do by themselves."""
    with torch.no_grad():
        for norm in (part for block in model.layers for part in (block.norm1, block.norm2)):
            norm.weight[[3, 17, 20]] *= 30
    return model


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = parameters_of(model)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()), (
        "hooks are left"
    )
