"""The operators: registered properly, traceable, differentiable where they should be, safe in graphs and streams."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.kernel_inputs import FLOATS, assert_same
from tests.support.operator_samples import COLUMNS, FEATURES, ROWS, samples
from tritonq import ops
from tritonq.nn.linear import QuantizedLinear
from tritonq.numerics import config

SCHEMES = {
    "w8a16": config.W8A16(),
    "w8a16 g32 affine": config.W8A16(group_size=32, symmetric=False),
    "w4a16": config.W4A16(group_size=32),
    "w4a16 affine": config.W4A16(group_size=64, symmetric=False),
    "w4a16 channel": config.W4A16(group_size=None),
    "w8a8": config.W8A8(),
    "w8a8 affine": config.W8A8(symmetric=False, activation_symmetric=False),
    "w8a8_static": config.W8A8Static(),
    "w8a8_static symmetric": config.W8A8Static(activation_symmetric=True),
    "w4a8": config.W4A8(group_size=32),
    "w4a8 channel": config.W4A8(group_size=None),
}
WEIGHT_ONLY = [name for name in SCHEMES if "a16" in name]


def layer_of(
    scheme: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    features: tuple[int, int] = (COLUMNS, FEATURES),
) -> QuantizedLinear:
    made = SCHEMES[scheme]
    qparams = None
    if made.static:
        zero = 0 if "symmetric" in scheme else -11
        qparams = torch.tensor([0.05]), torch.tensor([zero], dtype=torch.int8)
    linear = nn.Linear(*features).to(dtype)
    return QuantizedLinear.from_float(linear, made, input_qparams=qparams).to(device)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("name", list(samples("cpu")))
def test_operator_is_registered_as_torch_wants_it(name: str, device: str) -> None:
    operator, arguments = samples(device)[name]
    torch.library.opcheck(operator.overload, arguments)


@pytest.mark.parametrize("name", list(samples("cpu")))
def test_traced_shapes_are_the_real_ones(name: str, device: str) -> None:
    operator, arguments = samples(device)[name]
    real = operator(*arguments)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        fake = operator(*fakes)
    for found, expected in zip(
        fake if isinstance(fake, tuple) else [fake], real if isinstance(real, tuple) else [real], strict=True
    ):
        assert (found.shape, found.dtype, found.stride()) == (
            expected.shape,
            expected.dtype,
            expected.stride(),
        )
        assert found.device == expected.device


def test_backend_names(device: str) -> None:
    on_cpu = "reference" if importlib.util.find_spec("llvmlite") is None else "cpu"
    assert ops.backend("cpu") == on_cpu
    assert ops.backend(device) == ("triton" if device == "cuda" else on_cpu)


# --- compiling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_behind_each_other_compile_with_gradients_on(scheme: str, device: str) -> None:
    """What a first layer's bias needs must not make a second layer's refused gradient run in the forward pass."""
    model = nn.Sequential(
        layer_of(scheme, device), nn.Linear(FEATURES, COLUMNS), layer_of(scheme, device)
    ).to(device)
    x = torch.randn(ROWS, COLUMNS, device=device)
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    assert found.requires_grad
    assert torch.equal(found, model(x))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_compiles_for_a_transposed_input(scheme: str, device: str) -> None:
    layer = layer_of(scheme, device)
    x = torch.randn(COLUMNS, ROWS, device=device).t()
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_compiles_into_one_graph(scheme: str, device: str) -> None:
    layer = layer_of(scheme, device)
    model = nn.Sequential(layer, nn.ReLU())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for shape in ((ROWS, COLUMNS), (2, 3, COLUMNS), (COLUMNS,)):
        x = torch.randn(shape, device=device)
        with torch.no_grad():
            assert_same(compiled(x), model(x))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore")
def test_inductor_compiles_a_model_of_all_schemes(device: str) -> None:
    layers = [layer_of(scheme, device, features=(COLUMNS, COLUMNS)) for scheme in SCHEMES]
    model = nn.Sequential(*layers)
    x = torch.randn(ROWS, COLUMNS, device=device)
    with torch.no_grad():
        assert_same(torch.compile(model, fullgraph=True)(x), model(x))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
def test_weight_only_gradients(scheme: str, dtype: torch.dtype, device: str) -> None:
    layer = layer_of(scheme, device, dtype)
    weight = layer.dequantize(dtype)
    assert layer.bias is not None
    bias = layer.bias.detach().clone().requires_grad_()
    x = torch.randn(3, ROWS, COLUMNS, device=device).to(dtype).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    arriving = torch.randn(3, ROWS, FEATURES, device=device).to(dtype)
    layer(x).backward(arriving)
    nn.functional.linear(twin, weight, bias).backward(arriving)
    assert x.grad is not None
    assert twin.grad is not None
    assert layer.bias.grad is not None
    assert bias.grad is not None
    assert x.grad.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(x.grad, twin.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer.bias.grad, bias.grad, rtol=tolerance, atol=15 * tolerance)


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
def test_the_input_gradient_is_differentiable_itself(scheme: str, device: str) -> None:
    """A gradient penalty through a frozen quantized layer, in float32."""
    layer = layer_of(scheme, device)
    weight = layer.dequantize(torch.float32)
    x = torch.randn(ROWS, COLUMNS, device=device, requires_grad=True)

    def penalty(out: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    expected = penalty(nn.functional.linear(x, weight, layer.bias))
    torch.testing.assert_close(penalty(layer(x)), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in WEIGHT_ONLY])
def test_the_bias_learns_where_activations_are_quantized(scheme: str, device: str) -> None:
    layer = layer_of(scheme, device)
    arriving = torch.randn(ROWS, FEATURES, device=device)
    layer(torch.randn(ROWS, COLUMNS, device=device)).backward(arriving)
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.grad, arriving.sum(dim=0))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in WEIGHT_ONLY])
def test_a_gradient_through_quantized_activations_is_refused(scheme: str, device: str) -> None:
    layer = layer_of(scheme, device)
    out = layer(torch.randn(ROWS, COLUMNS, device=device, requires_grad=True))
    with pytest.raises(NotImplementedError, match=r"quantized activation.*w8a16, w4a16"):
        out.sum().backward()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiling_in_grad_mode(scheme: str, device: str) -> None:
    """Compiling traces the backward pass too: where there is none, that must come out when it runs, not before."""
    model = nn.Sequential(nn.Linear(COLUMNS, COLUMNS, device=device), layer_of(scheme, device))
    x = torch.randn(ROWS, COLUMNS, device=device)
    out = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    assert_same(out, model(x))
    if scheme in WEIGHT_ONLY:
        out.sum().backward()
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = [parameter.grad for parameter in learning]
        assert len(found) == 3  # the Linear's weight and bias, and the quantized layer's bias
        expected = torch.autograd.grad(model(x).sum(), learning)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    else:
        with pytest.raises(NotImplementedError, match="quantized activation"):
            out.sum().backward()


# --- graphs, streams and devices --------------------------------------------------------------------------------------

SPLIT = (4096, 128)  # in_features, out_features: few tiles and a long K, so that launchers split it


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 17, 200])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_graph_replays_the_eager_bits(scheme: str, rows: int) -> None:
    layer = layer_of(scheme, "cuda", torch.bfloat16, SPLIT)
    inputs = [torch.randn(rows, SPLIT[0], device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    with torch.no_grad():
        eager = [layer(x) for x in inputs]
        static = inputs[0].clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(static)
        for x, expected in zip(inputs[1:], eager[1:], strict=True):
            static.copy_(x)
            graph.replay()
            assert_same(out, expected)
        assert_same(layer(inputs[0]), eager[0])


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_streams_at_once_give_the_same_bits(scheme: str) -> None:
    layer = layer_of(scheme, "cuda", torch.bfloat16, SPLIT)
    inputs = [torch.randn(1, SPLIT[0], device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    with torch.no_grad():
        expected = [layer(x) for x in inputs]
        streams = [torch.cuda.Stream() for _ in inputs]
        torch.cuda.synchronize()
        found: list[list[Tensor]] = [[], []]
        for _ in range(100):
            for place, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    found[place].append(layer(inputs[place]))
        torch.cuda.synchronize()
    for outs, eager in zip(found, expected, strict=True):
        for out in outs:
            assert_same(out, eager)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_device_that_is_not_current(scheme: str) -> None:
    here, there = layer_of(scheme, "cuda:0"), layer_of(scheme, "cuda:0").to("cuda:1")
    there.load_state_dict(here.state_dict())
    x = torch.randn(ROWS, COLUMNS, device="cuda:0")
    with torch.no_grad(), torch.cuda.device(0):
        assert_same(there(x.to("cuda:1")).to("cuda:0"), here(x))


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(samples("cpu")))
def test_a_gpu_computes_what_the_reference_does(name: str) -> None:
    operator, arguments = samples("cuda")[name]
    there: Callable[[Any], Any] = lambda a: a.detach().cpu() if isinstance(a, Tensor) else a  # noqa: E731
    found, expected = operator(*arguments), operator(*map(there, arguments))
    for one, other in zip(
        found if isinstance(found, tuple) else [found],
        expected if isinstance(expected, tuple) else [expected],
        strict=True,
    ):
        tolerance = 0.0
        if any(word in name for word in ("weight only", "norm", "silu", "gelu", "gated")):
            tolerance = 1e-2 if one.is_floating_point() else 1
        torch.testing.assert_close(one.detach().cpu(), other, rtol=tolerance, atol=tolerance)
