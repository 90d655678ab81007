"""Measures the perplexity of a language model in float and after each recipe of quantization.

    python3 -m benchmarks.perplexity MODEL_DIR --text FILE
    python3 -m benchmarks.perplexity MODEL_DIR --gguf model.gguf --text FILE --recipe float --recipe w8a8 --json FILE

Perplexity is measured from the beginning of the text, in windows that do not overlap. Calibration takes other windows,
from the end. benchmarks/recipes.py explains the recipes.

This needs transformers (`pip install "tritonq[hf]"`), and the package gguf for GGUF files.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.recipes import FLOAT, Recipe, parse
from tritonq.analysis.perplexity import cut_windows, perplexity
from tritonq.cli.model_directory import import_transformers, open_model_directory
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

RECIPES = (
    FLOAT,
    "w8a16",
    "w4a16",
    "w8a8",
    "w8a8_static",
    "w8a8_static+observer=histogram",
    "w8a8_static+observer=percentile",
    "w8a8_static+observer=mse",
    "w8a8+smooth=0.5",
    "w8a8_static+smooth=0.5",
    "w8a8_static+smooth=0.5+down_proj=w8a8",
    "w8a8_static+smooth",
    "w8a8_static+smooth+down_proj=w8a8",
    "w8a8+smooth+down_proj=w8a16",
)

_TABLE_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Row:
    """One recipe's result; `change_percent` is relative to float, None if float was not measured before."""

    recipe: str
    perplexity: float
    change_percent: float | None
    quantizing_seconds: float
    measuring_seconds: float


def main(
    directory: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="A directory that transformers loads.")
    ],
    text_file: Annotated[Path, typer.Option("--text", metavar="FILE", help="UTF-8 text.")],
    gguf: Annotated[
        str | None, typer.Option(metavar="FILE", help="A GGUF file in MODEL_DIR to take the model from.")
    ] = None,
    recipes: Annotated[
        list[str] | None, typer.Option("--recipe", metavar="RECIPE", help="One of them; may be repeated.")
    ] = None,
    tokens: WindowTokens = 512,
    windows: Annotated[int, typer.Option(min=1, help="How many windows to measure on.")] = 24,
    calibration_windows: Annotated[int, typer.Option(min=1, help="How many to calibrate on.")] = 8,
    dtype: Dtype = AUTO,
    device: Device = None,
    json_file: JsonFile = None,
) -> None:
    """Measure a language model's perplexity on a text, quantized in several ways."""
    check_target(json_file)
    chosen_dtype, chosen_device = pick_dtype(dtype), pick_device(device)
    todo = [parse(name) for name in recipes or RECIPES]
    model, ids = load(directory, gguf, read_text(text_file), chosen_dtype, chosen_device)
    needed = tokens * (windows + calibration_windows)
    if len(ids) < needed:
        raise ValueError(f"--text must have {needed:,} tokens for both purposes, found {len(ids):,}")
    measured = cut_windows(ids, tokens, windows)
    calibration = cut_windows(ids[-tokens * calibration_windows :], tokens).to(chosen_device)
    rows = list(measure(todo, model, measured, list(calibration.split(1))))
    Console(width=max(_TABLE_WIDTH, Console().width)).print(_table(rows))
    if json_file is not None:
        document = {
            "machine": describe(chosen_device),
            "transformers": import_transformers().__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "tokens": tokens,
            "windows": windows,
            "calibration_windows": calibration_windows,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        write_json(json_file, document)


def load(
    directory: Path, gguf: str | None, text: str, dtype: torch.dtype | None, device: torch.device
) -> tuple[Any, list[int]]:
    """A causal language model in evaluation mode, and the text as tokens.

    Raises:
        ValueError, OSError: there is no such model, or no tokenizer.
    """
    if gguf is None:
        source = open_model_directory(directory)
        model, ids = source.load(dtype, device), source.tokens(text)
    else:
        if not (directory / gguf).is_file():
            raise FileNotFoundError(f"{directory / gguf} must be a GGUF file, found nothing there")
        transformers = import_transformers()
        words = {"gguf_file": gguf, "local_files_only": True}
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or torch.float32, **words
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **words)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    model.config.use_cache = False  # nothing is generated
    return model.eval().to(device), ids


def measure(
    recipes: Sequence[Recipe], model: Any, windows: Tensor, calibration: Sequence[Tensor]
) -> Iterator[Row]:
    """Quantize copies of a model and measure each.

    Args:
        recipes: the recipes; consecutive ones with the same smoothing share the smoothed model.
        model: a float model, not changed.
        windows: int64 [W, T], measured one by one.
        calibration: batches of token ids.
    """
    smoothed, done = model, None
    reference: float | None = None
    for recipe in recipes:
        start = time.perf_counter()
        if done is None or recipe.smoothing != done:
            smoothed, done = recipe.smooth(model, calibration), recipe.smoothing
        quantized = recipe.quantize(smoothed, calibration)
        seconds = time.perf_counter() - start
        found = perplexity(quantized, track(windows.split(1), recipe.name, total=len(windows)))
        if recipe.name == FLOAT:
            reference = found.perplexity
        change = None if reference is None else 100 * (found.perplexity / reference - 1)
        yield Row(recipe.name, found.perplexity, change, seconds, found.seconds)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("recipe", box=None)
    for heading in ("perplexity", "of float", "s to quantize", "s to measure"):
        table.add_column(heading, justify="right")
    for row in rows:
        change = "" if row.change_percent is None else f"{row.change_percent:+.2f} %"
        times = f"{row.quantizing_seconds:.0f}", f"{row.measuring_seconds:.0f}"
        table.add_row(row.recipe, f"{row.perplexity:.3f}", change, *times)
    return table


if __name__ == "__main__":
    try:
        typer.run(main)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"benchmarks.perplexity: {error}")
