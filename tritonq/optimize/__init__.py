"""Exact rewrites of a model: they change scales or launches, not what the model computes."""
