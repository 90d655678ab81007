"""Measures one model after the other, decoding and prefill, in all ways.

Results are compared before anything is timed. An eager model is compared with a float32 computation on its codes. The
other ways are compared with eager's logits, token by token over the same tokens. A CUDA graph's logits must be equal
bit for bit. A compiled model rounds less often between operators, so its logits may differ by that; it may choose
another token only if eager's logits of both are as close.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.linear.contender import OURS
from benchmarks.llm.build import build
from benchmarks.llm.contenders import Contender
from benchmarks.llm.reference import reference_path
from benchmarks.llm.rows import DECODE, FAILED, MEASURED, PREFILL, WRONG, Cell, Row
from benchmarks.llm.sessions import SESSIONS, Session
from benchmarks.llm.shapes import MODELS
from benchmarks.llm.split import linear_milliseconds
from benchmarks.llm.ways import EAGER, GRAPH, Call

#: Largest relative error of logits, compared with the float32 reference or with another way. In 16 bits every operator
#: rounds, and int8 codes change at ties.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
_CHECKED_TOKENS = 16
_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure for each model.

    Attributes:
        model: a name in MODELS.
        batches: sequences decoded together.
        context: positions filled before decoding begins.
        prompt: tokens of a prefill.
        steps: the least number of decoding steps to time; the first ones are compared.
        ways: "eager", with which the others are compared, and some of "graph", "compile".
    """

    model: str
    batches: Sequence[int]
    context: int
    prompt: int
    steps: int
    ways: Sequence[str]


@torch.no_grad()
def measure(
    decoder: str, contender: Contender, plan: Plan, device: torch.device, dtype: torch.dtype
) -> Iterator[Row]:
    """All rows of one model."""
    _release(device)
    shape = MODELS[plan.model]
    first = Cell(plan.model, decoder, contender.by, contender.scheme, EAGER, DECODE, 1, plan.context)
    try:
        model = build(decoder, contender, shape, device, dtype)
        error = error_of(SESSIONS[decoder](model, 1, _CHECKED_TOKENS + 1), shape.vocabulary, device)
    except Exception as raised:  # another library may raise anything
        yield Row(first, FAILED, reason=_said(raised))
        return
    if contender.by == OURS and not error <= TOLERANCE[dtype]:
        reason = (
            f"relative error {error:.1e} against float32 on its own codes, allowed {TOLERANCE[dtype]:.0e}"
        )
        yield Row(first, WRONG, error=error, reason=reason)
        return
    for batch in plan.batches:
        yield from _rows(model, first, error, plan, batch, DECODE)
    yield from _rows(model, first, error, plan, 1, PREFILL)


def error_of(session: Session, vocabulary: int, device: torch.device) -> float:
    """Relative error of a model's logits, after a prompt and one token later, compared with `reference_path`."""
    ids = torch.randint(vocabulary, (1, _CHECKED_TOKENS + 1), device=device)

    def run() -> Tensor:
        session.rewind(0)
        prompt = session.logits(ids[:, :_CHECKED_TOKENS]).float()
        return torch.cat((prompt, session.logits(ids[:, _CHECKED_TOKENS:]).float()))

    found = run()
    with reference_path():
        expected = run()
    return _relative_error(found, expected)


def _rows(model: nn.Module, first: Cell, error: float, plan: Plan, batch: int, phase: str) -> Iterator[Row]:
    """One phase and batch, in all ways."""
    device = next(model.parameters()).device
    vocabulary, dtype = MODELS[plan.model].vocabulary, next(model.parameters()).dtype
    tokens = plan.context if phase == DECODE else plan.prompt
    cell = dataclasses.replace(first, phase=phase, batch=batch, tokens=tokens)
    weights = _gib(sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())))
    length = tokens + plan.steps if phase == DECODE else tokens
    ids = torch.randint(vocabulary, (batch, tokens), device=device)
    eager: list[tuple[Tensor, Tensor]] = []
    linears: float | None = None
    for way in plan.ways:
        cell = dataclasses.replace(cell, way=way)
        with _memory(device) as memory:
            try:
                if way != EAGER and not eager:
                    raise RuntimeError("there is no eager result to compare it with")
                session = SESSIONS[cell.decoder](model, batch, length)
                filled, start = 0, ids
                if phase == DECODE:
                    start = session.logits(ids).argmax(dim=-1, keepdim=True)
                    filled = tokens
                call = Call(session, start, way, filled)
                found = _trajectory(call, session, filled, eager, plan.steps if phase == DECODE else 1)
                wrong = _disagreement(found, eager, way, TOLERANCE[dtype])
                if wrong:
                    yield Row(cell, WRONG, reason=wrong)
                    continue
                row_error = error
                if way == EAGER:
                    eager = found
                else:
                    row_error = max(_relative_error(a[0], b[0]) for a, b in zip(found, eager, strict=True))
                linears = (
                    linear_milliseconds(model, batch) if phase == DECODE and linears is None else linears
                )
                seconds = _seconds(call, session, filled, plan.steps if phase == DECODE else 1, device)
            except Exception as raised:  # out of memory, a graph break, a library's own limits
                yield Row(cell, FAILED, reason=_said(raised))
                continue
            finally:
                call = session = None  # type: ignore[assignment]
        rate = batch * (1 if phase == DECODE else tokens) / seconds
        yield Row(cell, MEASURED, 1e3 * seconds, linears, rate, memory.get("peak"), weights, row_error)


def _trajectory(
    call: Call, session: Session, filled: int, forced: list[tuple[Tensor, Tensor]], steps: int
) -> list[tuple[Tensor, Tensor]]:
    """(logits, chosen tokens) of the first steps; the steps read the tokens of `forced`, if there are any."""
    session.rewind(filled)
    start, found = call.ids.clone(), []
    for step in range(min(steps, _CHECKED_TOKENS)):
        call()
        # Kept in host memory, because GPU memory is being measured.
        found.append((call.logits.float().to("cpu", copy=True), call.chosen.to("cpu", copy=True)))
        if step + 1 < steps:
            call.ids.copy_(forced[step][1] if forced else call.chosen)
    call.ids.copy_(start)
    return found


def _disagreement(
    found: list[tuple[Tensor, Tensor]], eager: list[tuple[Tensor, Tensor]], way: str, tolerance: float
) -> str:
    """How results differ from eager's by more than allowed; "" if they do not."""
    for step, ((logits, chosen), (expected, token)) in enumerate(zip(found, eager, strict=False)):
        if way == GRAPH and not torch.equal(logits, expected):
            return f"step {step}: the graph's logits are not those of the eager call"
        error = _relative_error(logits, expected)
        if not error <= tolerance:
            return f"step {step}: relative error {error:.1e} against eager, allowed {tolerance:.0e}"
        lost = expected.gather(1, token) - expected.gather(1, chosen)
        if bool((lost > 2 * tolerance * expected.std(dim=1, keepdim=True)).any()):
            return f"step {step}: another token than eager's, which is not a near tie"
    return ""


def _seconds(call: Call, session: Session, filled: int, steps: int, device: torch.device) -> float:
    """Median over rounds of the mean time of a call."""
    times = []
    for _ in range(_ROUNDS):
        session.rewind(filled)
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(steps):
            call()
        _synchronize(device)
        times.append((time.perf_counter() - start) / steps)
    return statistics.median(times)


@contextlib.contextmanager
def _memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Fills {"peak": GiB} at the end of the block, on a GPU."""
    found: dict[str, float] = {}
    _release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found["peak"] = _gib(torch.cuda.max_memory_allocated(device))


def _release(device: torch.device) -> None:
    """Free what earlier calls left: compiled code holds the model it was made for."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _gib(count: int) -> float:
    return count / 2**30


def _said(raised: Exception) -> str:
    text = f"{type(raised).__name__}: {raised}".strip()
    return text.splitlines()[0][:200]
