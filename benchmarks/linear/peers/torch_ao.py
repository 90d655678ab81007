"""torch.ao.quantization's dynamic layer (FBGEMM): int8 × uint8, per tensor, of 7 bits where there is no VNNI."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from benchmarks.linear.contender import Built, Contender


def build(linear: nn.Linear) -> Built:
    """What `quantize_dynamic` makes of the layer."""
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it will be removed
        return Built(quantize_dynamic(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)[0])


PEERS = (
    Contender(
        "torch_ao",
        "w8a8",
        build,
        tolerance=5e-2,
        package="torch.ao.quantization",
        dtypes=(torch.float32,),
        runs_on_gpu=False,
    ),
)
