"""Measuring which configurations the kernels run best with on this GPU: what `tritonq tune` does.

    shapes.py      which weights: a model's, given ones, or the usual
    workload.py    one product to measure: operands, the call, what is right
    worker.py      a process for what may crash or hang
    measure.py     one configuration of one product: compiled, checked, timed
    command.py     what is typed, and the tables that are printed
    search.py      the rounds over candidates, and what is kept

The file that is written, and when it counts: kernels/config/tuned_file.py.
"""
