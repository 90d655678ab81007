"""What can be tuned, by name."""

from __future__ import annotations

GATED, GRADIENT = "_gated", "_gradient"
#: Tuned unless others are asked for: the presets' products.
USUAL_SCHEMES = ("w4a16", "w8a16", "w8a8", "w4a8")
#: And the middle of a gated MLP, and the gradient of x through a frozen weight.
SCHEMES = (*USUAL_SCHEMES, f"w8a8{GATED}", f"w4a16{GRADIENT}", f"w8a16{GRADIENT}")
