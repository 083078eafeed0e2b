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
GPU kernels of the LocalRNN operator: all that follows the projection of the inputs, forward and backward, in Triton.

All windows advance together. A row is a window, named by the position at which it ends; step j of the K steps adds the
projected input j - (K - 1) positions from there to the recurrent product of the state. There are two sets of kernels:

- Narrow layers: one launch runs the whole window of a block of rows, with state and recurrent weight on chip. The
  backward pass computes the recurrent gates again from the saved states.
- Wide layers: a launch a step, a matrix product with the cell in its epilogue; the states go through memory. The
  backward pass loads the saved recurrent gates, since another product would cost more.

Both backward passes write the gradients of every step's gates. One kernel then sums these over the K windows that hold
an input, and one matrix product over them and the states is the recurrent weight's gradient: no atomic additions, so
that the same inputs give the same bits.

Products accumulate in float32. The cell, and what it carries from step to step, are float32.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("The GPU kernels of the LocalRNN operator need Triton: pip install triton") from error

import torch

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Gradients of gates that the backward pass keeps per unit, the recurrent ones first. The GRU has a fourth: its new
# gate adds `reset * recurrent` to `input`, so that those two differ in their gradients.
NUM_GRADIENTS = {"rnn": 1, "gru": 4, "lstm": 4}


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def cell_forward(inputs, recurrent, carry, CELL: tl.constexpr):
    """
    One step. `carry` is what the update reads of the state before, other than its product: the hidden state in the
    GRU, the cell state in the LSTM. Returns the new hidden state and carry.
    """
    if CELL == "rnn":
        hidden = tanh(inputs[0] + recurrent[0])
        carry = hidden
    elif CELL == "gru":
        reset = tl.sigmoid(inputs[0] + recurrent[0])
        update = tl.sigmoid(inputs[1] + recurrent[1])
        new = tanh(inputs[2] + reset * recurrent[2])
        hidden = new + update * (carry - new)
        carry = hidden
    else:
        carry = tl.sigmoid(inputs[1] + recurrent[1]) * carry
        carry += tl.sigmoid(inputs[0] + recurrent[0]) * tanh(inputs[2] + recurrent[2])
        hidden = tl.sigmoid(inputs[3] + recurrent[3]) * tanh(carry)
    return hidden, carry


@triton.jit
def cell_backward(inputs, recurrent, carry, grad_hidden, grad_carry, CELL: tl.constexpr):
    """
    The step again, then its gradients: those of its gates, in the order of NUM_GRADIENTS, and that of `carry`.
    `grad_hidden` is what reaches the new hidden state through products, `grad_carry` what reaches the new carry.
    """
    if CELL == "rnn":
        hidden = tanh(inputs[0] + recurrent[0])
        grad_gates = (grad_hidden * (1 - hidden * hidden),)
    elif CELL == "gru":
        reset = tl.sigmoid(inputs[0] + recurrent[0])
        update = tl.sigmoid(inputs[1] + recurrent[1])
        new = tanh(inputs[2] + reset * recurrent[2])
        grad_hidden += grad_carry
        grad_new = grad_hidden * (1 - update) * (1 - new * new)
        grad_update = grad_hidden * (carry - new) * update * (1 - update)
        grad_reset = grad_new * recurrent[2] * reset * (1 - reset)
        grad_gates = (grad_reset, grad_update, grad_new * reset, grad_new)
        grad_carry = grad_hidden * update
    else:
        input_gate = tl.sigmoid(inputs[0] + recurrent[0])
        forget_gate = tl.sigmoid(inputs[1] + recurrent[1])
        candidate = tanh(inputs[2] + recurrent[2])
        output_gate = tl.sigmoid(inputs[3] + recurrent[3])
        tanh_cell = tanh(forget_gate * carry + input_gate * candidate)
        grad_cell = grad_carry + grad_hidden * output_gate * (1 - tanh_cell * tanh_cell)
        grad_gates = (
            grad_cell * candidate * input_gate * (1 - input_gate),
            grad_cell * carry * forget_gate * (1 - forget_gate),
            grad_cell * input_gate * (1 - candidate * candidate),
            grad_hidden * tanh_cell * output_gate * (1 - output_gate),
        )
        grad_carry = grad_cell * forget_gate
    return grad_gates, grad_carry


@triton.jit
def load_gates(pointers, mask, HIDDEN: tl.constexpr, NUM_GATES: tl.constexpr):
    """A float32 tile of each gate; `pointers` are those of the first gate's."""
    gates = ()
    for gate in tl.static_range(NUM_GATES):
        gates += (tl.load(pointers + gate * HIDDEN, mask=mask, other=0.0).to(tl.float32),)
    return gates


@triton.jit
def store_gates(pointers, gates, mask, HIDDEN: tl.constexpr, NUM_GATES: tl.constexpr):
    for gate in tl.static_range(NUM_GATES):
        tl.store(pointers + gate * HIDDEN, gates[gate].to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def load_input_gates(
    projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN: tl.constexpr, NUM_GATES: tl.constexpr
):
    """The input gates of a step, for windows `row` and hidden units `unit`."""
    mask = (row < rows)[:, None] & (unit < HIDDEN)[None, :]
    input_row = row // time * (window - 1 + time) + row % time + step
    gates = load_gates(
        projected + input_row[:, None] * (NUM_GATES * HIDDEN) + unit[None, :], mask, HIDDEN, NUM_GATES
    )
    if positions is not None:
        # An input from before the window's own sequence counts as a zero vector, whose projection is the bias.
        is_inside = tl.load(positions + row, mask=row < rows, other=0) >= window - 1 - step
        bias = load_gates(input_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)
        inside = ()
        for gate in tl.static_range(NUM_GATES):
            inside += (tl.where(is_inside[:, None], gates[gate], bias[gate]),)
        gates = inside
    return gates


@triton.jit
def load_recurrent_weight(recurrent_weight, unit, HIDDEN: tl.constexpr, NUM_GATES: tl.constexpr):
    """The whole of each gate's weight, a tuple of (units, inputs)."""
    mask = (unit < HIDDEN)[:, None] & (unit < HIDDEN)[None, :]
    weights = ()
    for gate in tl.static_range(NUM_GATES):
        pointers = recurrent_weight + gate * HIDDEN * HIDDEN + unit[:, None] * HIDDEN + unit[None, :]
        weights += (tl.load(pointers, mask=mask, other=0.0),)
    return weights


@triton.jit
def recurrent_products(state, weights, bias, PRECISION: tl.constexpr, NUM_GATES: tl.constexpr):
    gates = ()
    for gate in tl.static_range(NUM_GATES):
        gates += (tl.dot(state, tl.trans(weights[gate]), input_precision=PRECISION) + bias[gate],)
    return gates


@triton.jit
def forward_window_kernel(
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_GATES * HIDDEN, HIDDEN)
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    positions,  # (rows,) or None
    output,  # (rows, HIDDEN)
    states,  # (window - 1, rows, HIDDEN) or None: where to keep the hidden states after all steps but the last
    cells,  # (window - 1, rows, HIDDEN) or None: likewise the LSTM's cell states, float32
    rows,
    time,
    window,
    CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_GATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """All steps of a block of windows, for every hidden unit. Grid: blocks of rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    unit = tl.arange(0, BLOCK_UNITS)
    mask = (row < rows)[:, None] & (unit < HIDDEN)[None, :]
    offsets = row[:, None] * HIDDEN + unit[None, :]
    weights = load_recurrent_weight(recurrent_weight, unit, HIDDEN, NUM_GATES)
    bias = load_gates(recurrent_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)

    # The first step's product is of a zero state.
    inputs = load_input_gates(
        projected, input_bias, positions, row, unit, 0, rows, time, window, HIDDEN, NUM_GATES
    )
    hidden, carry = cell_forward(inputs, bias, tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32), CELL)
    for step in range(1, window):
        state = hidden.to(recurrent_weight.dtype.element_ty)
        if states is not None:
            tl.store(states + (step - 1) * rows.to(tl.int64) * HIDDEN + offsets, state, mask=mask)
        if cells is not None:
            tl.store(cells + (step - 1) * rows.to(tl.int64) * HIDDEN + offsets, carry, mask=mask)
        inputs = load_input_gates(
            projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN, NUM_GATES
        )
        recurrent = recurrent_products(state, weights, bias, PRECISION, NUM_GATES)
        hidden, carry = cell_forward(inputs, recurrent, carry, CELL)
    tl.store(output + offsets, hidden.to(output.dtype.element_ty), mask=mask)


@triton.jit
def backward_window_kernel(
    grad_output,  # (rows, HIDDEN)
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_GATES * HIDDEN, HIDDEN)
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    positions,  # (rows,) or None
    states,  # (window - 1, rows, HIDDEN)
    cells,  # (window - 1, rows, HIDDEN), or None where the cell is not an LSTM
    grad_gates,  # (window, rows, NUM_GRADIENTS * HIDDEN): the result
    rows,
    time,
    window,
    CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_GATES: tl.constexpr,
    NUM_GRADIENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """All steps of a block of windows, last to first, for every hidden unit. Grid: blocks of rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    unit = tl.arange(0, BLOCK_UNITS)
    mask = (row < rows)[:, None] & (unit < HIDDEN)[None, :]
    offsets = row[:, None] * HIDDEN + unit[None, :]
    grad_offsets = row[:, None] * (NUM_GRADIENTS * HIDDEN) + unit[None, :]
    weights = load_recurrent_weight(recurrent_weight, unit, HIDDEN, NUM_GATES)
    bias = load_gates(recurrent_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)

    grad_hidden = tl.load(grad_output + offsets, mask=mask, other=0.0).to(tl.float32)
    grad_carry = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
    for steps_done in range(window - 1):
        step = window - 1 - steps_done
        inputs = load_input_gates(
            projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN, NUM_GATES
        )
        slice_offset = (step - 1) * rows.to(tl.int64) * HIDDEN
        state = tl.load(states + slice_offset + offsets, mask=mask, other=0.0)
        recurrent = recurrent_products(state, weights, bias, PRECISION, NUM_GATES)
        if cells is not None:
            carry = tl.load(cells + slice_offset + offsets, mask=mask, other=0.0)
        else:
            carry = state.to(tl.float32)
        gradients, grad_carry = cell_backward(inputs, recurrent, carry, grad_hidden, grad_carry, CELL)
        pointers = grad_gates + step * rows.to(tl.int64) * (NUM_GRADIENTS * HIDDEN) + grad_offsets
        store_gates(pointers, gradients, mask, HIDDEN, NUM_GRADIENTS)
        grad_hidden = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
        for gate in tl.static_range(NUM_GATES):
            gradient = gradients[gate].to(weights[gate].dtype)
            grad_hidden = tl.dot(gradient, weights[gate], acc=grad_hidden, input_precision=PRECISION)

    inputs = load_input_gates(
        projected, input_bias, positions, row, unit, 0, rows, time, window, HIDDEN, NUM_GATES
    )
    carry = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
    gradients, _ = cell_backward(inputs, bias, carry, grad_hidden, grad_carry, CELL)
    store_gates(grad_gates + grad_offsets, gradients, mask, HIDDEN, NUM_GRADIENTS)


@triton.jit
def forward_step_kernel(
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_GATES * HIDDEN, HIDDEN)
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    positions,  # (rows,) or None
    state,  # (rows, HIDDEN), the hidden state before the step; None at the first: zeros
    carry,  # (rows, HIDDEN), float32; None at the first step and in the RNN
    new_state,  # (rows, HIDDEN)
    new_carry,  # (rows, HIDDEN), float32, or None: not kept
    recurrent_gates,  # (rows, NUM_GATES * HIDDEN) or None: where to keep the recurrent product
    rows,
    time,
    window,
    step,
    CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_GATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """One step of a block of windows, for a block of hidden units. Grid: blocks of rows x blocks of units."""
    blocks_of_units: tl.constexpr = (HIDDEN + BLOCK_UNITS - 1) // BLOCK_UNITS
    row = (tl.program_id(0) // blocks_of_units).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    unit = tl.program_id(0) % blocks_of_units * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)
    mask = (row < rows)[:, None] & (unit < HIDDEN)[None, :]
    offsets = row[:, None] * HIDDEN + unit[None, :]
    gate_offsets = row[:, None] * (NUM_GATES * HIDDEN) + unit[None, :]

    recurrent = load_gates(recurrent_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)
    if state is not None:
        sums = ()
        for _ in tl.static_range(NUM_GATES):
            sums += (tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32),)
        for start in range(0, HIDDEN, BLOCK_INNER):
            inner = start + tl.arange(0, BLOCK_INNER)
            state_pointers = state + row[:, None] * HIDDEN + inner[None, :]
            state_mask = (row < rows)[:, None] & (inner < HIDDEN)[None, :]
            weight_pointers = recurrent_weight + unit[None, :] * HIDDEN + inner[:, None]
            weight_mask = (inner < HIDDEN)[:, None] & (unit < HIDDEN)[None, :]
            state_block = tl.load(state_pointers, mask=state_mask, other=0.0)
            products = ()
            for gate in tl.static_range(NUM_GATES):
                weight_block = tl.load(weight_pointers + gate * HIDDEN * HIDDEN, mask=weight_mask, other=0.0)
                products += (tl.dot(state_block, weight_block, acc=sums[gate], input_precision=PRECISION),)
            sums = products
        with_bias = ()
        for gate in tl.static_range(NUM_GATES):
            with_bias += (sums[gate] + recurrent[gate],)
        recurrent = with_bias
        if recurrent_gates is not None:
            store_gates(recurrent_gates + gate_offsets, recurrent, mask, HIDDEN, NUM_GATES)

    if carry is not None:
        carry_tile = tl.load(carry + offsets, mask=mask, other=0.0)
    else:
        carry_tile = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
    inputs = load_input_gates(
        projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN, NUM_GATES
    )
    hidden, carry_tile = cell_forward(inputs, recurrent, carry_tile, CELL)
    tl.store(new_state + offsets, hidden.to(new_state.dtype.element_ty), mask=mask)
    if new_carry is not None:
        tl.store(new_carry + offsets, carry_tile, mask=mask)


@triton.jit
def backward_step_kernel(
    grad_output,  # (rows, HIDDEN) at the last step; None at the others
    later_grad_gates,  # (rows, NUM_GRADIENTS * HIDDEN), those of the step after; None at the last step
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_GATES * HIDDEN, HIDDEN)
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    positions,  # (rows,) or None
    recurrent_gates,  # (rows, NUM_GATES * HIDDEN); None at the first step: the bias
    carry,  # (rows, HIDDEN), the one before the step; None at the first step and in the RNN
    grad_carry,  # (rows, HIDDEN), float32, replaced; None in the RNN
    grad_gates,  # (rows, NUM_GRADIENTS * HIDDEN): the result
    rows,
    time,
    window,
    step,
    CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_GATES: tl.constexpr,
    NUM_GRADIENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """The gradients of one step's gates: a block of windows and hidden units. Grid: as in `forward_step_kernel`."""
    blocks_of_units: tl.constexpr = (HIDDEN + BLOCK_UNITS - 1) // BLOCK_UNITS
    row = (tl.program_id(0) // blocks_of_units).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    unit = tl.program_id(0) % blocks_of_units * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)
    mask = (row < rows)[:, None] & (unit < HIDDEN)[None, :]
    offsets = row[:, None] * HIDDEN + unit[None, :]
    grad_offsets = row[:, None] * (NUM_GRADIENTS * HIDDEN) + unit[None, :]

    grad_carry_tile = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
    if later_grad_gates is None:
        grad_hidden = tl.load(grad_output + offsets, mask=mask, other=0.0).to(tl.float32)
    else:
        grad_hidden = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
        for start in range(0, NUM_GATES * HIDDEN, BLOCK_INNER):
            inner = start + tl.arange(0, BLOCK_INNER)
            later_pointers = later_grad_gates + row[:, None] * (NUM_GRADIENTS * HIDDEN) + inner[None, :]
            later_mask = (row < rows)[:, None] & (inner < NUM_GATES * HIDDEN)[None, :]
            weight_pointers = recurrent_weight + inner[:, None] * HIDDEN + unit[None, :]
            weight_mask = (inner < NUM_GATES * HIDDEN)[:, None] & (unit < HIDDEN)[None, :]
            later_block = tl.load(later_pointers, mask=later_mask, other=0.0)
            weight_block = tl.load(weight_pointers, mask=weight_mask, other=0.0)
            grad_hidden = tl.dot(later_block, weight_block, acc=grad_hidden, input_precision=PRECISION)
        if grad_carry is not None:
            grad_carry_tile = tl.load(grad_carry + offsets, mask=mask, other=0.0)

    if recurrent_gates is not None:
        gate_offsets = row[:, None] * (NUM_GATES * HIDDEN) + unit[None, :]
        recurrent = load_gates(recurrent_gates + gate_offsets, mask, HIDDEN, NUM_GATES)
    else:
        recurrent = load_gates(recurrent_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)
    if carry is not None:
        carry_tile = tl.load(carry + offsets, mask=mask, other=0.0).to(tl.float32)
    else:
        carry_tile = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
    inputs = load_input_gates(
        projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN, NUM_GATES
    )
    gradients, grad_carry_tile = cell_backward(inputs, recurrent, carry_tile, grad_hidden, grad_carry_tile, CELL)
    store_gates(grad_gates + grad_offsets, gradients, mask, HIDDEN, NUM_GRADIENTS)
    if grad_carry is not None:
        tl.store(grad_carry + offsets, grad_carry_tile, mask=mask)


@triton.jit
def sum_over_windows_kernel(
    grad_gates,  # (window, rows, NUM_GRADIENTS * HIDDEN)
    positions,  # (rows,) or None
    grad_projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN): a result
    sums,  # (blocks of inputs, NUM_GRADIENTS * HIDDEN), float32, a result: a block's sum over all its windows
    outside_sums,  # the same of those inputs alone that count as zeros; None without positions
    rows,
    time,
    window,
    input_rows,
    CELL: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_GATES: tl.constexpr,
    NUM_GRADIENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """
    For a block of inputs and hidden units, gathers the gradients of all windows that hold each input: step j of the
    window that ends j - (window - 1) positions on. Grid: blocks of inputs x blocks of units.
    """
    blocks_of_units: tl.constexpr = (HIDDEN + BLOCK_UNITS - 1) // BLOCK_UNITS
    block = tl.program_id(0) // blocks_of_units
    input_row = block.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    unit = tl.program_id(0) % blocks_of_units * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)
    padded_time = window - 1 + time
    mask = (input_row < input_rows)[:, None] & (unit < HIDDEN)[None, :]
    for gate in tl.static_range(NUM_GRADIENTS):
        column = gate * HIDDEN + unit
        inside = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
        outside = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
        for step in range(window):
            position = input_row % padded_time - step
            row = input_row // padded_time * time + position
            has_window = (input_row < input_rows) & (position >= 0) & (position < time)
            pointers = grad_gates + (step * rows.to(tl.int64) + row)[:, None] * (NUM_GRADIENTS * HIDDEN)
            gradient = tl.load(
                pointers + column[None, :], mask=has_window[:, None] & (unit < HIDDEN)[None, :], other=0.0
            ).to(tl.float32)
            if positions is not None:
                is_inside = tl.load(positions + row, mask=has_window, other=0) >= window - 1 - step
                inside += tl.where(is_inside[:, None], gradient, 0.0)
                outside += tl.where(is_inside[:, None], 0.0, gradient)
            else:
                inside += gradient
        sums_offsets = block.to(tl.int64) * (NUM_GRADIENTS * HIDDEN) + column
        tl.store(sums + sums_offsets, tl.sum(inside + outside, axis=0), mask=unit < HIDDEN)
        if positions is not None:
            tl.store(outside_sums + sums_offsets, tl.sum(outside, axis=0), mask=unit < HIDDEN)
        # In the GRU the third is the gradient of the recurrent part of the new gate, the fourth that of its input.
        if CELL != "gru" or gate != 2:
            input_gate: tl.constexpr = 2 if CELL == "gru" and gate == 3 else gate
            pointers = grad_projected + input_row[:, None] * (NUM_GATES * HIDDEN) + input_gate * HIDDEN
            tl.store(pointers + unit[None, :], inside.to(grad_projected.dtype.element_ty), mask=mask)
