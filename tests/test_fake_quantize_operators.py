"""The fake-quantization operators as operators: what they keep and refuse; compiling, checkpointing, autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.support.kernel_inputs import assert_same
from tritonq import ops
from tritonq.reference import fake_quantize as straight_through


def paths(device: str) -> dict[str, tuple[Callable[[Tensor], Tensor], int]]:
    """name → (function of x [64, 128], bytes that it may keep for the backward pass)."""
    scale, zero = torch.full((64, 4), 0.3, device=device), torch.zeros(64, 4, device=device)
    learned = scale.clone().requires_grad_()
    small = 2 * scale.numel() * 4
    return {
        "x": (lambda x: ops.fake_quantize(x, scale, zero, 32, -8, 7), 64 * 128 // 8),
        "x and scale": (lambda x: ops.fake_quantize(x, learned, zero, 32, -8, 7), 64 * 128 * 4 + small),
        "per token": (lambda x: ops.fake_quantize_per_token(x, False), 0),
    }


@pytest.mark.parametrize("path", list(paths("cpu")))
def test_nothing_more_is_kept(path: str, device: str) -> None:
    function, allowed = paths(device)[path]
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(torch.randn(64, 128, device=device, requires_grad=True))
    assert sum(kept) <= allowed


@pytest.mark.parametrize("path", list(paths("cpu")))
def test_a_second_derivative_is_refused(path: str, device: str) -> None:
    function, _ = paths(device)[path]
    x = torch.randn(64, 128, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dx.sum().backward()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", list(paths("cpu")))
def test_compiling_checkpointing_and_autocast_change_nothing(path: str, device: str) -> None:
    torch._dynamo.reset()
    function, _ = paths(device)[path]
    x = torch.randn(64, 128, device=device, requires_grad=True)
    dy = torch.randn(64, 128, device=device)
    expected = function(x)
    (expected_dx,) = torch.autograd.grad(expected, x, dy)

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return function(x)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for changed in (compiled, lambda x: checkpoint(function, x, use_reentrant=False), autocast):
        y = changed(x)
        assert_same(y.detach(), expected.detach())
        assert_same(torch.autograd.grad(y, x, dy)[0], expected_dx)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("rows_share", [False, True])
def test_operators_are_registered_as_torch_wants_them(rows_share: bool, affine: bool, device: str) -> None:
    x = torch.randn(5, 70, device=device, requires_grad=True)
    scale = torch.rand(1 if rows_share else 5, 3, device=device) + 0.1
    zero = torch.rand(scale.shape, device=device).mul(5).requires_grad_() if affine else None
    operators = torch.ops.tritonq
    learned = scale.clone().requires_grad_()
    check = torch.library.opcheck
    check(operators.fake_quantize.default, (x, learned, zero, 32, -8, 7, 0.5))
    constant_zero = None if zero is None else zero.detach().to(torch.int8)
    check(operators.fake_quantize_with_mask.default, (x, scale, constant_zero, 32, -8, 7))
    check(operators.fake_quantize_per_token.default, (x, affine))
    plain, dy = x.detach(), torch.randn(5, 70, device=device)
    mask = torch.randint(0, 256, straight_through.mask_shape(5, 3, 32), dtype=torch.uint8, device=device)
    check(operators.fake_quantize_masked.default, (dy, mask, 3, 32))
    for wanted in ((True, True, affine), (False, True, False), (True, False, affine)):
        zeros = None if zero is None else zero.detach()
        check(operators.fake_quantize_gradients.default, (dy, plain, scale, zeros, 32, -8, 7, 0.5, *wanted))


def test_arguments_that_do_not_fit(device: str) -> None:
    x, one = torch.randn(4, 40, device=device), torch.ones(1, 1, device=device)
    for match, arguments in {
        r"x must be \[rows, columns\], found shape \(40,\)": (x[0], one, None, 40, -8, 7),
        r"scale must be \[4 or 1, 2\].*found \(1, 1\)": (x, one, None, 32, -8, 7),
        r"scale must be \[4 or 1, 1\].*found \(3, 1\)": (x, one.expand(3, 1), None, 40, -8, 7),
        r"zero_point must have scale's shape \(1, 1\), found \(1,\)": (x, one, one[0], 40, -8, 7),
        r"group_size must be at least 1, found 0": (x, one, None, 0, -8, 7),
        r"-128 ≤ qmin < qmax ≤ 127 is wanted, found 7 and -8": (x, one, None, 40, 7, -8),
    }.items():
        with pytest.raises(ValueError, match=match):
            ops.fake_quantize(*arguments)


@pytest.mark.parametrize("group_size", [1, 7, 8, 24, 32, 100, 1000, 3000])
def test_masks_pack_and_unpack(group_size: int) -> None:
    for rows, columns in ((3, 314), (1, 1), (0, 9), (2, 2500)):
        groups = -(-columns // group_size)
        mask = torch.rand(rows, columns) < 0.5
        packed = straight_through.pack_mask(mask, groups, group_size)
        assert packed.shape == straight_through.mask_shape(rows, groups, group_size)
        assert torch.equal(straight_through.unpack_mask(packed, columns, groups, group_size), mask)
