"""Replaces a module and keeps everything that users have attached to it."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from tritonq.select.patterns import Place

#: The user's hooks. They move to the new module, and the handles that remove them keep working.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
#: How accelerate calls a module through its `_hf_hook`, which moves inputs and weights to a device.
_OF_ACCELERATE = ("forward", "_old_forward")

#: What nn.RNNBase keeps beside its parameters; it would keep the float weights.
_OF_RECURRENT_LAYERS = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights")


def move_hooks(old: nn.Module, new: nn.Module, place: Place) -> None:
    """Put `new` in the place of `old`, with the hooks, the training flag and the user's attributes of `old`.

    The user's attributes (`layer.tag = …`) are those that no class declares and that `new` does not have. Hooks on
    state dictionaries are dropped, because they were written for another layout.
    """
    hook = vars(old).pop("_hf_hook", None)
    for name in _OF_ACCELERATE:
        vars(old).pop(name, None)
    declared = {name for cls in type(old).__mro__ for name in getattr(cls, "__annotations__", ())}
    for name, value in vars(old).items():
        if name not in declared and name not in _OF_RECURRENT_LAYERS and not hasattr(new, name):
            vars(new)[name] = value
    take_place(old, new, place)
    if hook is not None:
        sys.modules["accelerate.hooks"].add_hook_to_module(new, hook)


def take_place(old: nn.Module, new: nn.Module, place: Place) -> None:
    """Put `new` in the place of `old`, with its hooks and training flag alone."""
    for name in HOOKS:
        state: Any = getattr(old, name)
        setattr(new, name, state)
    new.training = old.training
    place.put(new)
