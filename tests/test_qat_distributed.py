"""Quantization-aware training over two processes (gloo, on CPUs): DDP, and FSDP2 against DDP."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.two_processes import run_in_two_processes

PROGRAM = """
import sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import tritonq

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
runs = [("w8a8_static", False), ("w8a8_static", True), ("w4a16", True)]
for kind, (scheme, learns) in [(kind, run) for kind in ("ddp", "fsdp") for run in runs]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
    p = tritonq.prepare_qat(model, scheme, learnable_scale=learns)
    if learns and scheme == "w8a8_static":
        p(torch.randn(16, 32))  # learned activation scales start from a batch that all processes share
    if kind == "ddp":
        trained = DistributedDataParallel(p)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cpu", (2,))
        for layer in (p[0], p[2]):
            fully_shard(layer, mesh=mesh)
        trained = fully_shard(p, mesh=mesh)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)
    for _ in range(3):
        loss = trained(torch.randn(16, 32)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in p.state_dict().items()}
    whole = tritonq.prepare_qat(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)), scheme,
                                learnable_scale=learns)
    whole.load_state_dict(state)
    q = tritonq.convert(whole.eval())
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(q(x), whole(x), atol=1e-4)
        if kind == "ddp":
            assert torch.allclose(tritonq.convert(p)(x), whole(x), atol=1e-4)
    torch.save({"state": state, "codes": q[0].int_weight()}, f"{folder}/{kind}-{scheme}-{learns}-{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def results(kind: str, run: str, folder: Path) -> list[dict]:
    return [torch.load(folder / f"{kind}-{run}-{rank}.pt") for rank in range(2)]


def test_two_processes(tmp_path):
    run_in_two_processes(PROGRAM, tmp_path)
    for run in ("w8a8_static-False", "w8a8_static-True", "w4a16-True"):
        ddp, fsdp = results("ddp", run, tmp_path), results("fsdp", run, tmp_path)
        for first, second in (ddp, fsdp):
            assert torch.equal(first["codes"], second["codes"])
            if run == "w8a8_static-True":
                assert first["state"]["0.activation_post_process.scale"] != 1
                for name, value in first["state"].items():
                    if ".observer." not in name:  # each goes on watching its own data
                        assert torch.equal(value, second["state"][name]), name
        for name, value in ddp[0]["state"].items():
            # FSDP leaves each process its own statistics where they are not learned.
            if "activation_post_process" not in name or (name.endswith("scale") and "True" in run):
                assert torch.allclose(value.float(), fsdp[0]["state"][name].float(), rtol=1e-3, atol=1e-4), (
                    name
                )
