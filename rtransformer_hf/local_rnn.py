# Copyright 2026 The rtransformer_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
The LocalRNN operator (arXiv 1907.05572, section 3.1): at every position an RNN runs over the window of the last K
inputs, from a zero state and with the same weights everywhere, and its last hidden state is the output,

    h_t = RNN(x_{t-K+1}, ..., x_t)

Inputs before the start of the sequence are zero vectors: they are fed to the RNN, so that its biases act on them.

Two forms compute the same function. `textbook_local_rnn` says what it is; `shared_projection_local_rnn` projects each
input once instead of once for each of the K windows that hold it. Both take the two projections of the cell as
callables; `local_rnn` is the operator over plain weights.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

Projection = Callable[[torch.Tensor], torch.Tensor]
State = tuple[torch.Tensor, ...]  # the hidden state comes first; the LSTM's cell state follows it


def rnn_step(input_gates: torch.Tensor, recurrent_gates: torch.Tensor, state: State) -> State:
    return (torch.tanh(input_gates + recurrent_gates),)


def gru_step(input_gates: torch.Tensor, recurrent_gates: torch.Tensor, state: State) -> State:
    (hidden,) = state
    input_reset, input_update, input_new = input_gates.chunk(3, dim=-1)
    recurrent_reset, recurrent_update, recurrent_new = recurrent_gates.chunk(3, dim=-1)
    reset = torch.sigmoid(input_reset + recurrent_reset)
    update = torch.sigmoid(input_update + recurrent_update)
    new = torch.tanh(input_new + reset * recurrent_new)
    return (new + update * (hidden - new),)


def lstm_step(input_gates: torch.Tensor, recurrent_gates: torch.Tensor, state: State) -> State:
    _, cell = state
    input_gate, forget_gate, candidate, output_gate = (input_gates + recurrent_gates).chunk(4, dim=-1)
    cell = torch.sigmoid(forget_gate) * cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
    return torch.sigmoid(output_gate) * torch.tanh(cell), cell


# For each cell: its step, how many gates its projections hold, how many tensors its state. The gates stand in the
# order of torch.nn.RNN, GRU and LSTM.
CELLS = {"rnn": (rnn_step, 1, 1), "gru": (gru_step, 3, 1), "lstm": (lstm_step, 4, 2)}


def num_gates(cell: str) -> int:
    """Number of gates of a cell, "rnn", "gru" or "lstm": its projections are `num_gates * hidden_size` wide."""
    return CELLS[cell][1]


def textbook_local_rnn(
    hidden_states: torch.Tensor,
    input_proj: Projection,
    recurrent_proj: Projection,
    *,
    cell: str,
    window_size: int,
    past: torch.Tensor | None = None,
    sequence_positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition: gathers every window, then runs the RNN over them. Arguments as in `local_rnn`."""
    step, _, _ = CELLS[cell]
    inputs = prepend_past(hidden_states, past, window_size)
    windows = inputs.unfold(1, window_size, 1).movedim(-1, 2)  # (batch, time, window, hidden)
    if sequence_positions is not None:
        distances = torch.arange(window_size - 1, -1, -1, device=windows.device)
        windows = windows * (sequence_positions[..., None] >= distances)[..., None]

    state = None
    for input_state in windows.unbind(2):
        input_gates = input_proj(input_state)
        state = zero_state(input_gates, cell) if state is None else state
        state = step(input_gates, recurrent_proj(state[0]), state)
    return state[0]


def shared_projection_local_rnn(
    hidden_states: torch.Tensor,
    input_proj: Projection,
    recurrent_proj: Projection,
    *,
    cell: str,
    window_size: int,
    past: torch.Tensor | None = None,
    sequence_positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Projects each input once; the states of all windows then advance together, one matrix product a step, and the input
    of step j is the projected sequence shifted by j. Arguments as in `local_rnn`.
    """
    step, _, _ = CELLS[cell]
    inputs = prepend_past(hidden_states, past, window_size)
    projected = input_proj(inputs)  # (batch, window - 1 + time, gates * hidden)
    projected_zero = input_proj(torch.zeros_like(inputs[:1, :1])) if sequence_positions is not None else None

    state = zero_state(projected, cell)
    for start in range(window_size):
        input_gates = projected[:, start : start + hidden_states.shape[1]]
        if sequence_positions is not None:
            is_inside = sequence_positions >= window_size - 1 - start
            input_gates = torch.where(is_inside[..., None], input_gates, projected_zero)
        state = step(input_gates, recurrent_proj(state[0]), state)
    return state[0]


def prepend_past(hidden_states: torch.Tensor, past: torch.Tensor | None, window_size: int) -> torch.Tensor:
    """(batch, time, input) -> (batch, window - 1 + time, input): the inputs behind zeros or the given past."""
    if past is None:
        return F.pad(hidden_states, (0, 0, window_size - 1, 0))
    return torch.cat([past.to(hidden_states.dtype), hidden_states], dim=1)


def zero_state(gates: torch.Tensor, cell: str) -> State:
    """The zero state of a cell, as (1, 1, hidden): every window starts from the same, so it is broadcast."""
    _, gates_per_unit, tensors_per_state = CELLS[cell]
    return (gates.new_zeros(1, 1, gates.shape[-1] // gates_per_unit),) * tensors_per_state


IMPLEMENTATIONS = {"textbook": textbook_local_rnn, "shared_projection": shared_projection_local_rnn}


def local_rnn(
    hidden_states: torch.Tensor,
    input_weight: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor | None,
    recurrent_bias: torch.Tensor | None,
    *,
    cell: str,
    window_size: int,
    past: torch.Tensor | None = None,
    sequence_positions: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """
    LocalRNN (arXiv 1907.05572, section 3.1) over plain weights, laid out as in torch.nn.RNN, GRU and LSTM.

    Args:
        hidden_states: (batch, time, input), the inputs; time is at least 1.
        input_weight: (gates * hidden, input), with 1 gate for "rnn", 3 for "gru" (reset, update, new), 4 for "lstm"
            (input, forget, candidate, output).
        recurrent_weight: (gates * hidden, hidden).
        input_bias, recurrent_bias: (gates * hidden,) or None.
        cell: "rnn" (tanh), "gru" or "lstm".
        window_size: number of inputs that each output sees, its own included; at least 1.
        past: (batch, window_size - 1, input), the inputs right before `hidden_states`; None means zeros.
        sequence_positions: (batch, time) integers, the index of each input within its own sequence where several
            sequences are packed in a row; what lies before index 0 counts as zeros. None: one sequence a row.
        implementation: "textbook" or "shared_projection"; None chooses.

    Returns:
        (batch, time, hidden), the last hidden state of each window.

    Raises:
        ValueError: an argument is not one of the above; the message names it, its value and what is accepted.
    """
    if cell not in CELLS:
        raise ValueError(f"`cell` must be one of {tuple(CELLS)}, got {cell!r}.")
    if window_size < 1:
        raise ValueError(f"`window_size` must be an integer of at least 1, got {window_size}.")
    if implementation is None:
        implementation = "shared_projection"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"`implementation` must be one of {tuple(IMPLEMENTATIONS)} or None, got {implementation!r}.")
    expected_past = (hidden_states.shape[0], window_size - 1, hidden_states.shape[2])
    if past is not None and past.shape != expected_past:
        raise ValueError(f"`past` must have the shape {expected_past}, got {tuple(past.shape)}.")

    return IMPLEMENTATIONS[implementation](
        hidden_states,
        partial(F.linear, weight=input_weight, bias=input_bias),
        partial(F.linear, weight=recurrent_weight, bias=recurrent_bias),
        cell=cell,
        window_size=window_size,
        past=past,
        sequence_positions=sequence_positions,
    )
