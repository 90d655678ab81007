"""Recurrent cells made of Linear layers: what replaces nn.LSTMCell, nn.GRUCell and nn.RNNCell.

torch's cells are one operator, which reads its weights itself. These hold a Linear for each weight, on the same
Parameters, and quantization replaces each Linear as it does elsewhere:

    ih    weight_ih, bias_ih    the input's product      [B, K] → [B, gates · H]
    hh    weight_hh, bias_hh    the hidden state's       [B, H] → [B, gates · H]

`STEPS` says what a cell makes of the two products and its state; sequences (recurrent.py) run the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tritonq.nn.split_parts import check_input, linear_of

#: Of one step: (h,), or (h, c) of an LSTM.
State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    take, keep, new, show = (x + h).chunk(4, -1)
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (x_reset, x_keep, x_new), (h_reset, h_keep, h_new) = x.chunk(3, -1), h.chunk(3, -1)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return (torch.sigmoid(x_keep + h_keep) * (state[0] - new) + new,)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.relu(x + h),)


#: By torch's name of the mode: (products of input and hidden state, the state before) → the state behind.
STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}


def states_of(mode: str) -> tuple[str, ...]:
    """The names of a state's tensors, as torch's messages have them."""
    return ("h_0", "c_0") if mode == "LSTM" else ("h_0",)


def check_state(where: str, state: State, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise unless a state's tensors have their shapes."""
    if len(state) != len(names) or not all(isinstance(tensor, Tensor) for tensor in state):
        wanted = "a tensor" if len(names) == 1 else f"a tuple ({', '.join(names)}) of tensors"
        raise TypeError(f"{where}: hx must be {wanted}, found {[type(tensor).__name__ for tensor in state]}")
    for name, tensor, shape in zip(names, state, shapes, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{where}: {name} must have shape {list(shape)}, found {list(tensor.shape)}")


class RecurrentCell(nn.Module):
    """One step of a recurrent layer: `forward(input [B, K] or [K], hx)` as torch's cells.

    Attributes:
        input_size, hidden_size: K and H.
        mode: the key of STEPS.
        ih, hh: the Linears, float or quantized.
        module_name: the cell's, for messages.
    """

    def __init__(self, cell: nn.RNNCellBase, mode: str, name: str = "") -> None:
        """From a float cell, whose Parameters the new one holds."""
        super().__init__()
        self.input_size, self.hidden_size = cell.input_size, cell.hidden_size
        self.mode, self.module_name = mode, name
        self.ih = linear_of(cell._parameters["weight_ih"], cell._parameters["bias_ih"])
        self.hh = linear_of(cell._parameters["weight_hh"], cell._parameters["bias_hh"])

    def _step(self, input: Tensor, hx: State | None) -> State:
        where = f"{type(self).__name__} {self.module_name!r}"
        check_input(where, input, self.input_size, (1, 2))
        names, shape = states_of(self.mode), (*input.shape[:-1], self.hidden_size)
        x = self.ih(input)
        if hx is None:
            hx = tuple(x.new_zeros(shape) for _ in names)
        check_state(where, hx, names, [shape] * len(names))
        return STEPS[self.mode](x, self.hh(hx[0]), hx)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


class LSTMCell(RecurrentCell):
    """nn.LSTMCell made of Linears."""

    def __init__(self, cell: nn.LSTMCell, name: str = "") -> None:
        super().__init__(cell, "LSTM", name)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> State:
        """[B, K] and (h, c) [B, H] → (h, c)."""
        return self._step(input, None if hx is None else tuple(hx))


class GRUCell(RecurrentCell):
    """nn.GRUCell made of Linears."""

    def __init__(self, cell: nn.GRUCell, name: str = "") -> None:
        super().__init__(cell, "GRU", name)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """[B, K] and h [B, H] → h."""
        return self._step(input, None if hx is None else (hx,))[0]


class RNNCell(RecurrentCell):
    """nn.RNNCell made of Linears."""

    def __init__(self, cell: nn.RNNCell, name: str = "") -> None:
        super().__init__(cell, f"RNN_{cell.nonlinearity.upper()}", name)
        self.nonlinearity = cell.nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """[B, K] and h [B, H] → h."""
        return self._step(input, None if hx is None else (hx,))[0]
