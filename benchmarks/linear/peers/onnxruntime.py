"""ONNX Runtime: dynamic int8 (per tensor), int4 in blocks of 128 (MatMulNBits) with float or int8 arithmetic."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.linear.contender import Built, Contender

_GROUP_SIZE = 128
#: MatMulNBits' accuracy levels: as the model says (float32), and int8.
_FLOAT, _INT8 = 0, 4


def build_int8(linear: nn.Linear) -> Built:
    """What `quantize_dynamic` makes of a model with this MatMul."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(_model(linear), str(source))
        quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8)
        return _session(onnx.load(str(target)))


def build_int4(linear: nn.Linear, accuracy: int) -> Built:
    """Symmetric int4 in blocks of 128."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        _model(linear), block_size=_GROUP_SIZE, is_symmetric=True, accuracy_level=accuracy
    )
    quantizer.process()
    return _session(quantizer.model.model)


def _model(linear: nn.Linear) -> Any:
    """x [M, K] · weightᵀ."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(linear.weight.detach().t().contiguous().numpy(), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", linear.in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", linear.out_features])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _session(model: Any) -> Built:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])

    return Built(call)


_WORDS: Any = {"package": "onnxruntime", "dtypes": (torch.float32,), "runs_on_gpu": False}
PEERS = (
    Contender("ort_int8", "w8a8", build_int8, tolerance=0.15, **_WORDS),
    Contender("ort_int4", "w4a16", functools.partial(build_int4, accuracy=_FLOAT), tolerance=0.15, **_WORDS),
    Contender("ort_int4_a8", "w4a8", functools.partial(build_int4, accuracy=_INT8), tolerance=0.15, **_WORDS),
)
