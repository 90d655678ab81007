"""What commands say beside their result, on stderr: errors in red, warnings in yellow."""

from typing import Any

from rich.console import Console
from rich.text import Text


def complain(message: str) -> None:
    """An error, in one sentence."""
    _say(message, "red")


def show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Takes the place of `warnings.showwarning`: the sentence without the line of code that it came from."""
    _say(f"warning: {message}", "yellow")


def _say(message: str, style: str) -> None:
    Console(stderr=True).print(Text(message, style=style), soft_wrap=True)
