"""Your own inference code: a plain PyTorch decoder whose Linear layers are replaced by quantized ones.

Only the five lines marked 1 to 5 know about quantization. The decoder is Llama-shaped (RMSNorm, rotary positions, gated
MLP). It decodes greedily, one byte at a time, like fast inference code:

    static cache    keys and values are in memory that is allocated once, [layers, heads, length, head size]
    static buffers  a step reads and writes the token in the same tensors, so no step waits for the host
    CUDA graph      one step is captured once and replayed; on a CPU the step is simply called

Run it: python examples/swap_layers.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritonq  # 1
from tritonq.demo.model import load_demo_model

SCHEMES = ("w8a16", "w4a16", "w8a8", "w8a8_static", "w4a8")
PROMPT = b"\0The import statement "
NEW_TOKENS = 48
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Shape:
    """Sizes of the decoder; the defaults fit the weights of tritonq's demo."""

    vocabulary: int = 256
    hidden: int = 128
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    rope_base: float = 10_000.0
    epsilon: float = 1e-5


class Cache:
    """Keys, values and rotary angles of all positions, in memory that never moves."""

    def __init__(self, shape: Shape, length: int, device: torch.device, dtype: torch.dtype) -> None:
        head_size = shape.hidden // shape.heads
        self.length = length
        self.keys = torch.zeros(shape.layers, shape.heads, length, head_size, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.places = torch.arange(length, device=device)
        exponents = torch.arange(0, head_size, 2, device=device) / head_size
        angles = torch.outer(self.places.float(), shape.rope_base**-exponents)
        self.cosine, self.sine = angles.cos(), angles.sin()  # [length, head size / 2]

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotate the pairs (i, i + head size / 2) of [H, T, D] by the angles of T positions."""
        first, second = heads.float().chunk(2, dim=-1)
        cosine, sine = self.cosine[positions], self.sine[positions]
        turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
        return turned.to(heads.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, shape.heads
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        # [T, hidden] -> [H, T, D]
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys, values = cache.keys[self.layer], cache.values[self.layer]  # [H, length, D]
        keys.index_copy_(1, positions, cache.rotate(key, positions))
        values.index_copy_(1, positions, value)
        query = cache.rotate(query, positions)
        mixed = F.scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask)[0]
        # [H, T, D] -> [T, hidden]
        return self.o_proj(mixed.transpose(0, 1).flatten(-2))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.attention = Attention(shape, layer)
        self.mlp_norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        x = x + self.attention(self.attention_norm(x), positions, mask, cache)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Token ids [T] at positions [T] -> logits [T, vocabulary]; keys and values go into the cache."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.final_norm = nn.RMSNorm(shape.hidden, eps=shape.epsilon)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        mask = cache.places <= positions[:, None]  # [T, length]: cached positions up to the current one
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, positions, mask, cache)
        return self.lm_head(self.final_norm(x))


class Generator:
    """Greedy decoding in static buffers: a step reads `token` and `position` and writes the next ones there."""

    def __init__(self, model: Decoder, cache: Cache) -> None:
        self.model, self.cache = model, cache
        self.token = torch.zeros(1, dtype=torch.int64, device=cache.places.device)
        self.position = torch.zeros_like(self.token)
        self.output = torch.zeros_like(cache.places)
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self) -> None:
        logits = self.model(self.token, self.position, self.cache)
        self.token.copy_(logits.argmax(dim=-1))
        self.position += 1
        self.output.index_copy_(0, self.position, self.token)

    def capture(self) -> None:
        """Capture one step in a CUDA graph. A warm-up on a side stream first compiles kernels and sets up buffers."""
        self.position.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def prefill(self, prompt: Tensor) -> Tensor:
        """Run the whole prompt [T] at once; returns its logits [T, vocabulary]."""
        positions = self.cache.places[: len(prompt)]
        logits: Tensor = self.model(prompt, positions, self.cache)
        self.token.copy_(logits[-1:].argmax(dim=-1))
        self.position.fill_(len(prompt))
        self.output.index_copy_(0, self.position, self.token)
        return logits

    def generate(self, prompt: Tensor, count: int) -> Tensor:
        """The `count` tokens that follow the prompt."""
        if len(prompt) + count > self.cache.length:
            raise ValueError(
                f"the cache has {self.cache.length} positions, prompt and output need {len(prompt) + count}"
            )
        self.prefill(prompt)
        for _ in range(count - 1):
            if self.graph is not None:
                self.graph.replay()
            else:
                self.step()
        return self.output[len(prompt) : len(prompt) + count].clone()


def float_decoder(device: torch.device) -> Decoder:
    """The decoder with trained weights: bfloat16 on a GPU, float32 on a CPU."""
    model = Decoder(Shape())
    model.load_state_dict(load_demo_model().state_dict())
    return model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()


def swapped(model: Decoder, scheme: str, directory: Path, example: tuple[Tensor, Tensor, Cache]) -> Decoder:
    """Quantize in place, save, and load into a model without memory, like a server at its start."""
    tritonq.quantize_(model, scheme, calibration=[example])  # 2 (only w8a8_static uses the example)
    tritonq.save(model, directory)  # 3
    with torch.device("meta"):  # 4 (float weights take no memory)
        empty = Decoder(Shape())
    tritonq.load(directory, empty)  # 5
    return empty.to(model.embedding.weight.device).eval()


def tensor_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@torch.no_grad()
def measure(model: Decoder, device: torch.device, count: int) -> tuple[Tensor, Tensor, float]:
    """The prompt's logits, `count` new tokens, and tokens per second; under a CUDA graph if there is a GPU."""
    prompt = torch.tensor(list(PROMPT), device=device)
    cache = Cache(Shape(), len(prompt) + count, device, model.embedding.weight.dtype)
    generator = Generator(model, cache)
    logits = generator.prefill(prompt)
    tokens = generator.generate(prompt, count)
    if device.type == "cuda":
        generator.capture()
        assert torch.equal(generator.generate(prompt, count), tokens), "the graph computes something else"
        torch.cuda.synchronize()
    start = time.perf_counter()
    text = bytes(generator.generate(prompt, count).tolist())  # reading it waits for the GPU
    seconds = time.perf_counter() - start
    assert text == bytes(tokens.tolist()), "the same prompt gave two answers"
    return logits, tokens, count / seconds


def main(count: int = NEW_TOKENS, schemes: tuple[str, ...] = SCHEMES) -> None:
    """Decode with every scheme; print bytes, speed and text."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = float_decoder(device)
    prompt = torch.tensor(list(PROMPT), device=device)
    print(f"prompt: {PROMPT[1:].decode()!r}, on {device}{', CUDA graph' if device.type == 'cuda' else ''}\n")

    def report(scheme: str, model: Decoder, speed: float, tokens: Tensor) -> None:
        text = bytes(tokens.tolist()).decode(errors="replace")
        print(f"{scheme:12} {tensor_bytes(model) / 1e6:5.2f} MB {speed:8,.0f} tokens/s  {text!r}")

    _, tokens, speed = measure(model, device, count)
    report("float", model, speed, tokens)
    for scheme in schemes:
        model = float_decoder(device)
        cache = Cache(Shape(), len(prompt), device, model.embedding.weight.dtype)
        with tempfile.TemporaryDirectory() as directory:
            loaded = swapped(model, scheme, Path(directory), (prompt, cache.places, cache))
        logits, tokens, _ = measure(model, device, count)
        loaded_logits, loaded_tokens, speed = measure(loaded, device, count)
        assert torch.equal(loaded_logits, logits), "loaded logits must equal the saved model's, bit for bit"
        assert torch.equal(loaded_tokens, tokens)
        report(scheme, loaded, speed, loaded_tokens)


if __name__ == "__main__":
    main()
