"""Options that several commands share, and their checks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tritonq.numerics.config import PRESETS, QuantConfig
from tritonq.select.select import DEFAULT_KEY

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write it as JSON.")]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help="cuda or cpu; default: a GPU if there is one.")
]
Dtype = Annotated[
    str, typer.Option(metavar="DTYPE", help="float32, float16 or bfloat16; auto takes the model's.")
]
WindowTokens = Annotated[int, typer.Option("--tokens", min=2, help="Length of a window of text, in tokens.")]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AUTO = "auto"


def pick_device(name: str | None) -> torch.device:
    """The device of this name; None takes a GPU if there is one."""
    if name not in (None, "cpu", "cuda"):
        raise ValueError(f"--device must be cuda or cpu, found {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda needs a GPU that torch can use, found none: omit --device to use the CPU"
        )
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def pick_dtype(name: str) -> torch.dtype | None:
    """The dtype of this name; None for auto."""
    if name != AUTO and name not in DTYPES:
        raise ValueError(f"--dtype must be {AUTO}, {', '.join(DTYPES)}, found {name!r}")
    return DTYPES.get(name)


def read_schemes(scheme: str | None, file: Path | None) -> dict[str, QuantConfig | None]:
    """--scheme and --config as the dictionary that `quantize_` takes: {pattern: config or None, "_default": config}."""
    if scheme is None and file is None:
        raise ValueError(f"say how to quantize: --scheme {', '.join(PRESETS)}, or --config FILE")
    table: dict[str, QuantConfig | None] = {} if file is None else _read_table(file)
    if scheme is not None:
        if scheme.lower() not in PRESETS:
            raise ValueError(f"--scheme must be one of {', '.join(PRESETS)}, found {scheme!r}")
        if DEFAULT_KEY in table:
            raise ValueError(f"{file} has a {DEFAULT_KEY!r}, and --scheme sets it too: omit one of them")
        table[DEFAULT_KEY] = PRESETS[scheme.lower()]()
    return table


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, which must not be blank."""
    _check_file(file, "a text file")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} must be UTF-8 text, found byte 0x{error.object[error.start]:02x} at position {error.start}"
        ) from None
    if not text.strip():
        raise ValueError(f"{file} must hold text, found none")
    return text


def _read_table(file: Path) -> dict[str, QuantConfig | None]:
    _check_file(file, "a JSON file")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must hold JSON, found {type(error).__name__}: {error}") from None
    if not isinstance(fields, dict) or not fields:
        raise ValueError(f"{file} must hold a dictionary from patterns to schemes, found {str(fields)[:100]}")
    return {pattern: _read_config(value, f"{file}: {pattern}") for pattern, value in fields.items()}


def _read_config(value: Any, where: str) -> QuantConfig | None:
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in PRESETS:
        return PRESETS[value.lower()]()
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{where} must be one of {', '.join(PRESETS)}, null or a QuantConfig's fields, found {str(value)[:100]}"
        )
    try:
        return QuantConfig.from_dict(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _check_file(file: Path, kind: str) -> None:
    if not file.is_file():
        found = "a directory" if file.exists() else "nothing there"
        raise FileNotFoundError(f"{file} must be {kind}, found {found}")
