"""Modules: what replaces `nn.Linear`, and the stubs that mark where int8 begins and ends."""

from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.stubs import DeQuantize, DeQuantStub, Quantize, QuantStub, QuantWrapper

__all__ = ["DeQuantStub", "DeQuantize", "QuantStub", "QuantWrapper", "Quantize", "QuantizedLinear"]
