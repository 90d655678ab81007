"""Opens a checkpoint of any supported method: its quantization_config, and its tensors in one layout.

    quant_method            place of the quantization_config
    compressed-tensors      config.json
    gptq                    config.json, or alone in quantize_config.json (AutoGPTQ)
    awq                     config.json, or alone in quant_config.json (AutoAWQ)

GPTQ and AWQ files appear in compressed-tensors' layout (foreign.py), so readers need not know about them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tritonq.checkpoint import awq, compressed_tensors, files, gptq
from tritonq.checkpoint.compressed_tensors import Scheme, read_scheme
from tritonq.checkpoint.extras import KEY, Extras, read_extras
from tritonq.checkpoint.fields import check_type, lowered, shown
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.foreign import ForeignTensors, Method

FIELD = "quantization_config"
#: Files that hold only a quantization_config → the method, if they do not name it.
ALONE = {"quantize_config.json": gptq.METHOD, "quant_config.json": awq.METHOD}
_FOREIGN: dict[str, Callable[[dict[str, Any]], Method]] = {
    gptq.METHOD: gptq.read_gptq,
    awq.METHOD: awq.read_awq,
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open directory.

    Attributes:
        method: its quant_method, "compressed-tensors", "gptq" or "awq".
        config_file: the name of the file with the quantization_config.
        scheme, extras: how layers are quantized, and the contents of the key `tritonq`.
        tensors: in compressed-tensors' layout; a `ForeignTensors` for GPTQ and AWQ.
    """

    method: str
    config_file: str
    scheme: Scheme
    extras: Extras
    tensors: TensorFiles


@contextlib.contextmanager
def open_checkpoint(directory: Path) -> Iterator[Checkpoint]:
    """Open config and tensor files, and check their headers.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or not supported; the message names the file, what was found and what is allowed.
    """
    file, fields, extras = _read_config(directory)
    where = directory / file
    try:
        method, read = read_quantization_config(fields, ALONE.get(file))
        extras = read_extras(extras)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    with files.open_tensors(directory) as tensors:
        if isinstance(read, Scheme):
            yield Checkpoint(method, file, read, extras, tensors)
            return
        try:
            translated = ForeignTensors(read, tensors)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{directory}: {error}") from None
        yield Checkpoint(method, file, translated.scheme, extras, translated)


def read_quantization_config(fields: Any, default: str | None = None) -> tuple[str, Scheme | Method]:
    """(quant_method, or `default` if it is missing; the config parsed by that method).

    Raises:
        ValueError: the message names the key, what was found and what is allowed.
    """
    check_type(fields, dict, FIELD, "a dictionary")
    method = lowered(fields.get("quant_method", default))
    if method != compressed_tensors.METHOD and method not in _FOREIGN:
        known = ", ".join(repr(name) for name in (compressed_tensors.METHOD, *_FOREIGN))
        raise ValueError(f"{FIELD}: quant_method must be one of {known}, found {shown(method)}")
    return method, _FOREIGN[method](fields) if method in _FOREIGN else read_scheme(fields)


def _read_config(directory: Path) -> tuple[str, Any, Any]:
    """(file name, its quantization_config, its key `tritonq`)."""
    has_config = (directory / files.CONFIG).exists()
    config = files.read_json(directory, files.CONFIG) if has_config else {}
    if FIELD in config:
        return files.CONFIG, config[FIELD], config.get(KEY)
    for file in ALONE:
        if (directory / file).exists():
            return file, files.read_json(directory, file), None
    if not has_config:
        raise FileNotFoundError(f"{directory / files.CONFIG} is missing")
    raise ValueError(
        f"{directory / files.CONFIG} must have a {FIELD}, found none: this checkpoint is not quantized"
    )
