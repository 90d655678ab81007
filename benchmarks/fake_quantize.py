"""Times fake quantization, forward and backward, and compares it with other implementations and with a copy.

    python3 -m benchmarks.fake_quantize                                a small weight on a CPU, Llama-3-8B's on a GPU
    python3 -m benchmarks.fake_quantize --shape 4096x14336 --json results.json

    tritonq    the operator of QATLinear and FakeQuantize: takes scales, writes output and mask
    compiled   torch.compile of tritonq's plain torch reference
    torch      torch.fake_quantize_per_channel_affine, if scales are per channel
    copy       reads the weight and writes a copy: the limit of the memory

Outputs are compared first. A wrong one gets no time, and the exit code is 1.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.linear.shapes import shape_of
from benchmarks.report import Report, parsed, parser_of
from tritonq import ops
from tritonq.numerics import qparams
from tritonq.numerics.config import QuantSpec
from tritonq.reference import fake_quantize as straight_through
from tritonq.util.timing import microseconds

#: name → how the weight is quantized.
SPECS = {
    "int8 channel": QuantSpec(8, True, "channel"),
    "int4 g128": QuantSpec(4, True, "group", 128),
    "int4 g128 affine": QuantSpec(4, False, "group", 128),
}


@dataclasses.dataclass
class Row:
    """One implementation of one spec: times in µs (None if wrong), and the forward's bandwidth relative to a copy's."""

    spec: str
    way: str
    forward_microseconds: float | None
    step_microseconds: float | None
    of_copy: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON; 1 if any result was wrong."""
    parser = parser_of("benchmarks.fake_quantize", __doc__)
    gpu = torch.cuda.is_available()
    default = (28672, 4096) if gpu else (1536, 512)
    parser.add_argument("--shape", type=shape_of, metavar="NxK", default=default)
    options = parsed(parser, arguments)
    device = torch.device("cuda" if gpu else "cpu")
    report = Report(options.json, device, shape=options.shape)
    print(f"{'spec':<17} {'way':<9} {'forward µs':>11} {'+ backward µs':>14} {'of copy':>8}")
    features, columns = options.shape
    for row in measure(features, columns, device):
        report.add(row, _line(row))
    return report.finish(any(row.forward_microseconds is None for row in report.rows))


def measure(features: int, columns: int, device: torch.device) -> list[Row]:
    """All implementations of all specs. bfloat16 on a GPU, float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    weight = torch.randn(features, columns, device=device, dtype=dtype).requires_grad_()
    target, gradient = torch.empty_like(weight), torch.randn_like(weight)
    copying = microseconds([lambda: target.copy_(weight.detach())], device)
    rows = [Row("", "copy", copying, None, 1.0)]
    for name, spec in SPECS.items():
        scale, zero = qparams.weight_qparams(weight.detach(), spec)
        ways = _ways(spec, scale.float(), None if zero is None else zero.float(), columns)
        expected = ways["tritonq"](weight)
        (expected_gradient,) = torch.autograd.grad(expected, weight, gradient)
        for way, function in ways.items():
            found = function(weight)
            (found_gradient,) = torch.autograd.grad(found, weight, gradient)
            if not (torch.allclose(found, expected) and torch.equal(found_gradient, expected_gradient)):
                rows.append(Row(name, way, None, None, None))
                continue
            forward = microseconds([functools.partial(function, weight.detach())], device)
            step = microseconds([functools.partial(_step, function, weight, gradient)], device)
            rows.append(Row(name, way, forward, step, copying / forward))
    return rows


def _ways(
    spec: QuantSpec, scale: Tensor, zero: Tensor | None, columns: int
) -> dict[str, Callable[[Tensor], Tensor]]:
    group_size = spec.resolve_group_size(columns)
    grid = (scale, zero, group_size, spec.qmin, spec.qmax)

    def plain(x: Tensor) -> Tensor:
        inside = straight_through.inside_range(x.detach(), *grid)
        through = torch.where(inside, x, x.detach())
        return through + (straight_through.fake_quantize(x.detach(), *grid) - through).detach()

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "tritonq": lambda x: ops.fake_quantize(x, *grid, 1.0),
        "compiled": torch.compile(plain),
    }
    if spec.granularity == "channel":
        zeros = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
        ways["torch"] = lambda x: torch.fake_quantize_per_channel_affine(
            x, scale.reshape(-1).to(x.dtype), zeros, 0, spec.qmin, spec.qmax
        )
    return ways


def _step(function: Callable[[Tensor], Any], weight: Tensor, gradient: Tensor) -> None:
    torch.autograd.grad(function(weight), weight, gradient)


def _line(row: Row) -> str:
    forward = "WRONG" if row.forward_microseconds is None else f"{row.forward_microseconds:.1f}"
    step = "" if row.step_microseconds is None else f"{row.step_microseconds:.1f}"
    share = "" if row.of_copy is None else f"{row.of_copy:.2f}"
    return f"{row.spec:<17} {row.way:<9} {forward:>11} {step:>14} {share:>8}"


if __name__ == "__main__":
    sys.exit(main())
