"""The engine for CPUs: LLVM (the package llvmlite) compiles operators for the processor they run on.

    processor.py     lists instruction sets              self_test.py    checks that a set is exact
    code.py          writes a kernel as LLVM IR          compiler.py     compiles it; caches machine code on disk
    elements.py      parts that kernels share            threads.py      runs a kernel on torch's threads
    engine.py        the kernels of one set              choose.py       chooses the set of this process
    sources.py       hashes the sources, for the cache
    quantize.py, spread.py                               kernels for activations
    int8.py, int4_int8.py, weight_only.py                kernels for products
    int8_linear.py, int4_linear.py, weight_only_linear.py, tensors.py    operators on torch tensors

Importing this package does not import llvmlite; the first operator on a CPU does.
"""

from tritonq.cpu import sources  # first, so that it hashes the files that are imported after it

__all__ = ["sources"]
