"""Granularity: which weights share a scale, and what each choice costs and saves."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from docs.figures import style
from docs.figures.material import Material
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec

LAYER = "layers.0.mlp.down_proj"
ROWS = 32  # of the layer, in the three maps
SPECS = {
    "tensor": QuantSpec(4, granularity="tensor"),
    "channel": QuantSpec(4, granularity="channel"),
    "group of 128": QuantSpec(4, granularity="group", group_size=128),
    "group of 64": QuantSpec(4, granularity="group", group_size=64),
    "group of 32": QuantSpec(4, granularity="group", group_size=32),
}
SHOWN = ("tensor", "channel", "group of 64")
SCALE_BITS = 16  # stored in the dtype of the model, float16 here


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """Above, which weights share a scale; below, what each choice costs and gives for the whole model."""
    weight = material.weight(LAYER).half()
    figure = style.figure(5.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.6])
    above, below = parts
    scales = {name: _expanded(weight, SPECS[name])[:ROWS] for name in SHOWN}
    largest = max(float(scale.max()) for scale in scales.values())
    maps = above.subplots(1, len(SHOWN), sharey=True)
    for axes, (name, scale) in zip(maps, scales.items(), strict=True):
        drawn = axes.imshow(
            scale.numpy(), cmap="cividis", vmin=0, vmax=largest, aspect="auto", interpolation="nearest"
        )
        style.finish(
            axes, f"one scale a {name}", "input features", "output features" if name == SHOWN[0] else ""
        )
    above.colorbar(drawn, ax=maps, label="INT4 scale", shrink=0.9).ax.tick_params(labelsize=style.SIZE - 1)

    layers = [name for name, _ in material.model.named_modules() if name.endswith("_proj")]
    weights = [material.weight(name).half() for name in layers]
    numbers: dict[str, float] = {}
    bars: dict[str, tuple[float, float, str]] = {}  # name → dB, bits a weight, colour
    for bits, color in ((4, style.ORANGE), (8, style.BLUE)):
        for name, spec in SPECS.items():
            if bits == 8 and spec.granularity == "group":
                continue  # one scale a channel leaves so little noise that nothing asks for more
            spec = QuantSpec(bits, granularity=spec.granularity, group_size=spec.group_size)
            noise, size = _noise(weights, spec), _bits_a_weight(weights, spec)
            numbers |= {f"int{bits} {name} dB": noise, f"int{bits} {name} bits": size}
            bars[f"INT{bits}, one scale a {name}"] = noise, size, color
    axes = below.subplots()
    noises, sizes, colors = zip(*bars.values(), strict=True)
    drawn = axes.barh(list(bars), noises, color=colors, height=0.7)
    labels = [
        f"{noise:.1f} dB at {size:.3f} bits a weight" for noise, size in zip(noises, sizes, strict=True)
    ]
    axes.bar_label(drawn, labels, padding=4, fontsize=style.SIZE - 1)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    style.finish(axes, "all 28 layers of the model", "signal to noise of the weights, dB")
    return figure, numbers


def _expanded(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Every weight's scale, float32 [N, K]."""
    scale, _ = qparams.weight_qparams(weight, spec)
    rows, columns = weight.shape
    return (
        qparams.expand_groups(scale, columns, spec.resolve_group_size(columns)).float().expand(rows, columns)
    )


def _noise(weights: list[Tensor], spec: QuantSpec) -> float:
    """SQNR in dB over all values of all weights."""
    errors = []
    for weight in weights:
        codes, _, _ = qparams.quantize_weight(weight, spec)
        errors.append((codes.float() * _expanded(weight, spec) - weight.float()).flatten())
    return style.decibel(torch.cat([weight.float().flatten() for weight in weights]), torch.cat(errors))


def _bits_a_weight(weights: list[Tensor], spec: QuantSpec) -> float:
    scales = sum(qparams.weight_qparams(weight, spec)[0].numel() for weight in weights)
    return spec.bits + SCALE_BITS * scales / sum(math.prod(weight.shape) for weight in weights)
