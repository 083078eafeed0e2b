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

Three forms compute the same function. `textbook_local_rnn` says what it is. `shared_projection_local_rnn` projects
each input once instead of once for each of the K windows that hold it. `blocked_local_rnn` does that with a backward
pass of its own, which keeps less and touches less than autograd would. The first two take the two projections of the
cell as callables; `local_rnn` is the operator over plain weights, and chooses among the forms.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

try:
    from .local_rnn_triton import SUPPORTED_DTYPES, triton_local_rnn
except ModuleNotFoundError:  # Triton is optional
    triton_local_rnn = None

logger = logging.get_logger(__name__)

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


# --- Decoding: one token is one step of every window ---


def advance_windows(
    hidden_states: torch.Tensor,
    windows: State | None,
    input_proj: Projection,
    recurrent_proj: Projection,
    *,
    cell: str,
    window_size: int,
) -> tuple[torch.Tensor, State]:
    """
    Feeds an input (batch, 1, input) to the windows in flight and to a new one, all by a single recurrent product.

    Args:
        windows: state tensors (batch, windows, hidden), the youngest window first; None for no window at all.

    Returns:
        The hidden state of the oldest window (batch, 1, hidden), which is the operator's output once `window_size - 1`
        windows came in; and the windows in flight now, at most `window_size - 1`.
    """
    step, _, _ = CELLS[cell]
    input_gates = input_proj(hidden_states)
    states = tuple(tensor.expand(len(hidden_states), 1, -1) for tensor in zero_state(input_gates, cell))
    if windows is not None:
        states = tuple(torch.cat(pair, dim=1) for pair in zip(states, windows, strict=True))
    states = step(input_gates, recurrent_proj(states[0]), states)
    return states[0][:, -1:], tuple(tensor[:, : window_size - 1] for tensor in states)


# --- The blocked form ---
#
# Given the inputs, positions are independent of each other: a block of them runs all K steps, and all of them back,
# before the next one does. For the backward pass the gates of the last steps are kept, and those of the first steps
# are computed anew. A block is laid out as (positions, features), which makes small products up to three times as fast
# as the other way around. Positions go by time, then by row of the batch, so that the inputs of a step are a run of
# rows of the projected block.
#
# A step is a few calls on memory that is there already. Small models spend their time on calls, so the views that the
# steps take of that memory are made for all steps at once.

BLOCK_POSITIONS = 1024  # in a block, at least: enough for the rate of the matrix products
BLOCK_BYTES = 2**19  # of a state in a block, at least: enough for the work of a call to outweigh the call

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # grad * y * (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # grad * (1 - y * y)
MINUS_ONE = torch.tensor(-1.0, device="cpu")


def add_recurrent(inputs, recurrent_weight, state, out) -> torch.Tensor:
    """inputs + state @ recurrent_weight.T; the weight is None where the state is zero."""
    if recurrent_weight is None:
        return out.copy_(inputs)
    return torch.addmm(inputs, state, recurrent_weight.t(), out=out)


def tanh(values, out) -> torch.Tensor:
    """
    tanh(x) = 2 * sigmoid(2x) - 1: on a CPU, PyTorch's sigmoid can take a sixth of the time of its tanh. For small x it
    is near 1/2, so that 16 bits would lose x: the sigmoid is computed in float32 then.
    """
    doubled = torch.add(values, values, out=out)
    sigmoid = doubled.to(torch.promote_types(doubled.dtype, torch.float32)).sigmoid_()
    return torch.add(MINUS_ONE, sigmoid, alpha=2, out=out)


class RNNSteps:
    """
    A step of the plain RNN over a block, in two halves, and the step back. Each argument but the weight is a tuple of
    views (positions, columns) of one kind of memory; `views` lists from and to which columns, in units of the hidden
    size.

    `activate` computes the gates, all that needs a product, from the projected inputs and the hidden state. `advance`
    computes the new states, which may be the memory of the states, and what the way back needs beside, `derived`. In
    `backward`, `grad_states` holds the gradients of the new states and becomes those of the states, what goes through
    the gates aside; `grad_inputs` becomes the gradients of the projected inputs.
    """

    views = {
        "inputs": [(0, 1)],
        "gates": [(0, 1)],
        "derived": [(0, 0)],  # nothing
        "states": [(0, 1)],
        "grad_inputs": [(0, 1)],
    }
    is_residual = False  # whether a part of the hidden state goes into the new one without going through the gates

    @staticmethod
    def activate(inputs, recurrent_weight, states, gates):
        tanh(add_recurrent(inputs[0], recurrent_weight, states[0], out=gates[0]), out=gates[0])

    @staticmethod
    def advance(inputs, gates, states, derived, new_states):
        new_states[0].copy_(gates[0])

    @staticmethod
    def backward(gates, derived, states, grad_states, grad_inputs):
        tanh_backward(grad_states[0], gates[0], grad_input=grad_inputs[0])


class GRUSteps:
    """
    The state's part of the new gate is multiplied by the reset gate, so that it counts as a gate of its own, and what
    it is added to, its bias, as an input: (recurrent new, reset, update) and (its bias, reset, update, new).
    """

    views = {
        "inputs": [(0, 3), (3, 4)],
        "gates": [(0, 3), (1, 3), (0, 1), (1, 2), (2, 3)],
        "derived": [(0, 1)],  # the new gate
        "states": [(0, 1)],
        "grad_inputs": [(0, 1), (1, 2), (2, 3), (3, 4), (1, 3)],
    }
    is_residual = True

    @staticmethod
    def activate(inputs, recurrent_weight, states, gates):
        add_recurrent(inputs[0], recurrent_weight, states[0], out=gates[0])
        gates[1].sigmoid_()

    @staticmethod
    def advance(inputs, gates, states, derived, new_states):
        _, _, recurrent_new, reset, update = gates
        new = tanh(torch.addcmul(inputs[1], reset, recurrent_new, out=derived[0]), out=derived[0])
        torch.lerp(new, states[0], update, out=new_states[0])

    @staticmethod
    def backward(gates, derived, states, grad_states, grad_inputs):
        _, reset_and_update, recurrent_new, reset, update = gates
        grad_recurrent_new, grad_reset, grad_update, grad_new, grad_reset_and_update = grad_inputs
        (new,), (grad,) = derived, grad_states
        torch.addcmul(grad, grad, update, value=-1, out=grad_new)
        tanh_backward(grad_new, new, grad_input=grad_new)
        torch.mul(grad_new, reset, out=grad_recurrent_new)
        torch.mul(grad_new, recurrent_new, out=grad_reset)
        torch.sub(states[0], new, out=grad_update).mul_(grad)
        sigmoid_backward(grad_reset_and_update, reset_and_update, grad_input=grad_reset_and_update)
        grad.mul_(update)


class LSTMSteps:
    views = {
        "inputs": [(0, 4)],
        "gates": [(0, 4), (0, 2), (0, 1), (1, 2), (2, 3), (3, 4)],
        "derived": [(0, 1)],  # tanh of the new cell state
        "states": [(0, 1), (1, 2)],
        "grad_inputs": [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2)],
    }
    is_residual = False

    @staticmethod
    def activate(inputs, recurrent_weight, states, gates):
        all_gates, input_and_forget, _, _, candidate, output_gate = gates
        add_recurrent(inputs[0], recurrent_weight, states[0], out=all_gates)
        input_and_forget.sigmoid_()
        tanh(candidate, out=candidate)
        output_gate.sigmoid_()

    @staticmethod
    def advance(inputs, gates, states, derived, new_states):
        _, _, input_gate, forget_gate, candidate, output_gate = gates
        hidden, cell = new_states
        torch.mul(forget_gate, states[1], out=cell).addcmul_(input_gate, candidate)
        tanh(cell, out=derived[0])
        torch.mul(derived[0], output_gate, out=hidden)

    @staticmethod
    def backward(gates, derived, states, grad_states, grad_inputs):
        _, input_and_forget, input_gate, forget_gate, candidate, output_gate = gates
        grad_input_gate, grad_forget_gate, grad_candidate, grad_output_gate, grad_input_and_forget = grad_inputs
        (cell_tanh,), (grad_hidden, grad_cell) = derived, grad_states
        torch.mul(grad_hidden, cell_tanh, out=grad_output_gate)
        sigmoid_backward(grad_output_gate, output_gate, grad_input=grad_output_gate)
        grad_hidden.mul_(output_gate)
        grad_cell.add_(tanh_backward(grad_hidden, cell_tanh, grad_input=grad_hidden))
        torch.mul(grad_cell, input_gate, out=grad_candidate)
        tanh_backward(grad_candidate, candidate, grad_input=grad_candidate)
        torch.mul(grad_cell, candidate, out=grad_input_gate)
        torch.mul(grad_cell, states[1], out=grad_forget_gate)
        sigmoid_backward(grad_input_and_forget, input_and_forget, grad_input=grad_input_and_forget)
        grad_cell.mul_(forget_gate)


STEPS = {"rnn": RNNSteps, "gru": GRUSteps, "lstm": LSTMSteps}


class BlockedLocalRNN(torch.autograd.Function):
    """(batch, window - 1 + time, input) -> (batch, time, hidden). The weights are those of `local_rnn`."""

    @staticmethod
    def forward(ctx, inputs, input_weight, recurrent_weight, input_bias, recurrent_bias, cell, window_size, num_kept):
        ctx.cell, ctx.window_size, ctx.num_kept = cell, window_size, num_kept
        cell = BlockedCell(STEPS[cell], input_weight, recurrent_weight, input_bias, recurrent_bias)
        output = inputs.new_empty(len(inputs), inputs.shape[1] - window_size + 1, cell.hidden_size)
        kept = []
        for rows, times in blocks(output):
            block = inputs[rows, times.start : times.stop + window_size - 1]
            num_positions = len(block) * (times.stop - times.start)
            kept.append(cell.empty("gates", num_kept, num_positions))
            # What is not kept is written to the same memory at every step.
            gates = cell.views("gates", cell.empty("gates", 1, num_positions)) * (window_size - num_kept)
            gates += cell.views("gates", kept[-1])
            derived = cell.views("derived", cell.empty("derived", 1, num_positions)) * window_size
            states = cell.views("states", cell.empty("states", 1, num_positions)) * (window_size + 1)
            cell.run(to_positions(block), len(block), gates, derived, states, num_unknown=window_size)
            output[rows, times] = from_positions(states[-1][0], len(block))
        ctx.save_for_backward(inputs, input_weight, recurrent_weight, input_bias, recurrent_bias, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        inputs, input_weight, recurrent_weight, input_bias, recurrent_bias, *kept = ctx.saved_tensors
        cell = BlockedCell(STEPS[ctx.cell], input_weight, recurrent_weight, input_bias, recurrent_bias)
        window_size, num_unknown = ctx.window_size, ctx.window_size - ctx.num_kept

        # Sums over the blocks are kept in float32 at least.
        sum_dtype = torch.promote_types(inputs.dtype, torch.float32)
        grad_inputs = torch.zeros_like(inputs)
        grad_input_weight = torch.zeros_like(input_weight, dtype=sum_dtype)
        grad_recurrent_weight = torch.zeros_like(recurrent_weight, dtype=sum_dtype)
        grad_input_bias = inputs.new_zeros(cell.gates_size, dtype=sum_dtype)
        grad_own_bias = inputs.new_zeros(cell.own_size, dtype=sum_dtype)

        for (rows, times), block_kept in zip(blocks(grad_output), kept, strict=True):
            with_past = slice(times.start, times.stop + window_size - 1)
            num_rows, num_positions = rows.stop - rows.start, block_kept.shape[1]
            block = to_positions(inputs[rows, with_past])
            gates = cell.views("gates", cell.empty("gates", num_unknown, num_positions))
            gates += cell.views("gates", block_kept)
            derived = cell.views("derived", cell.empty("derived", window_size, num_positions))
            states = cell.views("states", cell.empty("states", window_size + 1, num_positions))
            cell.run(block, num_rows, gates, derived, states, num_unknown)

            (grad_states,) = cell.views("states", cell.empty("states", 1, num_positions).zero_())
            grad_hidden = grad_states[0].copy_(to_positions(grad_output[rows, times]))
            (grad_step,) = cell.empty("grad_inputs", 1, num_positions)
            (grad_inputs_of_step,) = cell.views("grad_inputs", grad_step[None])
            grad_own = grad_step[:, : cell.own_size]
            grad_gates = grad_step[:, : cell.gates_size]
            grad_projected_of_step = grad_step[:, cell.own_size :]
            grad_projected = inputs.new_zeros(len(block), cell.gates_size)
            grad_windows = positions_of_steps(grad_projected, num_rows, num_positions).unbind()
            for step in reversed(range(window_size)):
                cell.steps.backward(gates[step], derived[step], states[step], grad_states, grad_inputs_of_step)
                grad_windows[step].add_(grad_projected_of_step)
                if cell.own_size > 0:
                    grad_own_bias += grad_own.sum(0)
                if step > 0:
                    grad_hidden.addmm_(grad_gates, cell.recurrent_weight, beta=int(cell.steps.is_residual))
                    add_product(grad_recurrent_weight, grad_gates.t(), states[step][0])
            grad_inputs[rows, with_past] += from_positions(grad_projected @ input_weight, num_rows)
            add_product(grad_input_weight, grad_projected.t(), block)
            grad_input_bias += grad_projected.sum(0)

        grad_recurrent_bias = torch.cat([grad_own_bias, grad_input_bias[: cell.gates_size - cell.own_size]])
        return (
            grad_inputs,
            grad_input_weight.to(input_weight.dtype),
            grad_recurrent_weight.roll(-cell.own_size, dims=0).to(recurrent_weight.dtype),
            None if input_bias is None else grad_input_bias.to(input_bias.dtype),
            None if recurrent_bias is None else grad_recurrent_bias.roll(-cell.own_size).to(recurrent_bias.dtype),
            *(None,) * 3,
        )


class BlockedCell:
    """
    A cell with its weights in the order of a block's columns: a GRU's recurrent part of the new gate has columns of
    its own, the first. In all other columns the parts of input and state are added, and their two biases are one.
    """

    def __init__(self, steps, input_weight, recurrent_weight, input_bias, recurrent_bias):
        self.steps = steps
        self.gates_size, self.hidden_size = recurrent_weight.shape
        self.own_size = self.num_columns("inputs") - self.gates_size
        self.input_weight = input_weight
        self.recurrent_weight = recurrent_weight.roll(self.own_size, dims=0)
        zeros = recurrent_weight.new_zeros(self.gates_size)
        recurrent_bias = (zeros if recurrent_bias is None else recurrent_bias).roll(self.own_size)
        self.own_bias = recurrent_bias[: self.own_size]
        self.input_bias = zeros if input_bias is None else input_bias.clone()
        self.input_bias[: self.gates_size - self.own_size] += recurrent_bias[self.own_size :]

    def num_columns(self, kind: str) -> int:
        return max(last for _, last in self.steps.views[kind]) * self.hidden_size

    def empty(self, kind: str, num_steps: int, num_positions: int) -> torch.Tensor:
        """Memory of one kind, (steps, positions, columns)."""
        return self.recurrent_weight.new_empty(num_steps, num_positions, self.num_columns(kind))

    def views(self, kind: str, memory: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """Of memory of one kind, what each step takes: a list of tuples of views (positions, columns)."""
        size = self.hidden_size
        runs = (memory[..., first * size : last * size].unbind() for first, last in self.steps.views[kind])
        return list(zip(*runs, strict=True))

    def run(self, block, num_rows, gates, derived, states, num_unknown):
        """
        Runs the steps of a block of inputs ((window - 1 + time) * rows, input), from the zero state. Of `gates`, the
        first `num_unknown` are computed; there is one of each for every step, and one of `states` more.
        """
        projected = block.new_empty(len(block), self.num_columns("inputs"))
        projected[:, : self.own_size] = self.own_bias
        torch.addmm(self.input_bias, block, self.input_weight.t(), out=projected[:, self.own_size :])
        inputs = self.views("inputs", positions_of_steps(projected, num_rows, num_positions=len(states[0][0])))

        for state in states[0]:
            state.zero_()
        for step in range(len(gates)):
            if step < num_unknown:
                recurrent_weight = self.recurrent_weight if step > 0 else None
                self.steps.activate(inputs[step], recurrent_weight, states[step], gates[step])
            self.steps.advance(inputs[step], gates[step], states[step], derived[step], states[step + 1])


def positions_of_steps(positions: torch.Tensor, num_rows: int, num_positions: int) -> torch.Tensor:
    """((window - 1 + time) * rows, features) -> (steps, time * rows, features), a view."""
    return positions.unfold(0, num_positions, num_rows).transpose(1, 2)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor):
    """total += left @ right"""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def to_positions(block: torch.Tensor) -> torch.Tensor:
    """(rows, time, features) -> (time * rows, features)"""
    return block.transpose(0, 1).flatten(0, 1)


def from_positions(positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    """(time * rows, features) -> (rows, time, features), a view"""
    return positions.unflatten(0, (-1, num_rows)).transpose(0, 1)


def blocks(output: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """
    Slices of rows and times of an output (batch, time, hidden) that make up a block each, of one size or nearly: whole
    rows, or a part of one.
    """
    batch_size, length, hidden_size = output.shape
    positions = max(BLOCK_POSITIONS, BLOCK_BYTES // (hidden_size * output.itemsize))
    rows = equal_part(batch_size, max(1, positions // length))
    times = equal_part(length, positions)
    for row in range(0, batch_size, rows):
        for time in range(0, length, times):
            yield slice(row, min(row + rows, batch_size)), slice(time, min(time + times, length))


def equal_part(total: int, at_most: int) -> int:
    """The size of the parts when as few as can be, all but the last of one size, make up the total."""
    return math.ceil(total / math.ceil(total / at_most)) if total > 0 else 1


def blocked_local_rnn(
    hidden_states: torch.Tensor,
    input_weight: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor | None,
    recurrent_bias: torch.Tensor | None,
    *,
    cell: str,
    window_size: int,
    past: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator in blocks. Arguments as in `local_rnn`."""
    tensors = (
        prepend_past(hidden_states, past, window_size),
        input_weight,
        recurrent_weight,
        input_bias,
        recurrent_bias,
    )
    has_backward = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):  # what autocast does for a linear layer
        dtype = torch.get_autocast_dtype(device_type)
        tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
    # More would take more memory, less more products; those of the first step, whose state is zero, cost no product.
    num_kept = (window_size + 1) // 2 if tensors[0].itemsize > 2 else window_size - 1
    with torch.autocast(device_type, enabled=False):
        return BlockedLocalRNN.apply(*tensors, cell, window_size, num_kept if has_backward else 0)


# --- The operator ---

IMPLEMENTATIONS = ("textbook", "shared_projection", "blocked", "triton")


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
        implementation: "textbook", "shared_projection", "blocked" (first derivatives alone, no `sequence_positions`)
            or "triton" (GPU kernels, likewise first derivatives); None chooses, see `choose_implementation`.

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
        implementation = choose_implementation(hidden_states, sequence_positions)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"`implementation` must be one of {IMPLEMENTATIONS} or None, got {implementation!r}.")
    expected_past = (hidden_states.shape[0], window_size - 1, hidden_states.shape[2])
    if past is not None and past.shape != expected_past:
        raise ValueError(f"`past` must have the shape {expected_past}, got {tuple(past.shape)}.")

    window = {"cell": cell, "window_size": window_size, "past": past}
    if implementation == "blocked":
        if sequence_positions is not None:
            raise ValueError("`sequence_positions` must be None for `implementation='blocked'`.")
        weights = (input_weight, recurrent_weight, input_bias, recurrent_bias)
        return blocked_local_rnn(hidden_states, *weights, **window)
    if implementation == "triton":
        if triton_local_rnn is None:
            raise ValueError("`implementation='triton'` needs the package triton, which is not installed.")
        projected = F.linear(prepend_past(hidden_states, past, window_size), input_weight, input_bias)
        return triton_local_rnn(
            projected,
            recurrent_weight,
            recurrent_bias,
            input_bias,
            cell=cell,
            window_size=window_size,
            sequence_positions=sequence_positions,
        )
    form = textbook_local_rnn if implementation == "textbook" else shared_projection_local_rnn
    return form(
        hidden_states,
        partial(F.linear, weight=input_weight, bias=input_bias),
        partial(F.linear, weight=recurrent_weight, bias=recurrent_bias),
        sequence_positions=sequence_positions,
        **window,
    )


def choose_implementation(hidden_states: torch.Tensor, sequence_positions: torch.Tensor | None) -> str:
    """
    The kernels on a GPU, where Triton is installed, and "blocked" on a CPU. There, a compiler fuses the plain form by
    itself and would unroll the blocks, and packed sequences need the plain form's mask.
    """
    device_type = hidden_states.device.type
    if device_type == "cuda":
        is_autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_autocast else hidden_states.dtype
        if triton_local_rnn is not None:
            return "triton" if dtype in SUPPORTED_DTYPES else "shared_projection"
        if not is_tracing(hidden_states):
            logger.warning_once("Triton is not installed: the LocalRNN runs without its GPU kernels, which is slower.")
    elif device_type == "cpu" and sequence_positions is None and not is_tracing(hidden_states):
        return "blocked"
    return "shared_projection"
