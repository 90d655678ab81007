"""Records the runs of a prepared model while the user calibrates it.

Hooks begin and end a recording with each forward of the model. If the model later becomes a part of another one, its
recordings are found there. Compiled parts of a model run uncompiled during a recording. A model that is compiled as a
whole is not recorded.
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
#: The most different runs to keep. Calibration with more different paths proves nothing.
MOST_FLOWS = 16


def watch(model: nn.Module) -> None:
    """Record every run of a model from now on in its attribute `recorded_flows`; equal runs are kept once."""
    vars(model)[FLOWS] = []
    model.register_forward_pre_hook(_start, with_kwargs=True)
    model.register_forward_hook(_stop, prepend=True, always_call=True)


def unwatch(model: nn.Module) -> None:
    """Stop recording a model and all its modules, and delete the recordings, if there are any."""
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
    """The different runs since `watch`, of a model or of a module in it; none if there were too many."""
    found: list[Dataflow] = []
    for name, module in named_modules(model):
        flows: list[Dataflow] = vars(module).get(FLOWS, [])
        if len(flows) > MOST_FLOWS:
            return []
        found += [flow.prefixed(f"{name}.") if name else flow for flow in flows]
    return found


@dataclasses.dataclass
class _Recordings:
    """A model's running forwards, the innermost last. Copies and pickles have none."""

    stack: list[tuple[contextlib.ExitStack, Recorder]] = dataclasses.field(default_factory=list)

    def close(self) -> None:
        """End all recordings."""
        while self.stack:
            self.stack.pop()[0].close()

    def __reduce__(self) -> Any:
        return _Recordings, ()


def _start(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling():
        return  # a model compiled as a whole makes no calls that could be recorded
    recordings: _Recordings = vars(model).setdefault(_RECORDING, _Recordings())
    exits = contextlib.ExitStack()
    # Compiled parts run uncompiled, so that their calls are recorded.
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
