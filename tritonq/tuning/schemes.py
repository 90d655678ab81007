"""What can be tuned, by name."""

from __future__ import annotations

GATED, GRADIENT, DYNAMIC = "_gated", "_gradient", "_dynamic"
#: Tuned unless others are asked for: the presets' products, and whether x is better quantized inside of them.
USUAL_SCHEMES = ("w4a16", "w8a16", "w8a8", "w4a8", f"w8a8{DYNAMIC}", f"w4a8{DYNAMIC}")
#: Most rows of x for which that is a question.
MOST_DYNAMIC_ROWS = 16
#: And the middle of a gated MLP, and the gradient of x through a frozen weight.
SCHEMES = (*USUAL_SCHEMES, f"w8a8{GATED}", f"w4a16{GRADIENT}", f"w8a16{GRADIENT}")
