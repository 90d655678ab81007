"""Whether an instruction set multiplies codes exactly on this machine: extreme codes, in long runs of one sign."""

from __future__ import annotations

import torch

from tritonq.cpu.engine import Engine


def is_exact(engine: Engine) -> bool:
    """Compare int32 sums of products of -128 and 127 with int64 ones."""
    extreme = torch.tensor([-128, 127], dtype=torch.int8)
    x = torch.stack([extreme.repeat(152), extreme.flip(0).repeat(152), extreme[:1].repeat(304)])
    w = torch.cat([x, -x.clamp(min=-127), extreme[1:].repeat(1, 304)])
    found = engine.int8.accumulate(engine, x, None, w, None, w.sum(dim=1, dtype=torch.int32))
    return torch.equal(found.long(), x.long() @ w.long().t())
