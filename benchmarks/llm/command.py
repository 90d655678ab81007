"""The command line of `python3 -m benchmarks.llm`.

Exit codes: 0, all results are correct; 1, a result was wrong, or a scheme of tritonq failed; 2, bad usage; 130,
interrupted. The JSON file is rewritten after each model.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.linear.contender import FLOAT, OURS
from benchmarks.linear.goals import GPU
from benchmarks.llm.contenders import OURS_AND_FLOAT, PEERS, Contender
from benchmarks.llm.goals import verdicts
from benchmarks.llm.rows import FAILED, HEADINGS, WRONG, Row, line
from benchmarks.llm.run import Plan, measure
from benchmarks.llm.sessions import LEAN, TRANSFORMERS
from benchmarks.llm.shapes import MODELS
from benchmarks.llm.ways import EAGER, ways_on
from benchmarks.report import Report, parsed, parser_of

_BATCHES, _CONTEXT, _PROMPT, _STEPS = (1, 8, 32), 512, 2048, 64
_INTERRUPTED = 130
_CPU_BATCHES, _CPU_CONTEXT, _CPU_PROMPT, _CPU_STEPS = (1,), 8, 32, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    parser = _parser(gpu, ways_on(device))
    options = parsed(parser, arguments)
    try:
        _check(options)
    except ValueError as error:
        parser.error(str(error))
    # On a CPU, int8 codes of 16-bit activations change with the order of sums. float32 reveals real errors.
    dtype = torch.bfloat16 if gpu else torch.float32
    ways = [way for way in ways_on(device) if way == EAGER or way in options.ways]
    batches, context, steps = tuple(sorted(set(options.batches))), options.context, options.steps
    plan = Plan(options.model, batches, context, options.prompt, steps, ways)
    contenders, absent = _contenders(options, device, dtype)
    report = Report(options.json, device, dtype=str(dtype).removeprefix("torch."), absent=absent)
    for peer, why in absent.items():
        print(f"{peer}: {why}")
    print(HEADINGS)
    interrupted = False
    try:
        for decoder, contender in itertools.product(options.decoders, contenders):
            for row in measure(decoder, contender, plan, device, dtype):
                report.add(row, line(row))
            report.write()
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", file=sys.stderr)
    if options.goals:
        print("\n".join(verdicts(report.rows)))
    if options.plot is not None:
        from benchmarks.llm.plots import write_plots

        write_plots(report.rows, options.plot)
    is_wrong = report.finish(any(map(_is_fatal, report.rows)))
    return _INTERRUPTED if interrupted else is_wrong


def _parser(gpu: bool, ways: Sequence[str]) -> argparse.ArgumentParser:
    parser = parser_of(
        "benchmarks.llm", "A whole Llama-shaped model, in every scheme and by other libraries."
    )
    parser.add_argument("--model", choices=list(MODELS), default="8b" if gpu else "tiny")
    parser.add_argument("--decoders", nargs="+", choices=(TRANSFORMERS, LEAN), default=_installed_decoders())
    ours = [contender.scheme for contender in OURS_AND_FLOAT if contender.by == OURS]
    parser.add_argument("--schemes", nargs="+", choices=ours, default=ours)
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[peer.by for peer in PEERS],
        metavar="PEER",
        help="of benchmarks.linear (none); none given: all",
    )
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, help="eager always runs")
    numbers = (
        (_BATCHES, _CONTEXT, _PROMPT, _STEPS)
        if gpu
        else (_CPU_BATCHES, _CPU_CONTEXT, _CPU_PROMPT, _CPU_STEPS)
    )
    batches, context, prompt, steps = numbers
    parser.add_argument(
        "--batches", nargs="+", type=_positive, default=batches, help="sequences decoded together"
    )
    parser.add_argument("--context", type=_positive, default=context, help="tokens before decoding begins")
    parser.add_argument("--prompt", type=_positive, default=prompt, help="tokens of a prefill")
    parser.add_argument("--steps", type=_positive, default=steps, help="decoding steps that are timed")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw figures (needs matplotlib)")
    parser.add_argument("--goals", action="store_true", help=f"what is to be reached on an {GPU}")
    return parser


def _installed_decoders() -> list[str]:
    installed = importlib.util.find_spec("transformers") is not None
    return [TRANSFORMERS, LEAN] if installed else [LEAN]


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"it must be a positive integer, found {text!r}")


def _check(options: argparse.Namespace) -> None:
    """Raise a ValueError now for options that would fail only after the work."""
    if TRANSFORMERS in options.decoders and TRANSFORMERS not in _installed_decoders():
        raise ValueError("--decoders transformers needs the package transformers, which is not installed")
    if options.plot is not None:
        if options.plot.exists() and not options.plot.is_dir():
            raise ValueError(f"--plot must be a folder, found the file {str(options.plot)!r}")
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError('--plot needs matplotlib: pip install "tritonq[bench]"')
    if options.goals:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        if name != GPU or options.model != "8b":
            raise ValueError(
                f"--goals are stated for --model 8b on an {GPU}, found {options.model} on {name}"
            )


def _contenders(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[list[Contender], dict[str, str]]:
    """The contenders that take part, and those that do not, with the reasons."""
    taking_part = [found for found in OURS_AND_FLOAT if found.by == FLOAT or found.scheme in options.schemes]
    absent = {}
    if options.peers is not None:
        for contender in PEERS:
            if options.peers and contender.by not in options.peers:
                continue
            assert contender.peer is not None
            why = contender.peer.missing(device, dtype)
            if why is None:
                taking_part.append(contender)
            else:
                absent[contender.by] = why
    return taking_part, absent


def _is_fatal(row: Row) -> bool:
    return row.status == WRONG or (row.status == FAILED and row.cell.by in (OURS, FLOAT))
