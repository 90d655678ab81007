"""Recording the runs of a prepared model, while its user calibrates it.

Hooks on the model begin and end a recording with each of its forwards. A model that was put into another one since is
found there with what it recorded. Compiled parts of a model run uncompiled for the recording; a model that is compiled
as a whole is not recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import nn

from tritonq.flow.record import Dataflow, Recorder, recording
from tritonq.select.patterns import named_modules

FLOWS = "recorded_flows"
_RECORDING = "_recording"
#: Different runs of one model that are kept; calibration that takes more paths than these proves nothing.
MOST_FLOWS = 16


def watch(model: nn.Module) -> None:
    """Record every run of a model from now on, each different one once, in its attribute `recorded_flows`."""
    vars(model)[FLOWS] = []
    model.register_forward_pre_hook(_start, with_kwargs=True)
    model.register_forward_hook(_stop, prepend=True, always_call=True)


def unwatch(model: nn.Module) -> None:
    """Stop recording a model and all in it, and forget; nothing happens where nothing was recorded."""
    for module in model.modules():
        if vars(module).pop(FLOWS, None) is None:
            continue
        interrupted: _Recordings | None = vars(module).pop(_RECORDING, None)
        if interrupted is not None:  # by Ctrl-C, which calls no hook
            interrupted.close()
        for hooks, own in ((module._forward_pre_hooks, _start), (module._forward_hooks, _stop)):
            for key in [key for key, hook in hooks.items() if hook is own]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)


def recorded(model: nn.Module) -> list[Dataflow]:
    """The different runs since `watch`, of a model or of what is in it; none if they were too many for a proof."""
    found: list[Dataflow] = []
    for name, module in named_modules(model):
        flows: list[Dataflow] = vars(module).get(FLOWS, [])
        if len(flows) > MOST_FLOWS:
            return []
        found += [flow.prefixed(f"{name}.") if name else flow for flow in flows]
    return found


@dataclasses.dataclass
class _Recordings:
    """A model's forwards that run now, the innermost last. Copies and pickles begin without any."""

    stack: list[tuple[contextlib.ExitStack, Recorder]] = dataclasses.field(default_factory=list)

    def close(self) -> None:
        """End them all."""
        while self.stack:
            self.stack.pop()[0].close()

    def __reduce__(self) -> Any:
        return _Recordings, ()


def _start(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling():
        return  # what is compiled as a whole makes no calls that could be seen
    recordings: _Recordings = vars(model).setdefault(_RECORDING, _Recordings())
    exits = contextlib.ExitStack()
    # Compiled parts run as they were written: what they call is to be seen.
    exits.enter_context(torch.compiler.set_stance("force_eager"))
    recordings.stack.append((exits, exits.enter_context(recording(model))))


def _stop(model: nn.Module, args: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    recordings: _Recordings | None = vars(model).get(_RECORDING)
    if recordings is None or not recordings.stack:
        return  # another hook failed before the recording began
    exits, recorder = recordings.stack.pop()
    exits.close()
    if not recordings.stack:
        del vars(model)[_RECORDING]
    flows = vars(model)[FLOWS]
    if output is not None and len(flows) <= MOST_FLOWS:  # None: the forward failed
        flow = recorder.finish(output)
        if flow not in flows:
            flows.append(flow)
