"""`python3 -m benchmarks.llm`: its decoders are Llama, compile without a break, and get no time if they are wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonq
from benchmarks.linear.contender import Built
from benchmarks.linear.contender import Contender as LinearContender
from benchmarks.llm import command, goals, rows, run, split
from benchmarks.llm.build import build
from benchmarks.llm.command import main
from benchmarks.llm.contenders import OURS_AND_FLOAT, PEERS, Contender, named
from benchmarks.llm.plots import write_plots
from benchmarks.llm.reference import reference_path
from benchmarks.llm.sessions import LEAN, SESSIONS, TRANSFORMERS, Session
from benchmarks.llm.shapes import MODELS
from tritonq import ops

CPU = torch.device("cpu")
TINY = MODELS["tiny"]
DECODERS = [LEAN, pytest.param(TRANSFORMERS, marks=pytest.mark.needs_extra("transformers"))]
IDS = torch.tensor([[3, 200, 17, 5, 99]])
PRODUCTS = {
    torch.ops.tritonq.weight_only_linear.default,
    torch.ops.tritonq.int8_linear.default,
    torch.ops.tritonq.int8_linear_requantize.default,
    torch.ops.tritonq.int8_gated_linear_requantize.default,
    torch.ops.tritonq.int8_linear_dynamic.default,
    torch.ops.tritonq.int4_int8_linear.default,
    torch.ops.tritonq.int4_int8_linear_dynamic.default,
}


def session(decoder: str, scheme: str, batch: int = 1) -> Session:
    found: Session = SESSIONS[decoder](build(decoder, named(scheme), TINY, CPU, torch.float32), batch, 16)
    return found


@torch.no_grad()
def logits(session: Session) -> Tensor:
    """Behind a prompt, and behind one more token."""
    session.rewind(0)
    return torch.cat((session.logits(IDS[:, :4]), session.logits(IDS[:, 4:])))


@pytest.mark.needs_extra("transformers")
def test_the_lean_decoder_is_llama():
    lean, llama = session(LEAN, "float"), session(TRANSFORMERS, "float")
    state: dict[str, Tensor] = llama.model.state_dict()
    for key, tensor in state.items():
        if "norm" in key:
            tensor.uniform_(0.5, 1.5)
    renamed = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for index in range(TINY.layers):
        theirs = {
            "attention_norm": ("input_layernorm",),
            "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "o": ("self_attn.o_proj",),
            "mlp_norm": ("post_attention_layernorm",),
            "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "down": ("mlp.down_proj",),
        }
        for name, parts in theirs.items():
            weights = [state[f"model.layers.{index}.{part}.weight"] for part in parts]
            renamed[f"layers.{index}.{name}.weight"] = torch.cat(weights)
    lean.model.load_state_dict(renamed)
    torch.testing.assert_close(logits(lean), logits(llama), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w8a8", "w8a8_static", "w4a8"])
def test_a_step_compiles_without_a_break_and_computes_its_own_codes(decoder, scheme):
    found = session(decoder, scheme)
    expected = logits(found)
    with reference_path():
        torch.testing.assert_close(logits(found), expected, rtol=1e-3, atol=1e-3)
    graphs: list[list[Any]] = []

    def backend(module: Any, examples: Any) -> Any:
        graphs.append([node.target for node in module.graph.nodes])
        return module

    torch._dynamo.reset()
    step = torch.compile(found.logits, fullgraph=True, dynamic=False, backend=backend)
    with torch.no_grad():
        found.rewind(4)
        torch.testing.assert_close(step(IDS[:, 4:]), expected[1:], rtol=1e-5, atol=1e-5)
        found.rewind(4)
        torch.testing.assert_close(step(IDS[:, 4:]), expected[1:], rtol=1e-5, atol=1e-5)
    (targets,) = graphs
    # In the lean decoder q, k and v are one Linear, as are gate and up. Compiled siblings run alone, but static
    # gate and up are one product.
    products = 4 if decoder == "lean" else 6 if scheme == "w8a8_static" else 7
    assert sum(target in PRODUCTS for target in targets) == products * TINY.layers


def test_the_command_on_a_cpu(tmp_path, capsys):
    file = tmp_path / "results.json"
    arguments = ["--decoders", "lean", "--schemes", "w4a8", "--steps", "2", "--batches", "2"]
    assert main([*arguments, "--json", str(file), "--plot", str(tmp_path / "plots")]) == 0
    document = json.loads(file.read_text())
    cells = [row["cell"] for row in document["rows"]]
    assert [(cell["scheme"], cell["way"], cell["phase"], cell["batch"]) for cell in cells] == [
        (scheme, way, phase, batch)
        for scheme in ("float", "w4a8")
        for phase, batch in (("decode", 2), ("prefill", 1))
        for way in ("eager", "compile")
    ]
    assert all(row["status"] == "measured" and row["tokens_per_second"] > 0 for row in document["rows"])
    assert all(
        (row["linear_milliseconds"] or 0) > 0 for row in document["rows"] if row["cell"]["phase"] == "decode"
    )
    assert {plot.name for plot in (tmp_path / "plots").iterdir()} == {
        "lean_decode_2.svg",
        "lean_prefill_1.svg",
    }
    assert "w4a8" in capsys.readouterr().out


def test_a_wrong_scheme_gets_no_time(monkeypatch, capsys):
    product = ops.weight_only_linear

    def wrong(x: Tensor, *rest: Any) -> Tensor:
        return product(x, *rest) * (1.01 if x.shape[0] == 1 else 1)

    monkeypatch.setattr(ops, "weight_only_linear", wrong)
    assert main(["--decoders", "lean", "--schemes", "w4a16", "--steps", "1", "--ways", "eager"]) == 1
    printed = [line for line in capsys.readouterr().out.splitlines() if " w4a16 " in line]
    assert len(printed) == 1
    assert "WRONG: relative error" in printed[0]


def test_ways_that_disagree():
    logits, token = torch.tensor([[1.0, 3.0, 2.9]]), torch.tensor([[1]])
    near, other = logits * 1.001, torch.tensor([[0]])
    eager = [(logits, token)]
    assert run._disagreement(eager, eager, "graph", 5e-2) == ""
    assert run._disagreement([(near, token)], eager, "compile", 5e-2) == ""
    assert run._disagreement([(logits, torch.tensor([[2]]))], eager, "compile", 5e-2) == ""
    assert "not those of the eager call" in run._disagreement([(near, token)], eager, "graph", 5e-2)
    assert "not a near tie" in run._disagreement([(logits, other)], eager, "compile", 5e-2)
    assert "relative error" in run._disagreement([(logits * torch.nan, token)], eager, "compile", 5e-2)


def peer(tolerance: float) -> Contender:
    def rounded(linear: nn.Linear) -> Built:
        weight = linear.weight.bfloat16().float()
        return Built(lambda x: nn.functional.linear(x, weight))

    return Contender("rounded", "w8a16", LinearContender("rounded", "w8a16", rounded, tolerance))


def test_linears_of_other_libraries():
    plan = run.Plan("tiny", (1,), 4, 8, 2, ("eager",))
    found = list(run.measure(LEAN, peer(1e-2), plan, CPU, torch.float32))
    assert [(row.cell.by, row.status) for row in found] == [("rounded", "measured")] * 2
    (failed,) = run.measure(LEAN, peer(1e-6), plan, CPU, torch.float32)
    assert (failed.status, failed.milliseconds) == ("failed", None)
    assert "ArithmeticError: relative error" in failed.reason
    assert {contender.by for contender in PEERS} >= {"torchao_w4", "torchao_w8", "bnb_nf4", "bnb_int8"}


def cell(**fields: Any) -> rows.Cell:
    base = rows.Cell("8b", LEAN, "tritonq", "w4a16", "graph", "decode", 1, 512)
    return dataclasses.replace(base, **fields)


def test_goals():
    assert all("not measured" in line for line in goals.verdicts([])[1:])
    measured = [
        rows.Row(cell(), "measured", 2.5, 1.5, 400.0, 5.9),
        rows.Row(cell(way="compile"), "measured", 4.0, 1.5, 250.0, 5.7),
        rows.Row(cell(by="float", scheme="float"), "measured", 5.0, 4.0, 200.0, 15.2),
        rows.Row(cell(decoder=TRANSFORMERS), "measured", 5.0, 1.5, 152.0, 5.0),
        rows.Row(cell(decoder=TRANSFORMERS, way="eager"), "measured", 1.0, 1.5, 1000.0, 5.0),
    ]
    speed, ratio, transformers, memory, other = goals.verdicts(measured)[1:]
    assert speed.startswith("met")
    assert "400.00 tokens/s (lean, graph, batch 1)" in speed
    assert ratio.startswith("short")
    assert "2.00 × (lean, graph, batch 1), 9 % short" in ratio
    assert "152.00 tokens/s" in transformers
    assert "20 % short" in transformers
    assert memory.startswith("short")
    assert "5.90 GiB" in memory
    assert other.startswith("met")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--goals"], "--goals are stated for --model 8b on an NVIDIA H100 80GB HBM3, found tiny on no GPU"),
        (["--batches", "0"], "it must be a positive integer, found '0'"),
        (["--ways", "graph"], "invalid choice: 'graph'"),
        (["--plot", __file__], "--plot must be a folder, found the file"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is so without a GPU")
def test_bad_words(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_all_schemes_take_part():
    assert [found.scheme for found in OURS_AND_FLOAT] == ["float", *tritonq.numerics.config.PRESETS]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8_static"])
def test_the_linears_alone_are_all_linears_once(decoder, scheme):
    calls = split._calls(session(decoder, scheme).model, 1, CPU, torch.float32)
    outputs = [call() for call in calls]
    # Static gates stay apart: one kernel reads both weights.
    apart = TINY.layers if (decoder, scheme) == (TRANSFORMERS, "w8a8_static") else 0
    assert len(outputs) == 4 * TINY.layers + apart + 1
    assert all(isinstance(output, Tensor) for output in outputs)


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    def measured(*arguments: Any) -> Any:
        yield rows.Row(cell(), "measured", 2.5, 1.5, 400.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", measured)
    assert main(["--json", str(tmp_path / "results.json")]) == 130
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_rows_that_failed_are_not_drawn(tmp_path: Path):
    assert write_plots([rows.Row(cell(), "failed", reason="OutOfMemoryError")], tmp_path / "plots") == []
