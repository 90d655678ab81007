"""What a grid is: one group of 128 trained weights on the 16 values that INT4 has for them."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import nn

import tritonq
from docs.figures import style
from docs.figures.material import Material

LAYER = "layers.1.mlp.down_proj"
GROUP = 128


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """Two columns, symmetric and affine: the weights' histogram with the grid below it, and each weight's error."""
    weights = material.weight(LAYER).reshape(-1, GROUP)
    # The group whose values lie most to one side: what a zero point is for.
    sides = torch.stack([-weights.amin(dim=1), weights.amax(dim=1)])
    values = weights[(sides.amax(dim=0) / sides.amin(dim=0)).argmax()]
    linear = nn.Linear(GROUP, 1, bias=False)
    linear.weight.data = values[None].clone()
    int8 = tritonq.nn.QuantizedLinear.from_float(linear, "w8a16")
    figure = style.figure(4.6)
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[1.25, 1])
    numbers = {"smallest": float(values.min()), "largest": float(values.max())}
    numbers["int8 dB"] = style.decibel(values, values - int8.dequantize()[0])
    for column, symmetric in enumerate((True, False)):
        layer = tritonq.nn.QuantizedLinear.from_float(linear, tritonq.W4A16(symmetric=symmetric))
        scale = float(layer.scales[0, 0])
        zero = 0 if layer.zero_points is None else int(layer.zero_points[0, 0])
        name = "symmetric" if symmetric else "affine"
        error = layer.dequantize()[0] - values
        numbers |= {f"{name} scale": scale, f"{name} zero point": zero}
        numbers[f"{name} dB"] = style.decibel(values, error)
        above, below = panels[:, column]
        above.hist(values.numpy(), bins=48, color=style.SKY, alpha=0.8)
        above.margins(y=0.3)
        for code in range(-8, 8):
            point = (code - zero) * scale
            above.axvline(point, color=style.ORANGE, linewidth=0.8, ymax=0.88)
            above.text(
                point,
                0.89,
                f"{code}".replace("-", "−"),
                transform=above.get_xaxis_transform(),
                color=style.ORANGE,
                fontsize=style.SIZE - 2.5,
                ha="center",
                va="bottom",
            )
        zero_text = f"{zero}".replace("-", "−")
        style.finish(
            above,
            f"INT4 {name}: scale {scale:.4f}, zero point {zero_text}",
            y="weights" if column == 0 else "",
        )
        below.axhspan(-scale / 2, scale / 2, color=style.LIGHT, alpha=0.6, linewidth=0)
        below.text(-0.24, scale / 2, "half a step", fontsize=style.SIZE - 1.5, color=style.GREY, va="bottom")
        below.plot(values, error, "o", color=style.BLUE, markersize=3, label="INT4")
        int8_error = int8.dequantize()[0] - values
        below.plot(values, int8_error, ".", color=style.PINK, markersize=3, label="INT8")
        below.margins(y=0.1)
        style.finish(below, x="weight", y="rounded − weight" if column == 0 else "")
    style.legend(panels[1, 1], loc="upper right", ncols=2, handletextpad=0.1)
    return figure, numbers
