"""Mixed precision from an analysis: the best choice there is, and a config that quantize_ takes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tritonq
from tritonq.analysis.budget import LARGEST_TABLE, Knapsack

Items = list[tuple[float, int]]
items_strategy = st.lists(
    st.tuples(st.floats(1e-6, 1e3), st.integers(1, 40).map(lambda units: 48 * units)), min_size=1, max_size=9
)


def subsets(items: Items) -> list[tuple[float, int]]:
    """(gain, cost) of every subset."""
    choices = itertools.chain.from_iterable(
        itertools.combinations(items, count) for count in range(len(items) + 1)
    )
    return [(math.fsum(gain for gain, _ in chosen), sum(cost for _, cost in chosen)) for chosen in choices]


def knapsack(items: Items) -> Knapsack:
    return Knapsack([gain for gain, _ in items], [cost for _, cost in items])


@given(items_strategy, st.floats(0, 1))
def test_most_gain_for_a_cost_is_the_best_there_is(items, share):
    budget = int(share * sum(cost for _, cost in items))
    chosen = [items[index] for index in knapsack(items).within(budget)]
    assert sum(cost for _, cost in chosen) <= budget
    best = max(gain for gain, cost in subsets(items) if cost <= budget)
    assert math.fsum(gain for gain, _ in chosen) == pytest.approx(best, rel=1e-9)


@given(items_strategy, st.floats(0, 1))
def test_least_cost_for_a_gain_is_the_best_there_is(items, share):
    wanted = share * math.fsum(gain for gain, _ in items)
    chosen = [items[index] for index in knapsack(items).reaching(wanted)]
    assert math.fsum(gain for gain, _ in chosen) >= wanted * (1 - 1e-8)
    best = min(cost for gain, cost in subsets(items) if gain >= wanted * (1 - 1e-8))
    assert sum(cost for _, cost in chosen) <= best


def test_sizes_without_a_common_divisor_keep_the_budget():
    """A large table is coarse: within the budget still, and off the best by less than a unit a layer."""
    generator = torch.Generator().manual_seed(0)
    costs = (torch.randint(10**8, 10**9, (12,), generator=generator) | 1).tolist()
    gains = torch.rand(12, generator=generator).tolist()
    table = Knapsack(gains, costs)
    assert len(table.best) <= LARGEST_TABLE + len(costs) + 1
    budget = sum(costs) // 2
    chosen = table.within(budget)
    assert sum(costs[index] for index in chosen) <= budget
    slack = 12 * table.unit
    items = list(zip(gains, costs, strict=True))
    assert sum(gains[index] for index in chosen) >= max(
        gain for gain, cost in subsets(items) if cost <= budget - slack
    )


def test_layers_of_a_large_language_model_fit_the_table():
    """32 blocks of Llama-3-8B's shapes, int4 in groups of 128 against int8: 224 layers, one divisor."""
    shapes = [
        (4096, 4096),
        (4096, 1024),
        (4096, 1024),
        (4096, 4096),
        (4096, 14336),
        (4096, 14336),
        (14336, 4096),
    ]
    costs = [k * n - k * n // 2 - 2 * n * k // 128 for k, n in shapes] * 32
    gains = torch.rand(len(costs), generator=torch.Generator().manual_seed(0)).tolist()
    table = Knapsack(gains, costs)
    assert math.gcd(*costs) == table.unit
    chosen = table.within(sum(costs) // 3)
    assert sum(costs[index] for index in chosen) <= sum(costs) // 3


class Net(nn.Module):
    """Layers of different sizes, of which two are hard to quantize; one more is never called."""

    blocks: Any

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(128 * (1 + i % 3), 128 * (1 + (i + 1) % 3)) for i in range(5))
        self.never = nn.Linear(128, 128)
        with torch.no_grad():
            for index in (1, 3):
                self.blocks[index].weight[:, 0] = 3.0

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x).relu()
        return x


@pytest.fixture
def model() -> Net:
    return Net()


@pytest.fixture
def data() -> list[torch.Tensor]:
    return [torch.randn(20, 128)]


def analyzed(*arguments: Any, **words: Any) -> Any:
    """As Any: that what was reached has numbers is what the tests are about."""
    return tritonq.analyze(*arguments, **words)


def spared(table: dict[Any, Any]) -> set[str]:
    return {name for name in table if name != "_default"}


def test_size(model, data):
    found = analyzed(model, "w4a16", data, higher="w8a16")
    reached = [row for row in found.rows if row.reached]
    base, most = found.weight_bytes, found.higher_bytes
    for size in (base, base + 20_000, (base + most) // 2, most, 10 * most, float("inf")):
        table = found.mixed_precision(size=size)
        quantized = tritonq.quantize_(Net(), table)
        held = tritonq.summary(quantized).weight_bytes
        assert held <= size
        assert held == sum(
            (row.higher if row.name in table else row.quantized).weight_bytes for row in found.rows
        )
        errors = sum((row.higher if row.name in table else row.quantized).error for row in reached)
        for count in range(len(reached) + 1):
            for other in itertools.combinations(reached, count):
                cost = base + sum(row.higher.weight_bytes - row.quantized.weight_bytes for row in other)
                if cost <= size:
                    error = sum((row.higher if row in other else row.quantized).error for row in reached)
                    assert errors <= error * (1 + 1e-9)
    assert found.mixed_precision(size=base) == {"_default": "w4a16"}
    with pytest.raises(ValueError, match=rf"size must be at least {base:,} bytes, found {base - 1:,}"):
        found.mixed_precision(size=base - 1)


def test_error(model, data):
    found = analyzed(model, "w4a16", data, higher="w8a16", end_to_end=True)
    reached = [row for row in found.rows if row.reached]
    most = sum(row.quantized.error for row in reached)
    least = sum(row.higher.error for row in reached)
    assert found.mixed_precision(error=most) == {"_default": "w4a16"}
    assert spared(found.mixed_precision(error=least)) == {row.name for row in reached}
    counts = []
    for share in (0.9, 0.2, 0.02):
        budget = least + share * (most - least)
        names = spared(found.mixed_precision(error=budget))
        counts.append(len(names))
        assert sum((row.higher if row.name in names else row.quantized).error for row in reached) <= budget
    assert 1 <= counts[0] < counts[-1] < len(reached)
    assert counts == sorted(counts)
    with pytest.raises(ValueError, match=r"error must be at least .*, found 0"):
        found.mixed_precision(error=0)


def test_sqnr(model, data):
    found = analyzed(model, "w4a16", data)
    by_name = {row.name: row.quantized.output_sqnr for row in found.rows if row.reached}
    limit = sorted(by_name.values())[2]
    below = found.layers_below(limit)
    assert below == sorted((name for name in by_name if by_name[name] < limit), key=by_name.__getitem__)
    assert len(below) == 2
    table = found.mixed_precision(sqnr=limit)
    assert table == {"_default": "w4a16", **dict.fromkeys(below)}
    quantized = tritonq.quantize_(model, table)
    kept = {name for name, module in quantized.named_modules() if type(module) is nn.Linear}
    assert kept == set(below)


def test_the_hard_layers_are_found(model, data):
    found = analyzed(model, tritonq.W4A16(group_size=None), data)
    assert {row.name for row in found.worst_first()[:2]} == {"blocks.1", "blocks.3"}


@pytest.mark.parametrize(
    ("higher", "expected"), [(None, None), ("w8a16", "w8a16"), (tritonq.W8A8Static(), None)]
)
def test_static_layers_that_were_not_reached_get_something_they_can_have(model, data, higher, expected):
    found = analyzed(model, "w8a8_static", data, higher=higher)
    assert found.rows[-1].name == "never"
    least = found.weight_bytes - found.rows[-1].quantized.weight_bytes + found.rows[-1].float_bytes
    for table in (found.mixed_precision(sqnr=0.0), found.mixed_precision(size=least)):
        assert table["never"] == expected
        quantized = tritonq.quantize_(Net(), table, calibration=data)
        assert tritonq.summary(quantized).weight_bytes <= least
    if expected is None:
        with pytest.raises(ValueError, match=f"size must be at least {least:,} bytes"):
            found.mixed_precision(size=least - 1)


def test_a_higher_config_that_costs_nothing_is_taken_where_it_helps(model, data):
    found = analyzed(model, "w8a8", data, higher="w8a16")  # no sums of codes: smaller, and more exact
    names = {row.name for row in found.rows if row.reached}
    assert spared(found.mixed_precision(size=found.weight_bytes)) == names
    assert spared(found.mixed_precision(error=1e9)) == names


def test_sparing_that_costs_no_bytes_spares_no_more_layers_than_needed(model, data):
    found = analyzed(model, "w8a8_static", data, higher="w8a8", filter_fn=lambda _, name: name != "never")
    assert found.weight_bytes == found.higher_bytes
    gains = {row.name: row.quantized.error - row.higher.error for row in found.rows}
    helped = [name for name in sorted(gains, key=gains.__getitem__, reverse=True) if gains[name] > 0]
    assert len(helped) >= 2
    total = sum(row.quantized.error for row in found.rows)
    assert spared(found.mixed_precision(size=found.weight_bytes)) == set(helped)
    assert spared(found.mixed_precision(error=total)) == set()
    for count in range(1, len(helped) + 1):
        budget = total - sum(gains[name] for name in helped[:count]) + gains[helped[count - 1]] / 2
        assert spared(found.mixed_precision(error=budget)) == set(helped[:count])


def test_patterns_of_the_config_still_count(model, data):
    table = {"re:blocks.[01]": "w8a8", "blocks.2": "w4a16", "_default": None}
    found = analyzed(model, table, data)
    worst = found.worst_first()[0].name
    mixed = found.mixed_precision(sqnr=found.worst_first()[1].quantized.output_sqnr)
    assert mixed == {worst: None, **{key: value for key, value in table.items() if key != worst}}
    assert next(iter(mixed)) == worst  # the first pattern that matches counts
    quantized = tritonq.quantize_(model, mixed)
    assert type(quantized.get_submodule(worst)) is nn.Linear


def test_names_that_could_be_another_layers_last_part():
    model: Any = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)))
    with torch.no_grad():
        model[0].weight[:, 0] = 9.0
    found = analyzed(model, tritonq.W4A16(group_size=None), [torch.randn(8, 32)])
    table = found.mixed_precision(sqnr=found.worst_first()[1].quantized.output_sqnr)
    quantized = tritonq.quantize_(model, table)
    assert [type(quantized.get_submodule(name)) is nn.Linear for name in ("0", "1.0", "1.1")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({}, ValueError, "needs one of sqnr, error and size, found none"),
        ({"sqnr": 3, "size": 5}, ValueError, "found sqnr and size"),
        ({"size": "5"}, TypeError, "size must be a number, found '5'"),
        ({"error": math.nan}, TypeError, "error must be a number, found nan"),
    ],
)
def test_bad_budgets(model, data, words, error, message):
    found = analyzed(model, "w4a16", data)
    with pytest.raises(error, match=message):
        found.mixed_precision(**words)
