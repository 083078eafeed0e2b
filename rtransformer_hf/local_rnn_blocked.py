# SPDX-License-Identifier: Apache-2.0
"""
The blocked implementation of the LocalRNN operator, for CPUs, with its own backward pass.

Windows are independent given the inputs, so each block of positions runs all K steps forward, or all backward, before
the next. Backward needs the gates: those of the last steps are kept, those of the first are recomputed. A block is
laid out as (positions, features), which makes small products up to three times as fast as the transposed layout.
Heads run one after the other, each like an RNN of its own, because a batch of small products needs copies.
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
MIN_HEAD_SIZE = 32  # smaller heads are merged: their calls are too many and work on too short rows

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # grad * y * (1 - y)
tanh_backward = torch.ops.aten.tanh_backward.grad_input  # grad * (1 - y * y)
hardtanh_backward = torch.ops.aten.hardtanh_backward.grad_input  # grad where min < y < max, else 0
MINUS_ONE = torch.tensor(-1.0, device="cpu")


def add_recurrent(inputs, recurrent_weight, state, out) -> torch.Tensor:
    """inputs + state @ recurrent_weight.T. A weight of None means that the state is zero."""
    if recurrent_weight is None:
        return out.copy_(inputs)
    return torch.addmm(inputs, state, recurrent_weight.t(), out=out)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor):
    """total += left @ right"""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


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
    """
    (batch, window - 1 + time, input) -> (batch, time, hidden). Weights and biases have a dimension of heads in front.
    Keeps the gates of the last `num_kept` steps and, if `keeps_projected` is set, the projected inputs.
    """

    @staticmethod
    def forward(ctx, inputs, *arguments):
        *parameters, ctx.steps, ctx.window_size, ctx.num_kept, ctx.keeps_projected = arguments
        window_size, num_kept = ctx.window_size, ctx.num_kept
        num_heads, _, head_size = parameters[1].shape
        heads = [BlockWeights(ctx.steps, *weights) for weights in of_heads(parameters)]
        output = inputs.new_empty(len(inputs), inputs.shape[1] - window_size + 1, num_heads, head_size)
        kept = []
        for rows, times in blocks(output[:, :, 0]):
            block = to_positions(inputs[rows, times.start : times.stop + window_size - 1])
            num_rows, num_positions = rows.stop - rows.start, (rows.stop - rows.start) * (times.stop - times.start)
            for head, weights in enumerate(heads):
                kept_gates = weights.empty("gates", num_kept, num_positions)
                # Steps whose results are not kept share the same memory.
                gates = weights.views("gates", weights.empty("gates", 1, num_positions)) * (window_size - num_kept)
                gates += weights.views("gates", kept_gates)
                saved_activations = weights.empty("saved_activations", 1, num_positions)
                saved_activations = weights.views("saved_activations", saved_activations) * window_size
                states = weights.views("states", weights.empty("states", 1, num_positions)) * (window_size + 1)
                projected = weights.project(block)
                weights.run(projected, num_rows, gates, saved_activations, states, num_recomputed=window_size)
                output[rows, times, head] = from_positions(states[-1][0], num_rows)
                kept += [kept_gates, projected] if ctx.keeps_projected else [kept_gates]
        ctx.save_for_backward(inputs, *parameters, *kept)
        return output.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        inputs, *saved = ctx.saved_tensors  # read once: gradient checkpointing allows no more
        parameters, kept = saved[:4], iter(saved[4:])
        window_size, num_recomputed = ctx.window_size, ctx.window_size - ctx.num_kept
        heads = [BlockWeights(ctx.steps, *weights) for weights in of_heads(parameters)]
        gradients = [BlockGradients(weights) for weights in heads]
        grad_output = grad_output.unflatten(2, (len(heads), -1))
        grad_inputs = torch.zeros_like(inputs)
        for rows, times in blocks(grad_output[:, :, 0]):
            with_past = slice(times.start, times.stop + window_size - 1)
            block = to_positions(inputs[rows, with_past])
            grad_block = torch.zeros_like(block)
            num_rows, num_positions = rows.stop - rows.start, (rows.stop - rows.start) * (times.stop - times.start)
            for head, (weights, sums) in enumerate(zip(heads, gradients, strict=True)):
                gates = weights.views("gates", weights.empty("gates", num_recomputed, num_positions))
                gates += weights.views("gates", next(kept))
                saved_activations = weights.empty("saved_activations", window_size, num_positions)
                saved_activations = weights.views("saved_activations", saved_activations)
                states = weights.views("states", weights.empty("states", window_size + 1, num_positions))
                projected = next(kept) if ctx.keeps_projected else weights.project(block)
                weights.run(projected, num_rows, gates, saved_activations, states, num_recomputed)
                grad_new_hidden = to_positions(grad_output[rows, times, head])
                sums.run(block, num_rows, gates, saved_activations, states, grad_new_hidden, grad_block)
            grad_inputs[rows, with_past] += from_positions(grad_block, num_rows)

        of_parameters = zip(parameters, *(sums.of_parameters() for sums in gradients), strict=True)
        grad_parameters = (
            None if parameter is None else torch.stack(sums).to(parameter.dtype) for parameter, *sums in of_parameters
        )
        return grad_inputs, *grad_parameters, *(None,) * 4


def of_heads(parameters: list[torch.Tensor | None]) -> list[tuple[torch.Tensor | None, ...]]:
    """Splits parameters (heads, ...), the second of which is not None: those of each head."""
    num_heads = len(parameters[1])
    columns = ((None,) * num_heads if parameter is None else parameter.unbind() for parameter in parameters)
    return list(zip(*columns, strict=True))


class BlockWeights:
    """
    The weights of a head in the order of a block's columns. The columns that only the recurrent product fills (a GRU's
    recurrent part of the new gate, `separate_recurrent_size` of them) come first. In all others the input's and the
    state's parts are added, so their biases are merged.
    """

    def __init__(self, steps, input_weight, recurrent_weight, input_bias, recurrent_bias):
        self.steps = steps
        self.gates_size, self.hidden_size = recurrent_weight.shape
        self.separate_recurrent_size = self.num_columns("inputs") - self.gates_size
        self.input_weight = input_weight
        self.recurrent_weight = recurrent_weight.roll(self.separate_recurrent_size, dims=0)
        zeros = recurrent_weight.new_zeros(self.gates_size)
        recurrent_bias = (zeros if recurrent_bias is None else recurrent_bias).roll(self.separate_recurrent_size)
        self.separate_recurrent_bias = recurrent_bias[: self.separate_recurrent_size]
        self.input_bias = zeros if input_bias is None else input_bias.clone()
        self.input_bias[: self.gates_size - self.separate_recurrent_size] += recurrent_bias[
            self.separate_recurrent_size :
        ]

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

    def project(self, block: torch.Tensor) -> torch.Tensor:
        """Projects a block of inputs, ((window - 1 + time) * rows, input)."""
        (projected,) = self.empty("inputs", 1, len(block))
        projected[:, : self.separate_recurrent_size] = self.separate_recurrent_bias
        torch.addmm(self.input_bias, block, self.input_weight.t(), out=projected[:, self.separate_recurrent_size :])
        return projected

    def run(self, projected, num_rows, gates, saved_activations, states, num_recomputed):
        """
        Runs all steps over a block of projected inputs, from the zero state. `gates`, `saved_activations` and `states`
        hold the views of each step, `states` of one more. The gates of the first `num_recomputed` steps are computed,
        the others are taken as they are.
        """
        inputs = self.views("inputs", positions_of_steps(projected, num_rows, num_positions=len(states[0][0])))
        for state in states[0]:
            state.zero_()
        for step in range(len(gates)):
            if step < num_recomputed:
                recurrent_weight = self.recurrent_weight if step > 0 else None
                self.steps.activate(inputs[step], recurrent_weight, states[step], gates[step])
            self.steps.advance(inputs[step], gates[step], states[step], saved_activations[step], states[step + 1])


class BlockGradients:
    """The gradients of a head's weights and biases: sums over all blocks, in float32 or better."""

    def __init__(self, weights: BlockWeights):
        self.weights = weights
        dtype = torch.promote_types(weights.input_weight.dtype, torch.float32)
        self.input_weight = torch.zeros_like(weights.input_weight, dtype=dtype)
        self.recurrent_weight = torch.zeros_like(weights.recurrent_weight, dtype=dtype)
        self.input_bias = torch.zeros_like(weights.input_bias, dtype=dtype)
        self.separate_recurrent_bias = torch.zeros_like(weights.separate_recurrent_bias, dtype=dtype)

    def run(self, block, num_rows, gates, saved_activations, states, grad_new_hidden, grad_block):
        """
        Runs all steps backward, given the gradient of the last hidden state (positions, hidden). Adds the gradient of
        the block of inputs to `grad_block`.
        """
        weights, num_positions = self.weights, len(grad_new_hidden)
        separate_recurrent_size = weights.separate_recurrent_size
        (grad_states,) = weights.views("states", weights.empty("states", 1, num_positions).zero_())
        grad_hidden = grad_states[0].copy_(grad_new_hidden)
        (grad_step,) = weights.empty("grad_inputs", 1, num_positions)
        (grad_inputs_of_step,) = weights.views("grad_inputs", grad_step[None])
        grad_separate_gates = grad_step[:, :separate_recurrent_size]
        grad_gates = grad_step[:, : weights.gates_size]
        grad_projected_of_step = grad_step[:, separate_recurrent_size:]
        grad_projected = grad_step.new_zeros(len(block), weights.gates_size)
        grad_windows = positions_of_steps(grad_projected, num_rows, num_positions).unbind()
        for step in reversed(range(len(gates))):
            weights.steps.backward(
                gates[step], saved_activations[step], states[step], grad_states, grad_inputs_of_step
            )
            grad_windows[step].add_(grad_projected_of_step)
            if separate_recurrent_size > 0:
                self.separate_recurrent_bias += grad_separate_gates.sum(0)
            if step > 0:
                # What remains in grad_hidden is another path to the old state, if there is one.
                grad_hidden.addmm_(grad_gates, weights.recurrent_weight, beta=int(weights.steps.is_residual))
                add_product(self.recurrent_weight, grad_gates.t(), states[step][0])
        grad_block.addmm_(grad_projected, weights.input_weight)
        add_product(self.input_weight, grad_projected.t(), block)
        self.input_bias += grad_projected.sum(0)

    def of_parameters(self) -> tuple[torch.Tensor, ...]:
        """Of the four parameters that `BlockWeights` was made of."""
        separate_recurrent_size = self.weights.separate_recurrent_size
        merged_size = self.weights.gates_size - separate_recurrent_size
        recurrent_bias = torch.cat([self.input_bias[:merged_size], self.separate_recurrent_bias])
        recurrent_weight = self.recurrent_weight.roll(-separate_recurrent_size, dims=0)
        return self.input_weight, recurrent_weight, self.input_bias, recurrent_bias


def positions_of_steps(positions: torch.Tensor, num_rows: int, num_positions: int) -> torch.Tensor:
    """((window - 1 + time) * rows, features) -> (steps, time * rows, features), a view."""
    return positions.unfold(0, num_positions, num_rows).transpose(1, 2)


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
    inputs, input_weight, recurrent_weight, input_bias, recurrent_bias = tensors
    recurrent_weight = recurrent_weight[None] if recurrent_weight.ndim == 2 else merge_small_heads(recurrent_weight)
    num_heads, _, head_size = recurrent_weight.shape
    # With heads, a step costs less than projecting the inputs, which are kept in place of one step's gates.
    keeps_projected = has_backward and num_heads > 1 and num_kept > 0
    num_kept -= keeps_projected
    with torch.autocast(device_type, enabled=False):
        return BlockedLocalRNN.apply(
            inputs,
            by_head(input_weight, num_heads, head_size),
            recurrent_weight,
            by_head(input_bias, num_heads, head_size),
            by_head(recurrent_bias, num_heads, head_size),
            STEPS[cell_type, gate_activation],
            window_size,
            num_kept if has_backward else 0,
            keeps_projected,
        )


def by_head(parameter: torch.Tensor | None, num_heads: int, head_size: int) -> torch.Tensor | None:
    """(gates * hidden, ...) -> (heads, gates * head size, ...)"""
    if parameter is None:
        return None
    return parameter.unflatten(0, (-1, num_heads, head_size)).transpose(0, 1).flatten(1, 2)


def merge_small_heads(weight: torch.Tensor) -> torch.Tensor:
    """
    A recurrent weight (heads, gates * head size, head size) as one of fewer heads, each of which is a block-diagonal
    matrix of several small ones, of MIN_HEAD_SIZE together.
    """
    num_heads, gates_size, head_size = weight.shape
    divisors = (count for count in range(1, num_heads) if num_heads % count == 0)
    count = next((count for count in divisors if count * head_size >= MIN_HEAD_SIZE), num_heads)
    if count == 1:
        return weight
    weight = weight.view(-1, count, gates_size // head_size, head_size, head_size)
    merged = torch.diag_embed(weight.movedim(1, -1))  # (heads, gates, head size, head size, count, count)
    return merged.permute(0, 1, 4, 2, 5, 3).reshape(num_heads // count, -1, count * head_size)
