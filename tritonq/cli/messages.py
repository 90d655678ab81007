"""Prints errors (red) and warnings (yellow) of commands on stderr."""

from typing import Any

from rich.console import Console
from rich.text import Text


def complain(message: str) -> None:
    """Print an error, one sentence."""
    _say(message, "red")


def show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Replaces `warnings.showwarning`: prints only the sentence, not its line of code."""
    _say(f"warning: {message}", "yellow")


def _say(message: str, style: str) -> None:
    Console(stderr=True).print(Text(message, style=style), soft_wrap=True)
