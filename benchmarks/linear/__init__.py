"""Times one Linear layer: every scheme, cuBLAS and other libraries, over shapes and batch sizes.

    python3 -m benchmarks.linear                                        Llama-3-8B's layers, all schemes, all peers
    python3 -m benchmarks.linear --models all --json results.json       and Llama-3-70B's, Qwen3-8B's and Qwen3-32B's
    python3 -m benchmarks.linear --shapes 4096x4096 8b.down --m 1 16    some of them
    python3 -m benchmarks.linear --from results.json --markdown table.md --plot folder --goals

docs/benchmarks.md explains the measurements. The files, lower ones import upper ones:

    shapes.py      (N, K) by name
    contender.py   a way to compute a Linear, built from a float one
    schemes.py     tritonq's contenders    peers/    other libraries, one per file    recorded.py   their earlier times
    rows.py        one cell    results.py    a run: machine, ceilings, cells, as a JSON file
    run.py         measures    ceilings.py   the machine's limits
    compare.py     best peers, geometric means      goals.py    the goals for the kernels, and whether a run meets them
    tables.py, markdown.py, plots.py    output      command.py    the command line
"""
