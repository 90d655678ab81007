"""tritonq inside other programs. Each of them is imported only where its module here is."""

import contextlib


def register_with_transformers() -> None:
    """Make tritonq a method of transformers, which is imported; of a version that differs, not."""
    with contextlib.suppress(ImportError):  # `tritonq.TritonQConfig` says why
        import tritonq.integrations.transformers  # noqa: F401


def register_with_peft() -> None:
    """Make PEFT, which is imported, take quantized layers."""
    with contextlib.suppress(ImportError, AttributeError):
        import tritonq.integrations.peft

        tritonq.integrations.peft.register()
