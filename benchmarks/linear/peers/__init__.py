"""Theirs: what other libraries make of the same Linear. A file a library, imported when its layer is built.

Each builds a layer from the float weight in the library's own way, so their weights differ in detail from ours (NF4,
affine int4), and errors are relative to the float layer. A peer that raises is reported for that cell, and the run
goes on.
"""

from benchmarks.linear.contender import Contender
from benchmarks.linear.peers import bitsandbytes, cublas, gemlite, humming, int_mm, tinygemm, torchao

PEERS: tuple[Contender, ...] = (
    *cublas.PEERS,
    *int_mm.PEERS,
    *tinygemm.PEERS,
    *torchao.PEERS,
    *gemlite.PEERS,
    *humming.PEERS,
    *bitsandbytes.PEERS,
)
