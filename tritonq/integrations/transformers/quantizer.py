"""The hooks that transformers calls around loading and saving.

`from_pretrained` builds the model on the meta device, reads tensor after tensor, and finishes. Around that:

    float weights     before: choose layers, as `quantize_` does
                      each weight that arrives: its nn.Linear becomes a QuantizedLinear, and the float weight is freed
                      after: what did not arrive (a tied or a new head) is quantized as it then is
    a checkpoint      before: its layers become StoredLayers, which take the tensors of the file
                      after: each of them becomes a QuantizedLinear

So at most one float weight of the layers to quantize is in memory at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer

from tritonq.checkpoint.contents import describe, stored_tensors
from tritonq.checkpoint.extras import KEY
from tritonq.integrations.transformers.config import TritonQConfig
from tritonq.integrations.transformers.stored import (
    StoredLayer,
    place_stored_layers,
    read_edges,
    restore_edges,
)
from tritonq.integrations.transformers.survey import (
    check_complete,
    default_ignore,
    split_off_tied,
    untie,
    warn_of_experts,
)
from tritonq.nn.handover import Edge
from tritonq.nn.linear import QuantizedLinear
from tritonq.nn.split import is_split
from tritonq.observers import observed_weight_qparams
from tritonq.quantize.dequantize import dequantize_layers
from tritonq.select.encoder_layer import leave_fast_path
from tritonq.select.patterns import Place
from tritonq.select.replace import move_hooks
from tritonq.select.select import Selected, select
from tritonq.util.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TritonQuantizer(HfQuantizer):
    """Loads models with a TritonQConfig; transformers makes one for each `from_pretrained`."""

    def __init__(self, quantization_config: TritonQConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # transformers asks whether config.json has a quantization_config; a recipe there goes with float weights.
        self.pre_quantized = quantization_config.checkpoint is not None
        self._waiting: dict[str, Selected] = {}  # weight → the float layer that is to be quantized with it
        self._tied: list[Selected] = []  # those whose weight is another's, and known at the end
        self._stored: dict[str, Place] = {}  # tensor → the StoredLayer that takes it
        self._edges: list[Edge] = []  # hand-overs of int8 in the checkpoint
        self._failure: Exception | None = None
        self._passes_gradients = False

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Called with the device_map as given, and again with the one that "auto" becomes."""
        if not self.pre_quantized and self.quantization_config.layers is None:
            raise ValueError(
                "the checkpoint must be quantized to be loaded with TritonQConfig(), found one without a "
                "quantization_config: name a scheme, as in TritonQConfig('w4a16')"
            )
        devices = sorted(set(map(str, device_map.values()))) if isinstance(device_map, dict) else []
        if "disk" in devices or ("cpu" in devices and len(devices) > 1):
            raise ValueError(
                "device_map must place all layers where they are computed: quantized layers are not offloaded, found "
                f"{', '.join(devices)}"
            )

    # --- before ------------------------------------------------------------------------------------------------------

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        if self.pre_quantized:
            self._edges = read_edges(model)
            self._stored = place_stored_layers(model, config.checkpoint, checkpoint_files or [])
            untie(model, {name for place in self._stored.values() for name in place.names})
            return
        ignore = default_ignore(model) if config.ignore is None else config.ignore
        own, self._tied = split_off_tied(model, select(model, config.layers, ignore))
        self._waiting = {f"{name}.weight": layer for layer in own for name in layer.place.names}
        warn_of_experts(model)

    # --- during ------------------------------------------------------------------------------------------------------

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """True for weights that are quantized as they arrive, and for tensors whose shape is ours to check."""
        return param_name in self._waiting or param_name in self._stored

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes per element once loaded, for `device_map="auto"`."""
        if param_name in self._waiting:
            return self._waiting[param_name].config.weight.bits / 8
        return float(param.element_size())

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """The dtype that a checkpoint's tensor is cast to: codes and scales never are."""
        if any(name in self._stored for name in converter.target_patterns):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def get_quantize_ops(self) -> ConversionOps:
        return Quantize(self)

    def take(self, name: str, weight: Tensor) -> bool:
        """Quantize the layer that waits for this weight; False if there is none.

        What goes wrong is kept for the end: transformers would wrap it into a report.
        """
        layer = self._waiting.get(name)
        if layer is None:
            return False
        linear = layer.place.module
        assert isinstance(linear, nn.Linear)
        try:
            if weight.shape != linear.weight.shape:
                raise ValueError(f"{name} must be {list(linear.weight.shape)}, found {list(weight.shape)}")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            bias: Tensor | None = linear.bias
            if bias is not None and bias.is_meta:
                return True  # quantized at the end, when its bias is there
            _quantize(layer)
        except (TypeError, ValueError) as error:
            self._failure = self._failure or error
        self._forget(layer)
        return True

    def _forget(self, layer: Selected) -> None:
        for name in layer.place.names:
            del self._waiting[f"{name}.weight"]

    # --- after -------------------------------------------------------------------------------------------------------

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self._failure is not None:
            raise self._failure
        late = list({id(layer): layer for layer in (*self._waiting.values(), *self._tied)}.values())
        self._waiting.clear()
        untie(model, {name for layer in self._tied for name in layer.place.names})
        self._tied.clear()
        while late:
            _quantize(late.pop())
        if self.pre_quantized:
            check_complete(model, self._stored)
            stored = list({id(place): place for place in self._stored.values()}.values())
            self._stored.clear()
            for _ in track(range(len(stored)), "Packing"):
                _build(stored.pop(), model.dtype)  # and with it the tensors of the file
            restore_edges(model, self._edges)
        leave_fast_path(model)
        self.look_at(model)
        return model

    def look_at(self, model: PreTrainedModel) -> None:
        """Note what transformers asks of a model that has been quantized."""
        layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
        self._passes_gradients = all(layer.config.weight_only for layer in layers)

    # --- saving ------------------------------------------------------------------------------------------------------

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Called by `save_pretrained` before it writes config.json, which is to say what the model is now.

        Returns:
            the tensors of a checkpoint, and nothing to add to the files' metadata.
        """
        _check_savable(model)
        fields, extras = describe(model)
        if extras.stubs or extras.hands_over:
            raise ValueError(
                "a model with layers between QuantStub and DeQuantStub cannot be loaded by from_pretrained: use "
                "tritonq.save(model, directory)"
            )
        self.quantization_config.checkpoint = fields["quantization_config"]
        setattr(model.config, KEY, extras.to_dict())
        return {stored.name: stored.tensor.detach() for stored in stored_tensors(model, {})}, {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """Called by `model.dequantize()`: every quantized layer becomes an nn.Linear again."""
        dequantize_layers(model, dtype)
        model.is_quantized, model.quantization_method = False, None
        vars(model.config).pop(KEY, None)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether Trainer may train adapters on the model: gradients pass weight-only layers alone."""
        return self._passes_gradients

    @property
    def is_compileable(self) -> bool:
        return True


class Quantize(ConversionOps):
    """What a weight goes through on its way into the model: it is taken out, and its layer is replaced."""

    def __init__(self, quantizer: TritonQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], *args: Any, missing_keys: set[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """{name: tensor or list of one} → the same without what was quantized."""
        left = {}
        for name, tensor in input_dict.items():
            weight = tensor[0] if isinstance(tensor, list) else tensor
            if not self.quantizer.take(name, weight):
                left[name] = tensor
            elif missing_keys is not None:
                missing_keys.discard(name)
        return left


def _check_savable(model: PreTrainedModel) -> None:
    """Raise where quantized layers are held by adapters or split layers: their names in a file would be no model's."""
    if getattr(model, "_hf_peft_config_loaded", False):
        return  # save_pretrained writes the adapters alone
    for name, module in model.named_modules():
        if is_split(module):
            raise ValueError(
                f"{name} is a tritonq.nn.{type(module).__name__}, which from_pretrained cannot load: use "
                "tritonq.save(model, directory) and tritonq.load"
            )
        base = getattr(module, "base_layer", None) or getattr(module, "base", None)
        if isinstance(base, QuantizedLinear):
            raise ValueError(
                f"{name} has an adapter on its quantized layer, which from_pretrained cannot load: save the adapters "
                "(PEFT: save_pretrained of the PeftModel), or merge them first"
            )


def _quantize(layer: Selected) -> None:
    """Replace one float layer by what `quantize_` makes of it."""
    linear, config, name = layer.place.module, layer.config, layer.place.name
    assert isinstance(linear, nn.Linear)
    if type(linear.weight.data) is not Tensor:
        raise TypeError(
            f"{name}: weight must be a torch.Tensor, found {type(linear.weight.data).__name__}: weights that are split "
            "over processes are not quantized"
        )
    with torch.no_grad():
        weight_qparams = observed_weight_qparams(linear.weight, config.weight, name)
        quantized = QuantizedLinear.from_float(linear, config, weight_qparams=weight_qparams, name=name)
    vars(quantized)["_is_hf_initialized"] = True  # or transformers would initialize it
    move_hooks(linear, quantized, layer.place)


def _build(place: Place, dtype: torch.dtype) -> None:
    """Replace a StoredLayer by the QuantizedLinear it has become."""
    assert isinstance(place.module, StoredLayer)
    move_hooks(place.module, place.module.build(place.name, dtype), place)
