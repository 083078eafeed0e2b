# SPDX-License-Identifier: Apache-2.0
"""
GPU kernels of the LocalRNN operator in Triton, forward and backward, from the projected inputs on.

All windows advance together. A row is a window, identified by the position where it ends. Step j of K adds the
projection of the input K - 1 - j positions earlier to the recurrent product of the state. Two sets of kernels:

- Narrow layers: one launch runs all steps of a block of windows, with states and recurrent weight on chip.
- Wide layers: one launch per step, a matrix product with the cell in its epilogue. States go through memory.

The backward pass needs the recurrent gates. The narrowest layers recompute them from the saved states, which is faster
than loading them. For wider layers the product costs more, so they are saved.

Both backward passes write the gradients of every step's gates. One kernel then sums them over the K windows that
contain an input, and one matrix product with the states gives the gradient of the recurrent weight. There are no
atomic additions, so the same inputs give the same bits.

Products accumulate in float32. The cell and its carry from step to step are float32.
"""

from collections.abc import Callable
from functools import cache

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    message = "The GPU kernels of the LocalRNN operator need Triton: pip install triton"
    raise ModuleNotFoundError(message, name=error.name) from error

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Gate gradients that the backward pass keeps per unit, recurrent ones first. The GRU needs a fourth: its new gate adds
# `reset * recurrent` to `input`, so the two have different gradients.
NUM_GRADIENTS = {"rnn": 1, "gru": 4, "lstm": 4}


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def sigmoid(x, HARD_GATES: tl.constexpr):
    return tl.minimum(tl.maximum(0.2 * x + 0.5, 0.0), 1.0) if HARD_GATES else tl.sigmoid(x)


@triton.jit
def sigmoid_slope(result, HARD_GATES: tl.constexpr):
    """The derivative of `sigmoid`, computed from its result."""
    return tl.where((result > 0) & (result < 1), 0.2, 0.0) if HARD_GATES else result * (1 - result)


@triton.jit
def cell_forward(inputs, recurrent, carry, CELL_TYPE: tl.constexpr, HARD_GATES: tl.constexpr):
    """
    One step. `carry` is the part of the old state that is used outside the recurrent product: the hidden state in a
    GRU, the cell state in an LSTM. Returns the new hidden state and carry.
    """
    if CELL_TYPE == "rnn":
        hidden = tanh(inputs[0] + recurrent[0])
        carry = hidden
    elif CELL_TYPE == "gru":
        reset = sigmoid(inputs[0] + recurrent[0], HARD_GATES)
        update = sigmoid(inputs[1] + recurrent[1], HARD_GATES)
        new = tanh(inputs[2] + reset * recurrent[2])
        hidden = new + update * (carry - new)
        carry = hidden
    else:
        carry = sigmoid(inputs[1] + recurrent[1], HARD_GATES) * carry
        carry += sigmoid(inputs[0] + recurrent[0], HARD_GATES) * tanh(inputs[2] + recurrent[2])
        hidden = sigmoid(inputs[3] + recurrent[3], HARD_GATES) * tanh(carry)
    return hidden, carry


@triton.jit
def cell_backward(
    inputs, recurrent, carry, grad_hidden, grad_carry, CELL_TYPE: tl.constexpr, HARD_GATES: tl.constexpr
):
    """
    Recomputes the step, then returns the gradients of its gates, in the order of NUM_GRADIENTS, and of `carry`.
    `grad_hidden` is the gradient of the new hidden state through the next step's product, `grad_carry` that of the
    new carry.
    """
    if CELL_TYPE == "rnn":
        hidden = tanh(inputs[0] + recurrent[0])
        grad_gates = (grad_hidden * (1 - hidden * hidden),)
    elif CELL_TYPE == "gru":
        reset = sigmoid(inputs[0] + recurrent[0], HARD_GATES)
        update = sigmoid(inputs[1] + recurrent[1], HARD_GATES)
        new = tanh(inputs[2] + reset * recurrent[2])
        grad_hidden += grad_carry
        grad_new = grad_hidden * (1 - update) * (1 - new * new)
        grad_update = grad_hidden * (carry - new) * sigmoid_slope(update, HARD_GATES)
        grad_reset = grad_new * recurrent[2] * sigmoid_slope(reset, HARD_GATES)
        grad_gates = (grad_reset, grad_update, grad_new * reset, grad_new)
        grad_carry = grad_hidden * update
    else:
        input_gate = sigmoid(inputs[0] + recurrent[0], HARD_GATES)
        forget_gate = sigmoid(inputs[1] + recurrent[1], HARD_GATES)
        candidate = tanh(inputs[2] + recurrent[2])
        output_gate = sigmoid(inputs[3] + recurrent[3], HARD_GATES)
        tanh_cell = tanh(forget_gate * carry + input_gate * candidate)
        grad_cell = grad_carry + grad_hidden * output_gate * (1 - tanh_cell * tanh_cell)
        grad_gates = (
            grad_cell * candidate * sigmoid_slope(input_gate, HARD_GATES),
            grad_cell * carry * sigmoid_slope(forget_gate, HARD_GATES),
            grad_cell * input_gate * (1 - candidate * candidate),
            grad_hidden * tanh_cell * sigmoid_slope(output_gate, HARD_GATES),
        )
        grad_carry = grad_cell * forget_gate
    return grad_gates, grad_carry


@triton.jit
def load_gates(pointers, mask, HIDDEN: tl.constexpr, NUM_GATES: tl.constexpr):
    """One float32 tile per gate; `pointers` point to the first gate's tile."""
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
    projected,
    input_bias,
    positions,
    row,
    unit,
    step,
    rows,
    time,
    window,
    HIDDEN: tl.constexpr,
    NUM_GATES: tl.constexpr,
):
    """The input gates of one step, for windows `row` and hidden units `unit`."""
    mask = (row < rows)[:, None] & (unit < HIDDEN)[None, :]
    input_row = row // time * (window - 1 + time) + row % time + step
    gates = load_gates(projected + input_row[:, None] * (NUM_GATES * HIDDEN) + unit[None, :], mask, HIDDEN, NUM_GATES)
    if positions is not None:
        # An input from before the window's own sequence counts as zero, and the projection of zero is the bias.
        is_inside = tl.load(positions + row, mask=row < rows, other=0) >= window - 1 - step
        bias = load_gates(input_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)
        inside = ()
        for gate in tl.static_range(NUM_GATES):
            inside += (tl.where(is_inside[:, None], gates[gate], bias[gate]),)
        gates = inside
    return gates


@triton.jit
def load_recurrent_weight(recurrent_weight, head, unit, HEAD: tl.constexpr, NUM_GATES: tl.constexpr):
    """Each gate's whole weight in one head, a tuple of (units, inputs) tiles."""
    mask = (unit < HEAD)[:, None] & (unit < HEAD)[None, :]
    weights = ()
    for gate in tl.static_range(NUM_GATES):
        pointers = recurrent_weight + (head * NUM_GATES + gate) * HEAD * HEAD + unit[:, None] * HEAD + unit[None, :]
        weights += (tl.load(pointers, mask=mask, other=0.0),)
    return weights


@triton.jit
def recurrent_products(state, weights, bias, PRECISION: tl.constexpr, NUM_GATES: tl.constexpr):
    gates = ()
    for gate in tl.static_range(NUM_GATES):
        gates += (tl.dot(state, tl.trans(weights[gate]), input_precision=PRECISION) + bias[gate],)
    return gates


# Kernels are specialised on width, cell type and dtype only. Triton would recompile for sizes such as 1.
@triton.jit(do_not_specialize=["rows", "time", "window"])
def forward_window_kernel(
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_HEADS, NUM_GATES * head size, head size)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    positions,  # (rows,), each position's index in its own sequence, or None
    output,  # (rows, HIDDEN)
    states,  # (window - 1, rows, HIDDEN), written: the hidden states after all steps but the last; None: not saved
    cell_states,  # (window - 1, rows, HIDDEN), float32, written: likewise an LSTM's cell states; or None
    recurrent_gates,  # (window - 1, rows, NUM_GATES * HIDDEN), written: the products of these states; or None
    rows,
    time,
    window,
    CELL_TYPE: tl.constexpr,
    HARD_GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_GATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """All steps of a block of windows, for every hidden unit of a head. Grid: blocks of rows x heads."""
    HEAD: tl.constexpr = HIDDEN // NUM_HEADS
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    head_unit = tl.arange(0, BLOCK_UNITS)  # units beyond the head are masked
    head = 0 if NUM_HEADS == 1 else tl.program_id(1)  # a constant saves registers
    unit = head * HEAD + head_unit
    mask = (row < rows)[:, None] & (head_unit < HEAD)[None, :]
    offsets = row[:, None] * HIDDEN + unit[None, :]
    gate_offsets = row[:, None] * (NUM_GATES * HIDDEN) + unit[None, :]
    weights = load_recurrent_weight(recurrent_weight, head, head_unit, HEAD, NUM_GATES)
    bias = load_gates(recurrent_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)

    # The state is zero before the first step, so there is no product.
    inputs = load_input_gates(projected, input_bias, positions, row, unit, 0, rows, time, window, HIDDEN, NUM_GATES)
    hidden, carry = cell_forward(inputs, bias, tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32), CELL_TYPE, HARD_GATES)
    for step in range(1, window):
        state = hidden.to(recurrent_weight.dtype.element_ty)
        if states is not None:
            tl.store(states + (step - 1) * rows.to(tl.int64) * HIDDEN + offsets, state, mask=mask)
        if cell_states is not None:
            tl.store(cell_states + (step - 1) * rows.to(tl.int64) * HIDDEN + offsets, carry, mask=mask)
        inputs = load_input_gates(
            projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN, NUM_GATES
        )
        recurrent = recurrent_products(state, weights, bias, PRECISION, NUM_GATES)
        if recurrent_gates is not None:
            pointers = recurrent_gates + (step - 1) * rows.to(tl.int64) * (NUM_GATES * HIDDEN) + gate_offsets
            store_gates(pointers, recurrent, mask, HIDDEN, NUM_GATES)
        hidden, carry = cell_forward(inputs, recurrent, carry, CELL_TYPE, HARD_GATES)
    tl.store(output + offsets, hidden.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "time", "window"])
def backward_window_kernel(
    grad_output,  # (rows, HIDDEN)
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_HEADS, NUM_GATES * head size, head size)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    positions,  # (rows,), each position's index in its own sequence, or None
    states,  # (window - 1, rows, HIDDEN)
    cell_states,  # (window - 1, rows, HIDDEN); None: not an LSTM
    recurrent_gates,  # (window - 1, rows, NUM_GATES * HIDDEN); None: recomputed
    grad_gates,  # (window, rows, NUM_GRADIENTS * HIDDEN), written
    rows,
    time,
    window,
    CELL_TYPE: tl.constexpr,
    HARD_GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_GATES: tl.constexpr,
    NUM_GRADIENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """All steps of a block of windows, last to first, for the units of a head. Grid: blocks of rows x heads."""
    HEAD: tl.constexpr = HIDDEN // NUM_HEADS
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    head_unit = tl.arange(0, BLOCK_UNITS)  # units beyond the head are masked
    head = 0 if NUM_HEADS == 1 else tl.program_id(1)  # a constant saves registers
    unit = head * HEAD + head_unit
    mask = (row < rows)[:, None] & (head_unit < HEAD)[None, :]
    offsets = row[:, None] * HIDDEN + unit[None, :]
    gate_offsets = row[:, None] * (NUM_GATES * HIDDEN) + unit[None, :]
    grad_offsets = row[:, None] * (NUM_GRADIENTS * HIDDEN) + unit[None, :]
    weights = load_recurrent_weight(recurrent_weight, head, head_unit, HEAD, NUM_GATES)
    bias = load_gates(recurrent_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)

    grad_hidden = tl.load(grad_output + offsets, mask=mask, other=0.0).to(tl.float32)
    grad_carry = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
    for steps_done in range(window - 1):
        step = window - 1 - steps_done
        inputs = load_input_gates(
            projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN, NUM_GATES
        )
        previous = (step - 1) * rows.to(tl.int64)  # the first row of the state before this step
        state = tl.load(states + previous * HIDDEN + offsets, mask=mask, other=0.0)
        if recurrent_gates is not None:
            pointers = recurrent_gates + previous * (NUM_GATES * HIDDEN) + gate_offsets
            recurrent = load_gates(pointers, mask, HIDDEN, NUM_GATES)
        else:
            recurrent = recurrent_products(state, weights, bias, PRECISION, NUM_GATES)
        if cell_states is not None:
            carry = tl.load(cell_states + previous * HIDDEN + offsets, mask=mask, other=0.0)
        else:
            carry = state.to(tl.float32)
        gradients, grad_carry = cell_backward(inputs, recurrent, carry, grad_hidden, grad_carry, CELL_TYPE, HARD_GATES)
        pointers = grad_gates + step * rows.to(tl.int64) * (NUM_GRADIENTS * HIDDEN) + grad_offsets
        store_gates(pointers, gradients, mask, HIDDEN, NUM_GRADIENTS)
        grad_hidden = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
        for gate in tl.static_range(NUM_GATES):
            gradient = gradients[gate].to(weights[gate].dtype)
            grad_hidden = tl.dot(gradient, weights[gate], acc=grad_hidden, input_precision=PRECISION)

    inputs = load_input_gates(projected, input_bias, positions, row, unit, 0, rows, time, window, HIDDEN, NUM_GATES)
    carry = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
    gradients, _ = cell_backward(inputs, bias, carry, grad_hidden, grad_carry, CELL_TYPE, HARD_GATES)
    store_gates(grad_gates + grad_offsets, gradients, mask, HIDDEN, NUM_GRADIENTS)


@triton.jit(do_not_specialize=["rows", "time", "window", "step"])
def forward_step_kernel(
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_HEADS, NUM_GATES * head size, head size)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    positions,  # (rows,), each position's index in its own sequence, or None
    state,  # (rows, HIDDEN), the hidden state before the step; None at the first step: zeros
    carry,  # (rows, HIDDEN), float32; None at the first step and in the RNN
    new_state,  # (rows, HIDDEN)
    new_carry,  # (rows, HIDDEN), float32; None: not needed
    recurrent_gates,  # (rows, NUM_GATES * HIDDEN), written: the recurrent product; None: not saved
    rows,
    time,
    window,
    step,
    CELL_TYPE: tl.constexpr,
    HARD_GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_GATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """
    One step of a block of windows, for a block of a head's units. Grid: (blocks of rows x blocks of units) x heads.
    """
    HEAD: tl.constexpr = HIDDEN // NUM_HEADS
    blocks_of_units: tl.constexpr = (HEAD + BLOCK_UNITS - 1) // BLOCK_UNITS
    row = (tl.program_id(0) // blocks_of_units).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    head_unit = tl.program_id(0) % blocks_of_units * BLOCK_UNITS + tl.arange(0, BLOCK_UNITS)
    head = 0 if NUM_HEADS == 1 else tl.program_id(1)  # a constant saves registers
    unit = head * HEAD + head_unit
    mask = (row < rows)[:, None] & (head_unit < HEAD)[None, :]
    offsets = row[:, None] * HIDDEN + unit[None, :]
    gate_offsets = row[:, None] * (NUM_GATES * HIDDEN) + unit[None, :]

    recurrent = load_gates(recurrent_bias + unit[None, :], unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)
    if state is not None:
        sums = ()
        for _ in tl.static_range(NUM_GATES):
            sums += (tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32),)
        head_weight = recurrent_weight + head * (NUM_GATES * HEAD * HEAD)
        for start in range(0, HEAD, BLOCK_INNER):
            inner = start + tl.arange(0, BLOCK_INNER)
            state_pointers = state + row[:, None] * HIDDEN + head * HEAD + inner[None, :]
            state_mask = (row < rows)[:, None] & (inner < HEAD)[None, :]
            weight_pointers = head_weight + head_unit[None, :] * HEAD + inner[:, None]
            weight_mask = (inner < HEAD)[:, None] & (head_unit < HEAD)[None, :]
            state_block = tl.load(state_pointers, mask=state_mask, other=0.0)
            products = ()
            for gate in tl.static_range(NUM_GATES):
                weight_block = tl.load(weight_pointers + gate * HEAD * HEAD, mask=weight_mask, other=0.0)
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
    inputs = load_input_gates(projected, input_bias, positions, row, unit, step, rows, time, window, HIDDEN, NUM_GATES)
    hidden, carry_tile = cell_forward(inputs, recurrent, carry_tile, CELL_TYPE, HARD_GATES)
    tl.store(new_state + offsets, hidden.to(new_state.dtype.element_ty), mask=mask)
    if new_carry is not None:
        tl.store(new_carry + offsets, carry_tile, mask=mask)


@triton.jit(do_not_specialize=["rows", "time", "window", "step"])
def backward_step_kernel(
    grad_output,  # (rows, HIDDEN) at the last step; None at all others
    later_grad_gates,  # (rows, NUM_GRADIENTS * HIDDEN), those of the next step; None at the last step
    projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN)
    recurrent_weight,  # (NUM_HEADS, NUM_GATES * head size, head size)
    input_bias,  # (NUM_GATES * HIDDEN,) or None
    recurrent_bias,  # (NUM_GATES * HIDDEN,)
    positions,  # (rows,), each position's index in its own sequence, or None
    recurrent_gates,  # (rows, NUM_GATES * HIDDEN); None at the first step, where they are the bias
    carry,  # (rows, HIDDEN), before the step; None at the first step and in the RNN
    grad_carry,  # (rows, HIDDEN), float32, updated in place; None in the RNN
    grad_gates,  # (rows, NUM_GRADIENTS * HIDDEN), written
    rows,
    time,
    window,
    step,
    CELL_TYPE: tl.constexpr,
    HARD_GATES: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_GATES: tl.constexpr,
    NUM_GRADIENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """
    The gradients of one step's gates, for a block of windows and PARTS blocks of a head's units. Grid: (blocks of rows
    x blocks of units) x heads.
    """
    HEAD: tl.constexpr = HIDDEN // NUM_HEADS
    blocks_of_units: tl.constexpr = (HEAD + PARTS * BLOCK_UNITS - 1) // (PARTS * BLOCK_UNITS)
    row = (tl.program_id(0) // blocks_of_units).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first_unit = tl.program_id(0) % blocks_of_units * (PARTS * BLOCK_UNITS) + tl.arange(0, BLOCK_UNITS)
    head = 0 if NUM_HEADS == 1 else tl.program_id(1)  # a constant saves registers
    head_start = head * HEAD

    # The product covers all parts at once, the epilogue one part at a time, to save registers.
    grad_hidden = ()
    for part in tl.static_range(PARTS):
        if later_grad_gates is None:
            head_unit = first_unit + part * BLOCK_UNITS
            part_mask = (row < rows)[:, None] & (head_unit < HEAD)[None, :]
            pointers = grad_output + row[:, None] * HIDDEN + head_start + head_unit[None, :]
            grad_hidden += (tl.load(pointers, mask=part_mask, other=0.0).to(tl.float32),)
        else:
            grad_hidden += (tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32),)
    if later_grad_gates is not None:
        head_weight = recurrent_weight + head_start * (NUM_GATES * HEAD)
        for start in range(0, NUM_GATES * HEAD, BLOCK_INNER):
            inner = start + tl.arange(0, BLOCK_INNER)
            column = inner if NUM_HEADS == 1 else inner // HEAD * HIDDEN + head_start + inner % HEAD
            later_pointers = later_grad_gates + row[:, None] * (NUM_GRADIENTS * HIDDEN) + column[None, :]
            later_mask = (row < rows)[:, None] & (inner < NUM_GATES * HEAD)[None, :]
            later_block = tl.load(later_pointers, mask=later_mask, other=0.0)
            products = ()
            for part in tl.static_range(PARTS):
                head_unit = first_unit + part * BLOCK_UNITS
                weight_pointers = head_weight + inner[:, None] * HEAD + head_unit[None, :]
                weight_mask = (inner < NUM_GATES * HEAD)[:, None] & (head_unit < HEAD)[None, :]
                weight_block = tl.load(weight_pointers, mask=weight_mask, other=0.0)
                products += (tl.dot(later_block, weight_block, acc=grad_hidden[part], input_precision=PRECISION),)
            grad_hidden = products

    for part in tl.static_range(PARTS):
        head_unit = first_unit + part * BLOCK_UNITS
        part_unit = head_start + head_unit
        mask = (row < rows)[:, None] & (head_unit < HEAD)[None, :]
        offsets = row[:, None] * HIDDEN + part_unit[None, :]
        if recurrent_gates is not None:
            pointers = recurrent_gates + row[:, None] * (NUM_GATES * HIDDEN) + part_unit[None, :]
            recurrent = load_gates(pointers, mask, HIDDEN, NUM_GATES)
        else:
            bias_pointers = recurrent_bias + part_unit[None, :]
            recurrent = load_gates(bias_pointers, part_unit[None, :] < HIDDEN, HIDDEN, NUM_GATES)
        carry_tile = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
        if carry is not None:
            carry_tile = tl.load(carry + offsets, mask=mask, other=0.0).to(tl.float32)
        grad_carry_tile = tl.zeros((BLOCK_ROWS, BLOCK_UNITS), tl.float32)
        if later_grad_gates is not None and grad_carry is not None:
            grad_carry_tile = tl.load(grad_carry + offsets, mask=mask, other=0.0)
        inputs = load_input_gates(
            projected, input_bias, positions, row, part_unit, step, rows, time, window, HIDDEN, NUM_GATES
        )
        gradients, grad_carry_tile = cell_backward(
            inputs, recurrent, carry_tile, grad_hidden[part], grad_carry_tile, CELL_TYPE, HARD_GATES
        )
        grad_pointers = grad_gates + row[:, None] * (NUM_GRADIENTS * HIDDEN) + part_unit[None, :]
        store_gates(grad_pointers, gradients, mask, HIDDEN, NUM_GRADIENTS)
        if grad_carry is not None:
            tl.store(grad_carry + offsets, grad_carry_tile, mask=mask)


@triton.jit(do_not_specialize=["rows", "time", "window", "input_rows"])
def sum_over_windows_kernel(
    grad_gates,  # (window, rows, NUM_GRADIENTS * HIDDEN)
    positions,  # (rows,), each position's index in its own sequence, or None
    grad_projected,  # (batch, window - 1 + time, NUM_GATES * HIDDEN), written
    sums,  # (blocks of inputs, NUM_GRADIENTS * HIDDEN), float32, written: each block's sum over all its windows
    outside_sums,  # the same, for inputs that count as zeros only; None without positions
    rows,
    time,
    window,
    input_rows,
    CELL_TYPE: tl.constexpr,
    HIDDEN: tl.constexpr,
    NUM_GATES: tl.constexpr,
    NUM_GRADIENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_UNITS: tl.constexpr,
):
    """
    Sums the gradients of each input over the windows that contain it, for a block of inputs and units. An input is
    step j of the window that ends window - 1 - j positions later. Grid: blocks of inputs x blocks of units.
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
            grad_row = step * rows.to(tl.int64) + row
            grad_pointers = grad_gates + grad_row[:, None] * (NUM_GRADIENTS * HIDDEN) + column[None, :]
            grad_mask = has_window[:, None] & (unit < HIDDEN)[None, :]
            gradient = tl.load(grad_pointers, mask=grad_mask, other=0.0).to(tl.float32)
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
        # In a GRU the third gradient is that of the new gate's recurrent part, the fourth that of its input part.
        if CELL_TYPE != "gru" or gate != 2:
            input_column = unit + HIDDEN * (2 if CELL_TYPE == "gru" and gate == 3 else gate)
            pointers = grad_projected + input_row[:, None] * (NUM_GATES * HIDDEN) + input_column[None, :]
            tl.store(pointers, inside.to(grad_projected.dtype.element_ty), mask=mask)


# Relative error, by norm. Rounding in bfloat16 and TF32 stays below 0.01, and a wrong kernel far exceeds this.
MAX_CHECK_ERROR = 0.02

# Blocks of the step kernels, largest first: rows, units forward, parts of 32 units backward, warps. Larger blocks load
# less per product, smaller ones keep more multiprocessors busy.
STEP_BLOCKS = ((128, 64, 4, 8), (64, 64, 4, 4), (64, 32, 2, 4), (32, 32, 1, 4), (16, 32, 1, 4))
STEP_BLOCKS_FLOAT32 = ((32, 32, 2, 4), (16, 32, 1, 4))  # no tensor cores; larger blocks run out of registers
# Rows per block of the window kernels, largest first, by the padded number of units.
WINDOW_ROWS = {16: (64, 16), 32: (64, 16), 64: (32, 16), 128: (16,)}
WINDOW_ROWS_FLOAT32 = {16: (16,), 32: (16,)}


def padded_units(hidden_size: int) -> int:
    return max(16, triton.next_power_of_2(hidden_size))


def fits_on_chip(head_size: int, dtype: torch.dtype) -> bool:
    """Whether a layer, or each head of it, is narrow enough for the window kernels."""
    return padded_units(head_size) in (WINDOW_ROWS_FLOAT32 if dtype == torch.float32 else WINDOW_ROWS)


def largest_filling(choices, device: torch.device, num_blocks):
    """The first (largest) of `choices` that gives every multiprocessor a block; if none does, the last."""
    is_cuda = device.type == "cuda"  # otherwise Triton's interpreter, which runs one block at a time
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if is_cuda else 1
    return next((choice for choice in choices if num_blocks(choice) >= multiprocessors), choices[-1])


def window_launch(
    rows: int, num_heads: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[int, int], dict]:
    """Grid and launch arguments of the window kernels."""
    units = padded_units(head_size)
    choices = (WINDOW_ROWS_FLOAT32 if dtype == torch.float32 else WINDOW_ROWS)[units]
    block_rows = largest_filling(choices, device, lambda block_rows: num_heads * triton.cdiv(rows, block_rows))
    launch = {"BLOCK_ROWS": block_rows, "BLOCK_UNITS": units, "num_warps": 4 if units <= 32 else 8, "num_stages": 1}
    return (triton.cdiv(rows, block_rows), num_heads), launch


def step_launch(
    rows: int, num_heads: int, head_size: int, dtype: torch.dtype, device: torch.device, backward: bool
) -> tuple[tuple[int, int], dict]:
    """Grid and launch arguments of a step kernel."""

    def num_blocks(choice):
        block_rows, units, parts, _ = choice
        return triton.cdiv(rows, block_rows) * triton.cdiv(head_size, 32 * parts if backward else units)

    is_float32 = dtype == torch.float32
    choices = STEP_BLOCKS_FLOAT32 if is_float32 else STEP_BLOCKS
    choice = largest_filling(choices, device, lambda choice: num_heads * num_blocks(choice))
    block_rows, units, parts, num_warps = choice
    launch = {"BLOCK_ROWS": block_rows, "BLOCK_INNER": 16 if is_float32 else 64, "num_warps": num_warps}
    launch.update({"BLOCK_UNITS": 32, "PARTS": parts} if backward else {"BLOCK_UNITS": units})
    return (num_blocks(choice), num_heads), {**launch, "num_stages": 3}


def kernel_constants(recurrent_weight: torch.Tensor, cell_type: str, hard_gates: bool) -> dict:
    matmul = torch.backends.cuda.matmul
    # `allow_tf32` is the name before PyTorch 2.9. Later, reading it raises if only the new setting was used.
    allow_tf32 = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    num_heads, gates_size, head_size = recurrent_weight.shape
    return {
        "CELL_TYPE": cell_type,
        "HARD_GATES": hard_gates,
        "HIDDEN": num_heads * head_size,
        "NUM_HEADS": num_heads,
        "NUM_GATES": gates_size // head_size,
        "PRECISION": "tf32" if allow_tf32 else "ieee",
    }


def at(slices: torch.Tensor | None, index: int) -> torch.Tensor | None:
    """`slices[index]`, or None if there is no such slice."""
    return slices[index] if slices is not None and 0 <= index < len(slices) else None


def new_results(
    projected: torch.Tensor,
    recurrent_weight: torch.Tensor,
    cell_type: str,
    window_size: int,
    keep: bool,
    on_chip: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The forward pass's results: output, states, cell states, recurrent gates. What is not saved is empty."""
    batch, padded_time, gates_size = projected.shape
    num_heads, _, head_size = recurrent_weight.shape
    hidden_size = num_heads * head_size
    time = padded_time - (window_size - 1)
    steps = window_size - 1 if keep else 0
    recomputes_gates = on_chip and head_size <= 64
    output = projected.new_empty(batch, time, hidden_size)
    states = projected.new_empty(steps, batch * time, hidden_size)
    cell_states = projected.new_empty(
        steps if cell_type == "lstm" else 0, batch * time, hidden_size, dtype=torch.float32
    )
    recurrent_gates = projected.new_empty(0 if recomputes_gates else steps, batch * time, gates_size)
    return output, states, cell_states, recurrent_gates


@torch.library.custom_op("rtransformer_hf::local_rnn_forward", mutates_args=())
def local_rnn_forward(
    projected: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor | None,
    recurrent_bias: torch.Tensor,
    sequence_positions: torch.Tensor | None,
    cell_type: str,
    hard_gates: bool,
    window_size: int,
    keep: bool,
    on_chip: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The output and, if `keep` is set, what the backward pass needs of every step: hidden states, an LSTM's cell states,
    and the recurrent gates unless they are recomputed. `on_chip` selects the window kernels.
    """
    projected, recurrent_weight = projected.contiguous(), recurrent_weight.contiguous()
    results = new_results(projected, recurrent_weight, cell_type, window_size, keep, on_chip)
    output, states, cell_states, recurrent_gates = results
    num_heads, _, head_size = recurrent_weight.shape
    hidden_size = num_heads * head_size
    rows, time = output.shape[0] * output.shape[1], output.shape[1]
    if rows == 0:
        return results

    operands = (
        projected,
        recurrent_weight,
        None if input_bias is None else input_bias.contiguous(),
        recurrent_bias.contiguous(),
        None if sequence_positions is None else sequence_positions.contiguous(),
    )
    constants = kernel_constants(recurrent_weight, cell_type, hard_gates)
    with torch.cuda.device_of(projected):
        if on_chip:
            grid, launch = window_launch(rows, num_heads, head_size, projected.dtype, projected.device)
            kept = [tensor if len(tensor) else None for tensor in (states, cell_states, recurrent_gates)]
            forward_window_kernel[grid](*operands, output, *kept, rows, time, window_size, **constants, **launch)
            return results

        grid, launch = step_launch(rows, num_heads, head_size, projected.dtype, projected.device, backward=False)
        if not keep:  # each step reads one slice and writes the other
            states = projected.new_empty(2, rows, hidden_size)
        if cell_type == "gru" or not keep:  # each block updates its own part in place
            cell_states = projected.new_empty(1, rows, hidden_size, dtype=torch.float32)
        for step in range(window_size):
            is_first, is_last = step == 0, step == window_size - 1
            forward_step_kernel[grid](
                *operands,
                None if is_first else states[(step - 1) % len(states)],
                None if is_first or cell_type == "rnn" else cell_states[(step - 1) % len(cell_states)],
                output if is_last else states[step % len(states)],
                None if is_last or cell_type == "rnn" else cell_states[step % len(cell_states)],
                at(recurrent_gates, step - 1),
                rows,
                time,
                window_size,
                step,
                **constants,
                **launch,
            )
    return results


@local_rnn_forward.register_fake
def _(
    projected,
    recurrent_weight,
    input_bias,
    recurrent_bias,
    sequence_positions,
    cell_type,
    hard_gates,
    window_size,
    keep,
    on_chip,
):
    return new_results(projected, recurrent_weight, cell_type, window_size, keep, on_chip)


@torch.library.custom_op("rtransformer_hf::local_rnn_backward", mutates_args=())
def local_rnn_backward(
    grad_output: torch.Tensor,
    projected: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor | None,
    recurrent_bias: torch.Tensor,
    sequence_positions: torch.Tensor | None,
    states: torch.Tensor,
    cell_states: torch.Tensor,
    recurrent_gates: torch.Tensor,
    cell_type: str,
    hard_gates: bool,
    window_size: int,
    on_chip: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of projected inputs, recurrent weight, input bias (empty without positions) and recurrent bias."""
    grad_output, projected = grad_output.contiguous(), projected.contiguous()
    recurrent_weight = recurrent_weight.contiguous()
    batch, time, hidden_size = grad_output.shape
    rows, input_rows = batch * time, projected.shape[0] * projected.shape[1]
    num_heads, _, head_size = recurrent_weight.shape
    constants = kernel_constants(recurrent_weight, cell_type, hard_gates)
    num_gates, num_gradients = constants["NUM_GATES"], NUM_GRADIENTS[cell_type]
    constants["NUM_GRADIENTS"] = num_gradients

    grad_projected = torch.empty_like(projected)
    grad_gates = projected.new_empty(window_size, rows, num_gradients * hidden_size)
    block_rows, block_units = 32, min(64, padded_units(hidden_size))
    blocks = triton.cdiv(input_rows, block_rows)
    sums = projected.new_empty(blocks, num_gradients * hidden_size, dtype=torch.float32)
    outside_sums = None if sequence_positions is None else torch.empty_like(sums)
    if rows > 0:
        operands = (
            projected,
            recurrent_weight,
            None if input_bias is None else input_bias.contiguous(),
            recurrent_bias.contiguous(),
            None if sequence_positions is None else sequence_positions.contiguous(),
        )
        with torch.cuda.device_of(projected):
            if on_chip:
                grid, launch = window_launch(rows, num_heads, head_size, projected.dtype, projected.device)
                kept = [states] + [tensor if len(tensor) else None for tensor in (cell_states, recurrent_gates)]
                backward_window_kernel[grid](
                    grad_output, *operands, *kept, grad_gates, rows, time, window_size, **constants, **launch
                )
            else:
                grid, launch = step_launch(
                    rows, num_heads, head_size, projected.dtype, projected.device, backward=True
                )
                carries = {"rnn": None, "gru": states, "lstm": cell_states}[cell_type]
                grad_carry = (
                    None if cell_type == "rnn" else projected.new_empty(rows, hidden_size, dtype=torch.float32)
                )
                for step in reversed(range(window_size)):
                    later_grad_gates = at(grad_gates, step + 1)
                    backward_step_kernel[grid](
                        grad_output if later_grad_gates is None else None,
                        later_grad_gates,
                        *operands,
                        at(recurrent_gates, step - 1),
                        at(carries, step - 1),
                        grad_carry,
                        grad_gates[step],
                        rows,
                        time,
                        window_size,
                        step,
                        **constants,
                        **launch,
                    )
            for name in ("HARD_GATES", "NUM_HEADS", "PRECISION"):
                del constants[name]
            sum_over_windows_kernel[(blocks * triton.cdiv(hidden_size, block_units),)](
                grad_gates,
                operands[-1],
                grad_projected,
                sums,
                outside_sums,
                rows,
                time,
                window_size,
                input_rows,
                BLOCK_ROWS=block_rows,
                BLOCK_UNITS=block_units,
                **constants,
            )

    # The first step's state is zero, so it adds nothing to the weight's gradient.
    recurrent_columns = grad_gates[1:, :, : num_gates * hidden_size].flatten(0, 1)
    if num_heads == 1:
        grad_recurrent_weight = (recurrent_columns.T @ states.flatten(0, 1))[None]
    else:
        recurrent_columns = recurrent_columns.unflatten(1, (num_gates, num_heads, head_size)).permute(2, 1, 3, 0)
        heads = states.flatten(0, 1).unflatten(1, (num_heads, head_size)).transpose(0, 1)
        grad_recurrent_weight = recurrent_columns.flatten(1, 2) @ heads
    grad_recurrent_bias = sums[:, : num_gates * hidden_size].sum(0).to(recurrent_bias.dtype)
    if sequence_positions is None:
        return grad_projected, grad_recurrent_weight, projected.new_empty(0), grad_recurrent_bias
    outside = outside_sums.sum(0).view(num_gradients, hidden_size)
    grad_input_bias = torch.cat([outside[:2], outside[3:]]) if cell_type == "gru" else outside
    grad_input_bias = grad_input_bias.flatten().to(input_bias.dtype)
    return grad_projected, grad_recurrent_weight, grad_input_bias, grad_recurrent_bias


@local_rnn_backward.register_fake
def _(
    grad_output,
    projected,
    recurrent_weight,
    input_bias,
    recurrent_bias,
    sequence_positions,
    states,
    cell_states,
    recurrent_gates,
    cell_type,
    hard_gates,
    window_size,
    on_chip,
):
    return (
        projected.new_empty(projected.shape),
        recurrent_weight.new_empty(recurrent_weight.shape),
        projected.new_empty(0) if sequence_positions is None else input_bias.new_empty(input_bias.shape),
        recurrent_bias.new_empty(recurrent_bias.shape),
    )


def setup_context(ctx, inputs, output):
    *operands, ctx.cell_type, ctx.hard_gates, ctx.window_size, _, ctx.on_chip = inputs
    _, *kept = output
    ctx.save_for_backward(*operands, *kept)
    ctx.mark_non_differentiable(*kept)


def backward(ctx, grad_output, *_):
    saved = ctx.saved_tensors  # read once: with checkpointing, each read recomputes them
    grad_projected, grad_recurrent_weight, grad_input_bias, grad_recurrent_bias = local_rnn_backward(
        grad_output, *saved, ctx.cell_type, ctx.hard_gates, ctx.window_size, ctx.on_chip
    )
    if saved[4] is None:  # without positions the input bias is not used here
        grad_input_bias = None
    return grad_projected, grad_recurrent_weight, grad_input_bias, grad_recurrent_bias, *(None,) * 6


local_rnn_forward.register_autograd(backward, setup_context=setup_context)


def triton_local_rnn(
    projected: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor | None,
    recurrent_bias: torch.Tensor | None,
    *,
    cell_type: str,
    window_size: int,
    gate_activation: str = "sigmoid",
    sequence_positions: torch.Tensor | None = None,
    on_chip: bool | None = None,
) -> torch.Tensor:
    """
    The LocalRNN operator, from the projected inputs on.

    Args:
        projected: (batch, window_size - 1 + time, gates * hidden), `input_weight @ x + input_bias` of the previous
            inputs and the inputs; float32, bfloat16 or float16. Products are in this dtype with float32 sums.
        recurrent_weight: (gates * hidden, hidden), or block-diagonal, (heads, gates * head size, head size).
        input_bias, recurrent_bias: (gates * hidden,) or None; `input_bias` is only read with `sequence_positions`.
        cell_type, window_size, gate_activation, sequence_positions: as in `local_rnn`.
        on_chip: whether one launch runs all steps on chip, instead of one launch per step; None: if the layer fits.

    Returns:
        (batch, time, hidden), in the dtype of `projected`.

    Raises:
        ValueError: `projected` has another dtype, or the layer is too wide for `on_chip=True`.
    """
    if projected.dtype not in SUPPORTED_DTYPES:
        raise ValueError(f"`projected` must be of one of the types {SUPPORTED_DTYPES}, got {projected.dtype}.")
    head_size = recurrent_weight.shape[-1]
    fits = fits_on_chip(head_size, projected.dtype)
    if on_chip and not fits:
        raise ValueError(
            f"`on_chip` must be False or None for a hidden size of {head_size} in {projected.dtype}, got True."
        )
    if recurrent_bias is None:
        recurrent_bias = projected.new_zeros(projected.shape[-1])
    if sequence_positions is None:
        input_bias = None
    elif input_bias is None:
        input_bias = projected.new_zeros(projected.shape[-1])
    # Under autocast, `projected` is already in the lower precision; the other product must match.
    recurrent_weight = recurrent_weight.to(projected.dtype).view(-1, *recurrent_weight.shape[-2:])
    operands = (projected, recurrent_weight, input_bias, recurrent_bias)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in operands)
    output, *_ = local_rnn_forward(
        *operands,
        sequence_positions,
        cell_type,
        gate_activation == "hard_sigmoid",
        window_size,
        keep,
        fits if on_chip is None else on_chip,
    )
    return output


# --- The check before first use ---


@torch.compiler.assume_constant_result
def kernels_pass_check(
    cell_type: str,
    dtype: torch.dtype,
    on_chip: bool,
    device: torch.device,
    reference: Callable,
    gate_activation: str = "sigmoid",
    num_heads: int = 1,
) -> bool:
    """`run_check`, even while torch.compile traces. During CUDA graph capture it cannot run: kernels are trusted."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return True
    return run_check(cell_type, dtype, on_chip, device, reference, gate_activation, num_heads)


@cache
def run_check(
    cell_type: str,
    dtype: torch.dtype,
    on_chip: bool,
    device: torch.device,
    reference: Callable,
    gate_activation: str = "sigmoid",
    num_heads: int = 1,
) -> bool:
    """
    Compares outputs and gradients of the kernels with the float32 reference on a small input, once per process. Warns
    and returns False if they differ or if Triton or its compiler fails.
    """
    head_size = 32 if on_chip else 160
    num_gates, window_size = {"rnn": 1, "gru": 3, "lstm": 4}[cell_type], 3
    gates = num_gates * num_heads * head_size
    window = {"cell_type": cell_type, "window_size": window_size, "gate_activation": gate_activation}
    generator = torch.Generator().manual_seed(0)  # does not touch the global random state
    shapes = ((2, window_size - 1 + 7, gates), (num_heads, num_gates * head_size, head_size), (gates,))
    scales = (1.0, head_size**-0.5, 0.5)
    drawn = [scale * torch.randn(shape, generator=generator) for shape, scale in zip(shapes, scales, strict=True)]

    def run_kernels(projected, recurrent_weight, recurrent_bias):
        return triton_local_rnn(
            projected,
            recurrent_weight=recurrent_weight,
            input_bias=None,
            recurrent_bias=recurrent_bias,
            on_chip=on_chip,
            **window,
        )

    def run_reference(projected, recurrent_weight, recurrent_bias):
        previous_inputs, inputs = projected.split([window_size - 1, projected.shape[1] - window_size + 1], dim=1)
        weight = recurrent_weight.unflatten(1, (num_gates, head_size))

        def recurrent_proj(state):
            heads = state.unflatten(-1, (num_heads, head_size))
            return torch.einsum("...hi,hgoi->...gho", heads, weight).flatten(-3) + recurrent_bias

        return reference(inputs, lambda x: x, recurrent_proj, previous_inputs=previous_inputs, **window)

    def output_and_gradients(run, dtype: torch.dtype) -> list[torch.Tensor]:
        operands = [tensor.to(device, dtype).requires_grad_() for tensor in drawn]
        output = run(*operands)
        grad_output = torch.linspace(-1, 1, output.numel(), device=device).view_as(output).to(dtype)
        return [output.detach(), *torch.autograd.grad(output, operands, grad_output)]

    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            results = output_and_gradients(run_kernels, dtype)
            expected = output_and_gradients(run_reference, torch.float32)
        pairs = zip(results, expected, strict=True)
        error = torch.stack([(result - exact).norm() / exact.norm() for result, exact in pairs]).max().item()
    except Exception as failure:  # from Triton, its compiler or the driver
        problem = f"{type(failure).__name__}: {failure}"
    else:
        if error <= MAX_CHECK_ERROR:
            return True
        problem = f"their relative error is {error:.3g}, expected at most {MAX_CHECK_ERROR}"
    logger.warning(
        f"The LocalRNN's GPU kernels fail their check ({cell_type}, {dtype}, {device}): {problem}. The LocalRNN runs "
        "without them, which is slower. Please report this, with the output of `python -m rtransformer_hf`."
    )
    return False
