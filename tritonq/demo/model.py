"""A byte-level, Llama-shaped decoder, small enough to train on a laptop and to ship with the package.

The vocabulary is the 256 byte values. Text contains no zero byte, so byte 0 is the start symbol: after it, the model
can predict the first byte of a window. All projections are separate `nn.Linear` modules without bias. Every inner
dimension is a multiple of 128, so every scheme with groups of 128 fits.
"""

import math
from dataclasses import dataclass
from importlib.resources import as_file, files

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

START_BYTE = 0
WEIGHTS_NAME = "weights.safetensors"


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder; the defaults are the shape of the shipped weights."""

    vocabulary_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 512
    layer_count: int = 4
    head_count: int = 4
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.head_count


def rotary_table(length: int, head_size: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, each float32 of shape [length, head_size / 2].

    The table is computed in float32 in every call, because `model.to(dtype)` would round a buffer.
    """
    exponents = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, base**-exponents)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_size / 2) of `heads` [B, H, T, D] by the angle of their position in T."""
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(heads.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_count = config.head_count
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        # [B, T, hidden] -> [B, H, T, D]
        query, key, value = (
            projection(hidden).unflatten(-1, (self.head_count, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        # [B, H, T, D] -> [B, T, hidden]
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Block(nn.Module):
    """One decoder layer: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.mlp = GatedMLP(config)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), cosine, sine)
        return hidden + self.mlp(self.mlp_norm(hidden))


class DemoModel(nn.Module):
    """The decoder: byte ids [B, T] -> next-byte logits [B, T, vocabulary]."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else ModelConfig()
        self.embedding = nn.Embedding(self.config.vocabulary_size, self.config.hidden_size)
        self.layers = nn.ModuleList(Block(self.config) for _ in range(self.config.layer_count))
        self.final_norm = nn.RMSNorm(self.config.hidden_size, eps=self.config.norm_epsilon)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocabulary_size, bias=False)

    def initialize(self) -> None:
        """Draw new weights: gain 1 for each projection, less for the two that write to the residual stream."""
        residual_gain = 1.0 / math.sqrt(2 * self.config.layer_count)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                gain = residual_gain if name.endswith(("o_proj", "down_proj")) else 1.0
                nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, byte_ids: Tensor) -> Tensor:
        config = self.config
        cosine, sine = rotary_table(byte_ids.shape[1], config.head_size, config.rope_base, byte_ids.device)
        hidden = self.embedding(byte_ids)
        for layer in self.layers:
            hidden = layer(hidden, cosine, sine)
        return self.lm_head(self.final_norm(hidden))


def load_demo_model(dtype: torch.dtype = torch.float32) -> DemoModel:
    """The shipped model in `dtype`, in evaluation mode, on the CPU."""
    with as_file(files("tritonq.demo") / "data" / WEIGHTS_NAME) as path:
        weights = load_file(path)
    model = DemoModel()
    model.load_state_dict(weights)
    return model.to(dtype).eval()
