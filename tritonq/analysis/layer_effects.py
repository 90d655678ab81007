"""What quantization does to one layer: under the analysed config, and under the one for layers that are spared."""

from __future__ import annotations

import dataclasses

from tritonq.numerics.config import QuantConfig


@dataclasses.dataclass(frozen=True)
class Effect:
    """What one config does to one layer.

    Attributes:
        config: None for float.
        weight_bytes: what the weight then takes, scales, zero points and sums included, bias not.
        weight_sqnr: signal to quantization noise of the weight, dB.
        input_sqnr: of the input as the scheme quantizes it; None where activations stay float.
        output_sqnr: of the layer's output, with weight and input quantized.
        model_sqnr: of the model's output, with this layer alone quantized; None unless `end_to_end`.
        metric_change: the metric with this layer alone quantized, less that of the float model; None without one.

    A layer that the data never reached has the weight's SQNR alone.
    """

    config: QuantConfig | None
    weight_bytes: int
    weight_sqnr: float | None = None
    input_sqnr: float | None = None
    output_sqnr: float | None = None
    model_sqnr: float | None = None
    metric_change: float | None = None

    @property
    def scheme(self) -> str:
        """A preset's name such as "w4a16", or "float"."""
        return "float" if self.config is None else self.config.scheme

    @property
    def error(self) -> float | None:
        """What budgets count: the metric's change, else noise / signal of the model's output, else of the layer's.

        0 for float, None for a layer that was not reached.
        """
        if self.config is None:
            return 0.0
        if self.metric_change is not None:
            return self.metric_change
        sqnr = self.output_sqnr if self.model_sqnr is None else self.model_sqnr
        return None if sqnr is None else 10 ** (-sqnr / 10)


@dataclasses.dataclass(frozen=True)
class LayerAnalysis:
    """One Linear.

    Attributes:
        name: in the model; a module with several names is listed once, under the first.
        in_features, out_features: K and N.
        float_bytes: what the weight takes as it is.
        input_amax: the largest |x| that came in; this and the ratios are None where nothing came in.
        outlier_ratio: input_amax over the root mean square of the input. A grid of 255 steps over the whole range has
            an SQNR of about 53 dB less 20 · log10 of it.
        channel_ratio: the input column with the largest |x| over the median of the columns. Where it is large, a
            few channels cost all others their precision, and scaling them down beforehand helps (SmoothQuant).
        quantized: what the analysed config does.
        higher: what the config for spared layers does.
    """

    name: str
    in_features: int
    out_features: int
    float_bytes: int
    input_amax: float | None
    outlier_ratio: float | None
    channel_ratio: float | None
    quantized: Effect
    higher: Effect

    @property
    def reached(self) -> bool:
        """Whether the data came through this layer."""
        return self.input_amax is not None
