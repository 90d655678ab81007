"""Train the demo model from scratch and write everything in `data/`: `python3 -m tritonq.demo.train`.

Each step takes `BATCH` windows at random places of the training text, half of them from the language reference and half
from the docstrings. A window begins with the start symbol, as in evaluation. The held-out text is only written to disk:
it is not used for training, nor to decide when to stop.

The seed is fixed, but another version of Python or PyTorch, or another processor, gives other weights.
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tritonq.demo.corpus import build_corpus
from tritonq.demo.evaluate import CONTEXT
from tritonq.demo.model import START_BYTE, WEIGHTS_NAME, DemoModel
from tritonq.demo.muon import Muon
from tritonq.demo.text import CALIBRATION_NAME, HELDOUT_NAME

SEED = 20240229
STEPS = 2400
BATCH = 8
MUON_PEAK_RATE = 0.02
MUON_MOMENTUM = 0.95
ADAM_PEAK_RATE = 3e-3
ADAM_BETAS = (0.9, 0.95)
FINAL_RATE_SHARE = 0.02
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.1
GRADIENT_NORM_LIMIT = 1.0
CHECKPOINT_EVERY = 200
REPORT_EVERY = 20


def rate_share(step: int, steps: int) -> float:
    """The fraction of the peak learning rate: a linear warm-up, then half a cosine down to a small fraction."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def draw_windows(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Copy `count` windows [count, CONTEXT] out of `text` (int64 [bytes]) at random places."""
    starts = torch.randint(len(text) - CONTEXT + 1, (count, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT)]


def make_optimizers(model: DemoModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for the embedding, the head and the gains of the norms."""
    matrices = [parameter for parameter in model.layers.parameters() if parameter.dim() == 2]
    tables = [model.embedding.weight, model.lm_head.weight]
    gains = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": tables, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return [
        Muon(matrices, lr=MUON_PEAK_RATE, momentum=MUON_MOMENTUM, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(groups, lr=ADAM_PEAK_RATE, betas=ADAM_BETAS),
    ]


def save_weights(model: DemoModel, path: Path) -> None:
    """Write the weights as float16 safetensors. A reader of `path` sees the old file or the new one, never a part."""
    weights = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    unfinished = path.with_suffix(".unfinished")
    save_file(weights, unfinished)
    unfinished.chmod(0o644)  # safetensors lets only the owner read its files, and a package keeps the mode
    os.replace(unfinished, path)


def train(folder: Path, steps: int) -> None:
    """Train for `steps` steps; write weights, held-out text and calibration text to `folder`."""
    corpus = build_corpus()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HELDOUT_NAME).write_bytes(corpus.heldout)
    (folder / CALIBRATION_NAME).write_bytes(corpus.calibration)
    sources = [torch.tensor(list(text)) for text in (corpus.reference, corpus.docstrings)]

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = DemoModel()
    model.initialize()
    optimizers = make_optimizers(model)
    schedules = [LambdaLR(optimizer, lambda step: rate_share(step, steps)) for optimizer in optimizers]
    parameter_count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameter_count:,} parameters; {' + '.join(f'{len(s):,}' for s in sources)} bytes to train on")

    start = time.perf_counter()
    mean_loss = math.log(model.config.vocabulary_size)
    for step in range(steps):
        targets = torch.cat([draw_windows(source, BATCH // len(sources), generator) for source in sources])
        inputs = F.pad(targets[:, :-1], (1, 0), value=START_BYTE)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_LIMIT)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()

        mean_loss += (loss.item() - mean_loss) / min(step + 1, REPORT_EVERY)
        if (step + 1) % REPORT_EVERY == 0:
            seconds = time.perf_counter() - start
            bits = mean_loss / math.log(2)
            print(f"step {step + 1}/{steps}  training {bits:.3f} bits per byte  {seconds:.0f} s", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            save_weights(model, folder / WEIGHTS_NAME)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo model and write its data files.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "data", help="where to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.folder, arguments.steps)


if __name__ == "__main__":
    main()
