"""Clipping: a smaller static range cuts the outliers off and serves all others better; observers choose it."""

from __future__ import annotations

import copy

import torch
from matplotlib.figure import Figure
from torch import Tensor

import tritonq
from docs.figures import style
from docs.figures.material import Material
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec, W8A8Static
from tritonq.observers import make_observer

LAYER = "layers.0.mlp.down_proj"
OBSERVERS = {  # name → colour, marker
    "minmax": (style.BLACK, "o"),
    "histogram": (style.BLUE, "s"),
    "percentile": (style.PINK, "D"),
    "mse": (style.ORANGE, "^"),
    "entropy": (style.GREEN, "v"),
}
SPEC = QuantSpec(8, symmetric=False)


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """Left, noise over the range of the grid, with the observers' choices; right, what the model makes of it."""
    x = material.inputs(LAYER)
    low, high = x.amin(), x.amax()
    shares = torch.logspace(-0.9, 0, 40)
    figure = style.figure(3.9)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    curves = torch.tensor(
        [_noise(x, *qparams.affine_qparams(low * c, high * c, SPEC.qmin, SPEC.qmax)) for c in shares]
    )
    ends = shares * (high - low)
    lines = {
        "rounding, inside": (style.SKY, "--"),
        "cutting off, outside": (style.GREY, ":"),
        "both": (style.BLACK, "-"),
    }
    for index, (name, (color, form)) in enumerate(lines.items()):
        left.plot(ends, curves[:, index], form, color=color, linewidth=1.5, label=name)
    numbers: dict[str, float] = {"float bits": material.float_bits}
    lost: dict[str, float] = {}
    for name, (color, marker) in OBSERVERS.items():
        observer = make_observer(QuantSpec(8, symmetric=False, observer=name), for_weight=False)
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        *_, noise = _noise(x, scale, zero_point)
        covered = float(scale) * (SPEC.qmax - SPEC.qmin)
        left.plot(covered, noise, marker, color=color, markersize=8, label=name, zorder=3)
        bits = material.bits(material.quantized(W8A8Static(observer=name)))
        lost[name] = bits - material.float_bits
        numbers |= {f"{name} range": covered, f"{name} noise": noise}
    smoothed = tritonq.smooth_(copy.deepcopy(material.model), material.batches)
    for name in ("minmax", "mse"):
        config = W8A8Static(observer=name)
        quantized = tritonq.quantize_(copy.deepcopy(smoothed), config, calibration=material.batches)
        lost[f"{name}, smoothed"] = material.bits(quantized) - material.float_bits
    lost["dynamic"] = material.bits(material.quantized("w8a8")) - material.float_bits
    numbers |= {f"{name} lost bits": value for name, value in lost.items()}
    left.set(
        xscale="log", yscale="log", ylim=(float(curves[:, 2].min()) / 3, float(curves[:, 2].max()) * 1.5)
    )
    left.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
    left.minorticks_off()
    style.legend(left, ncols=2, loc="upper right")
    style.finish(left, f"input of {LAYER}", "range of the grid", "noise / signal")
    colors = [OBSERVERS.get(name, (style.LIGHT, ""))[0] for name in lost]
    bars = right.barh(list(lost), list(lost.values()), color=colors, height=0.65)
    right.bar_label(bars, [f"{value:+.4f}" for value in lost.values()], padding=4, fontsize=style.SIZE - 1)
    right.invert_yaxis()
    right.margins(x=0.3)
    style.finish(right, "the whole model, W8A8", "bits per byte lost")
    return figure, numbers


def _noise(x: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[float, float, float]:
    """Noise over signal on this grid: of the values inside of its range, of those outside, and of all."""
    codes = qparams.quantize(x, scale, zero_point, SPEC.qmin, SPEC.qmax)
    error = (qparams.dequantize(codes, scale, zero_point, torch.float32) - x).square()
    reach = [(code - zero_point.float()) * scale for code in (SPEC.qmin - 0.5, SPEC.qmax + 0.5)]
    outside = (x < reach[0]) | (x > reach[1])
    signal = x.square().sum(dtype=torch.float64)
    parts = [float(error[mask].sum(dtype=torch.float64) / signal) for mask in (~outside, outside)]
    return parts[0], parts[1], sum(parts)
