"""Peers' times that were measured earlier: for those not installed, on the same GPU model, marked in every output.

benchmarks/baselines/h100_peers.json holds them and says where they come from.
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
        batch_sizes: the M that are measured in this run.
        absent: the peers.
        device_name: of the GPU in this run.
        dtype: of this run; what is recorded was measured in bfloat16.
        file: see the module.
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
