"""Six layers of one kind, each reading what the one before wrote: as called, as replayed, and in a CUDA graph.

A kernel that starts early runs beside the one that writes its input, layers of one kind share a record, and their
scratch is the same memory over and over: whatever waits too little or takes another layer's address shows here.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kernel_inputs import assert_same
from tests.prepared_calls import LAYERS, SCHEMES, chain

WIDTH = 4096
REPLAYS = 200


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 64, 256])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_called_replayed_and_in_a_graph(scheme: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritonq.kernels.launch import replay as prepared

    monkeypatch.undo()  # poisoned memory: filling it is no kernel of ours, so no call would have a record
    prepared.forget()
    layers = nn.Sequential(*chain(scheme, WIDTH)).cuda()
    assert len(layers) == LAYERS
    inputs = [torch.randn(rows, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    with torch.inference_mode():
        with prepared.set_aside():
            expected = [layers(x) for x in inputs]
        for _ in range(3):
            for x, right in zip(inputs, expected, strict=True):
                assert_same(layers(x), right)
        assert {type(state).__name__ for state in prepared._kinds.values()} == {"PreparedCall"}
        static = inputs[0].clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layers(static)
        for turn in range(REPLAYS):
            static.copy_(
                inputs[turn % 3]
            )  # another one each time: what a layer read too early was the last turn's
            out.zero_()
            graph.replay()
            assert_same(out, expected[turn % 3])
