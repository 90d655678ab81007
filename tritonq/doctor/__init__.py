"""Whether what tritonq computes on this machine is right: what `tritonq doctor` does.

checks.py       what is checked, and what came of it
products.py     every family of products, on every path, in small shapes and in production's
chains.py       layers in a row, where kernels start early, replayed and in a CUDA graph
operators.py    every operator, on a GPU against a CPU
cpu.py          the reference itself, which a CPU computes with
command.py      the report that is printed
"""
