"""`tritonq quantize MODEL -s w4a16 -o DIR`: writes a quantized copy of a model directory.

Without calibration the model is never built: its files are quantized layer by layer, and an interrupted run can be
continued (tritonq/streaming). If transformers merges or renames tensors while it loads a model, the model is quantized
during that loading instead. For a static scheme the whole float model is loaded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

import tritonq
from tritonq import checkpoint
from tritonq.analysis.perplexity import cut_windows
from tritonq.cli.messages import complain
from tritonq.cli.model_directory import ModelDirectory, open_model_directory
from tritonq.cli.options import (
    AUTO,
    Device,
    Dtype,
    JsonFile,
    WindowTokens,
    pick_device,
    pick_dtype,
    read_schemes,
    read_text,
)
from tritonq.select.patterns import Pattern
from tritonq.streaming import MAX_SHARD_BYTES, UnfitModelError, quantize_files
from tritonq.streaming.workspace import Workspace, check_empty, identity_of, partial_directory
from tritonq.util.json_file import check_target, write_json

_MEGABYTE = 10**6
_INTERRUPTED = 130


def quantize(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A model directory of transformers: config.json and safetensors files."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The quantized copy; empty or new.")
    ],
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", "-s", metavar="SCHEME", help="w8a16, w4a16, w8a8, w8a8_static or w4a8."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON: layer, class or re:… to scheme, null or a QuantConfig's fields."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Leave these layers in float; can be repeated. Default: the output head."
        ),
    ] = None,
    dtype: Dtype = AUTO,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="UTF-8 text that sets the scales of w8a8_static.")
    ] = None,
    smooth: Annotated[
        bool,
        typer.Option(
            "--smooth", help="First run SmoothQuant on TEXT: moves activation outliers into weights."
        ),
    ] = False,
    tokens: WindowTokens = 512,
    windows: Annotated[int, typer.Option(min=1, help="Use at most so many windows of TEXT.")] = 64,
    device: Device = None,
    shard_mb: Annotated[
        int,
        typer.Option(
            min=1, help="Size of one file. Memory holds one file; an interruption loses at most one."
        ),
    ] = MAX_SHARD_BYTES // _MEGABYTE,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an interrupted run.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Quantize a model's Linear layers into a new directory.

    After an interruption, the same command continues where it stopped.
    """
    start = time.perf_counter()
    check_target(json_file)
    check_empty(output)
    chosen_dtype, chosen_device = pick_dtype(dtype), pick_device(device)
    schemes = read_schemes(scheme, config)
    static = any(own is not None and own.static for own in schemes.values())
    if (static or smooth) != (calibrate is not None):
        raise ValueError(
            f"{'a static scheme' if static else '--smooth'} needs --calibrate TEXT"
            if calibrate is None
            else "--calibrate is for static schemes (w8a8_static) and --smooth, found neither"
        )
    text = None if calibrate is None else read_text(calibrate)
    source = open_model_directory(model)
    if source.quantization is not None:
        method = source.quantization.get("quant_method")
        raise ValueError(f"{model} must be a float model, found one that is already quantized ({method})")
    job = Job(source, output, schemes, ignore, restart, shard_mb * _MEGABYTE)
    try:
        kept = 0
        if text is None:
            kept = job.stream(chosen_dtype or source.dtype(), chosen_device)
        else:
            source.check_length(tokens)
            pieces = cut_windows(source.tokens(text), tokens, windows)
            job.calibrate(chosen_dtype or source.dtype(), chosen_device, pieces, smooth)
    except KeyboardInterrupt:
        complain(f"interrupted{job.advice()}")
        raise typer.Exit(_INTERRUPTED) from None
    except OSError as error:
        raise OSError(f"{error}{job.advice()}") from None
    found = checkpoint.info(output)
    if json_file is not None:
        write_json(json_file, {**found.to_dict(), "seconds": time.perf_counter() - start, "kept_files": kept})
    typer.echo(str(found))


@dataclass
class Job:
    """One copy to make; see `quantize` for the arguments."""

    source: ModelDirectory
    output: Path
    schemes: dict[Any, Any]
    ignore: list[str] | None
    restart: bool
    shard_bytes: int

    def stream(self, dtype: Any, device: Any) -> int:
        """Quantize file by file; returns how many files an interrupted run had finished."""
        from tritonq.integrations.transformers.survey import warn_of_experts

        empty: Any = self.source.empty_model(dtype)
        try:
            kept = quantize_files(
                empty,
                self.source.path,
                self.output,
                self.schemes,
                ignore=self.ignored(empty),
                max_shard_bytes=self.shard_bytes,
                restart=self.restart,
                companions=self.source.companions(),
                device=device,
            ).kept
        except UnfitModelError as error:
            typer.echo(f"quantizing during loading by transformers: {error}", err=True)
            with self.workspace() as workspace:
                packed = tritonq.TritonQConfig(self.schemes, ignore=self.ignored(empty))
                self.save(self.source.load(dtype, device, packed), workspace)
            return 0
        warn_of_experts(empty)
        return kept

    def calibrate(self, dtype: Any, device: Any, windows: Tensor, smooth: bool) -> None:
        """Load the whole model and run the windows [W, T] through it."""
        batches = [{"input_ids": window.to(device), "use_cache": False} for window in windows.split(1)]
        with self.workspace() as workspace:
            model = self.source.load(dtype, device)
            ignore = self.ignored(model)
            if smooth:
                tritonq.smooth_(model, batches, ignore=ignore)
            self.save(tritonq.quantize_(model, self.schemes, ignore=ignore, calibration=batches), workspace)

    def workspace(self) -> Workspace:
        """The workspace of a result that is saved at once; refused if it holds another, unfinished result."""
        paths = [path for path in sorted(self.source.path.iterdir()) if path.is_file()]
        request = {"source": {path.name: identity_of(path) for path in paths}, "shards": []}
        return Workspace(self.output, request, self.restart)

    def save(self, model: Any, workspace: Workspace) -> None:
        """Write a quantized model and the source's companions to the output directory."""
        tritonq.save(model, workspace.path, max_shard_bytes=self.shard_bytes)
        for name in self.source.companions():
            workspace.copy(self.source.path / name)
        workspace.publish()

    def ignored(self, model: Any) -> Sequence[Pattern]:
        """The patterns of --ignore; by default the layer that makes logits, whatever its name."""
        from tritonq.integrations.transformers.survey import default_ignore

        return (
            default_ignore(model) if self.ignore is None else [pattern for pattern in self.ignore if pattern]
        )

    def advice(self) -> str:
        """The end of the message about an interruption, if finished files are kept."""
        partial = partial_directory(self.output)
        if not partial.exists():
            return ""
        return f"; {partial} keeps the finished files: the same command continues, --restart starts over"
