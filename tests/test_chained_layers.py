"""Layers in a row give the same bits run plainly, compiled, and in a CUDA graph."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from tritonq.doctor import chains
from tritonq.doctor.checks import Outcome, run_check

REPLAYS = 200


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 64, 256])
@pytest.mark.parametrize("scheme", chains.SCHEMES)
def test_plain_compiled_and_in_a_graph(scheme: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritonq.kernels.launch import plans

    monkeypatch.undo()  # poisoned memory: filling it would lie between two layers
    plans.forget()
    check = chains.ChainCheck(scheme, rows)
    assert run_check(check, "cuda", repeats=-(-REPLAYS // 3)) == Outcome(0.0, None)
    assert plans.made
    assert all(plan.compiled is not None for plan in plans.made.values())


@pytest.mark.parametrize("scheme", chains.SCHEMES)
def test_on_a_cpu(scheme: str) -> None:
    check = chains.ChainCheck(scheme, 3, 64)
    assert check.name == f"6 × {scheme} 64x64 M=3"
    assert run_check(check, "cpu", repeats=2) == Outcome(0.0, None)


def test_a_layer_that_depends_on_the_call_before_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that reads its input before it is written."""

    class Early(nn.Module):
        last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            found = x if self.last is None else self.last
            self.last = x
            return found

    right = chains.chained_layers

    def chained(*given: object) -> nn.Sequential:
        return nn.Sequential(*right("w8a8", 64, "cpu"), Early())

    monkeypatch.setattr(chains, "chained_layers", chained)
    assert str(run_check(chains.ChainCheck("w8a8", 3, 64), "cpu", repeats=2).wrong).startswith("off by")
