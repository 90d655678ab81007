"""The covering really covers, and stays small."""

from __future__ import annotations

import itertools

from tests.support.pairwise import pairwise


def test_every_pair_occurs_in_few_cases() -> None:
    factors = {
        "a": (1, 2, 3, 4, 5),
        "b": (1, 2, 3, 4, 5),
        "c": ("x", "y"),
        "d": (True, False),
        "e": (None, 1, 2),
    }
    cases = [parameter.values[0] for parameter in pairwise(**factors)]
    for first, second in itertools.combinations(factors, 2):
        found = {(case[first], case[second]) for case in cases}
        assert found == set(itertools.product(factors[first], factors[second]))
    assert 25 <= len(cases) <= 32


def test_the_same_cases_every_time() -> None:
    once, again = (pairwise(a=range(4), b=range(3), c=range(2)) for _ in range(2))
    assert [case.id for case in once] == [case.id for case in again]
