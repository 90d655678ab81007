"""What loading and converting hold at once: the result, the file that is read, and one layer, never as float."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.foreign_checkpoints import write
from tritonq import checkpoint
from tritonq.nn import QuantizedLinear, packed_weight

LAYERS, WIDTH, GROUP = 9, 512, 64


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, maps of files included.

    Attributes:
        peak: the most there ever was.
        largest_float: elements of the largest floating-point tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest_float = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            self.largest_float = max(self.largest_float, tensor.numel())
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            weakref.finalize(storage, self._drop, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def tensors(method: str) -> dict[str, Tensor]:
    """Random words: every one of them is a valid checkpoint."""

    def words(*shape: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, shape).to(torch.int32)

    packed, groups = WIDTH // 8, WIDTH // GROUP
    made = {}
    for index in range(LAYERS):
        shape = (packed, WIDTH) if method == "gptq" else (WIDTH, packed)
        made[f"{index}.qweight"] = words(*shape)
        made[f"{index}.qzeros"] = words(groups, packed)
        made[f"{index}.scales"] = torch.rand(groups, WIDTH).half()
    return dict(sorted(made.items()))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_one_file_and_one_layer(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few rows are packed at once, as in a layer of usual size.
    monkeypatch.setattr(packed_weight, "_BLOCK_VALUES", 8 * WIDTH)
    config = {"quant_method": method, "bits": 4, "group_size": GROUP}
    write(
        tmp_path / method, {**config, "sym": False} if method == "gptq" else config, tensors(method), shards=3
    )
    file = max(path.stat().st_size for path in (tmp_path / method).iterdir())
    layer = 4 * WIDTH * WIDTH  # bytes of a layer in float32
    assert (
        2 * file + layer < LAYERS * layer // 4
    )  # holding all float layers, or all of both checkpoints, fails

    with Held() as held:
        checkpoint.convert(tmp_path / method, tmp_path / "q")
    assert held.peak <= 2 * file + layer  # the map of the file that is read, and the file that is written
    for directory in (tmp_path / method, tmp_path / "q"):
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        with Held() as held:
            checkpoint.load(directory, model)
        result = sum(module.weight_bytes for module in model.modules() if isinstance(module, QuantizedLinear))
        assert held.peak <= result + file + layer // 4
        assert held.largest_float < WIDTH * WIDTH
