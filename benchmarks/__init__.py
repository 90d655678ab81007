"""Timings that refuse to be printed for a wrong result. `python3 -m benchmarks` runs them all."""
