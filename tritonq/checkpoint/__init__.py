"""Checkpoints: a quantized model as safetensors files and a config.json, in the layout of compressed-tensors.

save(model, "dir")            contents.py: which tensors; writer.py: files; publish.py: all of them or none
load("dir", model)            reader.py: plan.py matches names and shapes, build.py makes the new layers
info("dir")                   info.py: what is in it, without a model

compressed_tensors.py         QuantConfig ↔ the dictionaries of config.json
extras.py                     what those have no words for, under the key `tritonq`
forms.py                      tensors that other programs lay out otherwise
files.py                      the directory's files, opened with distrust
"""

from tritonq.checkpoint.info import GroupInfo, Info, info
from tritonq.checkpoint.reader import load
from tritonq.checkpoint.writer import save

__all__ = ["GroupInfo", "Info", "info", "load", "save"]
