"""The texts that ship with the demo model, as bytes: one token of the model is one byte of UTF-8."""

from importlib.resources import files

HELDOUT_NAME = "heldout.txt"
CALIBRATION_NAME = "calibration.txt"


def heldout_bytes() -> bytes:
    """Text that the model never saw in training. Use it to measure bits per byte."""
    return (files("tritonq.demo") / "data" / HELDOUT_NAME).read_bytes()


def calibration_bytes() -> bytes:
    """A part of the training text. Use it to choose activation scales, never the held-out text."""
    return (files("tritonq.demo") / "data" / CALIBRATION_NAME).read_bytes()
