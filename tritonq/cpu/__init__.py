"""The engine for CPUs: operators compiled for the processor they run on, through LLVM (the package llvmlite).

    processor.py     which instructions there are        self_test.py    whether they are exact
    code.py          writing a kernel                    compiler.py     from that to machine code, kept on disk
    elements.py      parts that kernels share            threads.py      running one on torch's threads
    engine.py        the kernels of one set              choose.py       the set of this process
    sources.py       the hash that kept code goes by
    quantize.py, spread.py                               kernels for activations
    int8.py, int4_int8.py, weight_only.py                kernels for products
    int8_linear.py, int4_linear.py, weight_only_linear.py, tensors.py    operators on torch tensors

Importing this package does not import llvmlite; the first operator on a CPU does.
"""

from tritonq.cpu import sources  # first, so that it hashes the files that are imported after it

__all__ = ["sources"]
