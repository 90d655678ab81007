"""SmoothQuant: moves outliers of activations into weights, before both are quantized.

A few channels of a language model's activations are a hundred times as large as the others. One scale for the tensor
leaves the others only a handful of codes. Weights have no such channels. So each channel is divided by s, and the
weights' columns are multiplied by it:

    s_j = max|X_j|^α / max|W_j|^(1−α)               Y = (X / s) · (s · W)ᵀ

α = 1 makes all channels of X equally large, α = 0 all columns of W; 0.5 is halfway. The division costs nothing at run
time: the norm or Linear that computes X absorbs it (tritonq/optimize/equalize/groups.py).

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2023.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tritonq.numerics.config import QuantConfig, as_config
from tritonq.optimize.equalize.alpha_search import search_alpha, smoothing_factors
from tritonq.optimize.equalize.finding import groups_to_scale
from tritonq.optimize.equalize.groups import Group, fold
from tritonq.optimize.equalize.inputs import group_inputs
from tritonq.select.calibrate import check_calibration, check_not_empty
from tritonq.select.patterns import Model, Pattern, named_modules
from tritonq.select.select import DEFAULT_IGNORE, check_root
from tritonq.util.progress import track

_LOG = logging.getLogger("tritonq.equalize")


def smooth_(
    model: Model,
    calibration: Iterable[Any],
    *,
    alpha: float | str = 0.5,
    config: QuantConfig | str = "w8a8_static",
    groups: Iterable[Any] | None = None,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
) -> Model:
    """Move activation outliers into weights (SmoothQuant), in place. The model's results stay the same up to rounding.

        tritonq.smooth_(model, batches)
        tritonq.quantize_(model, "w8a8_static", calibration=batches)

    Args:
        model: float.
        calibration: batches, as for `quantize_`. The first one is run a few times more, to find or test the groups.
        alpha: α in [0, 1], for all groups; or "search": for each group the α with which its Linears, quantized with
            `config`, have the smallest output error on the calibration data.
        config: for the search only.
        groups: pairs (source, [Linear, …]) of names. The source is a norm, or a Linear whose output channels are
            proportional to the readers' input columns (up_proj → down_proj). The first batch tests them. None finds
            them: `tritonq.equalize.smoothing_groups` lists them, and the reason for each skipped source.
        ignore: patterns of Linears to leave as they are when groups are searched.

    Returns:
        The model. The log "tritonq.equalize" (level INFO) says what was done to each group.

    Raises:
        TypeError, ValueError: a bad argument, an unknown name, shapes that do not match, a group whose scaling changes
            the model's results, or calibration data that is empty or gives values that are not finite. The model is
            then unchanged.
    """
    _check_alpha(alpha)
    check_root(model)
    check_calibration(calibration)
    config = as_config(config)
    batches = iter(calibration)
    first = list(itertools.islice(batches, 1))
    check_not_empty(len(first))
    found = groups_to_scale(model, first[0], groups, ignore)
    inputs = group_inputs(model, found, itertools.chain(first, batches), keep_rows=isinstance(alpha, str))
    modules = dict(named_modules(model))
    factors: dict[Group, Tensor] = {}
    with torch.no_grad():
        for group in track(found, "Smoothing"):
            weights = [modules[reader].get_parameter("weight").float() for reader in group.readers]
            chosen = search_alpha(group, inputs[group], weights, config) if isinstance(alpha, str) else alpha
            _LOG.info("%s: %s", group, "left as it is" if chosen is None else f"alpha {chosen}")
            if chosen is not None:
                factors[group] = smoothing_factors(inputs[group].largest, weights, chosen)
    fold(model, factors)
    return model


def _check_alpha(alpha: object) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, str)):
        raise TypeError(f"alpha must be a number in [0, 1] or 'search', found {alpha!r}")
    if alpha != "search" and (isinstance(alpha, str) or not 0 <= alpha <= 1):
        raise ValueError(f"alpha must be a number in [0, 1] or 'search', found {alpha!r}")
