"""The command line: `tritonq demo`, `tritonq info DIR`, `tritonq --version`.

Commands are functions registered in `build_app`. What they raise as ValueError, TypeError or OSError is meant for the
user: `main` prints it in one red sentence and exits with 1; a wrong command line exits with 2.

typer and rich come with `pip install "tritonq[demo]"` and are imported here only.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    import typer

MISSING = 'the command line needs typer and rich: pip install "tritonq[demo]"'
_USER_ERRORS = (ValueError, TypeError, OSError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the process if None.

    Returns:
        The exit code: 0, 1 for what a command refused, 2 for a wrong command line, 130 after an interrupt.
    """
    try:
        app = build_app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(f"tritonq: {MISSING}", file=sys.stderr)
        return 1
    try:
        code = app(
            args=None if arguments is None else list(arguments), standalone_mode=False, prog_name="tritonq"
        )
    except KeyboardInterrupt:
        return 130
    except _USER_ERRORS as error:
        _complain(str(error))
        return 1
    except Exception as error:
        # Typer's own exceptions: their home has moved between its versions, what they offer has not.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _complain(error.format_message())
            return int(error.exit_code)
        if type(error).__name__ == "Abort":
            return 130
        raise
    return code if isinstance(code, int) else 0


def build_app() -> "typer.Typer":
    """All commands; raises ModuleNotFoundError without typer."""
    import rich  # noqa: F401 (typer can do without, the commands cannot)
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    def show_version(wanted: bool) -> None:
        if wanted:
            import tritonq

            typer.echo(f"tritonq {tritonq.__version__}")
            raise typer.Exit

    @app.callback(invoke_without_command=True)
    def root(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        """INT8 and INT4 quantization of PyTorch Linear layers."""
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    @app.command()
    def info(
        directory: Annotated[Path, typer.Argument(help="A checkpoint: safetensors files and a config.json.")],
        json_file: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Write the same as JSON.")
        ] = None,
    ) -> None:
        """Say what a checkpoint directory holds."""
        from tritonq import checkpoint

        found = checkpoint.info(directory)
        if json_file is not None:
            write_json(json_file, found.to_dict())
        typer.echo(str(found))

    @app.command()
    def demo(
        json_file: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Write the same as JSON.")
        ] = None,
        plot_file: Annotated[
            Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: png, svg or pdf.")
        ] = None,
        device: Annotated[
            str | None, typer.Option(help="cuda or cpu; a GPU is used where there is one.")
        ] = None,
    ) -> None:
        """Quantize a small language model in every way, and measure what each costs."""
        from tritonq.demo import show

        show.demo(json_file, plot_file, device)

    return app


def write_json(file: Path, fields: dict[str, Any]) -> None:
    """What every command's `--json FILE` does."""
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(message, style="red"), soft_wrap=True)
