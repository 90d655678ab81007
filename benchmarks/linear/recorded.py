"""Earlier times of peers that are not installed, for the same GPU model only, and marked in every output.

benchmarks/baselines/h100_peers.json has the times and their origin.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.linear.contender import Contender
from benchmarks.linear.rows import RECORDED, Row
from benchmarks.linear.shapes import Shape

BASELINES = Path(__file__).parents[1] / "baselines" / "h100_peers.json"


def recorded_rows(
    shape: Shape,
    batch_sizes: Sequence[int],
    absent: Iterable[Contender],
    device_name: str,
    dtype: torch.dtype,
    file: Path = BASELINES,
) -> list[Row]:
    """The recorded cells of peers that are not installed; none on another GPU model or in another dtype.

    Args:
        shape: of the weight.
        batch_sizes: the values of M in this run.
        absent: the peers that are not installed.
        device_name: of this run's GPU.
        dtype: of this run; recorded times are for bfloat16.
        file: the recorded times.
    """
    document = json.loads(file.read_text())
    if device_name != document["gpu"] or dtype != torch.bfloat16:
        return []
    peers = {contender.by: contender for contender in absent}
    rows = []
    for cell in document["rows"]:
        peer = peers.get(cell["peer"])
        if peer is None or (cell["N"], cell["K"]) != (shape.N, shape.K) or cell["M"] not in batch_sizes:
            continue
        rows.append(
            Row(
                shape.name,
                shape.N,
                shape.K,
                cell["M"],
                peer.by,
                peer.scheme,
                peer.measures,
                RECORDED,
                microseconds=cell["us"],
                error=cell["err"],
            )
        )
    return rows
