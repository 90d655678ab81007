"""Quantizing files: from a float checkpoint to a quantized one without ever holding the model.

    quantize_files(model, source, target, config)     quantize.py; the model is on the meta device: names and shapes
        which tensor comes from where                 sources.py
        what the result consists of, file by file     plan.py
        what is finished survives an interruption     workspace.py

Schemes that need no calibration quantize each layer from its weight alone. So layers are read one at a time through
a memory map, quantized, and written in files of `max_shard_bytes`; what is held at any time is one such file and one
layer. The result equals that of `quantize_` and `save` with the same `max_shard_bytes`, file for file, bit for bit.
"""

from tritonq.streaming.quantize import MAX_SHARD_BYTES, Streamed, quantize_files
from tritonq.streaming.sources import UnfitModelError, find_sources

__all__ = ["MAX_SHARD_BYTES", "Streamed", "UnfitModelError", "find_sources", "quantize_files"]
