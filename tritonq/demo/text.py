"""The texts that ship with the demo model, as bytes: one token of the model is one byte of UTF-8."""

from importlib.resources import files

HELDOUT_NAME = "heldout.txt"
CALIBRATION_NAME = "calibration.txt"


def heldout_bytes() -> bytes:
    """Text the model never saw in training: measure bits per byte on it."""
    return (files("tritonq.demo") / "data" / HELDOUT_NAME).read_bytes()


def calibration_bytes() -> bytes:
    """Text out of the training part: choose activation scales on it, never on the held-out text."""
    return (files("tritonq.demo") / "data" / CALIBRATION_NAME).read_bytes()
