"""One Linear layer: every scheme against torch's own `F.linear`, over shapes and batch sizes.

    python3 -m benchmarks                                   the default shapes and batch sizes
    python3 -m benchmarks --shapes 4096x4096 --m 1 16       some (N x K)
    python3 -m benchmarks --json results.json

The whole layer is timed, quantizing its input included. A scheme whose result is wrong gets no time: its row says so
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import tritonq
from benchmarks.report import Report, parsed, parser_of
from tritonq.config import PRESETS
from tritonq.timing import eager_microseconds, microseconds

#: (N, K) of Llama-3-8B: o_proj, down_proj, gate and up in one.
GPU_SHAPES = ((4096, 4096), (4096, 14336), (28672, 4096))
CPU_SHAPES = ((1024, 1024),)
GPU_M = (1, 16, 64, 256, 1024, 4096)
CPU_M = (1, 16, 256)
#: Weights in rotation take at least this many bytes, several times the L2 cache of any GPU so far.
ROTATION_BYTES = 512 * 2**20
#: Largest relative error, against float32 on the layer's own dequantized weight. int8 activations lose precision by
#: design: about 1 % for random normal inputs.
ALLOWED_ERROR = {"w8a16": 3e-3, "w4a16": 3e-3, "w8a8": 2e-2, "w4a8": 2e-2}
BASELINE = "float"


@dataclasses.dataclass
class Row:
    """One cell: times in µs, speed-up over F.linear in the same run; None where the result was wrong."""

    features: int
    columns: int
    rows: int
    scheme: str
    microseconds: float | None
    eager_microseconds: float | None
    speedup: float | None
    error: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON; 1 if any result was wrong."""
    parser = parser_of("benchmarks", __doc__)
    parser.add_argument("--shapes", nargs="+", type=shape_of, metavar="NxK")
    parser.add_argument("--m", nargs="+", type=int, help="rows of the input")
    parser.add_argument("--schemes", nargs="+", choices=sorted(ALLOWED_ERROR), default=sorted(ALLOWED_ERROR))
    options = parsed(parser, arguments)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    shapes = options.shapes or (GPU_SHAPES if gpu else CPU_SHAPES)
    report = Report(options.json, device)
    print(f"{'N':>6} {'K':>6} {'M':>5} {'scheme':<8} {'µs':>10} {'eager µs':>9} {'x float':>8} {'error':>9}")
    for features, columns in shapes:
        for row in measure(
            features, columns, options.m or (GPU_M if gpu else CPU_M), options.schemes, device
        ):
            report.add(row, _line(row))
    return report.finish(any(row.microseconds is None for row in report.rows))


@torch.no_grad()
def measure(
    features: int, columns: int, batch_sizes: Sequence[int], schemes: Sequence[str], device: torch.device
) -> list[Row]:
    """Time F.linear and every scheme on one shape. A GPU computes in bfloat16, a CPU in float32."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    linear = nn.Linear(columns, features, bias=False, device=device, dtype=dtype)
    copies = max(1, ROTATION_BYTES // linear.weight.nbytes) if device.type == "cuda" else 1
    inputs = {m: torch.randn(m, columns, device=device, dtype=dtype) for m in batch_sizes}
    rows = []
    floats: dict[int, float] = {}
    layers = [linear, *(copy.deepcopy(linear) for _ in range(copies - 1))]
    for m, x in inputs.items():
        floats[m] = microseconds(_calls(layers, x), device)
        eager = eager_microseconds(functools.partial(linear, x), device)
        rows.append(
            Row(features, columns, m, BASELINE, floats[m], eager, 1.0, _error(linear(x), x, linear.weight))
        )
    del layers
    for scheme in schemes:
        first = tritonq.QuantizedLinear.from_float(linear, PRESETS[scheme]())
        weight = first.dequantize(torch.float32)
        copies = max(1, ROTATION_BYTES // first.weight_bytes) if device.type == "cuda" else 1
        quantized = [first, *(copy.deepcopy(first) for _ in range(copies - 1))]
        for m, x in inputs.items():
            error = _error(first(x), x, weight)
            if not error <= ALLOWED_ERROR[scheme]:
                rows.append(Row(features, columns, m, scheme, None, None, None, error))
                continue
            time = microseconds(_calls(quantized, x), device)
            eager = eager_microseconds(functools.partial(first, x), device)
            rows.append(Row(features, columns, m, scheme, time, eager, floats[m] / time, error))
        del quantized
    return rows


def _calls(layers: Sequence[nn.Module], x: Tensor) -> list[Callable[[], object]]:
    return [functools.partial(layer, x) for layer in layers]


def _error(y: Tensor, x: Tensor, weight: Tensor) -> float:
    """‖y - x · wᵀ‖ / ‖x · wᵀ‖, the product in float32; NaN where y holds one."""
    expected = x.float() @ weight.float().t()
    return ((y.float() - expected).norm() / expected.norm()).item()


def _line(row: Row) -> str:
    time = "WRONG" if row.microseconds is None else f"{row.microseconds:.1f}"
    eager = "" if row.eager_microseconds is None else f"{row.eager_microseconds:.1f}"
    speedup = "" if row.speedup is None else f"{row.speedup:.2f}"
    return (
        f"{row.features:>6} {row.columns:>6} {row.rows:>5} {row.scheme:<8} {time:>10} {eager:>9} {speedup:>8} "
        f"{row.error:>9.1e}"
    )


def shape_of(text: str) -> tuple[int, int]:
    """(N, K) of "NxK"."""
    features, _, columns = text.partition("x")
    try:
        return int(features), int(columns)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a shape is NxK, such as 4096x14336, found {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
