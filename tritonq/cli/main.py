"""Runs a command, and turns errors into one sentence and an exit code.

A ValueError, TypeError or OSError of a command is meant for the user: it is printed in red, without a traceback, and
the exit code is 1. A wrong command line exits with 2, an interrupt (Ctrl-C) with 130.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

MISSING = 'the command line needs typer and rich: pip install "tritonq[demo]"'
_USER_ERRORS = (ValueError, TypeError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: None takes those of the process.

    Returns:
        The exit code: 0, 1 if the command refused, 2 for a wrong command line, 130 after an interrupt.
    """
    try:
        app = build_app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(f"tritonq: {MISSING}", file=sys.stderr)
        return 1
    from tritonq.cli.messages import complain, show_warning

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            code = app(
                args=None if arguments is None else list(arguments),
                standalone_mode=False,
                prog_name="tritonq",
            )
    except KeyboardInterrupt:
        return 130
    except _USER_ERRORS as error:
        complain(str(error))
        return 1
    except Exception as error:
        # Typer's exceptions: their module differs between versions, but not their methods.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            complain(error.format_message())
            return int(error.exit_code)
        if type(error).__name__ == "Abort":
            return 130
        raise
    return code if isinstance(code, int) else 0


def build_app() -> typer.Typer:
    """All commands; raises ModuleNotFoundError without typer or rich."""
    import rich  # noqa: F401 (typer works without it, the commands do not)
    import typer

    from tritonq.cli.convert import convert
    from tritonq.cli.demo import demo
    from tritonq.cli.doctor import doctor
    from tritonq.cli.evaluate import evaluate
    from tritonq.cli.info import info
    from tritonq.cli.quantize import quantize
    from tritonq.cli.root import root
    from tritonq.cli.tune import tune

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback(invoke_without_command=True)(root)
    commands: dict[str, Callable[..., None]]
    commands = {
        "quantize": quantize,
        "eval": evaluate,
        "info": info,
        "convert": convert,
        "tune": tune,
        "doctor": doctor,
        "demo": demo,
    }
    for name, command in commands.items():
        app.command(name)(command)
    return app
