"""The effect of quantization on one layer, with the analysed config and with the config for spared layers."""

from __future__ import annotations

import dataclasses

from tritonq.numerics.config import QuantConfig


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effect of one config on one layer.

    Attributes:
        config: None for float.
        weight_bytes: of the weight with scales, zero points and sums, without the bias.
        weight_sqnr: signal to quantization noise of the weight, dB.
        input_sqnr: of the input as the scheme quantizes it; None if activations stay float.
        output_sqnr: of the layer's output, with weight and input quantized.
        model_sqnr: of the model's output, with only this layer quantized; None unless `end_to_end`.
        metric_change: the metric with only this layer quantized, minus that of the float model; None without a metric.

    A layer that the data never reached has only `weight_sqnr`.
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
        """The error that budgets sum: the metric's change, else noise / signal of the model's or the layer's output.

        0 for float, None for a layer that the data did not reach.
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
        float_bytes: bytes of the float weight.
        input_amax: the largest |x| of the input; None, as are the ratios, if the data did not reach the layer.
        outlier_ratio: input_amax / root mean square of the input. A grid of 255 steps over the whole range has an SQNR
            of about 53 dB - 20 · log10(outlier_ratio).
        channel_ratio: the largest |x| of any column / the median of the columns' largest. If it is large, a few
            channels cost all others their precision, and scaling them down first helps (SmoothQuant).
        quantized: the effect of the analysed config.
        higher: the effect of the config for spared layers.
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
        """True if the data reached this layer."""
        return self.input_amax is not None
