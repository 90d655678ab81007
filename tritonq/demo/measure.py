"""Measures what each quantization scheme costs and saves on the demo model, for `tritonq demo`."""

from __future__ import annotations

import copy
import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tritonq.checkpoint import load, save
from tritonq.demo.evaluate import CONTEXT, cut_windows, evaluate, fixed_slice_logits, relative_error
from tritonq.demo.model import load_demo_model
from tritonq.demo.text import calibration_bytes, heldout_bytes
from tritonq.numerics.config import W4A8, W4A16, W8A8, W8A16, QuantConfig, W8A8Static
from tritonq.ops import backend
from tritonq.quantize.api import quantize_
from tritonq.util.version import VERSION

FLOAT = "float"
CONFIGS: dict[str, QuantConfig | None] = {
    FLOAT: None,
    "w8a16": W8A16(),
    "w8a8": W8A8(),
    "w8a8_static": W8A8Static(),
    "w4a16": W4A16(),
    "w4a16 affine g64": W4A16(group_size=64, symmetric=False),
    "w4a16 channel": W4A16(group_size=None),
    "w4a8": W4A8(),
}
CALIBRATION_BATCH = 16

#: (the current scheme, steps done, all steps)
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class SchemeResult:
    """One row of the table.

    Attributes:
        scheme: the preset's name, and its changes from the default.
        weight_bytes: all tensors of the model, with the scales and the float parts (embedding, norms, lm_head).
        ratio_to_fp32, ratio_to_fp16: weight_bytes divided by those of the same model in that dtype.
        save_seconds, load_seconds: of `tritonq.save` and `tritonq.load`; of safetensors for the float model.
        bits_per_byte: on text that the model was not trained on; see evaluate.py.
        change: bits_per_byte minus that of the float model.
        logits_error: ‖logits - float logits‖ / ‖float logits‖.
        tokens_per_second: bytes of text evaluated per second.
        backend: "triton" or "reference"; for the float model "torch".
    """

    scheme: str
    weight_bytes: int
    ratio_to_fp32: float
    ratio_to_fp16: float
    save_seconds: float
    load_seconds: float
    bits_per_byte: float
    change: float
    logits_error: float
    tokens_per_second: float
    backend: str


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """All rows, and a description of the machine."""

    rows: tuple[SchemeResult, ...]
    device: str
    dtype: str
    torch_version: str
    triton_version: str | None
    tritonq_version: str
    heldout_bytes: int
    parameters: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def run_demo(device: str | None = None, progress: Progress | None = None) -> DemoReport:
    """Measure every scheme.

    Args:
        device: "cuda" or "cpu"; None takes a GPU if there is one. A GPU computes in bfloat16, a CPU in float32.
        progress: called during the work.
    """
    start = time.perf_counter()
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    original = load_demo_model(dtype).to(target)
    text = heldout_bytes()
    # Triton compiles a kernel at its first use; the warm-up keeps that out of the speed.
    warm_up = text[: CONTEXT * CALIBRATION_BATCH]
    steps_per_scheme = len(text) // CONTEXT
    total = steps_per_scheme * len(CONFIGS)
    float_logits = fixed_slice_logits(original, text)
    rows: list[SchemeResult] = []
    for index, (scheme, config) in enumerate(CONFIGS.items()):

        def report(done: int, _: int, scheme: str = scheme, before: int = index * steps_per_scheme) -> None:
            if progress is not None:
                progress(scheme, before + done, total)

        model = copy.deepcopy(original)
        if config is not None:
            batches = _calibration_batches(target) if config.static else None
            quantize_(model, config, calibration=batches)
        save_seconds, load_seconds = _time_save_and_load(model, original, config is not None)
        evaluate(model, warm_up)
        result = evaluate(model, text, progress=report)
        size = tensor_bytes(model)
        rows.append(
            SchemeResult(
                scheme=scheme,
                weight_bytes=size,
                ratio_to_fp32=size / (4 * _parameter_count(original)),
                ratio_to_fp16=size / (2 * _parameter_count(original)),
                save_seconds=save_seconds,
                load_seconds=load_seconds,
                bits_per_byte=result.bits_per_byte,
                change=result.bits_per_byte - (rows[0].bits_per_byte if rows else result.bits_per_byte),
                logits_error=relative_error(fixed_slice_logits(model, text), float_logits),
                tokens_per_second=result.tokens_per_second,
                backend="torch" if config is None else backend(target),
            )
        )
    return DemoReport(
        rows=tuple(rows),
        device=torch.cuda.get_device_name(target) if target.type == "cuda" else _cpu_name(),
        dtype=str(dtype).removeprefix("torch."),
        torch_version=torch.__version__,
        triton_version=_triton_version(),
        tritonq_version=VERSION,
        heldout_bytes=len(text),
        parameters=_parameter_count(original),
        seconds=time.perf_counter() - start,
    )


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _calibration_batches(device: torch.device) -> list[Tensor]:
    windows, _ = cut_windows(calibration_bytes())
    return list(windows.to(device).split(CALIBRATION_BATCH))


def _time_save_and_load(model: nn.Module, original: nn.Module, quantized: bool) -> tuple[float, float]:
    """Seconds to write `model` to a directory, and to read it into a float model."""
    fresh = copy.deepcopy(original)
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "model"
        start = time.perf_counter()
        if quantized:
            save(model, path)
        else:
            save_file(model.state_dict(), path)
        saved = time.perf_counter()
        if quantized:
            load(path, fresh)
        else:
            fresh.load_state_dict(load_file(path))
        return saved - start, time.perf_counter() - saved


def _cpu_name() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__
