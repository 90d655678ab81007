"""`tritonq.analyze`: finds the layers that quantization hurts, why, and which to keep in higher precision."""

from tritonq.analysis.layer_effects import Effect, LayerAnalysis
from tritonq.analysis.measure import analyze
from tritonq.analysis.report import Analysis

__all__ = ["Analysis", "Effect", "LayerAnalysis", "analyze"]
