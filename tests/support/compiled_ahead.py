"""Whether what tuning compiles ahead, on operands without memory, is what a launch on real ones finds in the cache.

Run in another process (`python -m tests.support.compiled_ahead FOLDER`): the interpreter's compiles nothing.
Prints a JSON object: workload and path → how many kernels the cache holds before, after compiling, after launching.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.stand_in_driver import stand_in_gpu

TARGET = ("cuda", 90, 132, 227 * 1024)


def main(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder
    found: dict[str, list[int]] = {}

    def kernels() -> int:
        return len(list(Path(folder).rglob("*.cubin")))

    with stand_in_gpu():
        from tritonq.kernels.config.tile import TileConfig
        from tritonq.kernels.launch.target import Target
        from tritonq.tuning.measure import compile_config
        from tritonq.tuning.workload import Workload, product

        for workload, config in (
            (Workload("w4a16", 512, 1024, 1), TileConfig(64, 8, 256, 2, 4, 3, max_registers=96)),
            (Workload("w8a8", 512, 1024, 300), TileConfig(128, 128, 128, 1, 8, 3, "descriptors")),
            (Workload("w8a8", 512, 1024, 300), TileConfig(128, 128, 128, 1, 8, 4, "hopper")),
        ):
            counts = [kernels()]
            with_memory = product(workload, "cpu")
            compile_config(workload, config, Target(*TARGET))
            counts.append(kernels())
            with_memory.run(config=config)
            found[f"{workload} {config.path}"] = [*counts, kernels()]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
