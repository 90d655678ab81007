"""A group is a source and the Linears that read it; a factor per channel can move from activations into weights.

    source ─ y ─ (attention, ReLU, a product …) ─ x ─ Linear          y_c / s_c  →  x_c / s_c  →  W[:, c] · s_c

Dividing the source's output by s and multiplying the readers' columns by s changes nothing under two conditions: each
input column of a reader is proportional to the same channel of the source, and nothing else reads the source. The
source is a norm, whose weight and bias take 1/s, or a Linear, whose rows and bias do. Both conditions are tested
(tritonq/optimize/equalize/rehearsal.py).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tritonq.nn.check import check_linear
from tritonq.nn.norm_kinds import norm_of
from tritonq.numerics.config import W8A16
from tritonq.select.patterns import named_modules
from tritonq.select.select import is_plain_linear


@dataclasses.dataclass(frozen=True)
class Group:
    """A norm or Linear, and the Linears that read its output, by name."""

    source: str
    readers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source} → {', '.join(self.readers)}"


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of a model; iterates over `found`.

    Attributes:
        found: the groups, in the model's order.
        skipped: source → why it is in no group; for every norm, and for every Linear that only Linears read.
    """

    found: tuple[Group, ...]
    skipped: Mapping[str, str]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        lines = [str(group) for group in self.found]
        return "\n".join([*lines, *(f"{source}: left alone, {why}" for source, why in self.skipped.items())])


def given_groups(model: nn.Module, groups: Iterable[object]) -> tuple[Group, ...]:
    """The user's groups, pairs (source, [Linear, …]) of names, checked.

    Raises:
        TypeError: an entry is no pair of names.
        ValueError: an unknown name, a source or reader that cannot be scaled, shapes that do not match, a module that
            is the source or a reader of two groups, no group.
    """
    pairs = []
    for entry in [groups] if isinstance(groups, str) or not isinstance(groups, Iterable) else groups:
        pair = (entry.source, entry.readers) if isinstance(entry, Group) else entry
        if not (
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], (tuple, list))
            and all(isinstance(reader, str) for reader in pair[1])
        ):
            raise TypeError(f"groups must be pairs (source, [Linear, …]) of names, found {entry!r}")
        pairs.append(Group(pair[0], tuple(pair[1])))
    if not pairs:
        raise ValueError("groups must hold at least one group, found none")
    modules, owners = dict(named_modules(model)), parameter_owners(model)
    for group in pairs:
        why = unfit(group, modules, owners)
        if why is not None:
            raise ValueError(f"groups: {group}: {why}")
    for side, names in (
        ("source", [group.source for group in pairs]),
        ("reader", [reader for group in pairs for reader in group.readers]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                raise ValueError(
                    f"groups: a module must be the {side} of one group, found {name} {count} times"
                )
    return tuple(pairs)


def unfit(group: Group, modules: Mapping[str, nn.Module], owners: Mapping[int, list[str]]) -> str | None:
    """Why a group's modules cannot take factors, whatever the model does with them; None if they can."""
    for name in (group.source, *group.readers):
        if name not in modules:
            return f"the model has no module {name!r}"
    if not group.readers:
        return "it has no reader"
    source = modules[group.source]
    channels = source_channels(source)
    if channels is None:
        return f"its source must be a norm or an nn.Linear, found {type(source).__name__}"
    if isinstance(source, nn.Linear):
        check_linear(source, W8A16(), group.source)
    elif source._parameters.get("weight") is None:
        return "the norm has no weight to take the factors"
    for name in group.readers:
        reader = modules[name]
        if not is_plain_linear(reader):
            return f"{name} must be an nn.Linear, found {type(reader).__name__}"
        assert isinstance(reader, nn.Linear)
        check_linear(reader, W8A16(), name)
        if reader.in_features != channels:
            return f"the source has {channels} channels, {name} has {reader.in_features} columns"
    for name in (group.source, *group.readers):
        for part, parameter in modules[name]._parameters.items():
            others = [owner for owner in owners.get(id(parameter), ()) if modules[owner] is not modules[name]]
            if parameter is not None and others:
                return f"the {part} of {name} is tied to {others[0]}"
    return None


def source_channels(module: nn.Module) -> int | None:
    """The number of channels of a module's output; None if it cannot be a source."""
    if is_plain_linear(module):
        assert isinstance(module, nn.Linear)
        return module.out_features
    norm = norm_of(module)
    return None if norm is None else norm.features


def parameter_owners(model: nn.Module) -> dict[int, list[str]]:
    """id of a parameter → the names of the modules that hold it; a module with two names is listed twice."""
    owners: dict[int, list[str]] = {}
    for name, module in named_modules(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


@torch.no_grad()
def fold(model: nn.Module, factors: Mapping[Group, Tensor]) -> None:
    """Divide every source's channels by its group's factors, and multiply the readers' columns by them.

    The weight of a module that is both source and reader takes both factors and is rounded to its dtype once.

    Args:
        model: changed in place.
        factors: positive, finite, [channels] each.

    Raises:
        ValueError: a result would not be finite in the parameter's dtype; the model is then unchanged.
    """
    modules = dict(named_modules(model))
    rows: dict[str, Tensor] = {group.source: factor for group, factor in factors.items()}
    columns = {reader: factor for group, factor in factors.items() for reader in group.readers}
    names = [name for name in modules if name in rows or name in columns]
    for write in (False, True):  # compute all results twice, to check and to write, instead of keeping copies
        for name in names:
            for part, parameter in modules[name]._parameters.items():
                if parameter is None:
                    continue
                column = columns.get(name) if part == "weight" else None
                value = _scaled(modules[name], part, parameter, rows.get(name), column)
                if write:
                    parameter.copy_(value)
                elif not torch.isfinite(value.to(parameter.dtype)).all():
                    raise ValueError(f"{name}: its {part}, scaled, is not finite in {parameter.dtype}")


def _scaled(
    module: nn.Module, part: str, parameter: Tensor, row: Tensor | None, column: Tensor | None
) -> Tensor:
    """float32: a parameter divided by `row` along its first dimension, multiplied by `column` along its last."""
    value = parameter.float()
    if row is not None:
        row = row.to(value.device)
        norm = norm_of(module)
        offset = norm.weight_offset if norm is not None and part == "weight" else 0.0
        value = (value + offset) / (row.unsqueeze(1) if value.dim() == 2 else row) - offset
    return value if column is None else value * column.to(value.device)
