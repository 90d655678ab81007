"""Quantizes a float checkpoint file by file, without ever holding the whole model in memory.

    quantize.py    quantize_files(model, source, target, config); the model is on the meta device: names and shapes
    sources.py     finds the stored tensor of each parameter
    plan.py        lists the tensors of the result, file by file
    workspace.py   keeps finished files across an interruption

Schemes without calibration quantize each layer from its weight alone. So layers are read one at a time through a memory
map, quantized, and written to files of `max_shard_bytes`. Memory holds one such file and one layer. The result equals
that of `quantize_` and `save` with the same `max_shard_bytes`, file for file, bit for bit.
"""

from tritonq.streaming.quantize import MAX_SHARD_BYTES, Streamed, quantize_files
from tritonq.streaming.sources import UnfitModelError, find_sources

__all__ = ["MAX_SHARD_BYTES", "Streamed", "UnfitModelError", "find_sources", "quantize_files"]
