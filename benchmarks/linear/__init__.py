"""One Linear layer: every scheme against cuBLAS and the other libraries, over shapes and batch sizes.

    python3 -m benchmarks.linear                                        Llama-3-8B's layers, all schemes, all peers
    python3 -m benchmarks.linear --models all --json results.json       and Llama-3-70B's, Qwen3-8B's and Qwen3-32B's
    python3 -m benchmarks.linear --shapes 4096x4096 8b.down --m 1 16    some
    python3 -m benchmarks.linear --from results.json --markdown table.md --plot folder --goals

docs/benchmarks.md says what is measured and how. Files, in the order of an import:

    shapes.py      (N, K) by name
    contender.py   what takes part: a way to compute a Linear, built from a float one
    schemes.py     ours        peers/    theirs, a library a file        recorded.py    theirs, measured earlier
    rows.py        one cell    results.py    a run: machine, ceilings, cells, as a JSON file
    run.py         measures    ceilings.py   what the machine can do at most
    compare.py     best peers, geometric means      goals.py    what the kernels are to reach, and whether they do
    tables.py, markdown.py, plots.py    showing it      command.py    the command line
"""
