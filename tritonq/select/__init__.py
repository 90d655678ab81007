"""Selects modules of a model, runs the model on calibration data, and replaces modules."""
