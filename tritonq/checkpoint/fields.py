"""Looking at values from JSON files that may hold anything, and showing them in messages."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from typing import Any

_LONGEST = 200


def check_type(value: Any, kind: type | tuple[type, ...], where: str, words: str) -> None:
    """Raise a ValueError unless the value is a `kind`, which `words` name; True is not taken for an int."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ValueError(f"{where} must be {words}, found {shown(value)}")


def check_keys(fields: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise a ValueError that names the first key which is not `known`."""
    unknown = sorted(key for key in fields if key not in known)
    if unknown:
        raise ValueError(f"{where} knows {', '.join(sorted(known))}, found {shown(unknown[0])}")


def warn_of_unknown(fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Name a quantization_config's keys that are not `known`.

    Writers add keys of their own, nearly all of which say how codes were found, so that refusing them would refuse most
    files; what they mean, nobody here can say. For the functions that `source.open_checkpoint` calls: the warning is
    given at the line that called what opened the checkpoint.
    """
    unknown = sorted(key for key in fields if key not in known)
    if unknown:
        warnings.warn(
            f"quantization_config: the keys {shown(unknown)} are not known and not looked at",
            UserWarning,
            stacklevel=7,
        )


def lowered(value: Any) -> Any:
    """A string in lower case; anything else as it is."""
    return value.lower() if isinstance(value, str) else value


def shown(value: Any) -> str:
    """A value from a file as it stands in messages: JSON, cut where it is long."""
    return shortened(json.dumps(value, ensure_ascii=False, default=repr))


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
