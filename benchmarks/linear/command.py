"""The command line of `python3 -m benchmarks.linear`.

Exit codes: 0, all results are correct; 1, a result was wrong, a scheme of tritonq failed, or the GPU was lost; 2, bad
usage; 130, interrupted. In all cases the JSON file has the measurements up to the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.linear import ceilings, goals, schemes, tables
from benchmarks.linear.contender import FLOAT, OURS, Contender
from benchmarks.linear.interleaved import measure_interleaved
from benchmarks.linear.markdown import markdown
from benchmarks.linear.peers import PEERS
from benchmarks.linear.recorded import recorded_rows
from benchmarks.linear.results import Results
from benchmarks.linear.rows import FAILED, WRONG, Row
from benchmarks.linear.run import DeviceLostError, measure_shape
from benchmarks.linear.shapes import ALL, MODELS, Shape, distinct, named, of_models
from benchmarks.machine import describe
from benchmarks.report import parsed, parser_of
from tritonq.util.json_file import check_target, write_whole
from tritonq.util.progress import track

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BATCH_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_QUICK_BATCH_SIZES, _QUICK_SHAPES = (1, 16, 256), ("8b.o",)
_CPU_BATCH_SIZES, _CPU_SHAPES = (1, 16, 256), ("1024x1024",)
_QUICK_CPU_BATCH_SIZES, _QUICK_CPU_SHAPES = (1, 16), ("256x256",)
_WRONG, _INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read a results file, and show it; returns the exit code."""
    parser = _parser()
    options = parsed(parser, arguments)
    try:
        _check(options)
        results = Results.read(options.source) if options.source else None
        _check_goals(options, results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if results is None:
        results = _measured(options)
    else:
        _say(tables.machine_lines(results))
        for name, _, _ in results.shapes():
            _show(results, name)
    _say(tables.summary(results, options.goals))
    if options.markdown is not None:
        write_whole(options.markdown, markdown(results, options.goals).encode())
    if options.plot is not None:
        from benchmarks.linear.plots import write_plots

        options.plot.mkdir(parents=True, exist_ok=True)
        write_plots(results, options.plot)
    if any(map(_is_fatal, results.rows)):
        return _WRONG
    return 0 if results.complete or options.source else _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "benchmarks.linear", "One Linear layer: every scheme against cuBLAS and other libraries."
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--models", nargs="+", choices=[*MODELS, ALL], help="their layers (llama-3-8b)")
    what.add_argument("--shapes", nargs="+", type=named, metavar="NxK", help="these; a name such as 8b.o too")
    what.add_argument("--m", nargs="+", type=_positive, metavar="M", help="rows of the input (1 … 8192)")
    what.add_argument("--schemes", nargs="+", choices=list(schemes.TOLERANCES), help="(all)")
    what.add_argument(
        "--peers",
        nargs="*",
        choices=[peer.by for peer in PEERS if peer.by != FLOAT],
        metavar="PEER",
        help="(all that fit the schemes); none given: none",
    )
    what.add_argument("--dtype", choices=list(_DTYPES), help="(bfloat16, on a CPU float32)")
    what.add_argument(
        "--device", choices=["cuda", "cpu"], help="(a GPU, if there is one); cpu: contenders in turn"
    )
    what.add_argument("--quick", action="store_true", help="fewer shapes and M, for CI")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="show this run, measure nothing"
    )
    shown.add_argument("--markdown", type=Path, metavar="FILE", help="write tables for documentation")
    shown.add_argument("--plot", type=Path, metavar="FOLDER", help="draw figures (needs matplotlib)")
    shown.add_argument("--goals", action="store_true", help=f"what is to be reached on an {goals.GPU}")
    return parser


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"M must be a positive integer, found {text!r}")


def _check(options: argparse.Namespace) -> None:
    """Raise a ValueError now for options that would fail only after the work."""
    measuring = {
        f"--{name}": getattr(options, name)
        for name in ("models", "shapes", "m", "schemes", "peers", "dtype", "device", "quick", "json")
    }
    given = [name for name, value in measuring.items() if value not in (None, False)]
    if options.source is not None and given:
        raise ValueError(f"--from measures nothing, and takes no {', '.join(given)}")
    check_target(options.markdown)
    if options.plot is not None:
        if options.plot.exists() and not options.plot.is_dir():
            raise ValueError(f"--plot must be a folder, found the file {str(options.plot)!r}")
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ValueError('--plot needs matplotlib: pip install "tritonq[bench]"') from None


def _check_goals(options: argparse.Namespace, results: Results | None) -> None:
    if not options.goals:
        return
    if results is not None:
        name = results.machine.get("device")
    else:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if name != goals.GPU:
        raise ValueError(f"--goals are stated for an {goals.GPU}, found {name}")


def _measured(options: argparse.Namespace) -> Results:
    gpu = options.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    dtype_name = options.dtype or ("bfloat16" if gpu else "float32")
    dtype = _DTYPES[dtype_name]
    shapes, batch_sizes = _work(options, gpu)
    results = Results(describe(device), dtype_name, ceilings.measure(device, dtype))
    _say(tables.machine_lines(results))
    taking_part, absent = _contenders(options, device, dtype)
    results.absent = {peer.by: why for peer, why in absent}
    _save(results, options.json)  # now, so that an earlier run's file cannot be taken for this run's
    try:
        for number, shape in enumerate(shapes, start=1):
            peers = [peer for peer, _ in absent]
            results.rows += recorded_rows(shape, batch_sizes, peers, results.machine["device"], dtype)
            in_turn = options.device == "cpu"
            measure = measure_interleaved if in_turn else measure_shape
            total = len(batch_sizes if in_turn else taking_part)
            measured = measure(shape, batch_sizes, taking_part, device, dtype, results.ceilings)
            title = f"{shape.name}, {number} of {len(shapes)}"
            try:
                for rows in track(measured, title, total=total):
                    results.rows += rows
                    _save(results, options.json)
            finally:
                _show(results, shape.name)
        results.complete = True
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except DeviceLostError as error:
        sys.exit(f"benchmarks.linear: {error}")
    _save(results, options.json)
    return results


def _work(options: argparse.Namespace, gpu: bool) -> tuple[tuple[Shape, ...], tuple[int, ...]]:
    """The shapes and the values of M."""
    batch_sizes: tuple[int, ...]
    if gpu:
        batch_sizes = _QUICK_BATCH_SIZES if options.quick else _BATCH_SIZES
        shapes = tuple(map(named, _QUICK_SHAPES)) if options.quick else of_models(["llama-3-8b"])
    else:
        batch_sizes = _QUICK_CPU_BATCH_SIZES if options.quick else _CPU_BATCH_SIZES
        shapes = tuple(map(named, _QUICK_CPU_SHAPES if options.quick else _CPU_SHAPES))
    if options.models or options.shapes:
        shapes = (*of_models(options.models or ()), *(options.shapes or ()))
    return distinct(shapes), tuple(sorted(set(options.m or batch_sizes)))


def _contenders(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[list[Contender], list[tuple[Contender, str]]]:
    """The contenders that take part, and those that do not, with the reasons."""
    wanted = options.schemes or list(schemes.TOLERANCES)
    peers = [
        peer
        for peer in PEERS
        if peer.by == FLOAT or (peer.scheme in wanted and (options.peers is None or peer.by in options.peers))
    ]
    absent = [(peer, why) for peer in peers if (why := peer.missing(device, dtype)) is not None]
    out = [peer for peer, _ in absent]
    # The float layer comes first: all are compared with it, so it must run before anything can fail.
    theirs = [peer for peer in peers if peer not in out]
    return [*theirs[:1], *schemes.contenders(wanted), *theirs[1:]], absent


def _is_fatal(row: Row) -> bool:
    return row.status == WRONG or (row.status == FAILED and row.by in (OURS, FLOAT))


def _show(results: Results, shape: str) -> None:
    rows = [row for row in results.rows if row.shape == shape]
    if rows:
        _say(["", *tables.shape_table(results, rows)])


def _save(results: Results, file: Path | None) -> None:
    if file is not None:
        results.write(file)


def _say(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)
