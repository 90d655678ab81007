"""Running Hopper's kernels: on a GPU of compute capability 9.0 as they are, elsewhere as compiled, emulated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from tests.support.emulated import emulated_gpu


@contextlib.contextmanager
def hopper_launches(seed: int = 0, multiprocessors: int = 4) -> Iterator[None]:
    """Meanwhile Gluon's kernels run; emulated ones on a small GPU, in an order of events drawn from the seed."""
    if torch.cuda.is_available():
        if torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("Hopper's kernels run on compute capability 9.0, or emulated where there is no GPU")
        yield
        return
    with emulated_gpu(90, seed, multiprocessors):
        yield
