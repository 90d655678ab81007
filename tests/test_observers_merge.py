"""Observers of parts of the data, merged: in one process, and over two (gloo, on CPUs)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tritonq
from tests.support.two_processes import run_in_two_processes
from tritonq.observers import (
    OBSERVERS,
    HistogramObserver,
    MinMaxObserver,
    MSEObserver,
    PerChannelMinMaxObserver,
    PerChannelMSEObserver,
    PlaceholderObserver,
    all_reduce,
)

CLASSES = sorted({cls for pair in OBSERVERS.values() for cls in pair}, key=lambda cls: cls.__name__)
EXACT = [cls for cls in CLASSES if "MovingAverage" not in cls.__name__]
AVERAGES = [cls for cls in CLASSES if "MovingAverage" in cls.__name__]


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 50, generator=generator) * scale for scale in (1.0, 20.0, 0.1)]


def observed(cls: Any, batches: list[torch.Tensor]) -> Any:
    observer = cls()
    for batch in batches:
        observer(batch)
    return observer


def assert_same_state(one: Any, other: Any) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=12, max_size=12),
    st.lists(st.integers(0, 6), max_size=4).map(sorted),
)
def test_extremes_do_not_depend_on_the_batches(values: list[float], cuts: list[int]) -> None:
    x = torch.tensor(values).reshape(2, 6)
    for cls in (MinMaxObserver, PerChannelMinMaxObserver):
        split = observed(cls, [part for part in x.tensor_split(cuts, dim=1) if part.numel()])
        assert_same_state(split, observed(cls, [x]))


@pytest.mark.parametrize("cls", EXACT, ids=lambda cls: cls.__name__)
def test_merged_is_as_if_one_had_seen_it_all(cls: Any) -> None:
    whole, (a, b, c) = observed(cls, data()), (observed(cls, [batch]) for batch in data())
    before = copy.deepcopy(b)
    a.merge(b)
    a.merge(cls())  # saw nothing
    a.merge(c)
    assert_same_state(a, whole)
    assert_same_state(b, before)
    empty = cls()
    empty.merge(whole)
    assert_same_state(empty, whole)
    empty(torch.full((4, 1), 1e6))  # and shares no memory
    assert float(whole.max_val.max()) < 1e3


@pytest.mark.parametrize("cls", AVERAGES, ids=lambda cls: cls.__name__)
def test_averages_become_their_mean(cls: Any) -> None:
    a, b, _ = (observed(cls, [batch]) for batch in data())
    expected = (a.min_val + b.min_val) / 2, (a.max_val + b.max_val) / 2
    a.merge(b)
    a.merge(cls())
    torch.testing.assert_close((a.min_val, a.max_val), expected)
    empty = cls()
    empty.merge(b)
    assert_same_state(empty, b)


@pytest.mark.parametrize(
    ("one", "other", "kind", "message"),
    [
        (
            MinMaxObserver(),
            HistogramObserver(),
            TypeError,
            "MinMaxObserver merges with its own class, found Hist",
        ),
        (HistogramObserver(), MSEObserver(), TypeError, "found MSEObserver"),
        (HistogramObserver(100), HistogramObserver(200), ValueError, "counts 100 bins, found 200"),
        (MinMaxObserver(), None, TypeError, "found NoneType"),
        (
            observed(PerChannelMinMaxObserver, [torch.ones(3, 2)]),
            observed(PerChannelMinMaxObserver, [torch.ones(4, 2)]),
            ValueError,
            "observes 3 channels, found 4",
        ),
        (
            observed(PerChannelMSEObserver, [torch.ones(3, 2)]),
            observed(PerChannelMSEObserver, [torch.ones(4, 2)]),
            ValueError,
            "observes 3 channels, found 4",
        ),
    ],
)
def test_what_does_not_merge(one: Any, other: Any, kind: type[Exception], message: str) -> None:
    before = copy.deepcopy(one)
    with pytest.raises(kind, match=message):
        one.merge(other)
    assert_same_state(one, before)


def test_placeholders_have_nothing_to_merge() -> None:
    observer = PlaceholderObserver()
    observer.merge(PlaceholderObserver())
    assert not observer.has_data()


def test_all_reduce_needs_processes_and_observers() -> None:
    observer = MinMaxObserver()
    observer.name = "fc"
    with pytest.raises(ValueError, match=r"fc: MinMaxObserver: all_reduce needs torch\.distributed init"):
        observer.all_reduce()
    with pytest.raises(ValueError, match="all_reduce needs a prepared model, found no observer in Linear"):
        all_reduce(nn.Linear(3, 3))


# --- over processes ------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import torch, torch.distributed as dist
from torch import nn
import tritonq
from tests.test_observers_merge import CLASSES, data, mlp, observed

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
states = {}
for cls in CLASSES:
    # The batches dealt out; all of them to one process; none to either.
    for kind, batches in {"both": data()[rank::2], "one": data() if rank else [], "none": []}.items():
        observer = observed(cls, batches)
        observer.all_reduce()
        assert observer.has_data() == (kind != "none")
        states[cls.__name__, kind] = observer.state_dict()

spoiled = tritonq.MinMaxObserver()
spoiled(torch.ones(3))
if rank:  # what a GPU leaves behind when a batch held NaN
    spoiled.fold(torch.tensor(torch.nan), torch.tensor(torch.nan))
spoiled.all_reduce()
try:
    spoiled.calculate_qparams()
except ValueError as error:
    assert "NaN or Inf" in str(error)
else:
    raise AssertionError("another process's NaN was lost")

try:
    observed(tritonq.PerChannelMinMaxObserver, [torch.ones(3 + rank, 2)]).all_reduce()
except ValueError as error:
    assert "equally many channels, found 3 and 4" in str(error)
else:
    raise AssertionError("channels that differ were merged")

prepared = tritonq.prepare(mlp(), tritonq.W8A8Static(observer="mse"))
for batch in torch.randn(6, 32, 16, generator=torch.Generator().manual_seed(1))[rank::2]:
    prepared(batch)
tritonq.observers.all_reduce(prepared)
states["model", ""] = tritonq.convert(prepared).state_dict()
torch.save(states, f"{folder}/{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def test_two_processes(tmp_path: Path) -> None:
    run_in_two_processes(PROGRAM, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for key, state in first.items():
        for name, value in state.items():
            assert torch.equal(value, second[key][name]), (key, name)
    for cls in EXACT:
        whole = observed(cls, data())
        for kind in ("both", "one"):
            state = first[cls.__name__, kind]
            if "values" in state:  # gathered process by process
                state["values"], whole.values = state["values"].sort().values, whole.values.sort().values
            for name, value in whole.state_dict().items():
                assert torch.equal(state[name], value), (cls, kind, name)
    for cls in AVERAGES:
        halves = [observed(cls, data()[rank::2]) for rank in range(2)]
        low = (halves[0].min_val + halves[1].min_val) / 2
        torch.testing.assert_close(first[cls.__name__, "both"]["min_val"], low)
        torch.testing.assert_close(first[cls.__name__, "one"], observed(cls, data()).state_dict())
    alone = tritonq.prepare(mlp(), tritonq.W8A8Static(observer="mse"))
    for batch in torch.randn(6, 32, 16, generator=torch.Generator().manual_seed(1)):
        alone(batch)
    for name, value in tritonq.convert(alone).state_dict().items():
        assert torch.equal(first["model", ""][name], value), name
