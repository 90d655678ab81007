"""Operators called on a GPU that is not there: their plan run plainly, through Triton, and compiled.

Run in another process (`python -m tests.support.planned_calls`), because the interpreter's variable poisons
a process for launching. Prints a JSON object: operator → what reached the driver's launch function in a plain run and
in a compiled one, addresses named by where they come from. The first call, for which the plan is made, and the two that
are compared each have tensors of their own. Likewise, under "chains", six layers of each scheme: layers of one kind
share a plan.
"""

from __future__ import annotations

import json
import os
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.stand_in_driver import stand_in_gpu
from tritonq.doctor.chains import SCHEMES, chained_layers

COLUMNS, FEATURES = 512, 256


class Log:
    """What the driver was asked to launch."""

    def __init__(self) -> None:
        self.launches: list[list[Any]] = []
        self.maps: dict[int, tuple[Any, ...]] = {}

    def watch(self) -> None:
        """Listen at the C functions of Triton's driver."""
        from triton.runtime.driver import driver

        utils = driver.active.utils
        for name in ("fill_tma_descriptor", "fill_tma_descriptor_tiled"):
            if hasattr(utils, name):
                setattr(utils, name, self._remembering(getattr(utils, name)))
        if hasattr(utils, "launch"):
            utils.launch = self._logging(utils.launch)
            return
        from triton.backends.nvidia import driver as nvidia  # Triton 3.6 compiles a function for each kernel

        build = nvidia.compile_module_from_src
        nvidia.compile_module_from_src = lambda *arguments, **words: types.SimpleNamespace(
            launch=self._logging(build(*arguments, **words).launch)
        )

    def _remembering(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            tensor_map = make(*arguments)
            self.maps[id(tensor_map)] = (tensor_map, arguments)
            return tensor_map

        return made

    def _logging(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def launched(*arguments: Any) -> None:
            function(*arguments)  # which checks them
            self.launches.append(list(arguments))

        return launched

    def take(self, inputs: dict[str, Tensor]) -> list[Any]:
        """The launches since the last time, with addresses of inputs by name, all others by order of appearance."""
        names = {tensor.data_ptr(): name for name, tensor in inputs.items()}

        def plain(value: Any) -> Any:
            if id(value) in self.maps:
                return ["tensor map", *map(plain, self.maps[id(value)][1])]
            if isinstance(value, (list, tuple)):
                return [plain(part) for part in value]
            address = value.data_ptr() if hasattr(value, "data_ptr") else value
            if isinstance(address, int) and address > 1 << 32:
                return names.setdefault(address, f"memory {len(names)}")
            if type(value).__name__ in ("HookChain", "LazyDict"):
                return None  # hooks that are empty, and what they would be told
            return address if isinstance(address, (int, float, str, type(None))) else type(address).__name__

        launches, self.launches = self.launches, []
        return [plain(launch) for launch in launches]


def operands(rows: int) -> dict[str, dict[str, Any]]:
    """Operator → its arguments by name, in new memory each time."""
    x = torch.zeros(rows, COLUMNS, dtype=torch.bfloat16)
    codes, token = torch.zeros(rows, COLUMNS, dtype=torch.int8), torch.ones(rows, 1)
    bias = torch.nn.Parameter(torch.zeros(FEATURES, dtype=torch.bfloat16))
    scale, sums = torch.ones(1, FEATURES), torch.zeros(FEATURES, dtype=torch.int32)
    w8 = torch.zeros(FEATURES, COLUMNS, dtype=torch.int8)
    w4 = torch.zeros(FEATURES, COLUMNS // 4, dtype=torch.int16)
    groups = torch.ones(COLUMNS // 128, FEATURES)
    int8 = {"x": codes, "x_scale": token, "x_zero": None, "weight": w8, "weight_scale": scale}
    int8 |= {"weight_zero": None, "weight_sum": sums, "bias": bias}
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int8)
    return {
        "quantize_per_token": {"x": x, "symmetric": True},
        "weight_only_linear": {
            "x": x,
            "weight": w4,
            "weight_scale": groups,
            "weight_zero": None,
            "bias": bias,
            "group_size": 128,
        },
        # One launch, or for many rows two that hand memory on.
        "int8_linear_dynamic": {"x": x, "symmetric": True, "weight": w8, "weight_scale": scale}
        | {"weight_zero": None, "weight_sum": sums, "bias": bias},
        "int8_linear": int8 | {"dtype": torch.bfloat16},
        "int8_linear_requantize": int8 | {"out_scale": one, "out_zero": zero, "symmetric": False},
    }


def main() -> None:
    """Compare for few rows (split K) and many (descriptors)."""
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", "nothing is launched in the interpreter's process"
    found: dict[str, Any] = {}
    with stand_in_gpu(), torch.inference_mode():
        from tritonq import ops
        from tritonq.kernels.launch import plans

        log = Log()
        log.watch()
        for rows in (1, 1024):
            for name in operands(rows):
                kept: list[Any] = []  # so that no memory is used twice

                def call(name: str = name, rows: int = rows, kept: list[Any] = kept) -> list[Any]:
                    arguments = operands(rows)[name]
                    kept.append((arguments, getattr(ops, name)(*arguments.values())))
                    tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
                    return log.take(tensors)

                plans.forget()
                first = call()
                with plans.set_aside():
                    plain = call()
                (plan,) = plans.made.values()
                found[f"{name}, {rows} rows"] = {
                    "first": first,
                    "plain": plain,
                    "compiled": call(),
                    "is_compiled": plan.compiled is not None,
                }
        found["chains"] = {
            f"{scheme}, {rows} rows": _of_chain(log, scheme, rows) for scheme in SCHEMES for rows in (1, 256)
        }
        found["hooks"] = _with_hooks(log)
        found["twice"] = _with_one_tensor_twice(log)
    print(json.dumps(found))


def _of_chain(log: Log, scheme: str, rows: int) -> dict[str, Any]:
    """What each layer's launches are given, in plain runs and compiled, and whether all plans are compiled."""
    from tritonq.kernels.launch import plans

    layers = chained_layers(scheme, COLUMNS, "cpu")
    weights: dict[str, Any] = {
        f"weight of {index}": layer.packed_weight for index, layer in enumerate(layers)
    }

    def run() -> list[Any]:
        found, x = [], torch.zeros(rows, COLUMNS, dtype=torch.bfloat16)
        for layer in layers:
            y = layer(x)
            found.append(log.take({"x": x, "y": y, **weights}))
            x = y
        return found

    plans.forget()
    with plans.set_aside():
        plain = run()
    run()
    are_compiled = all(plan.compiled is not None for plan in plans.made.values())
    return {"plain": plain, "compiled": run(), "are_compiled": are_compiled}


def _with_hooks(log: Log) -> dict[str, int]:
    """How often each kind of hook runs, in calls whose plan would run compiled without."""
    from triton import knobs

    from tritonq import ops
    from tritonq.kernels.rows.quantize import quantize_per_token_kernel

    x = operands(1)["quantize_per_token"]["x"]
    counts = {"enter": 0, "pre_run": 0, "plain": 0}

    def count(which: str) -> Callable[..., None]:
        def hook(*arguments: Any, **words: Any) -> None:
            counts[which] += 1

        return hook

    ops.quantize_per_token(x, True)
    enter = count("enter")
    knobs.runtime.launch_enter_hook.add(enter)
    ops.quantize_per_token(x, True)
    knobs.runtime.launch_enter_hook.remove(enter)
    quantize_per_token_kernel.add_pre_run_hook(count("pre_run"))
    ops.quantize_per_token(x, True)
    quantize_per_token_kernel.pre_run_hooks.clear()
    ops.quantize_per_token(x, True)
    counts["plain"] = len(log.take({})) - 3
    return counts


def _with_one_tensor_twice(log: Log) -> dict[str, list[str]]:
    """Which tensors a launch is given, by calls with two operands and with one twice; the first makes the plan."""
    from tritonq import ops

    tensors = {name: torch.zeros(2, 64, dtype=torch.bfloat16) for name in "ab"}
    found = {}
    for first in ("aa", "ab"):
        scale = torch.ones(1)
        for call in (first, "ab", "ba", "bb"):
            x, residual = (tensors[name] for name in call)
            eps = 1e-6 if first == "aa" else 1e-5  # so that these are calls of another kind
            ops.add_rms_norm_quantize_per_tensor(
                x, residual, None, eps, scale, torch.zeros(1, dtype=torch.int8), True
            )
            (launch,) = log.take(tensors)
            found[f"{call} after {first}"] = [part for part in _flat(launch) if part in tensors]
    return found


def _flat(value: Any) -> list[Any]:
    """Arguments of the C function one by one. The kernel's own are a list among them, from Triton 3.7 on."""
    return [part for one in value for part in _flat(one)] if isinstance(value, list) else [value]


if __name__ == "__main__":
    main()
