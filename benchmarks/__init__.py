"""Benchmarks. `python3 -m benchmarks.linear` times a Linear in every scheme, and prints no time for a wrong result.

`python3 -m benchmarks.perplexity MODEL_DIR --text FILE` measures what each scheme costs a language model.
"""
