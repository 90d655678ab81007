"""The names of the products that can be tuned."""

from __future__ import annotations

GATED, GRADIENT, DYNAMIC = "_gated", "_gradient", "_dynamic"
#: Tuned by default: the presets' products, and (dynamic) whether to quantize x inside of the product.
USUAL_SCHEMES = ("w4a16", "w8a16", "w8a8", "w4a8", f"w8a8{DYNAMIC}", f"w4a8{DYNAMIC}")
#: Up to this many rows of x, quantizing inside of the product may be faster.
MOST_DYNAMIC_ROWS = 16
#: All: also the middle of a gated MLP, and the gradient of x through a frozen weight.
SCHEMES = (*USUAL_SCHEMES, f"w8a8{GATED}", f"w4a16{GRADIENT}", f"w8a16{GRADIENT}")
