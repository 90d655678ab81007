"""Sensitivity: what `tritonq.analyze` says about INT4, and what mixed precision makes of it."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

import tritonq
from docs.figures import style
from docs.figures.material import Material

SHARES = (0.1, 0.2, 0.35, 0.5, 0.7)  # of the bytes between all INT4 and all INT8
RANDOM_DRAWS = 4


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """Left, each layer's error at the model's output; right, bits per byte over bytes, layers chosen in three ways."""
    batches = material.batches[:1]
    by_layer = tritonq.analyze(material.model, "w4a16", batches, higher="w8a16")
    by_model = tritonq.analyze(material.model, "w4a16", batches, higher="w8a16", end_to_end=True)
    figure = style.figure(4.6)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    kinds = list(dict.fromkeys(row.name.rpartition(".")[2] for row in by_model.rows))
    colors = (style.BLUE, style.ORANGE, style.GREEN, style.PINK, style.SKY, style.BLACK, style.GREY)
    for kind, color, marker in zip(kinds, colors, "os^Dv<>", strict=True):
        rows = [row for row in by_model.rows if row.name.endswith(kind)]
        errors = [row.quantized.error or 0.0 for row in rows]
        left.plot(range(len(rows)), errors, f"{marker}-", color=color, label=kind, linewidth=1, markersize=5)
    left.set_yscale("log")
    left.set_xticks(range(4))
    low, high = left.get_ylim()
    left.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    style.legend(left, ncols=3, loc="upper left", columnspacing=0.8)
    style.finish(left, "one layer in INT4, all others float", "block", "noise / signal of the logits")

    base, most = by_layer.weight_bytes, by_layer.higher_bytes
    sizes = [int(base + share * (most - base)) for share in SHARES]
    ends = {"all INT4": (base, "w4a16"), "all INT8": (most, "w8a16")}
    lost = {name: _lost(material, config) for name, (_, config) in ends.items()}
    ways: dict[str, list[float]] = {
        "by the layers' own output": [_lost(material, by_layer.mixed_precision(size=size)) for size in sizes],
        "by the model's output": [_lost(material, by_model.mixed_precision(size=size)) for size in sizes],
        "at random, mean": [
            sum(_lost(material, _random(by_layer, size, seed)) for seed in range(RANDOM_DRAWS)) / RANDOM_DRAWS
            for size in sizes
        ],
    }
    numbers = {f"{name} lost bits": value for name, value in lost.items()}
    numbers |= {f"{name} bytes": size for name, (size, _) in ends.items()}
    for (name, values), color, form in zip(
        ways.items(), (style.BLUE, style.ORANGE, style.GREY), ("s-", "o-", "x--"), strict=True
    ):
        points = [lost["all INT4"], *values, lost["all INT8"]]
        right.plot(
            [size / 1e6 for size in (base, *sizes, most)],
            points,
            form,
            color=color,
            label=name,
            linewidth=1.2,
        )
        numbers |= {
            f"{name} lost bits at {share:.0%}": value for share, value in zip(SHARES, values, strict=True)
        }
    for name, (size, _) in ends.items():
        right.annotate(name, (size / 1e6, lost[name]), (0, 8), textcoords="offset points", ha="center",
                       fontsize=style.SIZE - 1)  # fmt: skip
    right.margins(0.1)
    right.set_ylim(bottom=0)
    style.legend(right, title="layers in INT8 chosen", title_fontsize=style.SIZE - 1, loc="upper right")
    style.finish(right, "mixed INT4 and INT8", "MB of weights", "bits per byte lost")
    return figure, numbers


def _lost(material: Material, config: Any) -> float:
    return material.bits(material.quantized(config)) - material.float_bits


def _random(found: tritonq.Analysis, size: int, seed: int) -> dict[Any, Any]:
    """Layers in random order, each one in INT8 if it still fits."""
    left = size - found.weight_bytes
    table: dict[Any, Any] = {}
    for index in torch.randperm(len(found.rows), generator=torch.Generator().manual_seed(seed)).tolist():
        row = found.rows[index]
        cost = row.higher.weight_bytes - row.quantized.weight_bytes
        if cost <= left:
            table[row.name] = found.higher
            left -= cost
    return {**table, "_default": found.config}
