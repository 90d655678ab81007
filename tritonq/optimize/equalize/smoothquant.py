"""SmoothQuant: outliers of activations moved into weights, before either is quantized.

A few channels of a language model's activations are a hundred times larger than the others. One scale for the tensor
leaves those others a handful of codes; weights have no such channels. So each channel is divided by s, and the weights'
columns are multiplied by it:

    s_j = max|X_j|^α / max|W_j|^(1−α)               Y = (X / s) · (s · W)ᵀ

α = 1 makes all channels of X equally large, α = 0 all columns of W, 0.5 shares what is hard evenly. The division costs
nothing at run time: it goes into the norm or Linear that computes X (tritonq/optimize/equalize/groups.py).

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
    """Move activations' outliers into weights (SmoothQuant), in place; what the model computes stays, up to rounding.

        tritonq.smooth_(model, batches)
        tritonq.quantize_(model, "w8a8_static", calibration=batches)

    Args:
        model: float.
        calibration: batches, as for `quantize_`. The first one is run a few times more, to find or try groups.
        alpha: how much of the difficulty moves, in [0, 1], for all groups; or "search": for each group what gives its
            Linears, quantized as `config` says, the smallest error of their outputs on the calibration data.
        config: what the search quantizes with; a fixed α does not depend on it.
        groups: (source, [Linear, …]) each, by name: a norm, or a Linear whose output channels reach the readers'
            columns in proportion (up_proj → down_proj). They are tried on the first batch. None finds them:
            `tritonq.equalize.smoothing_groups` says which, and why others were left alone.
        ignore: patterns of Linears to leave as they are, where groups are found.

    Returns:
        The model. What was done to each group goes to the log "tritonq.equalize" as INFO.

    Raises:
        TypeError, ValueError: a bad argument, an unknown name, shapes that do not match, groups that the model is not
            indifferent to, calibration data that is empty or gives values that are not finite. Nothing has changed
            then.
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
