"""Ranges of activations: a scale a token follows each token, one calibrated scale serves the loudest of them all."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

import tritonq
from docs.figures import style
from docs.figures.material import Material
from tritonq.analysis.probe import quantized_input

LAYER = "layers.0.mlp.down_proj"
TOKENS = slice(32, 80)  # of the calibration text


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """Above, the largest |x| of consecutive tokens; below, the histogram of |x| and what either grid rounds to zero."""
    x = material.inputs(LAYER)
    static: Any = material.quantized("w8a8_static").get_submodule(LAYER)
    dynamic = tritonq.nn.QuantizedLinear.from_float(material.model.get_submodule(LAYER), "w8a8")  # type: ignore[arg-type]
    peaks = x.abs().amax(dim=1)
    step = float(static.input_scale)
    numbers = {
        "static step": step,
        "largest |x|": float(peaks.max()),
        "largest |x| of the median token": float(peaks.median()),
        "dynamic step of the median token": float(peaks.median()) / 127,
    }
    for name, layer in (("static", static), ("dynamic", dynamic)):
        rounded = quantized_input(layer, x)
        assert rounded is not None
        numbers[f"{name} dB"] = style.decibel(x, rounded - x)
        numbers[f"{name} rounded to 0"] = float((rounded == 0).float().mean() - (x == 0).float().mean())

    figure = style.figure(5.2)
    above, below = figure.subplots(2, 1)
    shown = peaks[TOKENS].tolist()
    letters = [_letter(int(byte)) for byte in material.batches[0].flatten()[TOKENS]]
    loudest = shown.index(max(shown))
    above.bar(range(len(shown)), shown, color=style.SKY)
    above.bar(loudest, shown[loudest], color=style.ORANGE)
    above.annotate(
        "the first byte of ’ is the loudest token,\nand one static grid has to reach it",
        (loudest, shown[loudest]),
        (10, 0),
        textcoords="offset points",
        color=style.ORANGE,
        fontsize=style.SIZE - 1,
        va="top",
    )
    above.set_xticks(range(len(shown)), letters, fontfamily="monospace")
    above.margins(x=0.01)
    style.finish(above, f"input of {LAYER}: the largest |x| of each token, one token being one byte of text")
    above.tick_params(axis="x", length=0)

    bins = torch.logspace(-5, 2, 141)
    below.hist(x.abs().flatten().numpy(), bins=bins.tolist(), color=style.SKY)
    below.set_xscale("log")
    for name, words, value, color, side in (
        ("dynamic", "dynamic: half a step of the median token,", numbers["dynamic step of the median token"],
         style.BLUE, "right"),
        ("static", "static: half a step,", step, style.ORANGE, "left"),
    ):  # fmt: skip
        below.axvline(value / 2, color=color, linewidth=1.2, ymax=0.98)
        share = numbers[f"{name} rounded to 0"]
        below.annotate(
            f"{words}\n{share:.0%} of all values become 0",
            (value / 2, 0.97),
            (-6 if side == "right" else 6, 0),
            xycoords=below.get_xaxis_transform(),
            textcoords="offset points",
            color=color,
            fontsize=style.SIZE - 1,
            ha=side,
            va="top",
        )
    below.set_xlim(1e-5, 60)
    below.margins(y=0.32)
    style.finish(below, "all tokens of the batch", "|x|", "values")
    return figure, numbers


def _letter(byte: int) -> str:
    """A byte of UTF-8 as one character."""
    if byte < 128:
        return {"\n": "↵", " ": "␣", "\0": "▸"}.get(chr(byte), chr(byte))
    return "◆"
