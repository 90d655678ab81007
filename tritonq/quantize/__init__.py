"""From a float model to a quantized one: prepare, calibrate, convert; int8 from layer to layer; training."""
