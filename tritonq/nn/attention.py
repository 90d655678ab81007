"""Attention made of Linear layers: what replaces nn.MultiheadAttention.

torch's layer reads its weights itself. This one holds Linears on the same values, and quantization replaces each Linear
as it does elsewhere:

    q_proj, k_proj, v_proj    a third each of in_proj_weight and in_proj_bias, or q_proj_weight, …
    out_proj                  out_proj

Scores, softmax and the sum of values stay in float.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonq.nn.split_parts import check_input, linear_of

#: Of a mask: as it may be given → with all four dimensions of the scores.
_Shapes = dict[tuple[int, ...], tuple[int, ...]]


class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention made of Linears, with its interface.

    Attributes:
        embed_dim, num_heads, head_dim, kdim, vdim, dropout, batch_first, add_zero_attn, bias_k, bias_v: torch's.
        q_proj, k_proj, v_proj, out_proj: the Linears, float or quantized.
        module_name: the layer's, for messages.
    """

    #: nn.TransformerEncoderLayer passes weights to a fused operator unless it finds that there is no such bias.
    in_proj_bias = None

    def __init__(self, attention: nn.MultiheadAttention, name: str = "") -> None:
        """From a float layer, whose values the new one holds."""
        super().__init__()
        self.module_name = name
        self.embed_dim, self.num_heads, self.head_dim = (
            attention.embed_dim,
            attention.num_heads,
            attention.head_dim,
        )
        self.kdim, self.vdim = attention.kdim, attention.vdim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        parameters = attention._parameters
        whole, bias = parameters["in_proj_weight"], parameters["in_proj_bias"]
        for index, part in enumerate("qkv"):
            rows = slice(index * self.embed_dim, (index + 1) * self.embed_dim)
            weight = _rows(whole, rows) if whole is not None else parameters[f"{part}_proj_weight"]
            self.add_module(f"{part}_proj", linear_of(weight, None if bias is None else _rows(bias, rows)))
        out = attention.out_proj._parameters
        self.out_proj = linear_of(out["weight"], out["bias"])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: (output, attention weights or None).

        Args:
            query, key, value: [L, B, ·] and [S, B, ·], batch first with `batch_first`, or without B.
            key_padding_mask: [B, S] or [S]; True, or -inf, where a key is left out.
            need_weights: return the weights too, [B, L, S], with heads in between unless they are averaged.
            attn_mask: [L, S] or [B · heads, L, S]; True where a key is left out, or a float to add.
            average_attn_weights: average the weights over heads.
            is_causal: says that `attn_mask` is the causal mask, which must then be given.

        Raises:
            TypeError, ValueError: naming the layer, for other inputs or masks.
        """
        where = f"MultiheadAttention {self.module_name!r}"
        batched = self._check_inputs(where, {"query": query, "key": key, "value": value})
        if is_causal and attn_mask is None:
            raise ValueError(f"{where}: is_causal needs the causal attn_mask, found None")

        def batch_first(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)

        # [B, L, E], [B, S, E]
        q, k, v = (
            self.get_submodule(f"{part}_proj")(batch_first(x))
            for part, x in zip("qkv", (query, key, value), strict=True)
        )
        batch, length, keys = q.shape[0], q.shape[1], k.shape[1]
        mask = self._mask(where, attn_mask, key_padding_mask, batch, (length, keys), q)
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, bias.to(x).expand(batch, 1, -1)], 1)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
            extra += 1
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
            extra += 1
        if mask is not None:
            mask = functional.pad(mask, (0, extra))

        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.transpose(-2, -1)  # [B, heads, L, S]
            scores = scores if mask is None else scores + mask
            weights = functional.dropout(scores.softmax(-1), dropout, dropout > 0)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        output = output.squeeze(0) if not batched else output if self.batch_first else output.transpose(0, 1)
        return output, weights

    def _check_inputs(self, where: str, inputs: dict[str, Any]) -> bool:
        """Whether they have a batch."""
        widths = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        for word, x in inputs.items():
            check_input(where, x, widths[word], (2, 3), word)
        dims = {word: x.dim() for word, x in inputs.items()}
        if len(set(dims.values())) > 1:
            raise ValueError(f"{where}: query, key and value must have as many dimensions each, found {dims}")
        batched = dims["query"] == 3
        place = 0 if self.batch_first else 1
        shapes = {word: list(x.shape) for word, x in inputs.items()}
        sizes = {shape[place] for shape in shapes.values()} if batched else {1}
        if len(sizes) > 1 or shapes["key"][:-1] != shapes["value"][:-1]:
            raise ValueError(
                f"{where}: key and value must be as long, and all have the query's batch, found {shapes}"
            )
        return batched

    def _mask(
        self,
        where: str,
        attn_mask: Tensor | None,
        padding: Tensor | None,
        batch: int,
        sizes: tuple[int, int],
        like: Tensor,
    ) -> Tensor | None:
        """Both masks as floats to add to the scores [B, heads, L, S]."""
        total: Tensor | None = None
        keys = sizes[1]
        of_scores: _Shapes = {sizes: (1, 1, *sizes), (batch * self.num_heads, *sizes): (batch, -1, *sizes)}
        of_keys: _Shapes = {(batch, keys): (batch, 1, 1, keys)}
        if batch == 1:
            of_keys[keys,] = (1, 1, 1, keys)
        masks = (("attn_mask", attn_mask, of_scores), ("key_padding_mask", padding, of_keys))
        for word, mask, shapes in masks:
            if mask is None:
                continue
            if tuple(mask.shape) not in shapes:
                allowed = " or ".join(str(list(shape)) for shape in shapes)
                raise ValueError(f"{where}: {word} must be {allowed}, found {list(mask.shape)}")
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise TypeError(f"{where}: {word} must be bool or float, found {mask.dtype}")
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
            mask = mask.to(like.dtype).reshape(shapes[tuple(mask.shape)])
            total = mask if total is None else total + mask
        return total

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _rows(parameter: nn.Parameter, rows: slice) -> nn.Parameter:
    """Rows of a Parameter as another Parameter, in the same memory."""
    return nn.Parameter(parameter.detach()[rows], requires_grad=parameter.requires_grad)
