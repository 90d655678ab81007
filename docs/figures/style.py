"""How all figures look: one width, few colours, nothing that is not data."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

#: Okabe and Ito's colours, which colour-blind eyes tell apart too.
BLUE, ORANGE, GREEN, PINK, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#222222"
GREY, LIGHT = "#8a8a8a", "#dddddd"
WIDTH = 9.0  # inches; with DPI, what a page of documentation shows without scaling down much
DPI = 120
SIZE = 9.5


def figure(height: float) -> Figure:
    """An empty figure of the common width."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")


def finish(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """Words and light lines."""
    axes.set_title(title, loc="left", fontsize=SIZE + 1, color=BLACK)
    axes.set_xlabel(x, fontsize=SIZE)
    axes.set_ylabel(y, fontsize=SIZE)
    axes.tick_params(labelsize=SIZE - 1, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def legend(axes: Any, **words: Any) -> None:
    """A legend without a frame."""
    axes.legend(frameon=False, fontsize=SIZE - 1, **words)


def decibel(signal: Any, noise: Any) -> float:
    """10 · log10(Σ signal² / Σ noise²)."""
    return float(10 * (signal.double().square().sum() / noise.double().square().sum()).log10())
