"""Timing: what is done in which order on a GPU, with a stand-in for it, and what comes of the numbers."""

from __future__ import annotations

import contextlib
import itertools
import types

import pytest
import torch

from tritonq.util import timing

GPU = torch.device("cuda")


class FakeGPU:
    """Keeps a diary of what torch.cuda is asked for; a replay takes as many ms as `milliseconds` says next."""

    def __init__(self, milliseconds: list[float]) -> None:
        self.diary: list[str] = []
        self.milliseconds = itertools.cycle(milliseconds)

    def note(self, what: str) -> None:
        self.diary.append(what)

    @contextlib.contextmanager
    def within(self, what: str):
        self.note(f"{what} begins")
        yield
        self.note(f"{what} ends")


@pytest.fixture
def gpu(monkeypatch) -> FakeGPU:
    fake = FakeGPU([1.0, 2.0, 3.0])
    cuda = torch.cuda
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(cuda, "Stream", lambda: stream)
    monkeypatch.setattr(cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(cuda, "stream", lambda side: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(cuda, "graph", lambda graph: fake.within("capture"))
    graph = types.SimpleNamespace(replay=lambda: fake.note("replay"))
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(cuda, "_sleep", lambda cycles: fake.note("sleep"))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            fake.note("record")

        def synchronize(self):
            fake.note("wait")

        def elapsed_time(self, end):
            return next(fake.milliseconds)

    monkeypatch.setattr(cuda, "Event", Event)
    return fake


def test_a_graph_takes_the_weights_in_turn_and_is_warm_before_the_clock_starts(gpu, monkeypatch):
    clock = itertools.count(step=0.6 * timing._WARM_UP_SECONDS)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = [lambda number=number: gpu.note(f"call {number}") for number in range(3)]
    found = timing.time_calls(calls, GPU)
    in_turn = [f"call {number}" for number in range(3)]
    first = ["call 0"] * timing._FIRST_CALLS + in_turn[1:]
    rounds = timing._CALLS_IN_GRAPH // 3
    before = [*first, "capture begins", *in_turn * rounds, "capture ends", "replay"]
    assert gpu.diary == before + ["sleep", "record", "replay", "record", "wait"] * timing._REPEATS
    per_millisecond = 1000 / (3 * rounds)
    assert found.median == pytest.approx(2 * per_millisecond)
    assert found.low == pytest.approx(1 * per_millisecond)
    assert found.high == pytest.approx(3 * per_millisecond)


def test_many_copies_are_taken_once_each(gpu):
    graph, count = timing.captured([lambda: None] * 30)
    assert count == 30
    graph.replay()
    assert gpu.diary[-1] == "replay"


def test_what_a_call_costs_the_host_is_measured_without_waiting(gpu, monkeypatch):
    clock = itertools.count(step=0.001)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    found = timing.eager_microseconds(lambda: calls.append(1), GPU)
    assert found == pytest.approx(1000 / timing._EAGER_CALLS)
    assert len(calls) == timing._EAGER_CALLS * (1 + timing._EAGER_ROUNDS)
    assert gpu.diary == []


def test_a_cpu_has_wall_time_alone(monkeypatch):
    monkeypatch.setattr(timing, "_CPU_BUDGET_SECONDS", 0)
    calls = []
    found = timing.time_calls([lambda: calls.append(1), lambda: calls.append(2)], torch.device("cpu"))
    assert calls == [1, 1, 2, 1]  # one that does not count
    assert 0 < found.low <= found.median <= found.high
    assert timing.eager_microseconds(lambda: None, torch.device("cpu")) is None


def test_weights_in_rotation_exceed_the_cache(monkeypatch):
    properties = types.SimpleNamespace(L2_cache_size=50 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert timing.copies_to_rotate(2**30, GPU) == 2
    assert timing.copies_to_rotate(16 * 2**20, GPU) == 32
    assert timing.copies_to_rotate(1000, GPU) == timing.MOST_COPIES
    properties.L2_cache_size = 200 * 2**20
    assert timing.copies_to_rotate(100 * 2**20, GPU) == 8
    assert timing.copies_to_rotate(1000, torch.device("cpu")) == 1
