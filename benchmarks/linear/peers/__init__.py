"""Peers: the same Linear in other libraries. One file per library, imported when its layer is built.

Each library quantizes the float weight in its way (NF4, affine int4), so its errors are relative to the float layer. If
a peer raises an error, the cell reports it and the run continues.
"""

from benchmarks.linear.contender import Contender
from benchmarks.linear.peers import (
    bitsandbytes,
    cublas,
    gemlite,
    humming,
    int_mm,
    onnxruntime,
    tinygemm,
    torch_ao,
    torchao,
)

PEERS: tuple[Contender, ...] = (
    *cublas.PEERS,
    *int_mm.PEERS,
    *tinygemm.PEERS,
    *torchao.PEERS,
    *gemlite.PEERS,
    *humming.PEERS,
    *bitsandbytes.PEERS,
    *torch_ao.PEERS,
    *onnxruntime.PEERS,
)
