"""INT8 from layer to layer: which static layers can hand over codes, how that is proven, and on which grid.

    steps.py     what a matmul's epilogue computes on the way
    edge.py      one hand-over
    norms.py     norms, told by what they compute
    dataflow.py  one recorded run of a model; watching.py records while it is calibrated
    proof.py     the edges that all recorded runs allow
    grids.py     the grids they share: the last step before `convert` replaces the layers

The guide to it is docs/static.md.
"""
