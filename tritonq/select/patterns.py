"""Lists the modules of a model by name, and selects some of them by patterns.

A pattern is one of

    "model.layers.0.fc1"    the exact name of a layer
    "fc1"                   the last part of its name
    "Linear", nn.Linear     its class, or a class it derives from
    "re:.*router.*"         a regular expression, matched from the start of the name (re.match, as in
                            compressed-tensors)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

from torch import nn

Pattern = str | type
#: What torch.compile calls the module that it wraps; patterns are matched as if it were not there.
_COMPILED = "_orig_mod"
#: Functions return a model as the class that they were given.
Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """One module of a model, all its names, and all its places as (parent, attribute)."""

    module: nn.Module
    names: tuple[str, ...]
    parents: tuple[tuple[nn.Module, str], ...]

    @property
    def name(self) -> str:
        return self.names[0]

    def put(self, replacement: nn.Module) -> None:
        """Replace the module under all its names; where torch.compile wrapped it, what is compiled is replaced too."""
        for parent, attribute in self.parents:
            parent._modules[attribute] = replacement
            if attribute == _COMPILED and hasattr(parent, "_initialize"):
                cast(Any, parent)._initialize()


def places(model: nn.Module) -> list[Place]:
    """Every module below the root, in the model's order; a module with several names is listed once."""
    found: dict[int, tuple[nn.Module, list[str], list[tuple[nn.Module, str]]]] = {}
    by_name: dict[str, nn.Module] = {}
    for name, module in named_modules(model):
        by_name[name] = module
        if not name:
            continue
        parent_name, _, attribute = name.rpartition(".")
        _, names, parents = found.setdefault(id(module), (module, [], []))
        names.append(name)
        parents.append((by_name[parent_name], attribute))
    return [Place(module, tuple(names), tuple(parents)) for module, names, parents in found.values()]


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules under all their names, the root first, like `named_modules(remove_duplicate=False)`.

    Unlike torch's method it does not recurse forever if a module holds one of its parents.
    """
    yield from _walk(model, "", ())


def _walk(module: nn.Module, name: str, above: tuple[nn.Module, ...]) -> Iterator[tuple[str, nn.Module]]:
    if any(module is parent for parent in above):
        return
    yield name, module
    for attribute, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{name}.{attribute}" if name else attribute, (*above, module))


def matches(pattern: Pattern, place: Place) -> bool:
    """True if a pattern fits a module under any of its names."""
    if isinstance(pattern, type):
        return isinstance(place.module, pattern)
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name) for name in place.names)
    names = [name.replace(f"{_COMPILED}.", "").removesuffix(f".{_COMPILED}") for name in place.names]
    if any(pattern in (name, name.rpartition(".")[2]) for name in (*place.names, *names)):
        return True
    bases = type(place.module).__mro__
    return pattern in [cls.__name__ for cls in bases[: bases.index(nn.Module)]]


def matches_any(patterns: Iterable[Pattern], place: Place) -> bool:
    """True if one of the patterns fits."""
    return any(matches(pattern, place) for pattern in patterns)


def check_pattern(pattern: object, where: str) -> None:
    """Raise unless `pattern` is a valid pattern; `where` begins the message."""
    if isinstance(pattern, type):
        return
    if not isinstance(pattern, str) or not pattern:
        raise TypeError(f"{where}: a pattern must be a name, a class or 're:…', found {pattern!r}")
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(
                f"{where}: a pattern must be a valid expression after 're:', found {pattern!r}: {error}"
            ) from None
