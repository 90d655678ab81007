"""GPTQ checkpoints, as AutoGPTQ, GPTQModel, AutoRound and transformers write them.

    qweight  int32 [ceil(K·bits/32), N]    fields packed along K, lowest bits first
    qzeros   int32 [G, ceil(N·bits/32)]    fields packed along N
    scales   float [G, N]                  g_idx int32 [K], the group of each column
    bias     float [N]

compressed-tensors packs the same fields in the same order, in transposed tensors. Zero points differ: `gptq_v2` stores
z, while `gptq`, the older and usual format, stores z - 1. If z is 0, writers and readers disagree:

    written field by field    the largest field means z = 0: z = (field + 1) mod 2^bits. Writers rounded with that, and
                              AutoGPTQ's qlinear_cuda_old reads it. AutoGPTQ's other kernels, exllama's and vLLM's omit
                              the modulus and compute with z = 16 (256), which no writer means
    written by GPTQModel      the whole word minus 0x11111111 (0x01010101), borrowing from the next field. Adding that
                              to the word, as GPTQModel's reader does, restores every zero point

The files name their writer (meta.quantizer). In symmetric checkpoints no zero point is 0, so all agree.

Sources: AutoGPTQ nn_modules/qlinear/qlinear_cuda_old.py, qlinear_cuda.py, triton_utils/kernels.py; GPTQModel
nn_modules/qlinear/__init__.py (dequantize_weight), utils/model.py (convert_gptq_v1_to_v2_format_module),
quantization/config.py (dynamic).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tritonq.checkpoint.fields import check_type, lowered, shown, warn_of_unknown
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.foreign import ForeignLayer, Settings, read_bits, read_flag, read_group_size
from tritonq.numerics import int32_words

METHOD = "gptq"
_BITS = (4, 8)
#: How zero points are stored: z, z - 1 field by field, or the word of all z minus a word of ones.
_TRUE, _LESS_ONE, _LESS_WORD_OF_ONES = "z", "z - 1", "word - ones"

_KEYS = {
    "quant_method", "method", "bits", "group_size", "sym", "desc_act", "checkpoint_format", "format",
    "is_marlin_format", "pack_dtype", "dynamic", "meta", "adapter", "rotation",
}  # fmt: skip
#: Keys about how codes were found or used, which do not change their meaning.
_HISTORY = {
    "act_group_aware", "autoround_version", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs",
    "damp_auto_increment", "damp_percent", "dataset", "disable_exllama", "exllama_config", "iters", "lm_head", "lr",
    "max_input_length", "minmax_lr", "model_file_base_name", "model_name_or_path", "model_seqlen",
    "module_name_preceding_first_block", "modules_in_block_to_quantize", "mse", "nsamples", "pad_token_id", "seqlen",
    "static_groups", "tokenizer", "true_sequential", "use_cuda_fp16", "use_exllama",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GPTQ:
    """A quantization_config of method "gptq".

    Attributes:
        settings: of every layer that no override matches.
        zeros: how zero points are stored.
        overrides: (pattern, settings) of GPTQModel's `dynamic`; the first that matches a layer's name decides.
    """

    settings: Settings
    zeros: str
    overrides: tuple[tuple[re.Pattern[str], Settings], ...] = ()

    def layer(self, name: str, source: TensorFiles) -> GPTQLayer:
        """The layer of this name in the files."""
        settings = next((own for pattern, own in self.overrides if pattern.match(name)), self.settings)
        return GPTQLayer(name, settings, source, self.zeros)


def read_gptq(fields: Mapping[str, Any]) -> GPTQ:
    """Read a quantization_config, of files from any writer.

    Warns:
        UserWarning: names unknown keys, which are ignored.

    Raises:
        ValueError: a key is missing or not supported; the message says what was found and what is allowed.
    """
    where = "quantization_config"
    warn_of_unknown(fields, _KEYS | _HISTORY)
    form = read_format(fields, ("checkpoint_format", "format"), METHOD, where)
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"{where}: checkpoint_format must be 'gptq' or 'gptq_v2', found {shown(form)}")
    if fields.get("is_marlin_format"):
        raise ValueError(
            f"{where}: is_marlin_format must be false, found {shown(fields['is_marlin_format'])}"
        )
    if fields.get("pack_dtype") not in (None, "int32"):
        raise ValueError(f"{where}: pack_dtype must be 'int32', found {shown(fields['pack_dtype'])}")
    for part in ("adapter", "rotation"):
        if fields.get(part):
            raise ValueError(f"{where}: {part} must be absent or null, found {shown(fields[part])}")
    settings = _read_settings(fields, Settings(0, 0, False), where)
    zeros = _TRUE if form == "gptq_v2" else _LESS_WORD_OF_ONES if _is_gptqmodels(fields) else _LESS_ONE
    return GPTQ(settings, zeros, _read_overrides(fields.get("dynamic"), settings, f"{where}: dynamic"))


def _read_settings(fields: Mapping[str, Any], base: Settings, where: str) -> Settings:
    """The settings in the fields; others come from `base`, unless that has 0 bits."""
    return Settings(
        read_bits(fields.get("bits", base.bits or None), _BITS, where),
        read_group_size(fields.get("group_size", base.group_size or None), where),
        read_flag(fields, "sym", base.symmetric, where),
        read_flag(fields, "desc_act", base.ordered, where),
    )


def _read_overrides(dynamic: Any, base: Settings, where: str) -> tuple[tuple[re.Pattern[str], Settings], ...]:
    """Read `dynamic`: {"+:expression" or "expression": changed settings, "-:expression": layers not quantized}."""
    if not dynamic:
        return ()
    check_type(dynamic, Mapping, where, "a dictionary")
    overrides = []
    for key, fields in dynamic.items():
        try:
            pattern = re.compile(key.removeprefix("+:").removeprefix("-:"))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{where} must be keyed by valid expressions, found {shown(key)}: {error}"
            ) from None
        if not key.startswith("-:"):
            check_type(fields, Mapping, f"{where}[{shown(key)}]", "a dictionary")
            overrides.append((pattern, _read_settings(fields, base, f"{where}[{shown(key)}]")))
        else:
            overrides.append((pattern, base))  # such a layer has no qweight, so this is never used
    return tuple(overrides)


def _is_gptqmodels(fields: Mapping[str, Any]) -> bool:
    """True if meta.quantizer, a list of "program:version", names GPTQModel."""
    meta = fields.get("meta")
    writers = meta.get("quantizer") if isinstance(meta, Mapping) else None
    names = [writers] if isinstance(writers, str) else writers if isinstance(writers, list) else []
    return any(isinstance(name, str) and name.lower().startswith("gptqmodel") for name in names)


class GPTQLayer(ForeignLayer):
    """A layer in GPTQ's layout; `zeros` says how its zero points are stored."""

    def __init__(self, name: str, settings: Settings, source: TensorFiles, zeros: str) -> None:
        super().__init__(name, settings, source)
        self._zeros = zeros

    def _sizes(self) -> tuple[int, int]:
        words, rows = self.source.shapes[f"{self.name}.qweight"]
        order = self.source.shapes.get(f"{self.name}.g_idx", ())
        return rows, order[0] if len(order) == 1 else words * 32 // self.settings.bits

    @property
    def _weight_words(self) -> tuple[int, int]:
        return int32_words.packed_width(self.in_features, self.settings.bits), self.out_features

    def read_packed(self) -> Tensor:
        return self.get("qweight").t().contiguous()

    def read_zeros(self) -> Tensor:
        words, bits = self.get("qzeros"), self.settings.bits
        if self._zeros == _LESS_WORD_OF_ONES:
            words = words + (0x11111111 if bits == 4 else 0x01010101)
        fields = int32_words.unpack_fields(words, bits, self.out_features)
        return (fields + 1) & ((1 << bits) - 1) if self._zeros == _LESS_ONE else fields


# --- shared with AWQ, whose quantization_config is a variation of this one --------------------------------------------


def read_format(fields: Mapping[str, Any], keys: tuple[str, str], default: str, where: str) -> Any:
    """The name of the layout, in lower case; it may be under either key or both."""
    found = {lowered(fields[key]) for key in keys if isinstance(fields.get(key), str)}
    for key in keys:
        check_type(fields.get(key, ""), (str, type(None)), f"{where}: {key}", "a name")
    if len(found) > 1:
        raise ValueError(f"{where}: {' and '.join(keys)} must agree, found {shown(sorted(found))}")
    return found.pop() if found else default
