"""The example of one's own inference code: its decoder against the demo's, its loop, and what it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonq
from examples import swap_layers as example
from tritonq.demo.model import load_demo_model

PROMPT = torch.tensor(list(b"\0The raise statement"))


def generator(scheme: str | None = None, length: int = 32, device: str = "cpu") -> example.Generator:
    model = example.float_decoder(torch.device(device))
    if scheme is not None:
        tritonq.quantize_(model, scheme)
    dtype = model.embedding.weight.dtype
    return example.Generator(model, example.Cache(example.Shape(), length, torch.device(device), dtype))


@torch.no_grad()
def test_the_decoder_computes_what_the_demo_model_computes() -> None:
    """All at once, and position by position through the cache."""
    expected = load_demo_model()(PROMPT[None])[0]
    found = generator()
    torch.testing.assert_close(found.prefill(PROMPT), expected, rtol=1e-4, atol=1e-4)
    one_by_one = generator()
    rows = [
        one_by_one.model(PROMPT[t : t + 1], torch.tensor([t]), one_by_one.cache) for t in range(len(PROMPT))
    ]
    torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_loop_is_greedy_and_starts_again_from_any_state() -> None:
    found = generator("w4a16")
    tokens = found.generate(PROMPT, 6)
    ids = PROMPT
    for token in tokens:
        logits = generator("w4a16", length=len(ids) + 1).prefill(ids)
        assert int(logits[-1].argmax()) == int(token)
        ids = torch.cat((ids, token[None]))
    assert torch.equal(found.generate(PROMPT, 6), tokens)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_a_step_never_waits_for_the_host_and_moves_no_buffer(scheme: str) -> None:
    """What a CUDA graph needs. A fake tensor has no value: reading one back, as `.item()` does, raises."""
    found = generator(scheme)
    buffers = (found.token, found.position, found.output, found.cache.keys, found.cache.values)
    addresses = [buffer.data_ptr() for buffer in buffers]
    found.step()
    assert [buffer.data_ptr() for buffer in buffers] == addresses
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for name in ("token", "position", "output"):
        setattr(found, name, mode.from_tensor(getattr(found, name)))
    for name in ("keys", "values", "places", "cosine", "sine"):
        setattr(found.cache, name, mode.from_tensor(getattr(found.cache, name)))
    with mode:
        found.step()


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("scheme", [None, "w8a16", "w4a16", "w8a8", "w4a8"])
def test_the_graph_computes_the_same_tokens(scheme: str | None) -> None:
    prompt = PROMPT.to("cuda")
    found = generator(scheme, device="cuda")
    expected = found.generate(prompt, 8)
    found.capture()
    assert torch.equal(found.generate(prompt, 8), expected)


@torch.no_grad()
def test_too_long_an_output_is_refused() -> None:
    with pytest.raises(ValueError, match="cache has 32 positions, prompt and output need 33"):
        generator().generate(PROMPT, 33 - len(PROMPT))


def test_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example.main(count=6, schemes=("w4a16", "w8a8_static"))
    lines = capsys.readouterr().out.splitlines()
    sizes = {line.split()[0]: float(line.split()[1]) for line in lines if " MB " in line}
    assert list(sizes) == ["float", "w4a16", "w8a8_static"]
    # The embedding, the head and the norms stay float: 0.27 MB, in bfloat16 on a GPU half of it.
    assert sizes["w4a16"] < sizes["w8a8_static"] < 0.65 * sizes["float"]
    assert "tokens/s" in lines[-1]


def test_the_lines_to_copy_are_marked() -> None:
    found = re.findall(r"  # (\d)\b", Path(example.__file__).read_text(encoding="utf-8"))
    assert found == list("12345")
