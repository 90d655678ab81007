"""Hopper's kernels with the tiles that the rules choose for large problems, on a GPU of two multiprocessors.

So each program has several tiles, of which the last are at the edges of the output, and each ring goes round several
times, the last step at the edge of K: what hangs or mixes slots up only then is found.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.hopper import hopper_launches

workload: Any = pytest.importorskip("tritonq.tuning.workload", reason="Triton is not installed")
measure: Any = pytest.importorskip("tritonq.tuning.measure")
target: Any = pytest.importorskip("tritonq.kernels.launch.target")
pytest.importorskip("tritonq.kernels.hopper.int8", reason="Triton has no Gluon")
pytestmark = pytest.mark.usefixtures("kernels_can_run")

H200 = target.Target("cuda", 90, 132, 227 * 1024)


@pytest.mark.parametrize(
    "case",
    [
        ("w8a8", None, 512, (128, 128)),
        ("w8a8", None, 4096, (256, 128)),
        ("w4a16", None, 4096, (128, 128)),
        ("w4a16", None, 1, (128, 8)),
        ("w4a16", 32, 4096, (128, 128)),
        ("w8a16", None, 4096, (128, 256)),
        ("w8a8_gated", None, 4096, (128, 128)),
        ("w4a8", None, 4096, (128, 128)),
        ("w4a8", None, 16, (128, 16)),
    ],
)
def test_tiles_of_large_problems(case: tuple[str, int | None, int, tuple[int, int]], device: str) -> None:
    scheme, group_size, rows, block = case
    large = workload.Workload(scheme, 28_672, 4096, rows, group_size=group_size)
    chosen = workload.explained(large, H200).config
    assert (chosen.path, chosen.block_n, chosen.block_m) == ("hopper", *block)
    # Two tiles for each multiprocessor, and more steps than slots.
    features, columns = chosen.block_n + 16, (chosen.num_stages + 1) * chosen.block_k - 32
    small = workload.Workload(
        scheme, features, columns, min(rows, 2 * chosen.block_m - 7), group_size=group_size
    )
    operands = workload.product(small, device)
    with hopper_launches(seed=1, multiprocessors=2):
        measure.check(operands, chosen, operands.expected())
