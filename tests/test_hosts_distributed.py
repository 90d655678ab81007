"""Adapters on a quantized base in two processes (gloo, on CPUs): DDP and FSDP2, against one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.two_processes import run_in_two_processes

PROGRAM = """
import sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
import tritonq

rank, folder, scheme = int(sys.argv[1]), sys.argv[2], SCHEME
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

def build(seed=0):
    torch.manual_seed(seed)
    made = {"w4a16": tritonq.W4A16(group_size=32, symmetric=False)}.get(scheme, scheme)
    model = tritonq.quantize_(nn.Sequential(nn.Linear(70, 17), nn.ReLU(), nn.Linear(17, 8)), made)
    tritonq.qat.add_lora_(model, rank=2)
    torch.manual_seed(1)
    for parameter in tritonq.qat.lora_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    return model

def train(model, batches):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

generator = torch.Generator().manual_seed(3)
whole = [torch.randn(8, 70, generator=generator) for _ in range(3)]
mine = [x[4 * rank : 4 * rank + 4] for x in whole]
alone = build()
train(alone, whole)
expected = {name: value for name, value in alone.state_dict().items()}

base = build(seed=rank)  # DDP sends rank 0's model to all
ddp = DistributedDataParallel(base)
codes = {name for name, b in base.named_buffers() if b.dtype == torch.int16}
assert not codes, codes
train(ddp, mine)

sharded = build()
mesh = init_device_mesh("cpu", (2,))
for layer in (sharded[0], sharded[2]):
    fully_shard(layer, mesh=mesh)
fully_shard(sharded, mesh=mesh)
held = sharded[0].base._parameters
codes = held["weight_packed" if "weight_packed" in held else "weight"]
assert codes.to_local().shape[0] == (9 if rank == 0 else 8), codes.shape  # each holds a part of the rows
train(sharded, mine)
for kind, model in (("ddp", base), ("fsdp", sharded)):
    for name, value in model.state_dict().items():
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        if value.is_floating_point():
            assert torch.allclose(value, expected[name], atol=1e-5), (kind, name)
        else:
            assert torch.equal(value, expected[name]), (kind, name)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
def test_adapters_train_as_in_one_process(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run_in_two_processes(PROGRAM.replace("SCHEME", repr(scheme)), tmp_path)
