"""Measurements. `python3 -m benchmarks` times every scheme, and refuses to print a time for a wrong result.

`python3 -m benchmarks.perplexity MODEL_DIR --text FILE` measures what each costs a language model.
"""
