"""Tests whether factors can be moved, before any parameter is changed.

Hooks divide a source's output by powers of two, one per channel, and multiply the readers' inputs by the same factors.
Powers of two are exact in floating point. If the factors cancel, the model returns the same bits as without hooks
(except for subnormals in float16). It returns something very different if a function in between is not positively
homogeneous, if it mixes or moves channels, or if something else reads the source.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from tritonq.optimize.equalize.groups import Group
from tritonq.select.calibrate import run_batch
from tritonq.select.patterns import named_modules

#: Factors are 2^low … 2^high. Both signs reveal a function that clips, but twice 40,000 is too large for float16.
_EXPONENTS, _FLOAT16_EXPONENTS = (-3, 3), (0, 6)


class Rehearsal:
    """A model and a batch to try groups on. The caller must set evaluation mode and turn gradients off.

    Args:
        model: gets hooks during a run; nothing else changes.
        batch: tensor → model(x), tuple → model(*x), dict → model(**x).
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self._model, self._batch = model, batch
        self._modules = dict(named_modules(model))
        self._expected = self._run()

    def failing(self, groups: Sequence[Group]) -> dict[Group, str]:
        """The groups whose factors change the model's results, with the reasons. If none does, one run is enough."""
        if not groups:
            return {}
        uncalled = self._try(groups)
        if uncalled is None:
            return {}
        if len(groups) == 1:
            return {groups[0]: uncalled or "scaling it changes what the model returns"}
        half = len(groups) // 2
        found = {**self.failing(groups[:half]), **self.failing(groups[half:])}
        return found or dict.fromkeys(
            groups, "scaling it together with others changes what the model returns"
        )

    def _try(self, groups: Sequence[Group]) -> str | None:
        """None if the results stay the same; else the reason, or "" if only the output shows the change."""
        called: set[str] = set()
        with contextlib.ExitStack() as stack:
            for group in groups:
                factors = powers_of_two(self._modules[group.source])
                stack.enter_context(
                    divided(self._modules[group.source], factors, _note(called, group.source))
                )
                for reader in group.readers:
                    stack.enter_context(multiplied(self._modules[reader], factors, _note(called, reader)))
            found = self._run()
        missing = [name for group in groups for name in (group.source, *group.readers) if name not in called]
        if missing:
            return f"{missing[0]} is not called by the model"
        same = len(found) == len(self._expected) and all(map(equal_but_for_subnormals, found, self._expected))
        return None if same else ""

    def _run(self) -> list[Tensor]:
        output = run_batch(self._model, self._batch)
        return [leaf for leaf in tree_iter(output) if isinstance(leaf, Tensor)]


def powers_of_two(source: nn.Module) -> Tensor:
    """A random factor for each channel of a norm or Linear, in its dtype; the same in every call."""
    weight = source.weight
    assert isinstance(weight, Tensor)
    generator = torch.Generator().manual_seed(0)
    low, high = _FLOAT16_EXPONENTS if weight.dtype == torch.float16 else _EXPONENTS
    exponents = torch.randint(low, high + 1, (len(weight),), generator=generator)
    return torch.pow(2.0, exponents.float()).to(weight)


@contextlib.contextmanager
def divided(source: nn.Module, factors: Tensor, note: Callable[[], None]) -> Iterator[None]:
    """Divide a module's output by `factors`, before the user's hooks."""

    def divide(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        note()
        return output / factors.to(output.device)

    handle = source.register_forward_hook(divide, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def multiplied(reader: nn.Module, factors: Tensor, note: Callable[[], None]) -> Iterator[None]:
    """Multiply a Linear's input by `factors`, after the user's hooks."""

    def multiply(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        note()
        if args:
            return (args[0] * factors.to(args[0].device), *args[1:]), kwargs
        return args, {**kwargs, "input": kwargs["input"] * factors.to(kwargs["input"].device)}

    handle = reader.register_forward_pre_hook(multiply, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def equal_but_for_subnormals(found: Tensor, expected: Tensor) -> bool:
    """True if the norm of the difference is within the dtype's precision; integers and Inf must be equal."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    finite = torch.isfinite(expected)
    if not torch.equal(torch.where(finite, 0, found), torch.where(finite, 0, expected)):  # masks of -inf
        return False
    found, expected = torch.where(finite, found, 0), torch.where(finite, expected, 0)
    error = (found.float() - expected.float()).norm()
    return bool(error <= torch.finfo(found.dtype).eps * expected.float().norm())


def _note(called: set[str], name: str) -> Callable[[], None]:
    return lambda: called.add(name)
