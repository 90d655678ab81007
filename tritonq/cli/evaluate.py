"""`tritonq eval DIR --text FILE`: measures perplexity, speed and memory of a model directory, float or quantized."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import tritonq
from tritonq.analysis.perplexity import cut_windows, perplexity
from tritonq.cli.model_directory import open_model_directory
from tritonq.cli.options import (
    AUTO,
    Device,
    Dtype,
    JsonFile,
    WindowTokens,
    pick_device,
    pick_dtype,
    read_text,
)
from tritonq.util.json_file import check_target, write_json
from tritonq.util.progress import track


@dataclasses.dataclass(frozen=True)
class Report:
    """The printed report.

    Attributes:
        model: the directory.
        scheme: how its layers are quantized; "float" if they are not.
        perplexity, loss, tokens, tokens_per_second, seconds: see tritonq/analysis/perplexity.py.
        bits_per_byte: the loss in bits divided by the mean bytes of text per token.
        windows, window_tokens: the number of windows and their length.
        model_bytes: of all tensors of the model.
        peak_gpu_bytes: the largest allocation during the measurement; None on a CPU.
        device, dtype: the device, and the dtype of activations.
    """

    model: str
    scheme: str
    perplexity: float
    bits_per_byte: float
    loss: float
    tokens: int
    windows: int
    window_tokens: int
    tokens_per_second: float
    seconds: float
    model_bytes: int
    peak_gpu_bytes: int | None
    device: str
    dtype: str

    def __str__(self) -> str:
        rows = {
            "model": self.model,
            "scheme": self.scheme,
            "perplexity": f"{self.perplexity:.4f}",
            "bits per byte": f"{self.bits_per_byte:.4f}",
            "text": f"{self.windows:,} windows of {self.window_tokens:,} tokens, {self.tokens:,} predicted",
            "speed": f"{self.tokens_per_second:,.0f} tokens/s",
            "memory": f"{self.model_bytes / 1e6:,.1f} MB of tensors"
            + (f", {self.peak_gpu_bytes / 1e6:,.1f} MB at most" if self.peak_gpu_bytes else ""),
            "on": f"{self.device}, {self.dtype}",
        }
        return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def evaluate(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model directory of transformers, float or quantized.")
    ],
    text_file: Annotated[Path, typer.Option("--text", metavar="FILE", help="UTF-8 text to measure on.")],
    tokens: WindowTokens = 512,
    windows: Annotated[
        int | None, typer.Option(min=1, help="At most so many windows of that length; default: all.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many windows to run together.")] = 1,
    dtype: Dtype = AUTO,
    device: Device = None,
    json_file: JsonFile = None,
) -> None:
    """Measure a language model's perplexity on a text, its speed and its memory."""
    check_target(json_file)
    chosen_dtype, chosen_device = pick_dtype(dtype), pick_device(device)
    text = read_text(text_file)
    source = open_model_directory(directory)
    source.check_length(tokens)
    ids = source.tokens(text)
    pieces = cut_windows(ids, tokens, windows)
    packed = None if source.quantization is None else tritonq.TritonQConfig()
    model = source.load(chosen_dtype, chosen_device, packed)
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise ValueError(f"{directory} must be a causal language model, found {type(model).__name__}")
    model.config.use_cache = False  # nothing is generated
    on_gpu = chosen_device.type == "cuda"
    try:
        perplexity(model, pieces[:1])  # compiles kernels, which must not count as speed
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(chosen_device)
        found = perplexity(model, track(pieces.split(batch), "Evaluating"))
    except torch.OutOfMemoryError:
        raise ValueError("the GPU has too little memory: make --tokens or --batch smaller") from None
    if math.isnan(found.loss):
        raise ValueError(f"{directory} must give finite logits, found NaN on this text in {model.dtype}")
    report = Report(
        model=str(directory),
        scheme=_scheme(model),
        perplexity=found.perplexity,
        bits_per_byte=found.bits_per_byte(found.tokens * len(text.encode()) / len(ids)),
        loss=found.loss,
        tokens=found.tokens,
        windows=len(pieces),
        window_tokens=tokens,
        tokens_per_second=found.tokens_per_second,
        seconds=found.seconds,
        model_bytes=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        peak_gpu_bytes=torch.cuda.max_memory_allocated(chosen_device) if on_gpu else None,
        device=torch.cuda.get_device_name(chosen_device) if on_gpu else "cpu",
        dtype=str(model.dtype).removeprefix("torch."),
    )
    if json_file is not None:
        write_json(json_file, dataclasses.asdict(report))
    typer.echo(str(report))


def _scheme(model: Any) -> str:
    """The schemes of the model's layers, such as "w4a16"."""
    layers = [module for module in model.modules() if isinstance(module, tritonq.QuantizedLinear)]
    return ", ".join(dict.fromkeys(layer.config.scheme for layer in layers)) or "float"
