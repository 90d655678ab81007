"""The memory that every test's kernels get: it shows stores beyond an edge, counters left standing, and forgets."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.support.poison import Poison, poisoned_kernels

CPU = torch.device("cpu")


def test_a_store_beyond_the_edge_is_found() -> None:
    for offset in (-1, 15):
        poison = Poison()
        memory = poison.empty(3, 5, dtype=torch.int8, device=CPU)
        poison.check()
        memory.as_strided((1,), (1,), memory.storage_offset() + offset).zero_()
        with pytest.raises(AssertionError, match="outside its output"):
            poison.check()


def test_what_is_not_written_is_poison() -> None:
    assert Poison().empty(2, 3, dtype=torch.float16, device=CPU).isnan().all()
    assert (Poison().empty_like(torch.zeros(4, dtype=torch.int32)) == 0x7FFFFFFF).all()


def test_a_counter_left_standing_is_found() -> None:
    poison = Poison()
    counters = poison.zeros(4, dtype=torch.int32, device=CPU)
    poison.check()
    counters[2] = 1
    with pytest.raises(AssertionError, match="not back at zero"):
        poison.check()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_counters_of_a_gpu_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept by the process: a second test would see none zeroed, whatever its kernels do."""
    from tritonq.kernels.launch import counters

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(counters, "current_stream", lambda index: 7)
    monkeypatch.setattr(
        counters,
        "_zeros_outside_pools",
        lambda device: counters.torch.zeros(9999, dtype=torch.int32, device=CPU),
    )
    for _ in range(2):
        with pytest.MonkeyPatch.context() as of_a_test:
            poison = poisoned_kernels(of_a_test)
            first, second = counters.zeroed_counters(gpu, 10), counters.zeroed_counters(gpu, 20)
            assert first.data_ptr() == second.data_ptr() == poison.zeroed[0].data_ptr()
            assert len(poison.zeroed) == 1
