"""The machine's limits: bandwidth by reading and copying a large tensor, operations by a large product.

Both are measured in each run. A library's product need not reach the chip's peak. So if the GPU's datasheet is known,
shares of the peak refer to the datasheet's dense rate, without sparsity.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from tritonq.util.timing import microseconds

#: GPU → (16-bit float, int8) in 10¹² operations per second, from NVIDIA's datasheets.
DATASHEETS = {
    "NVIDIA H100 80GB HBM3": (989.4, 1978.9),
    "NVIDIA H200": (989.4, 1978.9),
    "NVIDIA H100 PCIe": (756.0, 1513.0),
    "NVIDIA A100-SXM4-80GB": (312.0, 624.0),
    "NVIDIA A100-SXM4-40GB": (312.0, 624.0),
    "NVIDIA A100 80GB PCIe": (312.0, 624.0),
}
_INT8_SCHEMES = ("w8a8", "w8a8_static", "w4a8")
_GPU_BYTES, _CPU_BYTES = 2**30, 2**26
_GPU_SIZE, _CPU_SIZE = 8192, 512


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Limits, in 10¹² bytes and operations per second.

    Attributes:
        read, copy: of reading a large tensor, and of copying one (bytes read and written).
        float_product, int8_product: of torch's large square product, in the run's dtype and in int8.
        float_datasheet, int8_datasheet: of the GPU's datasheet; None if it is not in the list.
    """

    read: float
    copy: float
    float_product: float
    int8_product: float
    float_datasheet: float | None = None
    int8_datasheet: float | None = None

    @property
    def bandwidth(self) -> float:
        """The larger of the two bandwidths."""
        return max(self.read, self.copy)

    def peak(self, scheme: str) -> float:
        """Operations in 10¹² per second: the datasheet's, else the measured ones."""
        if scheme in _INT8_SCHEMES:
            return self.int8_datasheet or self.int8_product
        return self.float_datasheet or self.float_product

    @classmethod
    def from_json(cls, fields: Any) -> Ceilings:
        """The ceilings in a results file.

        Raises:
            ValueError: `fields` are no ceilings.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        optional = {name for name in names if name.endswith("datasheet")}
        if (
            not isinstance(fields, dict)
            or set(fields) != names
            or not all(
                _is_rate(value) or (value is None and name in optional) for name, value in fields.items()
            )
        ):
            raise ValueError(f"ceilings must have {', '.join(sorted(names))}, found {fields!r}")
        return cls(**fields)


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the ceilings; datasheets apply only to 16-bit floats."""
    gpu = device.type == "cuda"
    count = (_GPU_BYTES if gpu else _CPU_BYTES) // 4
    reading, copying = _reading_and_copying(count, device)
    size = _GPU_SIZE if gpu else _CPU_SIZE
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = microseconds([lambda: a @ b.t()], device)
    x, w = ((16 * t).to(torch.int8) for t in (a, b))
    int8_product = microseconds([lambda: torch._int_mm(x, w.t())], device)
    name = torch.cuda.get_device_name(device) if gpu else ""
    in_datasheet = DATASHEETS.get(name, (None, None))
    operations = 2 * size**3 * 1e-6
    return Ceilings(
        4 * count / reading * 1e-6,
        8 * count / copying * 1e-6,
        operations / product,
        operations / int8_product,
        in_datasheet[0] if dtype.itemsize == 2 else None,
        in_datasheet[1],
    )


def _reading_and_copying(count: int, device: torch.device) -> tuple[float, float]:
    """µs to read `count` float32 values, and to copy them."""
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)
    reading = microseconds([lambda: torch.sum(source)], device)
    return reading, microseconds([lambda: target.copy_(source)], device)
