"""Compiles a kernel's IR to machine code, and caches the machine code on disk.

A file holds one kernel's object code. Its name is a hash of everything that the code depends on: the kernel's
parameters, this package's sources as this process imported them, LLVM and the processor. So a cached file is never out
of date. It is written to a temporary file and then renamed, so that processes that compile at the same time never read
half a file. If the folder cannot be written, or the sources have changed since they were imported, the process caches
nothing.

`TRITONQ_CACHE` replaces the folder ~/.cache/tritonq.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritonq.cpu.code import ENTRY, Code
from tritonq.cpu.processor import Instructions
from tritonq.cpu.sources import imported_hash

VARIABLE = "TRITONQ_CACHE"
_OWNER_ONLY = 0o700
_lock = threading.Lock()
#: Engines own the machine code; they live as long as the process.
_engines: list[Any] = []


def compiled(build: Callable[[Any, Instructions], Code], what: Any, instructions: Instructions) -> int:
    """The address of the kernel that `build` writes for `what`, a plain value of one `repr`."""
    with _lock:
        import llvmlite.binding as llvm

        machine = _target_machine(instructions)
        sources = imported_hash()
        file = None if sources is None else _file(sources, f"{build.__name__} {what!r}", instructions)
        kept = None if file is None else _read(file)
        if kept is None:
            module = _optimized(build(what, instructions), instructions)
        else:
            module = llvm.parse_assembly(f'target triple = "{llvm.get_default_triple()}"')
        engine = llvm.create_mcjit_compiler(module, machine)
        if file is not None:
            engine.set_object_cache(lambda _, code: _write(file, code), lambda _: kept)
        engine.finalize_object()
        _engines.append(engine)
        address: int = engine.get_function_address(ENTRY)
        return address


def assembly(code: Code, instructions: Instructions) -> str:
    """A kernel's machine code as text, for people and tests."""
    text: str = _target_machine(instructions).emit_assembly(_optimized(code, instructions))
    return text


def _optimized(code: Code, instructions: Instructions) -> Any:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(_with_wide_vectors(code.finish(), instructions))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # Kernels are written in vectors, and unrolled where that helps.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(_target_machine(instructions), options)
    builder.getModulePassManager().run(module, builder)
    return module


def _with_wide_vectors(ir: str, instructions: Instructions) -> str:
    """Some processors avoid 512-bit vectors unless a function says that it was written for them."""
    width = 32 * instructions.lanes
    words = f'"min-legal-vector-width"="{width}" "prefer-vector-width"="{width}"'
    return re.sub(r"^(define .*\))$", rf"\1 {words}", ir, count=1, flags=re.MULTILINE)


@functools.cache
def _target_machine(instructions: Instructions) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_feature_text(instructions), opt=3, jit=True
    )


def _feature_text(instructions: Instructions) -> str:
    import llvmlite.binding as llvm

    def sign(name: str, there: bool) -> str:
        return "+" if there and not name.startswith(instructions.without or ("?",)) else "-"

    found = llvm.get_host_cpu_features()
    return ",".join(sign(name, there) + name for name, there in sorted(found.items()))


def _file(sources: str, kernel: str, instructions: Instructions) -> Path:
    import llvmlite
    import llvmlite.binding as llvm

    parts = (
        llvmlite.__version__,
        str(llvm.llvm_version_info),
        llvm.get_default_triple(),
        llvm.get_host_cpu_name(),
        _feature_text(instructions),
        instructions.name,
        sources,
        kernel,
    )
    return _folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.o"


def _folder() -> Path:
    given = os.environ.get(VARIABLE)
    return (Path(given) if given else Path.home() / ".cache" / "tritonq") / "cpu"


def _read(file: Path) -> bytes | None:
    """Object code, only from a file that this user owns."""
    try:
        if hasattr(os, "getuid") and file.stat().st_uid != os.getuid():
            return None
        return file.read_bytes()
    except OSError:
        return None


def _write(file: Path, code: bytes) -> None:
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
            temporary.write(code)
        os.replace(temporary.name, file)
