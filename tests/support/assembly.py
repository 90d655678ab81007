"""Inline assembly of kernels on its own: every value of its operands, through a kernel that holds nothing else."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tools.ptx_emulator import GlobalMemory, Machine, Region

_THREADS = 128


def run_assembly(assembly: str, inputs: list[Tensor], dtype: torch.dtype, pack: int) -> Tensor:
    """What assembly of one result makes of tensors of one shape, as `inline_asm_elementwise` runs it.

    Each run of it gets `pack` neighbouring elements of each operand, packed into registers of 16 or 32 bits.
    """
    runs = inputs[0].numel() // pack
    results = pack * dtype.itemsize // 4 or 1
    words = [_words(x, pack) for x in inputs]
    out = torch.zeros(results, runs, dtype=torch.int32)
    arguments = [*words, out]
    names = [f"p{number}" for number in range(len(arguments))]
    lines = [
        "mov.u32 %r0, %ctaid.x;",
        f"mad.lo.s32 %r0, %r0, {_THREADS}, %tid.x;",
        "mul.wide.u32 %rd0, %r0, 4;",
        "setp.ge.s32 %p0, %r0, " + str(runs) + ";",
        "@%p0 bra $done;",
    ]
    registers = [f"%o{number}" for number in range(results)]
    for name, tensor, x in zip(names, words, inputs, strict=False):
        for row in range(len(tensor)):
            register = f"%i{len(registers)}"
            lines += [
                f"ld.param.b64 %rd1, [{name}];",
                "add.s64 %rd1, %rd1, %rd0;",
                f"ld.global.b32 {register}, [%rd1+{4 * runs * row}];",
            ]
            if pack * x.element_size() == 2:
                lines.append(f"cvt.u16.u32 %h{len(registers)}, {register};")
                register = f"%h{len(registers)}"
            registers.append(register)
    lines.append(re.sub(r"\$(\d+)", lambda found: registers[int(found[1])], assembly))
    lines += [f"ld.param.b64 %rd1, [{names[-1]}];", "add.s64 %rd1, %rd1, %rd0;"]
    lines += [f"st.global.b32 [%rd1+{4 * runs * row}], %o{row};" for row in range(results)]
    body = "\n".join(lines)
    ptx = f"""
.visible .entry assembly({", ".join(f".param .u64 {name}" for name in names)})
.reqntid {_THREADS}
{{
    .reg .pred %p<1>; .reg .b64 %rd<2>; .reg .b32 %r<1>; .reg .b32 %o<{results}>; .reg .b32 %i<16>; .reg .b16 %h<16>;
    {body}
$done:
    ret;
}}"""
    memory = GlobalMemory(
        [Region(n, x.data_ptr(), 4 * x.numel()) for n, x in zip(names, arguments, strict=True)], None
    )
    Machine(ptx, [x.data_ptr() for x in arguments], memory, (-(-runs // _THREADS),), 0).run()
    return out.t().flatten().view(dtype)[: runs * pack]


def _words(x: Tensor, pack: int) -> Tensor:
    """int32 [registers, runs], the first of the elements lowest."""
    raw = x.reshape(-1, pack).contiguous().view(torch.uint8)
    wide = torch.zeros(len(raw), -(-raw.shape[1] // 4) * 4, dtype=torch.uint8)
    wide[:, : raw.shape[1]] = raw
    return wide.view(torch.int32).t().contiguous()
