"""Triton's language as it was imported.

Triton's interpreter replaces functions and operators of the language by its own while it runs a kernel, and those that
an inner function has it replace stay replaced. The emulator runs Gluon's front end on the originals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import triton.language as tl

_SCOPES = (tl, tl.core, tl.math, tl.core.tensor, tl.core.dtype, tl.core.tensor_descriptor_base)
_ORIGINALS = [(scope, name, value) for scope in _SCOPES for name, value in vars(scope).items()]


@contextlib.contextmanager
def original_language() -> Iterator[None]:
    """Meanwhile the language is what it was when this module was imported."""
    replaced = [
        (scope, name, value, vars(scope)[name])
        for scope, name, value in _ORIGINALS
        if name in vars(scope) and vars(scope)[name] is not value
    ]
    for scope, name, value, _ in replaced:
        setattr(scope, name, value)
    try:
        yield
    finally:
        for scope, name, _, replacement in replaced:
            setattr(scope, name, replacement)
