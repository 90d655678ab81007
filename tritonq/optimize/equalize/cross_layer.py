"""Cross-layer equalization: gives the channels between two consecutive Linears equal ranges.

If there is nothing between two Linears, or only a function that positive factors pass through (ReLU), channel c of the
first can be divided by s_c and column c of the second multiplied by it. The ranges r1 of the first's rows and r2 of the
second's columns become equal with

    s_c = √(r1_c / r2_c)                   r1_c / s_c = r2_c · s_c = √(r1_c · r2_c)

A layer may be second in one pair and first in another. So the factors are a fixed point, which takes a few rounds. This
helps if a whole tensor shares one scale. With one scale per output channel, the first Linear's rows gain nothing.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.optimize.equalize.finding import groups_to_scale
from tritonq.optimize.equalize.groups import Group, fold
from tritonq.select.patterns import Model, Pattern, named_modules
from tritonq.select.select import DEFAULT_IGNORE, check_root

_ROUNDS = 100
#: The rounds end when no factor changes by more than this fraction.
_CONVERGED = 1e-4


def cross_layer_equalize_(
    model: Model,
    batch: Any,
    *,
    groups: Iterable[Any] | None = None,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
) -> Model:
    """Equalize the ranges of the channels between Linears, in place. The model's results stay the same up to rounding.

    Args:
        model: float.
        batch: tensor → model(x), tuple → model(*x), dict → model(**x). It serves to find the pairs or to test the given
            ones; no statistics are taken.
        groups: pairs (Linear, [Linear, …]) of names; the inputs of the second ones must be proportional to the output
            of the first. None finds them.
        ignore: patterns of Linears to leave as they are when pairs are searched.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: a bad argument, an unknown name, shapes that do not match, a pair whose scaling changes
            the model's results, or no pair. The model is then unchanged.
    """
    check_root(model)
    modules = dict(named_modules(model))
    found = groups_to_scale(model, batch, groups, ignore)
    pairs = [group for group in found if isinstance(modules[group.source], nn.Linear)]
    for group in found:
        if groups is not None and group not in pairs:
            kind = type(modules[group.source]).__name__
            raise ValueError(f"groups: {group}: the first must be an nn.Linear, found {kind}")
    if not pairs:
        raise ValueError("no two Linears of the model follow each other with nothing, or ReLU, in between")
    fold(model, _equalizing_factors(modules, pairs))
    return model


@torch.no_grad()
def _equalizing_factors(modules: dict[str, nn.Module], pairs: list[Group]) -> dict[Group, Tensor]:
    """The fixed point of s = √(r1 / r2); r1 and r2 are ranges of the weights scaled by the other pairs' factors."""
    names = dict.fromkeys(name for group in pairs for name in (group.source, *group.readers))
    magnitudes = {name: modules[name].get_parameter("weight").float().abs() for name in names}
    factors = {group: torch.ones(len(magnitudes[group.source])) for group in pairs}
    for _ in range(_ROUNDS):
        change = 0.0
        for group in pairs:
            rows = magnitudes[group.source].amax(dim=1)  # [channels]
            columns = torch.stack(
                [magnitudes[name].amax(dim=0).to(rows.device) for name in group.readers]
            ).amax(dim=0)
            step = torch.where((rows > 0) & (columns > 0), (rows / columns).sqrt(), torch.ones_like(rows))
            magnitudes[group.source] /= step.unsqueeze(1)
            for name in group.readers:
                magnitudes[name] *= step.to(magnitudes[name].device)
            factors[group] = factors[group].to(step.device) * step
            change = max(change, float((step - 1).abs().max()))
        if change <= _CONVERGED:
            break
    return factors
