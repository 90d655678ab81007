"""Checkpoints: a quantized model as safetensors files and a config.json, in the layout of compressed-tensors.

save(model, "dir")            contents.py lists the tensors, writer.py writes files, publish.py replaces all or none
load("dir", model)            reader.py: plan.py matches names and shapes, build.py makes the new layers
info("dir")                   info.py: describes a directory, without a model
convert("gptq dir", "dir")    rewrite.py: rewrites a GPTQ or AWQ checkpoint in this layout, without a model

compressed_tensors.py         QuantConfig ↔ the dictionaries of config.json
extras.py                     the key `tritonq`: everything that those cannot express
forms.py                      converts tensors that other programs lay out differently
files.py, fields.py           opens and checks the directory's files
source.py                     opens a checkpoint of any method
foreign.py, gptq.py, awq.py   present GPTQ's and AWQ's files in this layout
"""

from tritonq.checkpoint.info import GroupInfo, Info, info
from tritonq.checkpoint.reader import load
from tritonq.checkpoint.rewrite import convert
from tritonq.checkpoint.writer import save

__all__ = ["GroupInfo", "Info", "convert", "info", "load", "save"]
