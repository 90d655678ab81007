"""Recurrent layers made of Linear layers: what replaces nn.LSTM, nn.GRU and nn.RNN.

torch's layers are one operator, which reads its weights itself. These hold a Linear for each weight, on the same
Parameters, and quantization replaces each Linear as it does elsewhere:

    ih_l0            weight_ih_l0, bias_ih_l0    the input's product      [·, K] → [·, gates · H]
    hh_l0            weight_hh_l0, bias_hh_l0    the hidden state's       [B, H] → [B, gates · H]
    hr_l0            weight_hr_l0                a projection (proj_size) [B, H] → [B, P]
    ih_l1_reverse …  the next layers, and the backward directions

ih multiplies all inputs of a sequence at once; only hh and hr run step by step. Sequences lie as in a PackedSequence,
and a padded batch is the one whose sequences all last to the end:

    rows of step 0 | rows of step 1 | …        sizes: how many sequences, the longest first, have each step
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tritonq.nn.recurrent_cells import STEPS, State, check_state, states_of
from tritonq.nn.split_parts import check_input, linear_of


class Recurrent(nn.Module):
    """A stack of recurrent layers with the interface of torch's: PackedSequence, unbatched input, `batch_first`.

    Attributes:
        mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size: torch's.
        ih_l0, hh_l0, …: the Linears, float or quantized.
        module_name: the layer's, for messages.
    """

    def __init__(self, layer: nn.RNNBase, name: str = "") -> None:
        """From a float layer, whose Parameters the new one holds."""
        super().__init__()
        self.mode, self.module_name = layer.mode, name
        self.input_size, self.hidden_size, self.proj_size = (
            layer.input_size,
            layer.hidden_size,
            layer.proj_size,
        )
        self.num_layers, self.bias, self.batch_first = layer.num_layers, layer.bias, layer.batch_first
        self.dropout, self.bidirectional = float(layer.dropout), layer.bidirectional
        parameters = layer._parameters
        for suffix in self._suffixes():
            for name in (f"ih_{suffix}", f"hh_{suffix}", f"hr_{suffix}"):
                if f"weight_{name}" in parameters:
                    bias = parameters.get(f"bias_{name}")
                    self.add_module(name, linear_of(parameters[f"weight_{name}"], bias))

    def _suffixes(self) -> list[str]:
        """Of each layer and direction, in the order of hx."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """As torch's: (output, h_n), or (output, (h_n, c_n)) of an LSTM.

        Args:
            input: [T, B, K], [B, T, K] with `batch_first`, [T, K], or a PackedSequence.
            hx: h_0 [layers · directions, B, H], of an LSTM (h_0, c_0); without B for [T, K]. None means zeros.

        Raises:
            TypeError, ValueError: naming the layer, for another input or state.
        """
        where = f"{type(self).__name__} {self.module_name!r}"
        packed = input if isinstance(input, PackedSequence) else None
        x = packed.data if packed is not None else input
        check_input(where, x, self.input_size, (2,) if packed is not None else (2, 3))
        assert isinstance(x, Tensor)
        unbatched = packed is None and x.dim() == 2
        if packed is not None:
            sizes = packed.batch_sizes.tolist()
        else:
            x = x.unsqueeze(1) if unbatched else x.transpose(0, 1) if self.batch_first else x  # [T, B, K]
            sizes = [x.shape[1]] * x.shape[0]
            x = x.reshape(-1, self.input_size)
        if not sizes:
            raise ValueError(f"{where}: input must have at least one time step, found none")
        states = self._initial(where, x, hx, sizes[0], unbatched)
        if packed is not None and packed.sorted_indices is not None and hx is not None:
            states = tuple(state.index_select(1, packed.sorted_indices) for state in states)

        rows, states = self._layers(x, sizes, states)

        if packed is not None:
            output: Any = PackedSequence(
                rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
            )
            if packed.unsorted_indices is not None:
                states = tuple(state.index_select(1, packed.unsorted_indices) for state in states)
        else:
            output = rows.reshape(len(sizes), sizes[0], rows.shape[-1])
            if unbatched:
                output, states = output.squeeze(1), tuple(state.squeeze(1) for state in states)
            elif self.batch_first:
                output = output.transpose(0, 1)
        return output, states if self.mode == "LSTM" else states[0]

    def _initial(self, where: str, x: Tensor, hx: Any, batch: int, unbatched: bool) -> State:
        """The states before the first step, each [layers · directions, B, ·]."""
        names, count = states_of(self.mode), len(self._suffixes())
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        shapes = [(count, *(() if unbatched else (batch,)), width) for width in widths[: len(names)]]
        if hx is None:
            return tuple(x.new_zeros(count, batch, width) for width in widths[: len(names)])
        states = tuple(hx) if self.mode == "LSTM" and isinstance(hx, (tuple, list)) else (hx,)
        check_state(where, states, names, shapes)
        return tuple(state.unsqueeze(1) for state in states) if unbatched else states

    def _layers(self, rows: Tensor, sizes: list[int], states: State) -> tuple[Tensor, State]:
        """All layers: rows [ΣB, K] → [ΣB, directions · H], and the last states."""
        directions = 2 if self.bidirectional else 1
        last: list[State] = []
        for index, suffix in enumerate(self._suffixes()):
            direction = index % directions
            if direction == 0:
                inputs, outputs = rows, []
            found, state = self._direction(suffix, inputs, sizes, tuple(state[index] for state in states))
            outputs.append(found)
            last.append(state)
            if direction == directions - 1:
                rows = torch.cat(outputs, -1)
                if index + 1 < self.num_layers * directions:
                    rows = nn.functional.dropout(rows, self.dropout, self.training)
        return rows, tuple(torch.stack(tensors) for tensors in zip(*last, strict=True))

    def _direction(self, suffix: str, rows: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        """One direction of one layer: rows [ΣB, K], state [B, ·] each → rows [ΣB, H], the last state."""
        hh, hr = self._modules[f"hh_{suffix}"], self._modules.get(f"hr_{suffix}")
        assert hh is not None
        step, whole = STEPS[self.mode], sizes[0]
        products = self.get_submodule(f"ih_{suffix}")(rows).split(sizes)
        state = tuple(tensor.to(products[0].dtype) for tensor in state)
        outputs: list[Tensor] = []
        steps = range(len(sizes))
        for index in reversed(steps) if suffix.endswith("_reverse") else steps:
            size = sizes[index]
            now = state if size == whole else tuple(tensor[:size] for tensor in state)
            new = step(products[index], hh(now[0]), now)
            if hr is not None:
                new = (hr(new[0]), *new[1:])
            outputs.append(new[0])
            if size < whole:  # of the other sequences this is not a step
                new = tuple(torch.cat([moved, kept[size:]]) for moved, kept in zip(new, state, strict=True))
            state = new
        return torch.cat(outputs[::-1] if suffix.endswith("_reverse") else outputs), state

    def flatten_parameters(self) -> None:
        """Nothing: torch's name for making one block of memory of the weights, which programs call before forward."""

    def extra_repr(self) -> str:
        words = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "proj_size": 0, "bias": True, "batch_first": False, "dropout": 0.0}
        for word, default in {**defaults, "bidirectional": False}.items():
            if getattr(self, word) != default:
                words.append(f"{word}={getattr(self, word)}")
        return ", ".join(words)


class LSTM(Recurrent):
    """nn.LSTM made of Linears."""


class GRU(Recurrent):
    """nn.GRU made of Linears."""


class RNN(Recurrent):
    """nn.RNN made of Linears."""
