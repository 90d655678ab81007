"""A progress bar where somebody is watching: on a terminal, with rich installed. Silent everywhere else."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable`, drawing a bar on stderr that vanishes when done.

    Args:
        iterable: anything to go through once.
        description: what is being done, in front of the bar.
        total: how many items there are; None asks the iterable, and draws a bar without an end if it cannot
            say.
    """
    if sys.stderr is None or not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield from iterable
        return
    from rich.console import Console
    from rich.progress import track as draw

    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    yield from draw(iterable, description, total=total, console=Console(stderr=True), transient=True)
