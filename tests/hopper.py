"""Running Hopper's kernels: on a GPU of compute capability 9.0 as they are, elsewhere as compiled, emulated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from tools.ptx_emulator.launches import emulated_launches

#: Codes of weights, which a kernel may read while the kernel before it still runs; nothing else (hopper/producer.py).
WEIGHTS = ("w_desc", "gate_desc", "up_desc")


@contextlib.contextmanager
def hopper_launches(seed: int = 0) -> Iterator[None]:
    """Meanwhile Gluon's kernels run, emulated ones in an order of events drawn from the seed."""
    if torch.cuda.is_available():
        if torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("Hopper's kernels run on compute capability 9.0, or emulated where there is no GPU")
        yield
        return
    with emulated_launches(90, seed, WEIGHTS):
        yield
