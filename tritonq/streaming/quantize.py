"""`quantize_files`: computes and writes the tensors of the result one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tritonq.checkpoint import files
from tritonq.checkpoint.writer import index_fields
from tritonq.nn.check import check_linear
from tritonq.numerics import checkpoint_layout, qparams
from tritonq.observers import observed_weight_qparams
from tritonq.quantize.conversions import check_scale
from tritonq.select.patterns import Pattern
from tritonq.select.select import DEFAULT_IGNORE
from tritonq.streaming.plan import Layer, Piece, Plan, make_plan
from tritonq.streaming.workspace import Workspace, identity_of
from tritonq.util.progress import track

#: Smaller than the files of `save`, because an interruption loses one file, and memory holds one file.
MAX_SHARD_BYTES = 10**9


@dataclass(frozen=True)
class Streamed:
    """The outcome of `quantize_files`.

    Attributes:
        shards: the number of tensor files.
        kept: the number of files that an earlier, interrupted run had finished.
    """

    shards: int
    kept: int


def quantize_files(
    model: nn.Module,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: Any,
    *,
    ignore: Iterable[Pattern] = DEFAULT_IGNORE,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    restart: bool = False,
    companions: Iterable[str] = (),
    device: torch.device | str = "cpu",
) -> Streamed:
    """Quantize a directory of safetensors files into another one.

    Until the result is complete it is in `<target>.partial`. After an interruption, the same call continues there. The
    call is refused if the source's files, the config or anything else that changes the result is different.

    Args:
        model: the float model on the meta device, in the dtype of the result; its layers are replaced.
        source: a directory with the model's tensors under the model's names.
        target: must not exist, or be empty.
        config, ignore: as for `quantize_`; no static config, which would need calibration.
        max_shard_bytes: the size limit of one file; more tensors go to further files.
        restart: delete the files of an interrupted run.
        companions: files of `source` to copy unchanged (such as the tokenizer's).
        device: quantizes the layers; the codes are the same on every device.

    Raises:
        UnfitModelError: a ValueError; the tensors of the files do not match those of the model.
        TypeError, ValueError: bad arguments or weights; the message says what was found and what is allowed.
        OSError: for example, the disk is full. Finished files are kept.
    """
    if type(max_shard_bytes) is not int or max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be a positive integer, found {max_shard_bytes!r}")
    for path in (source, target):
        files.check_path(path)
    home = files.check_directory(os.fspath(source))
    with files.open_tensors(home) as tensors:
        plan = make_plan(model, config, ignore, tensors, max_shard_bytes)
        used = [files.CONFIG, *sorted(set(tensors.file_of.values()))]
        identity = {name: identity_of(home / name) for name in used if (home / name).exists()}
        request = {"source": identity, "config": plan.config, "shards": plan.shards}
        with Workspace(Path(target), request, restart) as workspace:
            workspace.check_space()
            kept = sum(workspace.has(shard) for shard in range(len(plan.shards)))
            _write_shards(workspace, plan, _Values(tensors, torch.device(device)))
            if len(plan.shards) > 1:
                workspace.write_json(files.INDEX, index_fields(plan.shards))
            for name in companions:
                workspace.copy(home / name)
            workspace.write_json(files.CONFIG, plan.config)
            workspace.publish()
    return Streamed(len(plan.shards), kept)


def _write_shards(workspace: Workspace, plan: Plan, values: _Values) -> None:
    """Compute and write the missing files, in order."""
    pending: dict[str, Tensor] = {}
    for piece in track(plan.pieces, "Quantizing"):
        if workspace.has(piece.shard):
            continue
        pending[piece.name] = values.of(piece)
        if len(pending) == len(plan.shards[piece.shard]):
            workspace.write_shard(piece.shard, pending)
            pending = {}


class _Values:
    """Computes the tensors of the result, and keeps those of the last layer, whose pieces are consecutive."""

    def __init__(self, tensors: files.TensorFiles, device: torch.device) -> None:
        self._tensors, self._device = tensors, device
        self._layer: Layer | None = None
        self._state: dict[str, Tensor] = {}

    def of(self, piece: Piece) -> Tensor:
        if piece.layer is None:
            return self._read(piece.source, piece.dtype)
        if piece.layer is not self._layer:
            self._layer, self._state = None, {}  # freed before the next one is made
            self._state = self._quantized(piece.layer)
            self._layer = piece.layer
        return self._state[piece.local]

    @torch.no_grad()
    def _quantized(self, layer: Layer) -> dict[str, Tensor]:
        """A layer's tensors for a checkpoint, bias excluded, as QuantizedLinear.from_float computes them."""
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self._read(layer.weight, layer.dtype, self._device), requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(self._read(layer.bias, layer.dtype, self._device), requires_grad=False)
        check_linear(linear, layer.config, layer.name)
        found = observed_weight_qparams(linear.weight, layer.config.weight, layer.name)
        if found is not None:
            check_scale(found[0], f"{layer.name}: the weight's")
        codes, scale, zero_point = qparams.quantize_weight(linear.weight, layer.config.weight, found)
        state = checkpoint_layout.weight_state(layer.config, codes, scale, zero_point)
        return {name: tensor.cpu() for name, tensor in state.items()}

    def _read(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """A stored tensor in the model's dtype; a ValueError if it overflows there."""
        stored = self._tensors.get(name)
        tensor = stored.to(device, dtype, copy=True)
        if tensor.isinf().any() and (tensor.isinf().cpu() & stored.isfinite()).any():
            word = str(dtype).removeprefix("torch.")
            raise ValueError(f"{name} must fit into {word}, found {stored.abs().max().item():g}")
        return tensor
