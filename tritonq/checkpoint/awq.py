"""AWQ checkpoints in the layout "gemm", as AutoAWQ, GPTQModel and AutoRound write them.

    qweight  int32 [K, N/8]    fields packed along N, in AWQ's order (tritonq/numerics/int32_words.py)
    qzeros   int32 [G, N/8]    likewise; true zero points
    scales   float [G, N]
    bias     float [N]

AWQ's other layouts (gemv, gemv_fast, marlin, llm-awq) pack along K or interleave for one kernel, and are refused.

Source: AutoAWQ awq/modules/linear/gemm.py, awq/utils/packing_utils.py, awq/models/_config.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tritonq.checkpoint.fields import shown, warn_of_unknown
from tritonq.checkpoint.files import TensorFiles
from tritonq.checkpoint.foreign import ForeignLayer, Settings, read_bits, read_flag, read_group_size
from tritonq.checkpoint.gptq import read_format
from tritonq.numerics import int32_words

METHOD = "awq"
_BITS = (4,)
_VALUES_PER_WORD = 8
_KEYS = {
    "quant_method", "method", "bits", "w_bit", "group_size", "q_group_size", "zero_point", "sym", "version", "format",
    "checkpoint_format", "backend",
}  # fmt: skip
_HISTORY = {
    "act_group_aware", "autoround_version", "batch_size", "block_name_to_quantize", "cache_block_outputs",
    "damp_percent", "dataset", "desc_act", "do_fuse", "dynamic", "exllama_config", "fuse_max_seq_len", "iters",
    "lm_head", "lr", "max_input_length", "meta", "minmax_lr", "model_seqlen", "module_name_preceding_first_block",
    "modules_in_block_to_quantize", "modules_to_fuse", "modules_to_not_convert", "nsamples", "pack_dtype",
    "pad_token_id", "seqlen", "tokenizer", "true_sequential",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AWQ:
    """A quantization_config of method "awq"; all layers have the same settings."""

    settings: Settings

    def layer(self, name: str, source: TensorFiles) -> AWQLayer:
        """The layer of this name in the files."""
        return AWQLayer(name, self.settings, source)


def read_awq(fields: Mapping[str, Any]) -> AWQ:
    """Read a quantization_config, of files from any writer.

    Warns:
        UserWarning: names unknown keys, which are ignored.

    Raises:
        ValueError: a key is missing or not supported; the message says what was found and what is allowed.
    """
    where = "quantization_config"
    warn_of_unknown(fields, _KEYS | _HISTORY)
    if fields.get("backend") == "llm-awq":
        raise ValueError(f"{where}: version must be 'gemm', found 'llm-awq' as backend")
    form = read_format(fields, ("version", "format"), "gemm", where)
    if form != "gemm":
        raise ValueError(f"{where}: version must be 'gemm', found {shown(form)}")
    bits = read_bits(fields.get("bits", fields.get("w_bit")), _BITS, where)
    group_size = read_group_size(fields.get("group_size", fields.get("q_group_size")), where)
    return AWQ(Settings(bits, group_size, symmetric=not read_flag(fields, "zero_point", True, where)))


class AWQLayer(ForeignLayer):
    """A layer in AWQ's layout."""

    def _sizes(self) -> tuple[int, int]:
        columns, words = self.source.shapes[f"{self.name}.qweight"]
        return words * _VALUES_PER_WORD, columns

    @property
    def _weight_words(self) -> tuple[int, int]:
        return self.in_features, self.out_features // _VALUES_PER_WORD

    def read_packed(self) -> Tensor:
        return int32_words.pack_fields(int32_words.unpack_awq(self.get("qweight")).t(), self.settings.bits)

    def read_zeros(self) -> Tensor:
        return int32_words.unpack_awq(self.get("qzeros"))
