"""INT8 from layer to layer in static models: records calibration runs, and finds the grids of the edges.

    watch.py     records the runs of a model while it is calibrated (tritonq/flow/record.py)
    grids.py     finds the edges that all runs allow (tritonq/flow/prove.py), and their shared grids

docs/static.md is the guide.
"""
