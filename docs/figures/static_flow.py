"""Static flow: int8 from stub to stub, and what a layer's epilogue does to one number on its way."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from docs.figures import style
from docs.figures.material import Material
from tritonq import reference

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "introductory_mlp.py"
FEATURE = 3  # the output feature of linear1 that is followed


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """Above, the way of a row through two layers of the introductory MLP; below, one output of the first layer."""
    numbers = follow()
    figure = style.figure(4.0)
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(2, 41.5))
    axes.axis("off")
    stops = [(12, "QuantStub", "÷ scale, round"), (37, "linear1", "768 → 512"), (62, "linear2", "512 → 314"),
             (87, "DeQuantStub", "× scale")]  # fmt: skip
    for x, name, words in stops:
        _box(axes, x, 36, 14, name, words, style.LIGHT)
    edges = [(0, 5, "float32", 768), (19, 30, "int8", 768), (44, 55, "int8", 512), (69, 80, "int8", 314),
             (94, 100, "float32", 314)]  # fmt: skip
    for start, end, dtype, features in edges:
        is_float = dtype == "float32"
        _arrow(axes, (start, 36), (end, 36), style.BLUE if is_float else style.ORANGE, 5 if is_float else 1.8)
        middle = (start + end) / 2 + (0.8 if end == 100 else -0.6 if start == 0 else 0)
        size = features * (4 if is_float else 1)
        axes.text(middle, 38.3, dtype, ha="center", fontsize=style.SIZE - 1, color=style.BLACK)
        axes.text(middle, 32.4, f"{size:,} B", ha="center", fontsize=style.SIZE - 1.5, color=style.GREY)
    for x in (31, 43):  # the lens
        axes.plot([x, 2 if x == 31 else 98], [31.4, 24], color=style.GREY, linewidth=0.7, linestyle=":")
    steps = [
        ("int8 · int8", "768 products", style.LIGHT),
        ("Σ in int32", f"{numbers['sum']:,.0f}", style.LIGHT),
        ("× m", f"{numbers['sum times m']:.3f}", style.SKY),
        ("+ b′", f"{numbers['with bias']:.3f}", style.SKY),
        ("round", f"{round(numbers['with bias'])}", style.SKY),
        ("+ zero point", f"{numbers['code']:.0f}", style.SKY),
        ("clamp to int8", f"{numbers['code']:.0f}", style.LIGHT),
    ]
    for index, (name, value, color) in enumerate(steps):
        x = 8 + index * 14
        _box(axes, x, 17, 11.5, name, value.replace("-", "−"), color)
        if index:
            _arrow(axes, (x - 8.2, 17), (x - 5.9, 17), style.GREY, 1.2)
    axes.text(50, 23.2, f"inside of linear1, output feature {FEATURE}: the epilogue, in registers, before anything is "
              "written to memory", ha="center", fontsize=style.SIZE - 0.5)  # fmt: skip
    lines = [
        f"m = s_x · s_w / s_y = {numbers['s_x']:.5f} · {numbers['s_w']:.7f} / {numbers['s_y']:.5f} = {numbers['m']:.7f}"
        f"          b′ = b / s_y = {numbers['b']:.4f} / {numbers['s_y']:.5f} = {numbers['b prime']:.3f}",
        f"code {numbers['code']:.0f} stands for ({numbers['code']:.0f} − {numbers['zero point']:.0f}) · s_y = "
        f"{numbers['stands for']:.4f}; float arithmetic gives {numbers['exact']:.4f}",
    ]
    for index, line in enumerate(lines):
        axes.text(50, 8.6 - 4.2 * index, line.replace(" -", " −").replace("(-", "(−").replace("− −", "+ "), ha="center",
                  fontsize=style.SIZE - 0.5, color=style.BLACK)  # fmt: skip
    return figure, numbers


def follow() -> dict[str, float]:
    """One output of linear1 of the introductory example, step by step, as the library computes it."""
    spec = importlib.util.spec_from_file_location("introductory_mlp", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = example.float_model()
    batch = torch.randn(1, example.SIZES[0])
    with torch.no_grad():
        quantized = example.static(model, batch)
        x = quantized.quant(batch)
        layer = quantized.linear1
        accumulator = reference.int8_accumulate(x.data, x.zero_point, layer.int_weight(), None)[0, FEATURE]
        scale_x, scale_w, scale_y = float(x.scale), float(layer.scales[0, FEATURE]), float(layer.output_scale)
        bias, zero_point = float(layer.bias[FEATURE]), int(layer.output_zero_point)
        multiplier = scale_x * scale_w / scale_y
        code = int(layer(x).data[0, FEATURE])
        scaled = float(accumulator) * multiplier
        assert code == round(scaled + bias / scale_y) + zero_point
        return {
            "s_x": scale_x,
            "s_w": scale_w,
            "s_y": scale_y,
            "m": multiplier,
            "b": bias,
            "b prime": bias / scale_y,
            "sum": float(accumulator),
            "sum times m": scaled,
            "with bias": scaled + bias / scale_y,
            "zero point": zero_point,
            "code": code,
            "stands for": (code - zero_point) * scale_y,
            "exact": float(model.linear1(batch)[0, FEATURE]),
        }


def _box(axes: Any, x: float, y: float, width: float, name: str, words: str, color: str) -> None:
    """A rounded box around (x, y) with a name above and words below."""
    corner = (x - width / 2, y - 3.6)
    axes.add_patch(
        FancyBboxPatch(corner, width, 7.2, boxstyle="round,pad=0,rounding_size=1", color=color, alpha=0.75)
    )
    axes.text(x, y + 1.3, name, ha="center", va="center", fontsize=style.SIZE, color=style.BLACK)
    axes.text(x, y - 1.8, words, ha="center", va="center", fontsize=style.SIZE - 1.5, color=style.BLACK)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str, width: float) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8 + 1.6 * width, linewidth=width,
                                   color=color, shrinkA=0, shrinkB=0))  # fmt: skip
