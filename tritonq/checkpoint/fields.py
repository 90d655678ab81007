"""Checks values from JSON files, which may hold anything, and formats them for messages."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from typing import Any

_LONGEST = 200


def check_type(value: Any, kind: type | tuple[type, ...], where: str, words: str) -> None:
    """Raise a ValueError unless the value is a `kind`, called `words` in the message. True is not an int."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ValueError(f"{where} must be {words}, found {shown(value)}")


def check_keys(fields: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise a ValueError that names the first key which is not `known`."""
    unknown = sorted(key for key in fields if key not in known)
    if unknown:
        raise ValueError(f"{where} knows {', '.join(sorted(known))}, found {shown(unknown[0])}")


def warn_of_unknown(fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Warn about keys of a quantization_config that are not `known`; they are ignored.

    Writers add keys freely, nearly always to say how codes were found. Refusing unknown keys would refuse most files.
    Call it from functions that `source.open_checkpoint` calls: `stacklevel` then points at the user's line.
    """
    unknown = sorted(key for key in fields if key not in known)
    if unknown:
        warnings.warn(
            f"quantization_config: the keys {shown(unknown)} are unknown and ignored",
            UserWarning,
            stacklevel=7,
        )


def lowered(value: Any) -> Any:
    """A string in lower case; anything else as it is."""
    return value.lower() if isinstance(value, str) else value


def shown(value: Any) -> str:
    """A value from a file for messages: JSON, shortened."""
    return shortened(json.dumps(value, ensure_ascii=False, default=repr))


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
