"""Quantization-aware training: what fake quantization computes, and what training with it brings back.

The right half is what minutes of training measured, kept in a file:
`python examples/qat_language_model.py --schemes w4a16 w4a8 w8a8_static --json docs/figures/qat.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

import tritonq
from docs.figures import style
from docs.figures.material import Material

RESULTS = Path(__file__).with_name("qat.json")
SCHEMES = {
    "w4a16": (style.ORANGE, "w4a16, one scale a channel"),
    "w4a8": (style.BLUE, "w4a8, groups of 128"),
}


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """Left, forward and gradient of a 4-bit FakeQuantize; middle, the losses of training; right, bits per byte."""
    figure = style.figure(3.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    fake = tritonq.FakeQuantize(tritonq.QuantSpec(4))
    fake(torch.linspace(-1, 1, 9))  # observed: the grid covers -1 … 1
    fake.disable_observer()
    x = torch.linspace(-1.6, 1.6, 1601, requires_grad=True)
    y = fake(x)
    y.sum().backward()
    assert x.grad is not None
    left.plot(x.detach(), x.detach(), color=style.LIGHT, linewidth=1.2)
    left.plot(x.detach(), y.detach(), color=style.BLUE, linewidth=1.5, label="forward: the deployed rounding")
    left.plot(x.detach(), x.grad, color=style.ORANGE, linewidth=1.5, label="backward: 1 inside, 0 outside")
    left.set_ylim(-1.3, 2.2)
    style.legend(left, loc="upper left")
    style.finish(left, "FakeQuantize, 4 bits", "x", "")

    results = {result["scheme"]: result for result in json.loads(RESULTS.read_text())}
    numbers = {
        f"{scheme} {name.removesuffix('_per_byte').replace('_', ' ')}": found[name]
        for scheme, found in results.items()
        for name in (
            "float_bits_per_byte",
            "rounded_bits_per_byte",
            "trained_bits_per_byte",
            "recovered",
            "seconds",
        )
    }
    for scheme, found in results.items():
        for kind in ("rounded", "trained"):
            numbers[f"{scheme} {kind} lost bits"] = (
                found[f"{kind}_bits_per_byte"] - found["float_bits_per_byte"]
            )
    for row, (scheme, (color, label)) in enumerate(SCHEMES.items()):
        found = results[scheme]
        middle.plot(
            range(1, len(found["losses"]) + 1), found["losses"], color=color, linewidth=1.2, label=scheme
        )
        bits = {kind: found[f"{kind}_bits_per_byte"] for kind in ("float", "rounded", "trained")}
        right.plot([bits["rounded"], bits["trained"]], [row, row], color=color, linewidth=1.2)
        right.plot(bits["rounded"], row, "o", color=color, markersize=9, markerfacecolor="white")
        right.plot(bits["trained"], row, "o", color=color, markersize=9)
        for kind, side in (("rounded", "right"), ("trained", "left")):
            right.annotate(
                f"{kind}\n{bits[kind]:.4f}",
                (bits[kind], row),
                (5 if side == "right" else -3, 8),
                textcoords="offset points",
                fontsize=style.SIZE - 1.5,
                ha=side,
            )
        right.annotate(
            label,
            (0.98, row),
            (0, -14),
            xycoords=right.get_yaxis_transform(),
            textcoords="offset points",
            color=color,
            fontsize=style.SIZE - 1,
            ha="right",
            va="top",
        )
    middle.set_yscale("log")
    middle.set_yticks([0.005, 0.01, 0.02], ["0.005", "0.01", "0.02"])
    middle.minorticks_off()
    style.legend(middle)
    style.finish(middle, "distance from the float model", "training step", "KL divergence, nats per byte")
    right.axvline(bits["float"], color=style.BLACK, linewidth=1)
    right.annotate("float", (bits["float"], 1.0), (4, 0), xycoords=right.get_xaxis_transform(),
                   textcoords="offset points", fontsize=style.SIZE - 1.5, va="top")  # fmt: skip
    right.set_ylim(len(SCHEMES) - 0.4, -0.75)
    right.set_yticks([])
    right.margins(x=0.12)
    style.finish(right, "what is deployed", "bits per byte, held-out text")
    return figure, numbers
