"""Turns a float model into a quantized one: prepare, calibrate, convert; int8 from layer to layer; training."""
