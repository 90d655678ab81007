"""Measures what one eager linear costs the host, in microseconds per call, without waiting for the GPU.

    python3 -m benchmarks.host_overhead

On a GPU it measures wall time per asynchronous call, also for F.linear in bfloat16 and for one plain Triton launch.
Without a GPU a stand-in replaces the driver (stand_in_driver.py), so the host's time up to the driver is measured. Then
F.linear has no row, because torch's launches are not replaced, and memory comes from the CPU allocator.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

import tritonq
from benchmarks.report import Report, parsed, parser_of
from benchmarks.stand_in_driver import stand_in_gpu
from tritonq.numerics.config import PRESETS

#: So few calls that the launch queue (about a thousand) never fills. A full queue would measure the GPU's time.
_CALLS, _ROUNDS = 50, 400
SCHEMES = ("w8a16", "w4a16", "w8a8", "w4a8", "w8a8_static")


@dataclasses.dataclass
class Row:
    """Median and fastest round of one kind of call, µs per call."""

    what: str
    median: float
    fastest: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON."""
    parser = parser_of("benchmarks.host_overhead", __doc__)
    parser.add_argument("--features", type=int, default=4096, help="K and N of the layer")
    parser.add_argument("--m", type=int, default=1, help="rows of the input")
    options = parsed(parser, arguments)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    report = Report(options.json, device, driver="real" if gpu else "stand-in", options=_plain(options))
    print(f"{'µs per call':<24} {'median':>8} {'fastest':>8}")
    with contextlib.nullcontext() if gpu else stand_in_gpu(), torch.inference_mode():
        for what, call in _calls(options, device).items():
            median, fastest = _microseconds(call, device)
            report.add(Row(what, median, fastest), f"{what:<24} {median:>8.2f} {fastest:>8.2f}")
    return report.finish(False)


def _calls(options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    linear = nn.Linear(options.features, options.features, device=device, dtype=torch.bfloat16)
    x = torch.randn(options.m, options.features, device=device, dtype=torch.bfloat16)
    batched = x.unsqueeze(0)
    calls: dict[str, Callable[[], object]] = {"one plain Triton launch": _plain_launch(x)}
    if device.type == "cuda":
        calls["F.linear"] = lambda: linear(x)
    for scheme in SCHEMES:
        qparams = (torch.tensor([0.05]), torch.tensor([3], dtype=torch.int8)) if "static" in scheme else None
        layer = tritonq.QuantizedLinear.from_float(linear, PRESETS[scheme](), input_qparams=qparams)
        calls[scheme] = lambda layer=layer: layer(x)  # type: ignore[misc]
        calls[f"{scheme}, [1, M, K]"] = lambda layer=layer: layer(batched)  # type: ignore[misc]
    return calls


def _plain_launch(x: torch.Tensor) -> Callable[[], object]:
    """kernel[grid](…) as users of Triton write it, for the kernel that quantizes tokens."""
    from tritonq.kernels.rows.quantize import quantize_per_token_kernel

    codes = torch.empty_like(x, dtype=torch.int8)
    scale = torch.empty(x.shape[0], 1, device=x.device)
    zero_point = torch.empty_like(scale, dtype=torch.int8)
    rows, columns = x.shape

    def launch() -> None:
        quantize_per_token_kernel[(rows,)](
            x,
            codes,
            scale,
            zero_point,
            columns,
            x.stride(0),
            SYMMETRIC=True,
            FAKE=False,
            ONE_BLOCK=True,
            BLOCK=columns,
            num_warps=8,
            enable_fp_fusion=False,
        )

    return launch


def _microseconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    for _ in range(_CALLS):
        call()
    times = []
    for _ in range(_ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        times.append(1e6 * (time.perf_counter() - start) / _CALLS)
    return statistics.median(times), min(times)


def _plain(options: argparse.Namespace) -> dict[str, int]:
    return {"features": options.features, "m": options.m}


if __name__ == "__main__":
    sys.exit(main())
