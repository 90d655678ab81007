"""The weight shapes to tune for: those of a model, given ones, or the usual ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tritonq.checkpoint import files

#: (N, K): what `nn.Linear` calls (out_features, in_features).
Shape = tuple[int, int]

#: Shapes of: q and o; k and v; down; gate and up; q, k, v joined; gate, up joined.
USUAL: dict[str, tuple[Shape, ...]] = {
    "Llama-3-8B": ((4096, 4096), (1024, 4096), (4096, 14336), (14336, 4096), (6144, 4096), (28672, 4096)),
    "Qwen2.5-7B": ((3584, 3584), (512, 3584), (3584, 18944), (18944, 3584), (4608, 3584), (37888, 3584)),
}
#: Projections that read the same input, and run in one launch if they are fused.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_LARGEST = 1 << 24
#: Names of tensors that belong to no Linear, or to one that stays in float by default.
_OTHERS = re.compile(r"embed|lm_head|wte|wpe|norm|router|rotary")
_WEIGHT = ".weight"


def usual_shapes() -> list[Shape]:
    """All shapes of `USUAL`, without duplicates."""
    return list(dict.fromkeys(shape for shapes in USUAL.values() for shape in shapes))


def parse_shape(text: str) -> Shape:
    """The shape (N, K) that "NxK" writes.

    Raises:
        ValueError: the text is not two positive integers.
    """
    match = re.fullmatch(r"(\d{1,8})x(\d{1,8})", text.strip())
    shape = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not all(0 < size <= _LARGEST for size in shape):
        raise ValueError(f"--shapes must be NxK such as 4096x14336, up to {_LARGEST:,}, found {text!r}")
    return shape


def shapes_of_model(path: Path) -> list[Shape]:
    """The Linear shapes of a model directory (from its tensors' headers, else its config.json) or of a config.json.

    Siblings that read the same input are listed joined too, as `fuse_siblings_` runs them. Nothing is downloaded, and
    no tensor is read.

    Raises:
        FileNotFoundError, ValueError: the model does not exist, or its shapes cannot be found out.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} must be a model directory or a config.json, found nothing there")
    if path.is_dir() and any(path.glob("*.safetensors")):
        with files.open_tensors(path) as tensors:
            shapes = _from_tensors(tensors.shapes)
        if shapes:
            return shapes
    file = path / files.CONFIG if path.is_dir() else path
    try:
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be a model's config.json: {error}") from None
    return _from_config(fields, file)


def _from_tensors(tensors: dict[str, tuple[int, ...]]) -> list[Shape]:
    linears = {
        name.removesuffix(_WEIGHT): (shape[0], shape[1])
        for name, shape in tensors.items()
        if name.endswith(_WEIGHT) and len(shape) == 2 and not _OTHERS.search(name)
    }
    shapes = list(linears.values())
    for siblings in _SIBLINGS:
        for name in linears:
            if name.rpartition(".")[2] == siblings[0]:
                prefix = name.removesuffix(siblings[0])
                members = [linears.get(prefix + sibling) for sibling in siblings]
                found = [member for member in members if member is not None]
                if len(found) == len(siblings):
                    shapes.append((sum(size for size, _ in found), found[0][1]))
    return list(dict.fromkeys(shapes))


def _from_config(fields: Any, file: Path) -> list[Shape]:
    """The shapes of a decoder that names its sizes like Llama, Mistral and Qwen."""
    if isinstance(fields, dict) and isinstance(fields.get("text_config"), dict):
        fields = fields["text_config"]
    if not isinstance(fields, dict):
        raise ValueError(f"{file} must hold a dictionary, found {type(fields).__name__}")

    def size(name: str, default: int | None = None) -> int:
        value = fields.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise ValueError(
                f"{file} must have {name}, a positive integer, found {value!r}: give the shapes with --shapes"
            )
        return value

    hidden, middle, heads = size("hidden_size"), size("intermediate_size"), size("num_attention_heads")
    width = size("head_dim", hidden // heads)
    q, kv = heads * width, size("num_key_value_heads", heads) * width
    shapes = [(q, hidden), (kv, hidden), (hidden, q), (middle, hidden), (hidden, middle)]
    return list(dict.fromkeys([*shapes, (q + 2 * kv, hidden), (2 * middle, hidden)]))
