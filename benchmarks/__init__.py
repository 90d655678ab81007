"""Measurements. `python3 -m benchmarks.linear` times a Linear in every scheme, and gives no time to a wrong result.

`python3 -m benchmarks.perplexity MODEL_DIR --text FILE` measures what each costs a language model.
"""
