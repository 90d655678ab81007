"""Opens, checks and loads a model directory of transformers, without the network and without pickles.

config.json                      the architecture
model.safetensors, …             its tensors
tokenizer.json, …                "companions": the other files, which a quantized copy needs too
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tritonq.checkpoint import files
from tritonq.checkpoint.source import ALONE, FIELD
from tritonq.numerics.qparams import FLOAT_DTYPES

_COMPANIONS = {".json", ".txt", ".jinja", ".model", ".tiktoken"}
_LONGEST = 300
_NEEDED = 'needs transformers 5: pip install "tritonq[hf]"'


@dataclass(frozen=True)
class ModelDirectory:
    """A directory with a config.json and safetensors files.

    Attributes:
        path: the directory.
        config: transformers' configuration object.
        fields: the contents of config.json.
    """

    path: Path
    config: Any
    fields: dict[str, Any]

    @property
    def quantization(self) -> dict[str, Any] | None:
        """config.json's quantization_config; None for a float model."""
        return self.fields.get(FIELD)

    def dtype(self) -> torch.dtype:
        """The dtype in config.json, else that of the first float tensor."""
        told = getattr(self.config, "dtype", None)
        told = getattr(torch, told, None) if isinstance(told, str) else told
        if not isinstance(told, torch.dtype):
            with files.open_tensors(self.path) as tensors:
                dtypes = [dtype for dtype in tensors.dtypes.values() if dtype in FLOAT_DTYPES]
            told = dtypes[0] if dtypes else None
        if told not in FLOAT_DTYPES:
            raise ValueError(
                f"{self.path} must be a model in float32, float16 or bfloat16, found {told}: choose one with --dtype"
            )
        assert isinstance(told, torch.dtype)
        return told

    def empty_model(self, dtype: torch.dtype) -> nn.Module:
        """The model on the meta device: names and shapes, no memory."""
        cls = self._class()
        build = getattr(cls, "_from_config", None) or cls.from_config
        try:
            with torch.device("meta"):
                model = build(self.config, dtype=dtype)
        except Exception as error:  # transformers' code may raise anything for a bad file
            raise ValueError(
                f"{self.path / files.CONFIG} must describe a model that can be built: {one_line(error)}"
            ) from None
        assert isinstance(model, nn.Module)
        return model

    def load(self, dtype: torch.dtype | None, device: torch.device, quantization: Any = None) -> Any:
        """The model with its values, in evaluation mode; `quantization` is a TritonQConfig.

        Raises:
            ValueError: the model cannot be loaded, or a tensor is missing, which transformers would fill at random.
        """
        words = {} if quantization is None else {"quantization_config": quantization}
        try:
            model, report = self._class().from_pretrained(
                self.path,
                dtype=dtype or self.dtype(),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **words,
            )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} cannot be loaded: {one_line(error)}") from None
        missing = sorted(report["missing_keys"])
        if missing:
            rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{self.path} must hold all of the model's tensors, found no {missing[0]}{rest}")
        return model.eval().to(device)

    def tokens(self, text: str) -> list[int]:
        """The text's tokens, without special tokens.

        Raises:
            ValueError: there is no tokenizer.
        """
        transformers = import_transformers()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            raise ValueError(
                f"{self.path} must hold a tokenizer that transformers loads, found none: {one_line(error)}"
            ) from None
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def check_length(self, length: int) -> None:
        """Raise a ValueError if the model does not take `length` tokens at once."""
        limit = getattr(self.config, "max_position_embeddings", None)
        if isinstance(limit, int) and length > limit:
            raise ValueError(f"--tokens must be at most {limit:,}, the model's limit, found {length:,}")

    def companions(self) -> list[str]:
        """The other files that a quantized copy needs: tokenizer, generation config, licence."""
        found = []
        for path in sorted(self.path.iterdir()):
            wanted = path.suffix in _COMPANIONS or path.name.upper().startswith(
                ("LICENSE", "LICENCE", "NOTICE")
            )
            if not wanted or path.name in (files.CONFIG, files.INDEX) or not path.is_file():
                continue
            found.append(files.inside(self.path, path.name).name)
        return found

    def _class(self) -> Any:
        """The class that config.json names, else AutoModelForCausalLM."""
        transformers = import_transformers()
        names = getattr(self.config, "architectures", None)
        first = names[0] if isinstance(names, list) and names else None
        named = getattr(transformers, first, None) if isinstance(first, str) else None
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
        return transformers.AutoModelForCausalLM


def open_model_directory(directory: Path) -> ModelDirectory:
    """Read config.json and check the headers of the tensor files.

    Raises:
        FileNotFoundError, ValueError: there is no such directory, its weights are pickles, or transformers does not
            know the architecture.
    """
    if not directory.exists():
        raise FileNotFoundError(
            f"{directory} must be a model directory, found nothing there (models are not downloaded)"
        )
    path = files.check_directory(directory)
    fields = files.read_json(path, files.CONFIG)
    if not any(path.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in files.PICKLES for file in path.glob(pattern))
        if pickles:
            raise ValueError(
                f"{path} must hold {files.SINGLE}, found {pickles[0]}: reading a pickle can run code, so tritonq reads "
                "none; if you trust it, load it with transformers and save it again with save_pretrained"
            )
    if not isinstance(fields.get(FIELD, {}), dict):
        raise ValueError(f"{path / files.CONFIG}: {FIELD} must be a dictionary, found {fields[FIELD]!r}")
    alone = [name for name in ALONE if (path / name).exists()]
    if alone and FIELD not in fields:
        raise ValueError(
            f"{path / files.CONFIG} must say how the model is quantized, but only {alone[0]} does: "
            "run tritonq convert first"
        )
    with files.open_tensors(path):
        pass
    transformers = import_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as for `empty_model`
        raise ValueError(
            f"{path / files.CONFIG} must be of a model that transformers knows: {one_line(error)}"
        ) from None
    return ModelDirectory(path, config, fields)


def import_transformers() -> Any:
    """Import transformers, without its messages and without the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ValueError(f"this command {_NEEDED}") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def one_line(error: Exception) -> str:
    """The message of another library's error, shortened to one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
