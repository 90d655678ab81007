"""`Analysis.plot` as it is: every layer of the demo model in static INT8."""

from __future__ import annotations

from matplotlib.figure import Figure

import tritonq
from docs.figures.material import Material
from tritonq.analysis.plot import draw as draw_analysis


def draw(material: Material) -> tuple[Figure, dict[str, float]]:
    """SQNR of weight, input and output of each layer, quantized alone."""
    found = tritonq.analyze(material.model, "w8a8_static", material.batches, higher="w8a8")
    spared = material.quantized(found.mixed_precision(sqnr=30.0))
    worst = found.worst_first()[0]
    numbers = {
        "worst output dB": worst.quantized.output_sqnr or 0.0,
        "next kind's worst output dB": min(
            row.quantized.output_sqnr or 0.0 for row in found.rows if not row.name.endswith("down_proj")
        ),
        "largest outlier ratio": max(row.outlier_ratio or 0.0 for row in found.rows),
        "layers below 30 dB": len(found.layers_below(30.0)),
        "lost bits with those dynamic": material.bits(spared) - material.float_bits,
    }
    return draw_analysis(found.rows), numbers
