"""`analyze`: compares every layer, quantized alone, with its float version on the user's data.

    one pass over the data      a forward hook on each Linear gets x and y, computes the quantized layer's output for
                                the same x, and sums squares
    static schemes              one more pass before that, to calibrate the config's observers
    end_to_end                  one more forward per layer and batch, with only that layer quantized
    metric                      the user's evaluation, once for the float model and once per layer

The model is never changed: a layer is "quantized" by a hook that returns the quantized layer's output.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, SupportsFloat

from torch import Tensor, nn

from tritonq.analysis.layer_effects import Effect, LayerAnalysis
from tritonq.analysis.probe import Candidate, LayerProbe
from tritonq.analysis.report import Analysis
from tritonq.nn.linear import QuantizedLinear
from tritonq.observers.qconfig import resolve_config
from tritonq.quantize.conversions import conversions
from tritonq.quantize.convert import quantized_linear
from tritonq.quantize.prepare import attach, check_layers, detach
from tritonq.select.calibrate import calibrate, check_calibration, check_not_empty, evaluation, run_batch
from tritonq.select.patterns import Pattern
from tritonq.select.select import DEFAULT_IGNORE, Filter, Selected, select
from tritonq.util.progress import track

#: The model → a number that is lower for a better model: a loss, a perplexity, an error rate.
Metric = Callable[[Any], SupportsFloat]


def analyze(
    model: nn.Module,
    config: Any,
    data: Iterable[Any],
    *,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
    filter_fn: Filter | None = None,
    higher: Any = None,
    end_to_end: bool = False,
    metric: Metric | None = None,
) -> Analysis:
    """Measure the effect of quantizing each layer alone. The model is not changed.

    Each static layer is measured with a separate grid for its input and with float output, even between QuantStubs.

    Args:
        model, config, ignore, filter_fn: as for `quantize_`.
        data: batches: a tensor is run as m(x), a tuple or list as m(*x), a dictionary as m(**x). An iterator is kept in
            a list if a second pass is needed (static schemes).
        higher: the config of spared layers, for `Analysis.mixed_precision`; None leaves them in float. It is measured
            together with `config`.
        end_to_end: also measure the model's output (its first floating-point tensor, or a dictionary's "logits") with
            only that layer quantized. Errors are then the model's. It takes one forward per layer and batch.
        metric: alternatively, a function of the model, called once for the float model and once per layer with that
            layer quantized; lower is better. Errors are then the changes of the metric.

    Returns:
        An Analysis: its rows are layers, its `str()` a table.

    Raises:
        TypeError, ValueError: as `quantize_`; the data is empty or not finite (the message names the layer); the
            metric is not finite.

    Example:
        >>> found = tritonq.analyze(model, "w4a16", batches, higher="w8a16")
        >>> print(found)
        >>> tritonq.quantize_(model, found.mixed_precision(size=3_000_000))
    """
    check_calibration(data, "data")
    if not isinstance(end_to_end, bool):
        raise TypeError(f"end_to_end must be True or False, found {end_to_end!r}")
    if metric is not None and not callable(metric):
        raise TypeError(f"metric must be a function of the model or None, found {metric!r}")
    if metric is not None and end_to_end:
        raise ValueError("end_to_end must be False with a metric, found True")
    options = [_linears(select(model, config, ignore, filter_fn))]
    if higher is not None:
        spared = resolve_config(higher, "higher: ")
        options.append([Selected(layer.place, spared) for layer in options[0]])
    for option in options:
        check_layers(option)
    calibrations = sum(any(layer.config.static for layer in option) for option in options)
    if calibrations and isinstance(data, Iterator):
        data = list(data)
    quantized = [_quantized_layers(model, option, data) for option in options]
    probes: list[LayerProbe] = []
    reached: list[LayerProbe] = []  # in the order of execution
    for layer, *counterparts in zip(options[0], *quantized, strict=True):
        linear = layer.place.module
        assert isinstance(linear, nn.Linear)
        probes.append(
            LayerProbe(layer.place.name, linear, [Candidate(each) for each in counterparts], reached)
        )
    with contextlib.ExitStack() as attached, evaluation(model):
        for probe in probes:
            attached.enter_context(probe.attached())
        batches = _run(model, data, probes, end_to_end)
        float_metric = None if metric is None else _run_metric(model, metric, probes)
    return Analysis(
        rows=tuple(_row(probe, [option[index] for option in options]) for index, probe in enumerate(probes)),
        config=config,
        higher=higher,
        batches=batches,
        metric=float_metric,
    )


def _linears(selected: list[Selected]) -> list[Selected]:
    """`selected` without the QuantStubs, so that each Linear calibrates its own input."""
    return [layer for layer in selected if isinstance(layer.place.module, nn.Linear)]


def _quantized_layers(
    model: nn.Module, selected: list[Selected], data: Iterable[Any]
) -> list[QuantizedLinear]:
    """The replacements that `quantize_` would make; a static layer that the data never reached is dynamic."""
    attach(selected)
    try:
        if any(layer.config.static for layer in selected):
            calibrate(model, data, "data")
        pending = {found.place.name: found for found in conversions(model, "dynamic", check_weights=False)}
    finally:
        for layer in selected:
            detach(layer.place.module)
    return [
        quantized_linear(pending[layer.place.name]) for layer in track(selected, "Quantizing", len(selected))
    ]


def _run(model: nn.Module, data: Iterable[Any], probes: list[LayerProbe], end_to_end: bool) -> int:
    """All forwards; returns the number of batches."""
    replaced = (
        [(probe, candidate) for probe in probes for candidate in probe.candidates] if end_to_end else []
    )
    total = len(data) * (1 + len(replaced)) if isinstance(data, Sized) else None
    batches = 0
    exact = None
    for batch, pair in track(_steps(data, replaced), "Analyzing", total):
        if pair is None:
            exact = _observe(model, batch, batches, probes)
            batches += 1
        elif pair[0].count:
            probe, candidate = pair
            probe.stand_in = candidate.layer
            rounded = run_batch(model, batch)
            probe.stand_in = None
            candidate.model.add(_first_floats(exact), _first_floats(rounded))
    check_not_empty(batches, "data")
    return batches


def _steps(
    data: Iterable[Any], replaced: list[tuple[LayerProbe, Candidate]]
) -> Iterator[tuple[Any, tuple[LayerProbe, Candidate] | None]]:
    """Every batch, first for the float model (None), then for each replaced layer."""
    for batch in data:
        for pair in (None, *replaced):
            yield batch, pair


def _observe(model: nn.Module, batch: Any, index: int, probes: list[LayerProbe]) -> Any:
    """Run a batch through the float model while all probes observe; returns the model's output."""
    for probe in probes:
        probe.observes = True
    output = run_batch(model, batch, index, "data")
    for probe in probes:
        probe.observes = False
    for probe in probes[0].reached:
        probe.check_finite()
    return output


def _run_metric(model: nn.Module, metric: Metric, probes: list[LayerProbe]) -> float:
    """Measure the metric's change by each candidate; returns the metric of the float model."""

    def value(where: str) -> float:
        found = float(metric(model))
        if not math.isfinite(found):
            raise ValueError(f"{where}: the metric must be finite, found {found}")
        return found

    exact = value("the float model")
    replaced = [(probe, candidate) for probe in probes for candidate in probe.candidates if probe.count]
    for probe, candidate in track(replaced, "Analyzing", len(replaced)):
        probe.stand_in = candidate.layer
        candidate.metric_change = value(f"{probe.name} as {candidate.layer.config.scheme}") - exact
        probe.stand_in = None
    return exact


def _first_floats(output: Any) -> Tensor:
    """The first floating-point tensor in a model's output; the "logits" of a dictionary, if it has them.

    Raises:
        TypeError: there is none.
    """
    found = _search(output)
    if found is None:
        raise TypeError(
            "end_to_end needs a model that returns a floating-point tensor, or a tuple or dictionary with one, found "
            f"{type(output).__name__}"
        )
    return found


def _search(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = [output["logits"]] if "logits" in output else list(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for found in map(_search, output) if found is not None), None)
    return None


def _row(probe: LayerProbe, options: list[Selected]) -> LayerAnalysis:
    linear = probe.linear
    effects = [_effect(candidate, layer) for candidate, layer in zip(probe.candidates, options, strict=True)]
    if len(effects) == 1:
        effects.append(Effect(None, linear.weight.nbytes))
    amax = outlier_ratio = channel_ratio = None
    if probe.channel_amax is not None:
        peaks = probe.channel_amax
        amax, median = float(peaks.max()), float(peaks.median())
        root_mean_square = math.sqrt(float(probe.square_sum) / probe.count)
        outlier_ratio = amax / root_mean_square if root_mean_square else 1.0
        channel_ratio = amax / median if median else math.inf if amax else 1.0
    return LayerAnalysis(
        name=probe.name,
        in_features=linear.in_features,
        out_features=linear.out_features,
        float_bytes=linear.weight.nbytes,
        input_amax=amax,
        outlier_ratio=outlier_ratio,
        channel_ratio=channel_ratio,
        quantized=effects[0],
        higher=effects[1],
    )


def _effect(candidate: Candidate, layer: Selected) -> Effect:
    return Effect(
        config=layer.config,
        weight_bytes=candidate.layer.weight_bytes,
        weight_sqnr=candidate.layer.weight_sqnr,
        input_sqnr=candidate.input.sqnr(),
        output_sqnr=candidate.output.sqnr(),
        model_sqnr=candidate.model.sqnr(),
        metric_change=candidate.metric_change,
    )
