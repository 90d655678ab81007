"""Three ways to run the same call: eager, as a CUDA graph, compiled as a whole.

The call reads and writes tensors that never move, so a graph of it can be replayed. "compile" is
torch.compile(fullgraph=True), so any graph break in the model, such as at an operator of tritonq, is an error. On a GPU
Inductor's code is then captured like the eager call. On a CPU AOTAutograd's graph, Inductor's input, runs.
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
    """The ways that a device supports."""
    return (EAGER, GRAPH, COMPILE) if device.type == "cuda" else (EAGER, COMPILE)


class Call:
    """One call of a model: reads the buffer `ids` [B, T], writes `logits` [B, vocabulary] and `chosen` [B, 1].

    If T is 1, the call writes its choice to `ids`, where the next call reads it.

    Args:
        session: the model and its cache.
        ids: the first input.
        way: how to run it. A warm-up runs it a few times, so rewind the session before the first call.
        filled: the warm-up rewinds to this position.
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
        """Warm up on another stream before a capture: kernels are compiled and buffers allocated."""
        if not self.ids.is_cuda:
            run()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
