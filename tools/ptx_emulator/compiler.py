"""Compiles launches in a separate process, which runs without TRITON_INTERPRET and may import another Triton.

    python -m tools.ptx_emulator.compiler      a description (specialization.py) and an architecture a line, as JSON;
                                               answers with PTX, shared memory and tensor maps' shapes

`Compiler` runs it. Triton caches the results on disk, in a separate folder: they are not assembled, which saves time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

_ROOT = Path(__file__).resolve().parents[2]


class Compiler:
    """A process that compiles.

    Args:
        triton: a folder that holds the Triton to compile with; None for the one of this environment.
    """

    def __init__(self, triton: str | None = None) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join([*([triton] if triton else []), str(_ROOT)])
        environment["TRITON_CACHE_DIR"] = os.environ.get(
            "TRITONQ_PTX_CACHE", str(Path(tempfile.gettempdir()) / f"tritonq-ptx-{os.getuid()}")
        )
        command = [sys.executable, "-m", "tools.ptx_emulator.compiler"]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def compile(self, description: dict[str, Any], architecture: int) -> dict[str, Any]:
        """{ptx, ttgir, shared, tensor_maps} of a launch, for compute capability architecture / 10."""
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None
        assert answers is not None
        to.write(json.dumps([description, architecture]) + "\n")
        to.flush()
        answer = answers.readline()
        if not answer:
            raise RuntimeError(f"nothing compiles {description['kernel']}: the compiling process has ended")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise RuntimeError(f"{description['kernel']} does not compile: {result['error']}")
        return result

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


def compiled(description: dict[str, Any], architecture: int) -> dict[str, Any]:
    """In the process that compiles."""
    import triton
    from triton.backends.compiler import GPUTarget

    from .specialization import source_of

    source = source_of(description)
    kernel = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=description["options"]
    )
    maps = [
        shape if isinstance(shape, dict) else shape._asdict()
        for shape in getattr(kernel.metadata, "tensordesc_meta", None) or []
    ]
    return {
        "ptx": kernel.asm["ptx"],
        "ttgir": kernel.asm["ttgir"],
        "is_gluon": source.fn.is_gluon(),
        "shared": kernel.metadata.shared,
        "triton": triton.__version__,
        "tensor_maps": [
            {
                "swizzle": shape["swizzle"],
                "element_size": shape["elem_size"],
                "box": list(shape["block_size"]),
            }
            if shape
            else None
            for shape in maps
        ],
    }


def main(descriptions: IO[str], answers: IO[str]) -> None:
    """Answer line after line."""
    from triton.backends.nvidia.compiler import CUDABackend

    CUDABackend.make_cubin = lambda *_: b""
    for line in descriptions:
        try:
            answer = compiled(*json.loads(line))
        except Exception as raised:  # whatever it is, who asked must know
            error: BaseException = raised
            while error.__cause__ is not None:
                error = error.__cause__
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
