"""Quantization-aware training of a small language model: measures how much of INT4's loss it recovers.

The byte-level model that ships with tritonq is rounded to INT4, which costs bits per byte on text that it never saw.
Then it is trained for a few minutes to predict what the float model predicts (distillation). Its layers round in every
forward like the deployed layers. All results are measured on the converted integer model.

    w4a16        int4 weights, one scale per output channel; float activations
    w4a8         int4 weights in groups of 128 columns; int8 activations per token
    w8a8_static  int8 weights; int8 activations on calibrated grids (only with --schemes: it loses little)

Run it: python examples/qat_language_model.py --json report.json --plot losses.png
With --checkpoint FOLDER, the same command continues from the last checkpoint after an interruption.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tritonq
from tritonq.demo.corpus import build_corpus, join_new_paragraphs, passages, squeeze
from tritonq.demo.evaluate import CONTEXT, bits_per_byte, cut_windows
from tritonq.demo.model import START_BYTE, load_demo_model
from tritonq.demo.text import calibration_bytes, heldout_bytes
from tritonq.util.progress import track

CONFIGS = {
    "w4a16": tritonq.W4A16(group_size=None),
    "w4a8": tritonq.W4A8(),
    "w8a8_static": tritonq.W8A8Static(),
}
STEPS = 150
BATCH = 8
LEARNING_RATE = 3e-4
WARMUP_STEPS = 10
CHECKPOINT_EVERY = 25


def training_text() -> Tensor:
    """Documentation of the running Python, as int64 [bytes], without passages of the held-out text."""
    corpus = build_corpus()
    forbidden = set(passages(squeeze(heldout_bytes())))
    texts = [corpus.reference.decode(), corpus.docstrings.decode()]
    return torch.frombuffer(bytearray(join_new_paragraphs(texts, set(), forbidden)), dtype=torch.uint8).long()


def draw_windows(text: Tensor, seed: int, step: int) -> Tensor:
    """Windows int64 [BATCH, CONTEXT]. Their places depend only on seed and step, so resuming needs no other state."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text) - CONTEXT + 1, (BATCH, 1), generator=generator)
    windows = text[starts + torch.arange(CONTEXT)]
    windows[:, 0] = START_BYTE
    return windows


def rate(step: int, steps: int) -> float:
    """The fraction of the peak learning rate: a linear warm-up, then half a cosine down to 2 %."""
    warmup = min(WARMUP_STEPS, max(1, steps // 5))
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict) -> None:
    """Write model and optimizer to one safetensors file, and `progress` as JSON to its header."""
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": tensor for name, tensor in state.items()})
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, {"progress": json.dumps(progress)})
    os.replace(unfinished, path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill model and optimizer; returns the `progress` of `save_checkpoint`."""
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a dictionary)
            owner, _, name = key.partition(".")
            if owner == "model":
                weights[name] = file.get_tensor(key)
            else:
                index, _, moment = name.partition(".")
                moments.setdefault(int(index), {})[moment] = file.get_tensor(key)
        progress = json.loads(file.metadata()["progress"])
    model.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return progress


def train(
    model: nn.Module,
    teacher: nn.Module,
    text: Tensor,
    steps: int,
    seed: int,
    checkpoint: Path | None,
    name: str,
) -> list[float]:
    """Distill `teacher` into `model`, from the checkpoint on if there is one; returns the loss of every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    progress: dict[str, Any] = {"losses": [], "steps": steps, "seed": seed}
    if checkpoint is not None and checkpoint.exists():
        found = load_checkpoint(checkpoint, model, optimizer)
        if (found["steps"], found["seed"]) != (steps, seed):
            raise ValueError(
                f"{checkpoint} is of a run with steps={found['steps']} and seed={found['seed']}, found "
                f"steps={steps} and seed={seed}"
            )
        progress = found
    losses: list[float] = progress["losses"]
    for step in track(range(len(losses), steps), f"Training {name}"):
        windows = draw_windows(text, seed, step)
        with torch.no_grad():
            wanted = teacher(windows)
        loss = tritonq.qat.distill_loss(model(windows), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate(step, steps)
        optimizer.step()
        losses.append(loss.item())
        if checkpoint is not None and ((step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps):
            save_checkpoint(checkpoint, model, optimizer, progress)
    return losses


def measure(
    scheme: str, teacher: nn.Module, text: Tensor, heldout: bytes, steps: int, seed: int, folder: Path | None
) -> dict[str, Any]:
    """Bits per byte of the float model, of the model rounded to nearest, and of the trained model."""
    start = time.perf_counter()
    config = CONFIGS[scheme]
    student = tritonq.prepare_qat(copy.deepcopy(teacher).train(), config, inplace=True)
    checkpoint = None if folder is None else folder / f"{scheme}.safetensors"
    losses = train(student, teacher, text, steps, seed, checkpoint, scheme)
    converted = tritonq.convert(student.eval())
    seconds = time.perf_counter() - start
    float_bits = bits_per_byte(teacher, heldout)
    calibration, _ = cut_windows(calibration_bytes())
    rounded = tritonq.quantize_(copy.deepcopy(teacher), config, calibration=calibration.split(BATCH))
    rounded_bits = bits_per_byte(rounded, heldout)
    trained_bits = bits_per_byte(converted, heldout)
    return {
        "scheme": scheme,
        "steps": steps,
        "float_bits_per_byte": float_bits,
        "rounded_bits_per_byte": rounded_bits,
        "trained_bits_per_byte": trained_bits,
        "recovered": (rounded_bits - trained_bits) / (rounded_bits - float_bits),
        "seconds": seconds,
        "losses": losses,
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss curves: the divergence from the float model over training steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for result in results:
        label = f"{result['scheme']}: {100 * result['recovered']:.0f} % of the loss recovered"
        axes.plot(range(1, len(result["losses"]) + 1), result["losses"], label=label, linewidth=1.2)
    axes.set(xlabel="step", ylabel="KL from the float model (nats per byte)", yscale="log")
    axes.set_title("Quantization-aware training of the demo model")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Train, measure, report."""
    parser = argparse.ArgumentParser(description="Quantization-aware training of the demo language model")
    parser.add_argument("--schemes", nargs="+", choices=list(CONFIGS), default=["w4a16", "w4a8"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heldout-bytes", type=int, help="measure on the first so many bytes only")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER", help="write checkpoints, and resume from them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the loss curves")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, found {options.steps}")
    if options.checkpoint is not None:
        options.checkpoint.mkdir(parents=True, exist_ok=True)
    teacher, heldout, text = load_demo_model(), heldout_bytes()[: options.heldout_bytes], training_text()
    results = []
    print(f"{'scheme':11} {'float':>8} {'rounded':>8} {'trained':>8}  recovered   seconds   (bits per byte)")
    for scheme in options.schemes:
        found = measure(scheme, teacher, text, heldout, options.steps, options.seed, options.checkpoint)
        results.append(found)
        bits = [found[f"{name}_bits_per_byte"] for name in ("float", "rounded", "trained")]
        print(
            f"{scheme:11} {bits[0]:8.4f} {bits[1]:8.4f} {bits[2]:8.4f}  {100 * found['recovered']:8.1f} % "
            f"{found['seconds']:8.1f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot is not None:
        plot(results, options.plot)
    return results


if __name__ == "__main__":
    main()
