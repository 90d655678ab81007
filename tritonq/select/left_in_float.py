"""Warns about weights of matrix products that stay in float although the user did not ask for it.

Examples: experts stacked into one parameter, transformers' Conv1D, subclasses of nn.Linear with another forward. A
model of such layers would hardly shrink, without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from tritonq.nn.linear import QuantizedLinear
from tritonq.select.patterns import Pattern, matches_any, places
from tritonq.select.select import Selected, adapter_modules, choice_of, ignored_patterns

#: The share of a model's weights that may stay in float without a word.
_SHARE = 0.01
_NAMES_IN_MESSAGES = 5
#: Rows of an embedding are gathered, not multiplied; a convolution is no Linear.
_OTHERS = (nn.Embedding, nn.EmbeddingBag, _ConvNd)
#: Matrices that no product reads, by the names that models give them: Mamba's decay, biases of attention by position.
_OF_NO_PRODUCT = ("A_log", "relative_position_bias_table")


def warn_of_float_weights(
    model: nn.Module, selected: Iterable[Selected], config: Any, ignore: Iterable[Pattern]
) -> None:
    """Name the weights that stay in float although config and ignore do not say so, if they are many.

    Args:
        model: before its layers are replaced.
        selected: the layers that are.
        config, ignore: as for `quantize_`.

    Warns:
        UserWarning: with names and bytes, where they are more than 1 % of all weights of matrix products.
    """
    everything, ignored, choose = places(model), ignored_patterns(ignore), choice_of(config)
    taken = {id(module) for layer in selected for module in layer.place.module.modules()}
    taken |= adapter_modules(everything)
    embeddings = {
        id(tensor)
        for place in everything
        if isinstance(place.module, _OTHERS)
        for tensor in place.module._parameters.values()
    }
    # An attention that is meant to stay in float keeps its out_proj in float, too: torch reads that weight directly.
    attentions = tuple(
        f"{place.name}."
        for place in everything
        if isinstance(place.module, nn.MultiheadAttention)
        and (matches_any(ignored, place) or choose(place).config is None)
    )
    total, left = 0, dict[str, Tensor]()
    for place in everything:
        module = place.module
        if isinstance(module, QuantizedLinear):
            total += module.in_features * module.out_features
            continue
        for name, weight in _weights(module):
            if id(weight) in embeddings:
                continue
            total += weight.numel()
            asked = (
                matches_any(ignored, place)
                or choose(place).config is None
                or place.name.startswith(attentions)
            )
            if id(module) not in taken and not asked:
                left[f"{place.name}.{name}"] = weight
    if sum(weight.numel() for weight in left.values()) > _SHARE * total:
        largest = sorted(left, key=lambda name: -left[name].nbytes)
        shown = ", ".join(f"{name} ({left[name].nbytes:,} bytes)" for name in largest[:_NAMES_IN_MESSAGES])
        rest = len(left) - _NAMES_IN_MESSAGES
        share = sum(weight.numel() for weight in left.values()) / total
        warnings.warn(
            f"{share:.0%} of the weights stay in float, since no quantized layer computes with them: {shown}"
            f"{f' and {rest} more' if rest > 0 else ''}; name their modules in ignore to say that this is meant",
            UserWarning,
            stacklevel=3,
        )


def _weights(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The module's own matrices, stacked ones too."""
    held: dict[str, Any] = module._parameters  # None where there is none
    for name, tensor in held.items():
        if (
            tensor is not None
            and name not in _OF_NO_PRODUCT
            and not is_lazy(tensor)
            and tensor.is_floating_point()
            and tensor.dim() in (2, 3)
            and min(tensor.shape) > 1
        ):
            yield name, tensor
