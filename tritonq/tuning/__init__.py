"""`tritonq tune`: measures the fastest configuration of each kernel on this GPU.

    shapes.py      the weights to tune for: a model's, given ones, or the usual
    workload.py    one product to measure: operands, the call, the expected result
    worker.py      a process for work that may crash or hang
    measure.py     compiles, checks and times one configuration of one product
    command.py     the command's arguments, and the tables it prints
    search.py      the rounds over candidates, and the entries it keeps

kernels/config/tuned_file.py describes the file that is written, and when kernels use it.
"""
