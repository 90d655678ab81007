"""Times a whole Llama-shaped model: decoding and prefill, in bfloat16, in every scheme, and with other libraries.

    python3 -m benchmarks.llm                                   Llama-3-8B's shape, random weights; "tiny" on a CPU
    python3 -m benchmarks.llm --model 1b --schemes w4a16 --batches 1 --json results.json
    python3 -m benchmarks.llm --plot folder --goals

docs/benchmarks.md explains the measurements. The files, lower ones import upper ones:

    shapes.py              sizes of the models
    lean_decoder.py        a decoder written for speed, with tritonq's fused operators
    sessions.py            a model with its cache: one interface to it and to transformers' LlamaForCausalLM
    contenders.py          tritonq's schemes, and Linears of other libraries
    build.py               builds models block by block, without holding a whole float model
    reference.py           the expected results of a quantized model, from its codes in float32
    ways.py                one step eager, in a CUDA graph, compiled
    split.py               the time of a step's Linears alone
    rows.py, run.py        one measurement; all of them
    goals.py, plots.py     goals; figures        command.py    the command line
"""
