"""Made-up runs of `python3 -m benchmarks.linear`.

Their times are round numbers, chosen so that what follows from them is easily checked.
"""

from __future__ import annotations

from benchmarks.linear import command, goals, shapes
from benchmarks.linear.ceilings import Ceilings
from benchmarks.linear.contender import LINEAR
from benchmarks.linear.results import Results
from benchmarks.linear.rows import MEASURED, Row

CEILINGS = Ceilings(2.0, 1.5, 500.0, 800.0, 1000.0, 2000.0)
GATE_UP = shapes.named("8b.gate_up")


def synthetic(by, scheme, m, microseconds, status=MEASURED, measures=LINEAR, shape=GATE_UP, **fields):
    named = (shape.name, shape.N, shape.K, m, by, scheme, measures, status)
    return Row(*named, microseconds=microseconds, **fields)


def on_an_h100(*found: Row, device: str = goals.GPU) -> Results:
    machine = {"device": device, "multiprocessors": 132}
    return Results(machine, "bfloat16", CEILINGS, {}, list(found), True)


def run(*arguments) -> int:
    return command.main([str(argument) for argument in arguments])
