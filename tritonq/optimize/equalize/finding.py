"""Finds groups: a recorded run (tritonq/flow/record.py) gives the candidates, and trial runs prove them.

A source is a candidate if its output, directly or through functions, reaches only Linears, and these have as many
columns as the source has channels. Each candidate is tried: the source is scaled by powers of two, and each reader's
input is multiplied back and compared with the original:

    norm ─────────────────────────→ q, k, v          equal: a group
    up ─ product with silu(gate) ─→ down             equal: a group
    gate ─ silu ─ product with up → down             differs: silu is not homogeneous
    v ─ attention with q, k ──────→ o                equal, if every head has its own v
    q, k ─ attention ─────────────→ o                differs

At the end all groups are rehearsed on the whole model, which detects readers that a recording cannot see.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from tritonq.flow.record import Dataflow, record
from tritonq.nn.norm_kinds import is_norm
from tritonq.optimize.equalize.groups import (
    Group,
    Groups,
    given_groups,
    parameter_owners,
    source_channels,
    unfit,
)
from tritonq.optimize.equalize.rehearsal import Rehearsal, divided, equal_but_for_subnormals, powers_of_two
from tritonq.select.calibrate import evaluation, run_batch
from tritonq.select.patterns import Pattern, matches_any, named_modules, places
from tritonq.select.select import DEFAULT_IGNORE, check_root, ignored_patterns, is_plain_linear

_LOG = logging.getLogger("tritonq.equalize")


def smoothing_groups(model: nn.Module, batch: Any, *, ignore: Iterable[Pattern] = DEFAULT_IGNORE) -> Groups:
    """The norms and Linears of a model whose output can be scaled channel by channel, and the Linears that read it.

    It runs the batch a few times and keeps the readers' inputs meanwhile. One short sequence is enough.

    Args:
        model: float; not changed.
        batch: tensor → model(x), tuple → model(*x), dict → model(**x).
        ignore: patterns of Linears to leave as they are, as for `quantize_`; a source that they read is skipped.

    Returns:
        The groups, and the reason for each skipped norm, and for each skipped Linear that only Linears read.
    """
    check_root(model)
    ignored = ignored_patterns(ignore)
    kept = {name for place in places(model) if matches_any(ignored, place) for name in place.names}
    with evaluation(model):
        flow = record(model, batch)
        candidates, skipped = _candidates(model, flow, kept)
        proportional = _proportional(model, batch, candidates)
        groups: list[Group] = []
        taken: dict[str, str] = {}
        for group in candidates:
            double = next((reader for reader in group.readers if reader in taken), None)
            if group not in proportional:
                skipped[group.source] = f"the input of {group.readers[0]} is not proportional to it"
            elif double is not None:
                skipped[group.source] = f"{double} is scaled through {taken[double]}"
            else:
                groups.append(group)
                taken.update(dict.fromkeys(group.readers, group.source))
        failing = Rehearsal(model, batch).failing(groups)
    skipped.update({group.source: why for group, why in failing.items()})
    return Groups(tuple(group for group in groups if group not in failing), skipped)


def groups_to_scale(
    model: nn.Module, batch: Any, groups: Iterable[Any] | None, ignore: Iterable[Pattern]
) -> tuple[Group, ...]:
    """The user's groups, checked and rehearsed on a batch; without any, those that are found.

    Raises:
        TypeError, ValueError: as `given_groups`; a group fails the rehearsal; none is given and none is found.
    """
    if groups is None:
        search = smoothing_groups(model, batch, ignore=ignore)
        if not search.found:
            raise ValueError(f"no norm or Linear of the model can be scaled: {search}")
        for source, why in search.skipped.items():
            _LOG.info("%s: left alone, %s", source, why)
        return search.found
    given = given_groups(model, groups)
    with evaluation(model):
        failing = Rehearsal(model, batch).failing(given)
    for group, why in failing.items():
        raise ValueError(f"groups: {group}: {why}")
    return given


def _candidates(model: nn.Module, flow: Dataflow, kept: set[str]) -> tuple[list[Group], dict[str, str]]:
    """The groups that the recorded run suggests, and the sources that it rules out."""
    modules, owners = dict(named_modules(model)), parameter_owners(model)
    found: list[Group] = []
    skipped: dict[str, str] = {}
    for place in places(model):
        name, source = place.name, place.module
        if not (is_norm(source) or is_plain_linear(source)):
            continue
        readers, other = _readers(flow, name, modules)
        group = Group(name, tuple(readers))
        why = other or ("no Linear reads it" if not readers else None)
        if why is not None and not is_norm(source):
            continue  # most Linears write to the residual stream: too many to list
        if why is None and source_channels(source) is None:
            why = f"{type(source).__name__} is not one of the known norms"
        if why is None:
            why = next((f"{reader} is ignored" for reader in readers if reader in kept), None)
        why = why or unfit(group, modules, owners)
        if why is None:
            found.append(group)
        else:
            skipped[name] = why
    return found, skipped


def _readers(flow: Dataflow, name: str, modules: dict[str, nn.Module]) -> tuple[dict[str, None], str | None]:
    """The Linears that a module's output reaches through functions, and the reason if it reaches anything else."""
    calls = flow.calls_of(name)
    if not calls:
        return {}, "the model does not call it"
    found: dict[str, None] = {}
    values = [value for call in calls for value in call.makes]
    seen: set[int] = set()
    while values:
        value = values.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in flow.returned:
            return found, "the model returns it"
        for call in flow.readers.get(value, ()):
            if call.is_module and is_plain_linear(modules[call.name]):
                found[call.name] = None
            elif call.is_module or not call.makes:
                return found, f"{call.name} reads it"
            else:
                values += call.makes
    return dict.fromkeys(name for name in modules if name in found), None


def _proportional(model: nn.Module, batch: Any, candidates: Sequence[Group]) -> set[Group]:
    """The candidates whose readers' inputs all scale with the source, channel by channel.

    One run tries several candidates: every reader's input is replaced by the original, so no source affects another
    one. Sources of the same reader need separate runs.
    """
    modules = dict(named_modules(model))
    exact: defaultdict[str, list[Tensor]] = defaultdict(list)
    readers = {reader for group in candidates for reader in group.readers}
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.enter_context(_input_replaced(modules[reader], exact[reader].append))
        run_batch(model, batch)
    proven: set[Group] = set()
    waiting = list(candidates)
    while waiting:
        taken: set[str] = set()
        tried = []
        for group in waiting:
            if taken.isdisjoint(group.readers):
                tried.append(group)
                taken.update(group.readers)
        waiting = [group for group in waiting if group not in tried]
        proven.update(_proportional_alone(model, batch, tried, exact))
    return proven


def _proportional_alone(
    model: nn.Module, batch: Any, groups: Sequence[Group], exact: dict[str, list[Tensor]]
) -> set[Group]:
    """Those of `groups`, which share no reader, that scale; `exact` holds the original inputs of every reader."""
    modules = dict(named_modules(model))
    failed: set[Group] = set()
    with contextlib.ExitStack() as stack:
        for group in groups:
            factors = powers_of_two(modules[group.source])
            stack.enter_context(divided(modules[group.source], factors, lambda: None))
            for reader in group.readers:
                inputs = iter(exact[reader])

                def check(
                    x: Tensor,
                    group: Group = group,
                    factors: Tensor = factors,
                    inputs: Any = inputs,
                ) -> Tensor:
                    expected: Tensor | None = next(inputs, None)
                    if expected is None or not equal_but_for_subnormals(x * factors.to(x.device), expected):
                        failed.add(group)
                    return x if expected is None else expected

                stack.enter_context(_input_replaced(modules[reader], check))
        run_batch(model, batch)
    return set(groups) - failed


@contextlib.contextmanager
def _input_replaced(reader: nn.Module, replace: Any) -> Any:
    """Replace a Linear's input by `replace(input)`; None keeps it."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        replaced = replace(args[0] if args else kwargs["input"])
        if replaced is None:
            return None
        return ((replaced, *args[1:]), kwargs) if args else (args, {**kwargs, "input": replaced})

    handle = reader.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
