"""tritonq: calibrate, quantize, fine-tune and run the Linear layers of a PyTorch model in INT8 and INT4.

    import tritonq

    tritonq.quantize_(model, "w4a16")                            # in place, one line
    q = tritonq.quantize_dynamic(model)                          # W8A8, activations on the fly
    p = tritonq.prepare(model, "w8a8_static"); p(data); q = tritonq.convert(p)
    p = tritonq.prepare_qat(model, "w8a8"); train(p); q = tritonq.convert(p)
    tritonq.save(q, "directory"); q = tritonq.load("directory", model)

The names of `torch.ao.quantization` (QuantStub, QConfig, observers, prepare, convert, …) are at top level too, so its
programs run with `import tritonq as quantization`.
"""

from typing import TYPE_CHECKING, Any

from tritonq import nn, observers, ops
from tritonq.analysis import Analysis, analyze
from tritonq.analysis.summary import summary
from tritonq.checkpoint import info, load, save
from tritonq.integrations import register_with_peft, register_with_transformers
from tritonq.nn import DeQuantStub, FakeQuantize, QATLinear, QuantizedLinear, QuantStub, QuantWrapper
from tritonq.nn.quantized_tensor import QuantizedTensor
from tritonq.numerics.config import W4A8, W4A16, W8A8, W8A16, QuantConfig, QuantSpec, W8A8Static
from tritonq.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    MSEObserver,
    PercentileObserver,
    PerChannelMinMaxObserver,
    PerChannelMSEObserver,
    PerChannelPercentileObserver,
    PlaceholderObserver,
    default_dynamic_quant_observer,
    default_histogram_observer,
    default_observer,
    default_per_channel_weight_observer,
    default_weight_observer,
)
from tritonq.observers.qconfig import (
    QConfig,
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    default_qat_qconfig,
    default_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    per_channel_dynamic_qconfig,
)
from tritonq.ops import backend
from tritonq.optimize import equalize
from tritonq.optimize.activations import fuse_activations_
from tritonq.optimize.equalize import smooth_
from tritonq.optimize.fuse_siblings import fuse_siblings_, unfuse_siblings_
from tritonq.quantize import hosts, qat
from tritonq.quantize.api import quantize_, quantize_dynamic
from tritonq.quantize.convert import convert
from tritonq.quantize.prepare import prepare
from tritonq.quantize.qat import (
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    prepare_qat,
)
from tritonq.util.version import VERSION
from tritonq.util.when_imported import when_imported

__version__ = VERSION

hosts.register("transformers", "tritonq.integrations.transformers.attach:attach")
when_imported("transformers.modeling_utils", register_with_transformers)
when_imported("peft", register_with_peft)

if TYPE_CHECKING:
    from tritonq.integrations.transformers import TritonQConfig as TritonQConfig
else:

    def __getattr__(name: str) -> Any:
        """`TritonQConfig`, imported at its first use, because importing transformers takes seconds."""
        if name != "TritonQConfig":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from tritonq.integrations.transformers import TritonQConfig

        return TritonQConfig


__all__ = [
    "W4A8",
    "W4A16",
    "W8A8",
    "W8A16",
    "Analysis",
    "DeQuantStub",
    "EntropyObserver",
    "FakeQuantize",
    "HistogramObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMSEObserver",
    "PerChannelMinMaxObserver",
    "PerChannelPercentileObserver",
    "PercentileObserver",
    "PlaceholderObserver",
    "QATLinear",
    "QConfig",
    "QuantConfig",
    "QuantSpec",
    "QuantStub",
    "QuantWrapper",
    "QuantizedLinear",
    "QuantizedTensor",
    "W8A8Static",
    "analyze",
    "backend",
    "convert",
    "default_dynamic_qconfig",
    "default_dynamic_quant_observer",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_qconfig",
    "default_per_channel_weight_observer",
    "default_qat_qconfig",
    "default_qconfig",
    "default_weight_observer",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "equalize",
    "fuse_activations_",
    "fuse_siblings_",
    "get_default_qat_qconfig",
    "get_default_qconfig",
    "info",
    "load",
    "nn",
    "observers",
    "ops",
    "per_channel_dynamic_qconfig",
    "prepare",
    "prepare_qat",
    "qat",
    "quantize_",
    "quantize_dynamic",
    "save",
    "smooth_",
    "summary",
    "unfuse_siblings_",
]
