# SPDX-License-Identifier: Apache-2.0
"""
The blocked implementation of the LocalRNN operator, for CPUs, with its own backward pass.

Windows are independent given the inputs, so each block of positions runs all K steps forward, or all backward, before
the next. Backward needs the gates: those of the last steps are kept, those of the first are recomputed. A block is
laid out as (positions, features), which makes small products up to three times as fast as the transposed layout.
Positions are ordered by time, then by row of the batch, so the inputs of a step are consecutive rows of the projected
block.

A step is a few calls that write to preallocated memory. Small models spend most of their time on call overhead, so the
views into that memory are made for all steps at once.
"""

import math
from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

BLOCK_POSITIONS = 1024  # minimum per block, for the full rate of the matrix products
BLOCK_BYTES = 2**19  # minimum size of a block's state, so that a call's work outweighs its overhead

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # grad * y * (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # grad * (1 - y * y)
hardtanh_backward = torch.ops.aten.hardtanh_backward.grad_input  # grad where min < y < max, else 0
MINUS_ONE = torch.tensor(-1.0, device="cpu")


def add_recurrent(inputs, recurrent_weight, state, out) -> torch.Tensor:
    """
    inputs + state @ recurrent_weight.T. A weight of None means that the state is zero; a weight (gates, heads, head
    size, head size) is block-diagonal.
    """
    if recurrent_weight is None:
        return out.copy_(inputs)
    if recurrent_weight.ndim == 2:
        return torch.addmm(inputs, state, recurrent_weight.t(), out=out)
    (heads,) = by_gate_and_head(state, recurrent_weight)
    input_gates, gates = (by_gate_and_head(columns, recurrent_weight) for columns in (inputs, out))
    for input_gate, gate, weight in zip(input_gates, gates, recurrent_weight, strict=True):
        torch.baddbmm(input_gate, heads, weight.mT, out=gate)
    return out


def add_recurrent_gradients(
    grad_gates, recurrent_weight, state, grad_hidden, grad_recurrent_weight, keep_hidden: bool
):
    """
    Adds the recurrent weight's gradient to `grad_recurrent_weight`. The gradient of the state replaces `grad_hidden`,
    or is added to it if `keep_hidden` is set.
    """
    if recurrent_weight.ndim == 2:
        grad_hidden.addmm_(grad_gates, recurrent_weight, beta=int(keep_hidden))
        add_product(grad_recurrent_weight, grad_gates.t(), state)
        return
    (grad_heads,), (heads,) = (by_gate_and_head(columns, recurrent_weight) for columns in (grad_hidden, state))
    gates = zip(by_gate_and_head(grad_gates, recurrent_weight), recurrent_weight, grad_recurrent_weight, strict=True)
    for index, (grad_gate, weight, grad_weight) in enumerate(gates):
        grad_heads.baddbmm_(grad_gate, weight, beta=int(keep_hidden or index > 0))
        add_product(grad_weight, grad_gate.mT, heads)


def by_gate_and_head(columns: torch.Tensor, recurrent_weight: torch.Tensor) -> torch.Tensor:
    """(positions, gates * hidden) -> (gates, heads, positions, head size), a view."""
    return columns.unflatten(1, (-1, recurrent_weight.shape[1], recurrent_weight.shape[2])).permute(1, 2, 0, 3)


def tanh(values, out) -> torch.Tensor:
    """
    tanh(x) = 2 * sigmoid(2x) - 1, because PyTorch's sigmoid on a CPU takes as little as a sixth of the time of its
    tanh. For small x the sigmoid is near 1/2, which would lose x in 16 bits, so it is computed in float32.
    """
    doubled = torch.add(values, values, out=out)
    sigmoid = doubled.to(torch.promote_types(doubled.dtype, torch.float32)).sigmoid_()
    return torch.add(MINUS_ONE, sigmoid, alpha=2, out=out)


class RNNSteps:
    """
    One step of the plain RNN over a block, split in two, and its backward. Every argument except the weight is a tuple
    of views (positions, columns) into one kind of memory; `views` lists their first and last columns, in units of the
    hidden size.

    `activate` computes the gates from the projected inputs and the hidden state, which takes the matrix product.
    `advance` computes the new states, in place or not, and the `saved_activations` that backward needs besides the
    gates. `backward` takes the gradients of the new states in `grad_states` and overwrites them with those of the old
    states, except for the path through the gates; it writes the gradients of the projected inputs to `grad_inputs`.
    """

    views = {
        "inputs": [(0, 1)],
        "gates": [(0, 1)],
        "saved_activations": [(0, 0)],  # nothing
        "states": [(0, 1)],
        "grad_inputs": [(0, 1)],
    }
    is_residual = False  # whether the new hidden state depends on the old one other than through the gates

    @staticmethod
    def activate(inputs, recurrent_weight, states, gates):
        tanh(add_recurrent(inputs[0], recurrent_weight, states[0], out=gates[0]), out=gates[0])

    @staticmethod
    def advance(inputs, gates, states, saved_activations, new_states):
        new_states[0].copy_(gates[0])

    @staticmethod
    def backward(gates, saved_activations, states, grad_states, grad_inputs):
        tanh_backward(grad_states[0], gates[0], grad_input=grad_inputs[0])


class SigmoidGates:
    """The sigmoid of reset, update, input, forget and output gates, in place, and its backward from its result."""

    sigmoid_ = staticmethod(torch.Tensor.sigmoid_)
    sigmoid_backward = staticmethod(sigmoid_backward)


class HardSigmoidGates:
    """clip(0.2 x + 0.5, 0, 1)"""

    @staticmethod
    def sigmoid_(gates):
        gates.mul_(0.2).add_(0.5).clamp_(0, 1)

    @staticmethod
    def sigmoid_backward(grad, gates, grad_input):
        hardtanh_backward(grad, gates, 0, 1, grad_input=grad_input).mul_(0.2)


class GRUSteps(SigmoidGates):
    """
    The reset gate multiplies only the recurrent part of the new gate, so that part is a gate of its own, and its bias
    an input of its own. Gates: (recurrent part of new, reset, update); inputs: (its bias, reset, update, new).
    """

    views = {
        "inputs": [(0, 3), (3, 4)],
        "gates": [(0, 3), (1, 3), (0, 1), (1, 2), (2, 3)],
        "saved_activations": [(0, 1)],  # the new gate
        "states": [(0, 1)],
        "grad_inputs": [(0, 1), (1, 2), (2, 3), (3, 4), (1, 3)],
    }
    is_residual = True

    @classmethod
    def activate(cls, inputs, recurrent_weight, states, gates):
        add_recurrent(inputs[0], recurrent_weight, states[0], out=gates[0])
        cls.sigmoid_(gates[1])

    @staticmethod
    def advance(inputs, gates, states, saved_activations, new_states):
        _, _, recurrent_new, reset, update = gates
        new = tanh(torch.addcmul(inputs[1], reset, recurrent_new, out=saved_activations[0]), out=saved_activations[0])
        torch.lerp(new, states[0], update, out=new_states[0])

    @classmethod
    def backward(cls, gates, saved_activations, states, grad_states, grad_inputs):
        _, reset_and_update, recurrent_new, reset, update = gates
        grad_recurrent_new, grad_reset, grad_update, grad_new, grad_reset_and_update = grad_inputs
        (new,), (grad,) = saved_activations, grad_states
        torch.addcmul(grad, grad, update, value=-1, out=grad_new)
        tanh_backward(grad_new, new, grad_input=grad_new)
        torch.mul(grad_new, reset, out=grad_recurrent_new)
        torch.mul(grad_new, recurrent_new, out=grad_reset)
        torch.sub(states[0], new, out=grad_update).mul_(grad)
        cls.sigmoid_backward(grad_reset_and_update, reset_and_update, grad_input=grad_reset_and_update)
        grad.mul_(update)


class LSTMSteps(SigmoidGates):
    views = {
        "inputs": [(0, 4)],
        "gates": [(0, 4), (0, 2), (0, 1), (1, 2), (2, 3), (3, 4)],
        "saved_activations": [(0, 1)],  # tanh of the new cell state
        "states": [(0, 1), (1, 2)],
        "grad_inputs": [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2)],
    }
    is_residual = False

    @classmethod
    def activate(cls, inputs, recurrent_weight, states, gates):
        all_gates, input_and_forget, _, _, candidate, output_gate = gates
        add_recurrent(inputs[0], recurrent_weight, states[0], out=all_gates)
        cls.sigmoid_(input_and_forget)
        tanh(candidate, out=candidate)
        cls.sigmoid_(output_gate)

    @staticmethod
    def advance(inputs, gates, states, saved_activations, new_states):
        _, _, input_gate, forget_gate, candidate, output_gate = gates
        hidden, cell_state = new_states
        torch.mul(forget_gate, states[1], out=cell_state).addcmul_(input_gate, candidate)
        tanh(cell_state, out=saved_activations[0])
        torch.mul(saved_activations[0], output_gate, out=hidden)

    @classmethod
    def backward(cls, gates, saved_activations, states, grad_states, grad_inputs):
        _, input_and_forget, input_gate, forget_gate, candidate, output_gate = gates
        grad_input_gate, grad_forget_gate, grad_candidate, grad_output_gate, grad_input_and_forget = grad_inputs
        (cell_tanh,), (grad_hidden, grad_cell) = saved_activations, grad_states
        torch.mul(grad_hidden, cell_tanh, out=grad_output_gate)
        cls.sigmoid_backward(grad_output_gate, output_gate, grad_input=grad_output_gate)
        grad_hidden.mul_(output_gate)
        grad_cell.add_(tanh_backward(grad_hidden, cell_tanh, grad_input=grad_hidden))
        torch.mul(grad_cell, input_gate, out=grad_candidate)
        tanh_backward(grad_candidate, candidate, grad_input=grad_candidate)
        torch.mul(grad_cell, candidate, out=grad_input_gate)
        torch.mul(grad_cell, states[1], out=grad_forget_gate)
        cls.sigmoid_backward(grad_input_and_forget, input_and_forget, grad_input=grad_input_and_forget)
        grad_cell.mul_(forget_gate)


class HardGRUSteps(HardSigmoidGates, GRUSteps):
    pass


class HardLSTMSteps(HardSigmoidGates, LSTMSteps):
    pass


# By cell type and gate activation. The plain RNN has no sigmoid gates.
STEPS = {
    ("rnn", "sigmoid"): RNNSteps,
    ("rnn", "hard_sigmoid"): RNNSteps,
    ("gru", "sigmoid"): GRUSteps,
    ("gru", "hard_sigmoid"): HardGRUSteps,
    ("lstm", "sigmoid"): LSTMSteps,
    ("lstm", "hard_sigmoid"): HardLSTMSteps,
}


class BlockedLocalRNN(torch.autograd.Function):
    """(batch, window - 1 + time, input) -> (batch, time, hidden). Keeps the gates of the last `num_kept` steps."""

    @staticmethod
    def forward(ctx, inputs, input_weight, recurrent_weight, input_bias, recurrent_bias, steps, window_size, num_kept):
        ctx.steps, ctx.window_size, ctx.num_kept = steps, window_size, num_kept
        weights = BlockWeights(steps, input_weight, recurrent_weight, input_bias, recurrent_bias)
        output = inputs.new_empty(len(inputs), inputs.shape[1] - window_size + 1, weights.hidden_size)
        kept = []
        for rows, times in blocks(output):
            block = inputs[rows, times.start : times.stop + window_size - 1]
            num_positions = len(block) * (times.stop - times.start)
            kept.append(weights.empty("gates", num_kept, num_positions))
            # Steps whose results are not kept share the same memory.
            gates = weights.views("gates", weights.empty("gates", 1, num_positions)) * (window_size - num_kept)
            gates += weights.views("gates", kept[-1])
            saved_activations = (
                weights.views("saved_activations", weights.empty("saved_activations", 1, num_positions)) * window_size
            )
            states = weights.views("states", weights.empty("states", 1, num_positions)) * (window_size + 1)
            weights.run(to_positions(block), len(block), gates, saved_activations, states, num_recomputed=window_size)
            output[rows, times] = from_positions(states[-1][0], len(block))
        ctx.save_for_backward(inputs, input_weight, recurrent_weight, input_bias, recurrent_bias, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        inputs, input_weight, recurrent_weight, input_bias, recurrent_bias, *kept = ctx.saved_tensors
        weights = BlockWeights(ctx.steps, input_weight, recurrent_weight, input_bias, recurrent_bias)
        window_size, num_recomputed = ctx.window_size, ctx.window_size - ctx.num_kept

        # Sums over the blocks are accumulated in float32 or better.
        sum_dtype = torch.promote_types(inputs.dtype, torch.float32)
        grad_inputs = torch.zeros_like(inputs)
        grad_input_weight = torch.zeros_like(input_weight, dtype=sum_dtype)
        grad_recurrent_weight = torch.zeros_like(weights.recurrent_weight, dtype=sum_dtype)
        grad_input_bias = inputs.new_zeros(weights.gates_size, dtype=sum_dtype)
        grad_separate_bias = inputs.new_zeros(weights.separate_recurrent_size, dtype=sum_dtype)

        for (rows, times), block_kept in zip(blocks(grad_output), kept, strict=True):
            with_past = slice(times.start, times.stop + window_size - 1)
            num_rows, num_positions = rows.stop - rows.start, block_kept.shape[1]
            block = to_positions(inputs[rows, with_past])
            gates = weights.views("gates", weights.empty("gates", num_recomputed, num_positions))
            gates += weights.views("gates", block_kept)
            saved_activations = weights.views(
                "saved_activations", weights.empty("saved_activations", window_size, num_positions)
            )
            states = weights.views("states", weights.empty("states", window_size + 1, num_positions))
            weights.run(block, num_rows, gates, saved_activations, states, num_recomputed)

            (grad_states,) = weights.views("states", weights.empty("states", 1, num_positions).zero_())
            grad_hidden = grad_states[0].copy_(to_positions(grad_output[rows, times]))
            (grad_step,) = weights.empty("grad_inputs", 1, num_positions)
            (grad_inputs_of_step,) = weights.views("grad_inputs", grad_step[None])
            grad_separate_gates = grad_step[:, : weights.separate_recurrent_size]
            grad_gates = grad_step[:, : weights.gates_size]
            grad_projected_of_step = grad_step[:, weights.separate_recurrent_size :]
            grad_projected = inputs.new_zeros(len(block), weights.gates_size)
            grad_windows = positions_of_steps(grad_projected, num_rows, num_positions).unbind()
            for step in reversed(range(window_size)):
                weights.steps.backward(
                    gates[step], saved_activations[step], states[step], grad_states, grad_inputs_of_step
                )
                grad_windows[step].add_(grad_projected_of_step)
                if weights.separate_recurrent_size > 0:
                    grad_separate_bias += grad_separate_gates.sum(0)
                if step > 0:
                    add_recurrent_gradients(
                        grad_gates,
                        weights.recurrent_weight,
                        states[step][0],
                        grad_hidden,
                        grad_recurrent_weight,
                        keep_hidden=weights.steps.is_residual,
                    )
            grad_inputs[rows, with_past] += from_positions(grad_projected @ input_weight, num_rows)
            add_product(grad_input_weight, grad_projected.t(), block)
            grad_input_bias += grad_projected.sum(0)

        grad_recurrent_bias = torch.cat(
            [grad_separate_bias, grad_input_bias[: weights.gates_size - weights.separate_recurrent_size]]
        )
        return (
            grad_inputs,
            grad_input_weight.to(input_weight.dtype),
            weights.from_columns(grad_recurrent_weight).to(recurrent_weight.dtype),
            None if input_bias is None else grad_input_bias.to(input_bias.dtype),
            None
            if recurrent_bias is None
            else grad_recurrent_bias.roll(-weights.separate_recurrent_size).to(recurrent_bias.dtype),
            *(None,) * 3,
        )


class BlockWeights:
    """
    A cell's weights in the order of a block's columns. The columns that only the recurrent product fills (a GRU's
    recurrent part of the new gate, `separate_recurrent_size` of them) come first. In all others the input's and the
    state's parts are added, so their biases are merged.
    """

    def __init__(self, steps, input_weight, recurrent_weight, input_bias, recurrent_bias):
        self.steps = steps
        self.num_heads = len(recurrent_weight) if recurrent_weight.ndim == 3 else None
        self.gates_size = len(input_weight)
        self.hidden_size = recurrent_weight.shape[-1] * (self.num_heads or 1)
        self.separate_recurrent_size = self.num_columns("inputs") - self.gates_size
        self.input_weight = input_weight
        self.recurrent_weight = self.to_columns(recurrent_weight)
        zeros = recurrent_weight.new_zeros(self.gates_size)
        recurrent_bias = (zeros if recurrent_bias is None else recurrent_bias).roll(self.separate_recurrent_size)
        self.separate_recurrent_bias = recurrent_bias[: self.separate_recurrent_size]
        self.input_bias = zeros if input_bias is None else input_bias.clone()
        self.input_bias[: self.gates_size - self.separate_recurrent_size] += recurrent_bias[
            self.separate_recurrent_size :
        ]

    def to_columns(self, weight: torch.Tensor) -> torch.Tensor:
        """The recurrent weight in a block's column order: (gates * hidden, hidden), or (gates, heads, head, head)."""
        if self.num_heads is not None:
            head_size = weight.shape[-1]
            weight = weight.view(self.num_heads, -1, head_size, head_size).transpose(0, 1)
            return weight.roll(self.separate_recurrent_size // self.hidden_size, dims=0)
        return weight.roll(self.separate_recurrent_size, dims=0)

    def from_columns(self, weight: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_columns`."""
        if self.num_heads is not None:
            weight = weight.roll(-(self.separate_recurrent_size // self.hidden_size), dims=0)
            return weight.transpose(0, 1).flatten(1, 2)
        return weight.roll(-self.separate_recurrent_size, dims=0)

    def num_columns(self, kind: str) -> int:
        return max(last for _, last in self.steps.views[kind]) * self.hidden_size

    def empty(self, kind: str, num_steps: int, num_positions: int) -> torch.Tensor:
        """New memory of one kind, (steps, positions, columns)."""
        return self.recurrent_weight.new_empty(num_steps, num_positions, self.num_columns(kind))

    def views(self, kind: str, memory: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """For each step, its tuple of views (positions, columns) into memory of one kind."""
        size = self.hidden_size
        runs = (memory[..., first * size : last * size].unbind() for first, last in self.steps.views[kind])
        return list(zip(*runs, strict=True))

    def run(self, block, num_rows, gates, saved_activations, states, num_recomputed):
        """
        Runs all steps over a block of inputs ((window - 1 + time) * rows, input), from the zero state. `gates`,
        `saved_activations` and `states` hold the views of each step, `states` of one more. The gates of the first
        `num_recomputed` steps are computed, the others are taken as they are.
        """
        projected = block.new_empty(len(block), self.num_columns("inputs"))
        projected[:, : self.separate_recurrent_size] = self.separate_recurrent_bias
        torch.addmm(self.input_bias, block, self.input_weight.t(), out=projected[:, self.separate_recurrent_size :])
        inputs = self.views("inputs", positions_of_steps(projected, num_rows, num_positions=len(states[0][0])))

        for state in states[0]:
            state.zero_()
        for step in range(len(gates)):
            if step < num_recomputed:
                recurrent_weight = self.recurrent_weight if step > 0 else None
                self.steps.activate(inputs[step], recurrent_weight, states[step], gates[step])
            self.steps.advance(inputs[step], gates[step], states[step], saved_activations[step], states[step + 1])


def positions_of_steps(positions: torch.Tensor, num_rows: int, num_positions: int) -> torch.Tensor:
    """((window - 1 + time) * rows, features) -> (steps, time * rows, features), a view."""
    return positions.unfold(0, num_positions, num_rows).transpose(1, 2)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor):
    """total += left @ right"""
    if total.dtype == left.dtype:
        total.addmm_(left, right) if total.ndim == 2 else total.baddbmm_(left, right)
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
    The (rows, times) of an output (batch, time, hidden) that each block covers: several whole rows, or a part of one.
    All blocks have about the same size.
    """
    batch_size, length, hidden_size = output.shape
    positions = max(BLOCK_POSITIONS, BLOCK_BYTES // (hidden_size * output.itemsize))
    rows = equal_part(batch_size, max(1, positions // length))
    times = equal_part(length, positions)
    for row in range(0, batch_size, rows):
        for time in range(0, length, times):
            yield slice(row, min(row + rows, batch_size)), slice(time, min(time + times, length))


def equal_part(total: int, at_most: int) -> int:
    """The part size that splits `total` into the fewest parts of at most `at_most`, all equal except the last."""
    return math.ceil(total / math.ceil(total / at_most)) if total > 0 else 1


def blocked_local_rnn(
    inputs: torch.Tensor,
    input_weight: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor | None,
    recurrent_bias: torch.Tensor | None,
    *,
    cell_type: str,
    window_size: int,
    gate_activation: str = "sigmoid",
) -> torch.Tensor:
    """
    Args:
        inputs: (batch, window_size - 1 + time, input), starting with the previous inputs or zeros.

    The other arguments are those of `local_rnn`.

    Returns:
        (batch, time, hidden). First derivatives only.
    """
    tensors = (inputs, input_weight, recurrent_weight, input_bias, recurrent_bias)
    has_backward = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    device_type = inputs.device.type
    if torch.is_autocast_enabled(device_type):  # as autocast does for a linear layer
        dtype = torch.get_autocast_dtype(device_type)
        tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
    # Keeping more gates costs memory, fewer costs recomputation; step one is free because its state is zero.
    num_kept = (window_size + 1) // 2 if tensors[0].itemsize > 2 else window_size - 1
    with torch.autocast(device_type, enabled=False):
        return BlockedLocalRNN.apply(
            *tensors, STEPS[cell_type, gate_activation], window_size, num_kept if has_backward else 0
        )
