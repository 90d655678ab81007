"""A progress bar, drawn only on a terminal and only if rich is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` and draw a bar on stderr, which vanishes at the end.

    Args:
        iterable: the items.
        description: the text in front of the bar.
        total: the number of items; None takes `len(iterable)`, and without a length the bar shows no end.
    """
    if sys.stderr is None or not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield from iterable
        return
    from rich.console import Console
    from rich.progress import track as draw

    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    yield from draw(iterable, description, total=total, console=Console(stderr=True), transient=True)
