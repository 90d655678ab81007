"""Three ways to run the same call: eager, as a CUDA graph, compiled as a whole.

The call reads and writes tensors that stay where they are, so that a graph of it can be replayed. "compile" is
torch.compile(fullgraph=True): a graph break anywhere in the model, at an operator of ours for one, is an error. On a
GPU what Inductor compiled is then captured like the eager call; on a CPU AOTAutograd's graph runs, which Inductor
would have got.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.llm.sessions import Session

EAGER, GRAPH, COMPILE = "eager", "graph", "compile"
_WARM_UP_CALLS = 3


def ways_on(device: torch.device) -> tuple[str, ...]:
    """Those that a device has."""
    return (EAGER, GRAPH, COMPILE) if device.type == "cuda" else (EAGER, COMPILE)


class Call:
    """One call of a model: `ids` [B, T] stand in a buffer; `logits` [B, vocabulary] and `chosen` [B, 1] come out.

    Where T is 1 the call leaves what it chose in `ids`, for the next one to read.

    Args:
        session: the model and its cache.
        ids: what is read first.
        way: how it runs. Warming up runs it a few times, so the session is to be rewound before the first call.
        filled: positions that warming up rewinds to.
    """

    def __init__(self, session: Session, ids: Tensor, way: str, filled: int) -> None:
        self.ids = ids.clone()
        self.chosen = self.ids[:, -1:].clone()
        self._forward: Callable[[Tensor], Tensor] = session.logits
        if way == COMPILE:
            words: dict[str, Any] = {"backend": "aot_eager"}
            if ids.is_cuda:
                words = {"mode": "max-autotune-no-cudagraphs"}
            self._forward = torch.compile(session.logits, fullgraph=True, dynamic=False, **words)
        self._replay: Callable[[], None] = self._run
        for _ in range(_WARM_UP_CALLS if ids.is_cuda else 1):
            session.rewind(filled)
            self._on_a_side_stream(self._run)
        if way != EAGER and ids.is_cuda:
            session.rewind(filled)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._run()
            self._replay = graph.replay
        session.rewind(filled)
        self.ids.copy_(ids)

    def __call__(self) -> None:
        self._replay()

    def _run(self) -> None:
        self.logits = self._forward(self.ids)
        self.chosen.copy_(self.logits.argmax(dim=-1, keepdim=True))
        if self.ids.shape == self.chosen.shape:
            self.ids.copy_(self.chosen)

    def _on_a_side_stream(self, run: Callable[[], None]) -> None:
        """As a capture wants it: kernels compile and buffers are allocated before, on another stream."""
        if not self.ids.is_cuda:
            run()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
