"""Checkpoints: a quantized model as safetensors files and a config.json, in the layout of compressed-tensors.

save(model, "dir")            contents.py: which tensors; writer.py: files; publish.py: all of them or none
load("dir", model)            reader.py: plan.py matches names and shapes, build.py makes the new layers
info("dir")                   info.py: what is in it, without a model
convert("gptq dir", "dir")    rewrite.py: a GPTQ or AWQ checkpoint in this layout, without a model

compressed_tensors.py         QuantConfig ↔ the dictionaries of config.json
extras.py                     what those have no words for, under the key `tritonq`
forms.py                      tensors that other programs lay out otherwise
files.py, fields.py           the directory's files, opened with distrust
source.py                     a checkpoint of any method, opened
foreign.py, gptq.py, awq.py   GPTQ's and AWQ's files, seen in this layout
"""

from tritonq.checkpoint.info import GroupInfo, Info, info
from tritonq.checkpoint.reader import load
from tritonq.checkpoint.rewrite import convert
from tritonq.checkpoint.writer import save

__all__ = ["GroupInfo", "Info", "convert", "info", "load", "save"]
