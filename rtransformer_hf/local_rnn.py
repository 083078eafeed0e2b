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
pass of its own, and keeps nothing but the inputs for it. The first two take the two projections of the cell as
callables; `local_rnn` is the operator over plain weights, and chooses among the forms.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers.utils.import_utils import is_tracing

try:
    from .local_rnn_triton import triton_local_rnn
except ModuleNotFoundError:  # Triton is optional
    triton_local_rnn = None

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
# while it is in cache. The backward pass computes the states of a block anew, so that nothing but the inputs is kept
# for it. Within a block time comes last, (gates * hidden, positions): each gate is one contiguous piece of memory, and
# the input of a step is a shifted slice of the projected block.

BLOCK_SIZE = 2**18  # positions * hidden: large enough for the matrix products, small enough for the cache

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # grad * y * (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # grad * (1 - y * y)


class RNNSteps:
    """
    A step of the plain RNN over a block, and the step back, both in place.

    Forward: `gates` (gate rows * hidden, positions) holds the input's part plus the state's part and becomes what the
    way back needs; `new_states` (state tensors, hidden, positions) is written. `states` is None for the zero state.
    Backward: `grads`, of the shape of the states, holds the gradients of the new states and becomes those of the
    states, what goes through the gates aside; `gates` becomes its own gradient.
    """

    num_gate_rows, num_states = 1, 1

    @staticmethod
    def forward(gates, states, new_states):
        torch.tanh(gates, out=new_states[0])

    @staticmethod
    def backward(gates, states, new_states, grads):
        tanh_backward(grads[0], new_states[0], grad_input=gates)
        grads.zero_()


class GRUSteps:
    """The state's part of the new gate is multiplied by the reset gate: it has rows of its own, the first."""

    num_gate_rows, num_states = 4, 1

    @staticmethod
    def forward(gates, states, new_states):
        recurrent_new, reset, update, new = gates.chunk(4)
        gates[len(reset) : 3 * len(reset)].sigmoid_()  # reset and update
        new.addcmul_(reset, recurrent_new).tanh_()
        if states is None:
            torch.addcmul(new, new, update, value=-1, out=new_states[0])
        else:
            torch.lerp(new, states[0], update, out=new_states[0])

    @staticmethod
    def backward(gates, states, new_states, grads):
        recurrent_new, reset, update, new = gates.chunk(4)
        grad = grads[0]
        through_update = new.neg() if states is None else states[0] - new
        through_update.mul_(grad)
        through_new = torch.addcmul(grad, grad, update, value=-1)
        grad.mul_(update)
        sigmoid_backward(through_update, update, grad_input=update)
        tanh_backward(through_new, new, grad_input=new)
        through_reset = torch.mul(new, recurrent_new, out=through_update)
        torch.mul(new, reset, out=recurrent_new)
        sigmoid_backward(through_reset, reset, grad_input=reset)


class LSTMSteps:
    num_gate_rows, num_states = 4, 2

    @staticmethod
    def forward(gates, states, new_states):
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4)
        hidden, cell = new_states
        gates[: 2 * len(cell)].sigmoid_()  # input and forget gate
        candidate.tanh_()
        output_gate.sigmoid_()
        if states is None:
            torch.mul(input_gate, candidate, out=cell)
        else:
            torch.mul(forget_gate, states[1], out=cell).addcmul_(input_gate, candidate)
        torch.tanh(cell, out=hidden).mul_(output_gate)

    @staticmethod
    def backward(gates, states, new_states, grads):
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4)
        hidden_grad, cell_grad = grads
        cell_tanh = new_states[1].tanh()
        through_hidden = hidden_grad * output_gate
        cell_grad.add_(tanh_backward(through_hidden, cell_tanh, grad_input=through_hidden))
        sigmoid_backward(hidden_grad.mul_(cell_tanh), output_gate, grad_input=output_gate)
        through_candidate = torch.mul(cell_grad, input_gate, out=cell_tanh)
        through_input = torch.mul(cell_grad, candidate, out=through_hidden)
        tanh_backward(through_candidate, candidate, grad_input=candidate)
        sigmoid_backward(through_input, input_gate, grad_input=input_gate)
        if states is None:
            forget_gate.zero_()
        else:
            through_forget = torch.mul(cell_grad, states[1], out=through_input)
            cell_grad.mul_(forget_gate)
            sigmoid_backward(through_forget, forget_gate, grad_input=forget_gate)
        hidden_grad.zero_()


STEPS = {"rnn": RNNSteps, "gru": GRUSteps, "lstm": LSTMSteps}


class BlockedLocalRNN(torch.autograd.Function):
    """(batch, window - 1 + time, input) -> (batch, time, hidden). The weights are those of `local_rnn`."""

    @staticmethod
    def forward(ctx, inputs, input_weight, recurrent_weight, input_bias, recurrent_bias, cell, window_size):
        ctx.save_for_backward(inputs, input_weight, recurrent_weight, input_bias, recurrent_bias)
        ctx.cell, ctx.window_size = cell, window_size
        weights = step_weights(STEPS[cell], input_weight, recurrent_weight, input_bias, recurrent_bias)
        hidden_size, length = recurrent_weight.shape[1], inputs.shape[1] - window_size + 1
        output = inputs.new_empty(len(inputs), length, hidden_size)
        for rows, times in blocks(len(inputs), length, hidden_size):
            block = inputs[rows, times.start : times.stop + window_size - 1]
            _, states = run_block(STEPS[cell], block, *weights, window_size, keep=False)
            output[rows, times] = states[0, :, 0].unflatten(1, (len(block), -1)).movedim(0, -1)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        inputs, input_weight, recurrent_weight, input_bias, recurrent_bias = ctx.saved_tensors
        steps, window_size = STEPS[ctx.cell], ctx.window_size
        weights = step_weights(steps, input_weight, recurrent_weight, input_bias, recurrent_bias)
        step_weight = weights[1]
        gates_size, hidden_size = recurrent_weight.shape
        own_rows = steps.num_gate_rows * hidden_size - gates_size  # of gates in which input and state do not add

        # Sums over the blocks are kept in float32 at least.
        sum_dtype = torch.promote_types(inputs.dtype, torch.float32)
        grad_inputs = inputs.new_zeros(inputs.shape)
        grad_input_weight = torch.zeros_like(input_weight, dtype=sum_dtype)
        grad_step_weight = torch.zeros_like(recurrent_weight, dtype=sum_dtype)
        grad_input_bias = torch.zeros(gates_size, dtype=sum_dtype, device=inputs.device)
        grad_own_bias = torch.zeros(own_rows, dtype=sum_dtype, device=inputs.device)

        for rows, times in blocks(*grad_output.shape[:2], hidden_size):
            with_past = slice(times.start, times.stop + window_size - 1)
            block, length = inputs[rows, with_past], times.stop - times.start
            gates, states = run_block(steps, block, *weights, window_size, keep=True)
            grads = gates.new_zeros(steps.num_states, hidden_size, gates.shape[-1])
            grads[0].unflatten(1, (-1, length)).copy_(grad_output[rows, times].movedim(-1, 0))
            grad_projected = gates.new_zeros(gates_size, len(block), block.shape[1])
            for step in reversed(range(window_size)):
                step_gates = gates[:, step]
                steps.backward(step_gates, states[:, :, step] if step > 0 else None, states[:, :, step + 1], grads)
                grad_projected[..., step : step + length] += step_gates[own_rows:].unflatten(1, (-1, length))
                if step > 0:
                    grads[0].addmm_(step_weight.t(), step_gates[:gates_size])
            grad_projected = grad_projected.flatten(1)
            grad_inputs[rows, with_past] += (grad_projected.t() @ input_weight).view(block.shape)
            grad_input_weight += grad_projected @ block.flatten(0, 1)
            grad_input_bias += grad_projected.sum(1, dtype=sum_dtype)
            grad_step_weight += gates[:gates_size, 1:].flatten(1) @ states[0, :, 1:-1].flatten(1).t()
            grad_own_bias += gates[:own_rows].sum((1, 2), dtype=sum_dtype)

        grad_step_bias = torch.cat([grad_own_bias, grad_input_bias[: gates_size - own_rows]])
        return (
            grad_inputs,
            grad_input_weight.to(input_weight.dtype),
            grad_step_weight.roll(-own_rows, dims=0).to(recurrent_weight.dtype),
            None if input_bias is None else grad_input_bias.to(input_bias.dtype),
            None if recurrent_bias is None else grad_step_bias.roll(-own_rows).to(recurrent_bias.dtype),
            None,
            None,
        )


def step_weights(steps, input_weight, recurrent_weight, input_bias, recurrent_bias) -> tuple[torch.Tensor, ...]:
    """
    The weights as `run_block` takes them: the recurrent part of a GRU's new gate comes first, and where the parts of
    input and state are added the two biases are one. Returns the input weight, recurrent weight, and their biases.
    """
    gates_size, hidden_size = recurrent_weight.shape
    own_rows = steps.num_gate_rows * hidden_size - gates_size
    zeros = recurrent_weight.new_zeros(gates_size)
    recurrent_bias = (zeros if recurrent_bias is None else recurrent_bias).roll(own_rows)
    input_bias = zeros.clone() if input_bias is None else input_bias.clone()
    input_bias[: gates_size - own_rows] += recurrent_bias[own_rows:]
    return input_weight, recurrent_weight.roll(own_rows, dims=0), input_bias, recurrent_bias[:own_rows]


def run_block(
    steps,
    inputs: torch.Tensor,
    input_weight: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor,
    own_bias: torch.Tensor,
    window_size: int,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Runs all steps of a block: inputs (rows, window - 1 + time, input), weights from `step_weights`.

    Returns:
        The gates (gate rows * hidden, steps, rows * time) and states (state tensors, hidden, steps + 1, rows * time),
        the first of which is not written; or, where they are not to be kept, those of the last step alone.
    """
    rows, length = inputs.shape[0], inputs.shape[1] - window_size + 1
    gates_size, hidden_size = recurrent_weight.shape
    own_rows = len(own_bias)
    projected = torch.addmm(input_bias[:, None], input_weight, inputs.flatten(0, 1).t()).unflatten(1, (rows, -1))
    gates = inputs.new_empty(steps.num_gate_rows * hidden_size, window_size if keep else 1, rows * length)
    states = inputs.new_empty(steps.num_states, hidden_size, window_size + 1 if keep else 1, rows * length)
    last_states = None
    for step in range(window_size):
        step_gates, new_states = gates[:, step if keep else 0], states[:, :, step + 1 if keep else 0]
        step_gates[own_rows:].unflatten(1, (rows, length)).copy_(projected[..., step : step + length])
        step_gates[:own_rows] = own_bias[:, None]
        if last_states is not None:
            step_gates[:gates_size].addmm_(recurrent_weight, last_states[0])
        steps.forward(step_gates, last_states, new_states)
        last_states = new_states
    return gates, states


def blocks(batch_size: int, length: int, hidden_size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and times that make up a block each: several rows whole, or an equal part of one."""
    positions = max(1, BLOCK_SIZE // hidden_size)
    rows = max(1, positions // length)
    times = math.ceil(length / math.ceil(length / positions))
    for row in range(0, batch_size, rows):
        for time in range(0, length, times):
            yield slice(row, min(row + rows, batch_size)), slice(time, min(time + times, length))


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
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):  # what autocast does for a linear layer
        dtype = torch.get_autocast_dtype(device_type)
        tensors = (None if tensor is None else tensor.to(dtype) for tensor in tensors)
    with torch.autocast(device_type, enabled=False):
        return BlockedLocalRNN.apply(*tensors, cell, window_size)


# --- The operator ---

IMPLEMENTATIONS = ("textbook", "shared_projection", "blocked", "triton")
LARGE = 2**21  # inputs * window, in numbers


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
        implementation: "textbook", "shared_projection", "blocked" or "triton" (GPU kernels, to be asked for as long as
            they are young); None chooses among the others.

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
        implementation = choose_implementation(hidden_states, window_size, sequence_positions)
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


def choose_implementation(
    hidden_states: torch.Tensor, window_size: int, sequence_positions: torch.Tensor | None
) -> str:
    """
    "blocked" on a CPU where the states of all windows are more than its cache holds; below that the plain form is as
    fast. A compiler fuses the plain form by itself and would unroll the blocks, and packed sequences need its mask.
    """
    is_large = hidden_states.numel() * window_size > LARGE
    is_plain = hidden_states.device.type == "cpu" and sequence_positions is None and not is_tracing(hidden_states)
    return "blocked" if is_large and is_plain else "shared_projection"
