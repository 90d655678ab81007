"""`tritonq doctor`: checks that tritonq computes correctly on this machine.

checks.py       a check and its outcome
products.py     every family of products, on every path, in small shapes and in production shapes
chains.py       layers in a row, where kernels start early; replayed and in a CUDA graph
operators.py    every operator on a GPU, compared with a CPU
cpu.py          the CPU's results, compared with int64 and float64
command.py      the printed report
"""
