"""A whole Llama-shaped model: decoding and prefilling, in bfloat16, in every scheme and by other libraries.

    python3 -m benchmarks.llm                                   Llama-3-8B's shape, random weights; "tiny" on a CPU
    python3 -m benchmarks.llm --model 1b --schemes w4a16 --batches 1 --json results.json
    python3 -m benchmarks.llm --plot folder --goals

docs/benchmarks.md says what is measured and how. Files, in the order of an import:

    shapes.py              sizes of the models
    lean_decoder.py        a decoder as people write it for speed, with tritonq's fused operators
    sessions.py            one interface to it and to transformers' LlamaForCausalLM: a model with its cache
    contenders.py          what takes part: schemes of ours, and Linears of other libraries
    build.py               models, block by block, so that no whole float model is ever held
    reference.py           what a quantized model should compute, from its own codes in float32
    ways.py                one step eager, in a CUDA graph, compiled
    split.py               what a step's Linears take alone
    rows.py, run.py        one measurement; all of them
    goals.py, plots.py     what is to be reached; figures        command.py    the command line
"""
