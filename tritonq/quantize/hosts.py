"""What hosts want to know of a model that has been quantized, without this folder knowing any of them.

tritonq/__init__.py registers them. A hook is imported when its host is, and not before.
"""

from __future__ import annotations

import importlib
import sys

from torch import nn

#: host → "module:function" of what is called with a quantized model
_HOOKS: dict[str, str] = {}


def register(host: str, hook: str) -> None:
    """Have "module:function" called with every quantized model in a process that has imported the host."""
    _HOOKS[host] = hook


def tell(model: nn.Module) -> None:
    """Call the hooks of the hosts that are there."""
    for host, hook in _HOOKS.items():
        if host in sys.modules:
            module, _, function = hook.partition(":")
            getattr(importlib.import_module(module), function)(model)
