"""Finds the special parts of a transformers model: its head, tied weights, stacked experts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from tritonq.select.patterns import Pattern
from tritonq.select.select import DEFAULT_IGNORE, Selected

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMES_IN_MESSAGES = 5


def default_ignore(model: PreTrainedModel) -> tuple[Pattern, ...]:
    """`lm_head`, or whatever the model calls its output embedding."""
    head = model.get_output_embeddings()
    names = tuple(name for name, module in model.named_modules() if head is not None and module is head)
    return DEFAULT_IGNORE if not names or any(name.endswith("lm_head") for name in names) else names


def split_off_tied(model: PreTrainedModel, selected: list[Selected]) -> tuple[list[Selected], list[Selected]]:
    """(layers with a separate weight, layers whose weight comes from another module after loading).

    Warns:
        UserWarning: names the latter.
    """
    ties: dict[str, str] = model.all_tied_weights_keys
    own: list[Selected] = []
    tied: list[Selected] = []
    for layer in selected:
        sources = [ties[f"{name}.weight"] for name in layer.place.names if f"{name}.weight" in ties]
        (tied if sources else own).append(layer)
        if sources:
            name, owner = layer.place.name, sources[0].rpartition(".")[0]
            warnings.warn(
                f"the weight of {name} is tied to {owner}: quantizing gives {name} a separate weight (add {name} to "
                "ignore to keep them tied)",
                UserWarning,
                stacklevel=2,
            )
    return own, tied


def untie(model: PreTrainedModel, quantized: Collection[str]) -> None:
    """Update the model's list of tied weights after layers with these names are quantized."""
    tied = [key for key in model.all_tied_weights_keys if key.rpartition(".")[0] in quantized]
    for key in tied:
        del model.all_tied_weights_keys[key]
    if tied and model.get_output_embeddings() is not None:
        for config in (model.config, model.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False


def warn_of_experts(model: PreTrainedModel) -> None:
    """Warn about experts, whose weights are stacked into one parameter and belong to no Linear.

    Warns:
        UserWarning: names them, if there are any.
    """
    found: dict[str, int] = {}
    for name in stacked_weights(model):
        pattern = re.sub(r"\.\d+\.", ".*.", name)
        found[pattern] = found.get(pattern, 0) + 1
    if found:
        listed = ", ".join(f"{pattern} ({count})" for pattern, count in found.items())
        warnings.warn(
            f"experts stay in float, because their weights are stacked in parameters outside of nn.Linear: {listed}",
            UserWarning,
            stacklevel=2,
        )


def stacked_weights(model: PreTrainedModel) -> Iterator[str]:
    """The names of parameters that hold the weights of several experts."""
    for module_name, module in model.named_modules():
        if not type(module).__module__.startswith(
            "torch."
        ):  # a convolution's weight has three dimensions too
            for name, parameter in module.named_parameters(module_name, recurse=False):
                if parameter.dim() == 3 and min(parameter.shape) > 1:
                    yield name


def check_complete(model: PreTrainedModel, quantized: Collection[str]) -> None:
    """Raise if a parameter is not from the checkpoint, or if it holds codes but its layer is not quantized.

    transformers fills missing weights at random and only logs it. It also accepts codes in place of a float weight.

    Args:
        model: all weights are loaded.
        quantized: names of the tensors of quantized layers.

    Raises:
        ValueError: names the first few.
    """
    optional = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    missing = [
        name
        for name, parameter in model.named_parameters()
        if not getattr(parameter, "_is_hf_initialized", False)
        and not any(pattern.search(name) for pattern in optional)
    ]
    if missing:
        rest = len(missing) - _NAMES_IN_MESSAGES
        more = f" and {rest} more" if rest > 0 else ""
        listed = ", ".join(missing[:_NAMES_IN_MESSAGES])
        raise ValueError(f"the checkpoint must hold all weights, found none for {listed}{more}")
    for name, parameter in model.named_parameters():
        if name not in quantized and not parameter.is_floating_point():
            found = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} must be in float, because its layer is not quantized in the checkpoint, found {found}"
            )
