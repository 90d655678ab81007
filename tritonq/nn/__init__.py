"""Modules: the quantized Linear and norm, blocks of them, and the stubs that mark where int8 begins and ends."""

from tritonq.nn.attention import MultiheadAttention
from tritonq.nn.blocks import QuantizedGatedMLP, QuantizedMLP, QuantizedProjections
from tritonq.nn.embedding import Embedding, EmbeddingBag
from tritonq.nn.fake_quantize import FakeQuantize
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.norm import QuantizedNorm
from tritonq.nn.qat_linear import QATLinear
from tritonq.nn.recurrent import GRU, LSTM, RNN
from tritonq.nn.recurrent_cells import GRUCell, LSTMCell, RNNCell
from tritonq.nn.stubs import DeQuantize, DeQuantStub, Quantize, QuantStub, QuantWrapper

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "DeQuantStub",
    "DeQuantize",
    "Embedding",
    "EmbeddingBag",
    "FakeQuantize",
    "GRUCell",
    "LSTMCell",
    "MultiheadAttention",
    "QATLinear",
    "QuantStub",
    "QuantWrapper",
    "Quantize",
    "QuantizedGatedMLP",
    "QuantizedLinear",
    "QuantizedMLP",
    "QuantizedNorm",
    "QuantizedProjections",
    "RNNCell",
]
