"""An engine for each instruction set that this processor has, and memory that holds wrong numbers at first."""

from __future__ import annotations

import functools
import importlib.util

import pytest
import torch
from torch import Tensor

from tritonq.cpu import engine as engines
from tritonq.cpu import processor
from tritonq.cpu.choose import engine_for
from tritonq.cpu.engine import Engine

NAMES = [instructions.name for instructions in processor.SETS]


@functools.cache
def engine_of(name: str) -> Engine:
    """Of one instruction set; skips the test where there is none."""
    if importlib.util.find_spec("llvmlite") is None:
        pytest.skip("llvmlite is not installed")
    (instructions,) = (found for found in processor.SETS if found.name == name)
    if not processor.features().issuperset(instructions.needs):
        pytest.skip(f"this processor has no {name}")
    return engine_for(instructions)


def poison_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch.empty return bytes of 0xAB, and scratch memory too."""
    empty = torch.empty

    def poisoned(*shape: object, **words: object) -> Tensor:
        out: Tensor = empty(*shape, **words)  # type: ignore[call-overload]
        if out.numel() and out.device.type == "cpu":
            out.view(-1).view(torch.uint8).fill_(0xAB)
        return out

    monkeypatch.setattr(torch, "empty", poisoned)
    for name, value in (("_held", empty(0, dtype=torch.uint8)), ("_address", 0)):
        monkeypatch.setattr(engines.scratch, name, value)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Equal, NaN to NaN, in dtype too."""
    return (
        found.dtype == expected.dtype
        and torch.equal(found.nan_to_num(0.0, 1.0, 2.0), expected.nan_to_num(0.0, 1.0, 2.0))
        and torch.equal(found.isnan(), expected.isnan())
    )
