"""Models of transformers quantized while they are loaded, saved, loaded packed: equal to `quantize_`, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tritonq
from tests.support import hosts
from tests.support.checkpoints import read_config, read_tensors
from tests.support.hosts import assert_same_state, directories, head_name, load, logits
from tritonq import TritonQConfig
from tritonq.integrations.transformers.quantizer import TritonQuantizer
from tritonq.nn import QuantizedLinear

__all__ = ["directories"]
MOE = ["mixtral", "qwen3-moe"]
DENSE = [name for name in hosts.ARCHITECTURES if name not in MOE]


def check_round(directory: Path, scheme: Any, tmp_path: Path) -> None:
    """On the fly = quantize_; save_pretrained → from_pretrained and tritonq.load give it back, packed."""
    float_model = load(directory)
    expected = tritonq.quantize_(load(directory), scheme, ignore=[head_name(float_model)])
    found = load(directory, TritonQConfig(scheme))
    assert_same_state(found, expected)
    assert torch.equal(logits(found), logits(expected))

    found.save_pretrained(tmp_path)
    again = load(tmp_path, TritonQConfig())
    assert_same_state(again, expected)
    assert torch.equal(logits(again), logits(expected))
    if "embed_out.weight" in read_tensors(tmp_path):  # GPT-NeoX's files have another name than its module
        found.save_pretrained(tmp_path, save_original_format=False)
    assert torch.equal(logits(tritonq.load(tmp_path, float_model)), logits(expected))


@pytest.mark.parametrize("architecture", DENSE)
def test_every_architecture(architecture: str, directories: Any, tmp_path: Path) -> None:
    directory = directories(architecture)
    check_round(directory, "w4a16", tmp_path)
    model = load(directory, TritonQConfig("w8a8"))
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linears == {head_name(model)}
    error = (logits(model) - logits(load(directory))).float().norm() / logits(model).float().norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    "scheme",
    [
        "w8a16",
        "w8a8",
        "w4a8",
        tritonq.W4A16(group_size=32, symmetric=False),
        tritonq.W8A8(symmetric=False, activation_symmetric=False),
        {"re:.*self_attn": "w8a8", "down_proj": None, "_default": "w4a16"},
    ],
    ids=["w8a16", "w8a8", "w4a8", "w4a16-affine", "w8a8-affine", "patterns"],
)
def test_every_scheme(scheme: Any, directories: Any, tmp_path: Path) -> None:
    check_round(directories("qwen2"), scheme, tmp_path)


def test_what_is_written_is_compressed_tensors(directories: Any, tmp_path: Path) -> None:
    """The directory is one that any reader of the format takes, transformers without tritonq among them."""
    model = load(directories("llama"), TritonQConfig("w4a16", group_size=32))
    model.save_pretrained(tmp_path)
    fields = read_config(tmp_path)["quantization_config"]
    assert fields["quant_method"] == "compressed-tensors"
    assert fields["ignore"] == ["lm_head"]
    assert fields["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert "model.layers.0.mlp.up_proj.weight_packed" in read_tensors(tmp_path)
    found, weight = loaded_without_tritonq(tmp_path)
    assert torch.equal(weight, model.model.layers[0].mlp.up_proj.weight)
    assert torch.allclose(found.float(), logits(model).float(), atol=0.05 * float(found.abs().max()))


def loaded_without_tritonq(directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the weight of a layer as transformers' own reader unpacks it, in a process of its own."""
    program = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokens = torch.arange(3, 21).reshape(2, 9)\n"
        "with torch.no_grad():\n"
        "    logits = model(tokens).logits\n"
        "assert 'tritonq' not in sys.modules\n"
        "torch.save((logits, model.model.layers[0].mlp.up_proj.weight.data), sys.argv[1] + '/found.pt')\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program, str(directory)], check=True, capture_output=True)
    logits, weight = torch.load(directory / "found.pt")
    return logits, weight


def test_float_weights_are_freed_one_by_one(directories: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the layers to quantize, only the one that is being quantized holds a float weight."""
    models: list[Any] = []
    seen: list[int] = []
    original = QuantizedLinear.from_float

    def from_float(linear: nn.Linear, *args: Any, **kwargs: Any) -> QuantizedLinear:
        held = [m for m in models[0].modules() if isinstance(m, nn.Linear) and not m.weight.is_meta]
        seen.append(len(held))
        return original(linear, *args, **kwargs)

    def remember(self: Any, loading: Any, *args: Any, **kwargs: Any) -> Any:
        models.append(loading)
        return before(self, loading, *args, **kwargs)

    before = TritonQuantizer._process_model_before_weight_loading
    monkeypatch.setattr(TritonQuantizer, "_process_model_before_weight_loading", remember)
    monkeypatch.setattr(QuantizedLinear, "from_float", from_float)
    load(directories("llama-tied"), TritonQConfig("w4a16"))
    assert seen == [1] * 14


def test_generate(directories: Any) -> None:
    model = load(directories("llama"), TritonQConfig("w8a8"))
    expected = tritonq.quantize_(load(directories("llama")), "w8a8")
    found = model.generate(hosts.TOKENS, max_new_tokens=6, do_sample=False)
    assert found.shape == (2, 15)
    assert torch.equal(found, expected.generate(hosts.TOKENS, max_new_tokens=6, do_sample=False))


@pytest.mark.parametrize("architecture", MOE)
@pytest.mark.filterwarnings("ignore:.* of the weights stay in float:UserWarning")
def test_experts_stay_in_float(architecture: str, directories: Any, tmp_path: Path) -> None:
    """They are stacked into one parameter here, and apart in files: the round goes through both."""
    with pytest.warns(
        UserWarning, match=r"experts stay in float.*layers\.\*\.mlp\.experts\.gate_up_proj \(2\)"
    ):
        model = load(directories(architecture), TritonQConfig("w4a16"))
    expected = tritonq.quantize_(load(directories(architecture)), "w4a16")
    assert_same_state(model, expected)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, TritonQConfig())
    assert_same_state(again, expected)
    assert torch.equal(logits(again), logits(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dtype(dtype: torch.dtype, directories: Any, tmp_path: Path) -> None:
    """Weights are quantized in the dtype asked for; codes and scales of a checkpoint stay as they are."""
    directory = directories("qwen2")
    model = load(directory, TritonQConfig("w4a16"), dtype=dtype)
    assert_same_state(model, tritonq.quantize_(load(directory, dtype=dtype), "w4a16"))
    assert logits(model).dtype == dtype

    load(directory, TritonQConfig("w4a16")).save_pretrained(tmp_path / "bfloat16")
    cast = load(tmp_path / "bfloat16", TritonQConfig(), dtype=dtype)
    layer = cast.model.layers[0].mlp.up_proj
    assert (layer.dtype, layer.scales.dtype, logits(cast).dtype) == (dtype, torch.bfloat16, dtype)
    cast.save_pretrained(tmp_path / "cast")
    again = load(tmp_path / "cast", TritonQConfig())
    assert_same_state(again, cast)
    assert torch.equal(logits(again), logits(cast))


def test_tied_head(directories: Any, tmp_path: Path) -> None:
    """The head stays tied. If quantized on request, it gets a separate weight, and the saved model records that."""
    directory = directories("llama-tied")
    model = load(directory, TritonQConfig("w8a16"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.warns(UserWarning, match="the weight of lm_head is tied to model.embed_tokens"):
        model = load(directory, TritonQConfig("w8a16", ignore=[]))
    with pytest.warns(UserWarning, match="the weight of lm_head is tied"):
        expected = tritonq.quantize_(load(directory), "w8a16", ignore=[])
    assert_same_state(model, expected)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, TritonQConfig())
    assert_same_state(again, expected)
    assert torch.equal(logits(again), logits(expected))


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map(device_map: Any, directories: Any, tmp_path: Path) -> None:
    directory = directories("llama")
    model = load(directory, TritonQConfig("w4a16"), device_map=device_map)
    assert_same_state(model, load(directory, TritonQConfig("w4a16")))
    model.save_pretrained(tmp_path)
    assert_same_state(load(tmp_path, TritonQConfig(), device_map=device_map), model)


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": {"model": "cpu", "lm_head": "disk"}},
        {"device_map": "auto", "max_memory": {"cpu": 30_000}},
    ],
    ids=["given", "auto"],
)
def test_nothing_is_offloaded(options: dict[str, Any], directories: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"device_map must place all layers .* quantized layers are not offloaded"
    ):
        load(directories("llama"), TritonQConfig("w4a16"), offload_folder=tmp_path, **options)


def test_compiles_into_one_graph(directories: Any) -> None:
    """A step of generation over a cache of fixed size. Backend eager: Inductor's code takes a minute to build."""
    model = load(directories("llama"), TritonQConfig({"re:.*mlp": "w4a16", "_default": "w8a8"}))
    torch.compiler.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    cache = hosts.transformers.StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        found = compiled(hosts.TOKENS, past_key_values=cache).logits
    torch.compiler.reset()
    assert torch.allclose(found, logits(model), atol=1e-2, rtol=0)
