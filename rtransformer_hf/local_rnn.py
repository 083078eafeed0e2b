# SPDX-License-Identifier: Apache-2.0
"""
The LocalRNN operator (arXiv 1907.05572, section 3.1). At every position, an RNN runs over the window of the last K
inputs, starting from a zero state, with the same weights everywhere. Its last hidden state is the output:

    h_t = RNN(x_{t-K+1}, ..., x_t)

Inputs before the start of the sequence are zero vectors. The RNN does read them, so its biases act on them.

All implementations compute the same function. `reference_local_rnn` is the definition. `shared_projection_local_rnn`
projects each input once, not once for each of the K windows that contain it. Both take the cell's two projections as
callables. `local_rnn` takes plain weights and chooses between these and the faster implementations in
`local_rnn_blocked.py` (CPU) and `local_rnn_triton.py` (GPU).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from transformers.utils import logging
from transformers.utils.import_utils import is_tracing

from .local_rnn_blocked import blocked_local_rnn

try:
    from .local_rnn_triton import SUPPORTED_DTYPES, fits_on_chip, kernels_pass_check, triton_local_rnn
except ModuleNotFoundError:  # Triton is optional
    triton_local_rnn = None

logger = logging.get_logger(__name__)

Projection = Callable[[torch.Tensor], torch.Tensor]
State = tuple[torch.Tensor, ...]  # the hidden state first, then the cell state of an LSTM
Activation = Callable[[torch.Tensor], torch.Tensor]


def hard_sigmoid(gates: torch.Tensor) -> torch.Tensor:
    """clip(0.2 x + 0.5, 0, 1); the slope of torch.nn.Hardsigmoid is 1/6."""
    return (0.2 * gates + 0.5).clamp(0, 1)


GATE_ACTIVATIONS = {"sigmoid": torch.sigmoid, "hard_sigmoid": hard_sigmoid}


def rnn_step(input_gates: torch.Tensor, recurrent_gates: torch.Tensor, state: State, sigmoid: Activation) -> State:
    return (torch.tanh(input_gates + recurrent_gates),)


def gru_step(input_gates: torch.Tensor, recurrent_gates: torch.Tensor, state: State, sigmoid: Activation) -> State:
    (hidden,) = state
    input_reset, input_update, input_new = input_gates.chunk(3, dim=-1)
    recurrent_reset, recurrent_update, recurrent_new = recurrent_gates.chunk(3, dim=-1)
    reset = sigmoid(input_reset + recurrent_reset)
    update = sigmoid(input_update + recurrent_update)
    new = torch.tanh(input_new + reset * recurrent_new)
    return (new + update * (hidden - new),)


def lstm_step(input_gates: torch.Tensor, recurrent_gates: torch.Tensor, state: State, sigmoid: Activation) -> State:
    _, cell_state = state
    input_gate, forget_gate, candidate, output_gate = (input_gates + recurrent_gates).chunk(4, dim=-1)
    cell_state = sigmoid(forget_gate) * cell_state + sigmoid(input_gate) * torch.tanh(candidate)
    return sigmoid(output_gate) * torch.tanh(cell_state), cell_state


# For each cell type: its step, the number of gates and the number of state tensors. Gates are in the order of
# torch.nn.RNN, GRU and LSTM.
CELLS = {"rnn": (rnn_step, 1, 1), "gru": (gru_step, 3, 1), "lstm": (lstm_step, 4, 2)}


def num_gates(cell_type: str) -> int:
    """Number of gates of a cell type. Its projections are `num_gates * hidden_size` wide."""
    return CELLS[cell_type][1]


def recurrent_linear(state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """
    (..., hidden) -> (..., gates * hidden). A weight (heads, gates * head size, head size) is block-diagonal: each
    head's gates see only its own state, in one batched product.
    """
    if weight.ndim == 2:
        return F.linear(state, weight, bias)
    num_heads, gates_size, head_size = weight.shape
    heads = state.reshape(-1, num_heads, head_size).transpose(0, 1)
    gates = torch.bmm(heads, weight.mT).view(num_heads, -1, gates_size // head_size, head_size)
    gates = gates.permute(1, 2, 0, 3).reshape(*state.shape[:-1], num_heads * gates_size)
    return gates if bias is None else gates + bias.to(gates.dtype)


def reference_local_rnn(
    hidden_states: torch.Tensor,
    input_proj: Projection,
    recurrent_proj: Projection,
    *,
    cell_type: str,
    window_size: int,
    gate_activation: str = "sigmoid",
    previous_inputs: torch.Tensor | None = None,
    sequence_positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition: gathers all windows, then runs the RNN over them. Arguments as in `local_rnn`."""
    step, _, _ = CELLS[cell_type]
    sigmoid = GATE_ACTIVATIONS[gate_activation]
    inputs = prepend_previous_inputs(hidden_states, previous_inputs, window_size)
    windows = inputs.unfold(1, window_size, 1).movedim(-1, 2)  # (batch, time, window, hidden)
    if sequence_positions is not None:
        distances = torch.arange(window_size - 1, -1, -1, device=windows.device)
        windows = windows * (sequence_positions[..., None] >= distances)[..., None]

    state = None
    for input_state in windows.unbind(2):
        input_gates = input_proj(input_state)
        state = zero_state(input_gates, cell_type) if state is None else state
        state = step(input_gates, recurrent_proj(state[0]), state, sigmoid)
    return state[0]


def shared_projection_local_rnn(
    hidden_states: torch.Tensor,
    input_proj: Projection,
    recurrent_proj: Projection,
    *,
    cell_type: str,
    window_size: int,
    gate_activation: str = "sigmoid",
    previous_inputs: torch.Tensor | None = None,
    sequence_positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Projects each input once, then advances the states of all windows together, with one matrix product per step. The
    input of step j is the projected sequence, shifted by j. Arguments as in `local_rnn`.
    """
    step, _, _ = CELLS[cell_type]
    sigmoid = GATE_ACTIVATIONS[gate_activation]
    inputs = prepend_previous_inputs(hidden_states, previous_inputs, window_size)
    projected = input_proj(inputs)  # (batch, window - 1 + time, gates * hidden)
    projected_zero = input_proj(torch.zeros_like(inputs[:1, :1])) if sequence_positions is not None else None

    state = zero_state(projected, cell_type)
    for start in range(window_size):
        input_gates = projected[:, start : start + hidden_states.shape[1]]
        if sequence_positions is not None:
            is_inside = sequence_positions >= window_size - 1 - start
            input_gates = torch.where(is_inside[..., None], input_gates, projected_zero)
        state = step(input_gates, recurrent_proj(state[0]), state, sigmoid)
    return state[0]


def prepend_previous_inputs(
    hidden_states: torch.Tensor, previous_inputs: torch.Tensor | None, window_size: int
) -> torch.Tensor:
    """(batch, time, input) -> (batch, window - 1 + time, input), with zeros if there are no previous inputs."""
    if previous_inputs is None:
        return F.pad(hidden_states, (0, 0, window_size - 1, 0))
    return torch.cat([previous_inputs.to(hidden_states.dtype), hidden_states], dim=1)


def zero_state(gates: torch.Tensor, cell_type: str) -> State:
    """The zero state as (1, 1, hidden) tensors, to be broadcast: every window starts from it."""
    _, gates_per_unit, tensors_per_state = CELLS[cell_type]
    return (gates.new_zeros(1, 1, gates.shape[-1] // gates_per_unit),) * tensors_per_state


# --- Decoding: each token is one step of every window ---


def advance_windows(
    hidden_states: torch.Tensor,
    partial_window_states: State | None,
    input_proj: Projection,
    recurrent_proj: Projection,
    *,
    cell_type: str,
    window_size: int,
    gate_activation: str = "sigmoid",
) -> tuple[torch.Tensor, State]:
    """
    Feeds one input (batch, 1, input) to a new window and to every unfinished one, with a single recurrent product.

    Args:
        partial_window_states: states of the unfinished windows, tensors (batch, windows, hidden) with the newest
            window first; None if there are none.

    Returns:
        The hidden state of the oldest window, (batch, 1, hidden), which is the operator's output if there were
        `window_size - 1` unfinished windows; and the states of the windows still unfinished, at most that many.
    """
    step, _, _ = CELLS[cell_type]
    input_gates = input_proj(hidden_states)
    states = tuple(tensor.expand(len(hidden_states), 1, -1) for tensor in zero_state(input_gates, cell_type))
    if partial_window_states is not None:
        states = tuple(torch.cat(pair, dim=1) for pair in zip(states, partial_window_states, strict=True))
    states = step(input_gates, recurrent_proj(states[0]), states, GATE_ACTIVATIONS[gate_activation])
    return states[0][:, -1:], tuple(tensor[:, : window_size - 1] for tensor in states)


# --- The operator ---

IMPLEMENTATIONS = ("reference", "shared_projection", "blocked", "triton")


def local_rnn(
    hidden_states: torch.Tensor,
    input_weight: torch.Tensor,
    recurrent_weight: torch.Tensor,
    input_bias: torch.Tensor | None,
    recurrent_bias: torch.Tensor | None,
    *,
    cell_type: str,
    window_size: int,
    gate_activation: str = "sigmoid",
    previous_inputs: torch.Tensor | None = None,
    sequence_positions: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """
    LocalRNN (arXiv 1907.05572, section 3.1) from plain weights, laid out as in torch.nn.RNN, GRU and LSTM.

    Args:
        hidden_states: (batch, time, input), with time at least 1.
        input_weight: (gates * hidden, input), with 1 gate for "rnn", 3 for "gru" (reset, update, new), 4 for "lstm"
            (input, forget, candidate, output).
        recurrent_weight: (gates * hidden, hidden), or block-diagonal, (heads, gates * head size, head size): each
            head sees only its own state.
        input_bias, recurrent_bias: (gates * hidden,) or None.
        cell_type: "rnn" (tanh), "gru" or "lstm".
        gate_activation: "sigmoid" or "hard_sigmoid" (clip(0.2 x + 0.5, 0, 1)), for the gates of "gru" and "lstm".
        window_size: number of inputs in each window, the current one included; at least 1.
        previous_inputs: (batch, window_size - 1, input), the inputs right before `hidden_states`; None: zeros.
        sequence_positions: (batch, time) integers, for rows that pack several sequences: the index of each input in
            its own sequence. Inputs before index 0 count as zeros. None: one sequence per row.
        implementation: "reference", "shared_projection", "blocked" (first derivatives only, no `sequence_positions`)
            or "triton" (GPU kernels, first derivatives only); None: `choose_implementation` decides.

    Returns:
        (batch, time, hidden), the last hidden state of each window.

    Raises:
        ValueError: an argument has an invalid value or shape; the message gives its name, its value and what was
            expected.
    """
    if cell_type not in CELLS:
        raise ValueError(f"`cell_type` must be one of {tuple(CELLS)}, got {cell_type!r}.")
    if gate_activation not in GATE_ACTIVATIONS:
        raise ValueError(f"`gate_activation` must be one of {tuple(GATE_ACTIVATIONS)}, got {gate_activation!r}.")
    if window_size < 1:
        raise ValueError(f"`window_size` must be an integer of at least 1, got {window_size}.")
    if implementation is None:
        implementation = choose_implementation(hidden_states, sequence_positions)
        check = (hidden_states, recurrent_weight, cell_type, gate_activation)
        if implementation == "triton" and not trust_kernels(*check):
            implementation = "shared_projection"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"`implementation` must be one of {IMPLEMENTATIONS} or None, got {implementation!r}.")
    expected = (hidden_states.shape[0], window_size - 1, hidden_states.shape[2])
    if previous_inputs is not None and previous_inputs.shape != expected:
        raise ValueError(f"`previous_inputs` must have the shape {expected}, got {tuple(previous_inputs.shape)}.")

    if implementation == "blocked":
        if sequence_positions is not None:
            raise ValueError("`sequence_positions` must be None for `implementation='blocked'`.")
        return blocked_local_rnn(
            prepend_previous_inputs(hidden_states, previous_inputs, window_size),
            input_weight=input_weight,
            recurrent_weight=recurrent_weight,
            input_bias=input_bias,
            recurrent_bias=recurrent_bias,
            cell_type=cell_type,
            window_size=window_size,
            gate_activation=gate_activation,
        )
    if implementation == "triton":
        if triton_local_rnn is None:
            raise ValueError("`implementation='triton'` needs Triton, which is not installed: pip install triton")
        projected = F.linear(
            prepend_previous_inputs(hidden_states, previous_inputs, window_size), input_weight, input_bias
        )
        return triton_local_rnn(
            projected,
            recurrent_weight=recurrent_weight,
            input_bias=input_bias,
            recurrent_bias=recurrent_bias,
            cell_type=cell_type,
            window_size=window_size,
            gate_activation=gate_activation,
            sequence_positions=sequence_positions,
        )
    run = reference_local_rnn if implementation == "reference" else shared_projection_local_rnn
    return run(
        hidden_states,
        input_proj=partial(F.linear, weight=input_weight, bias=input_bias),
        recurrent_proj=partial(recurrent_linear, weight=recurrent_weight, bias=recurrent_bias),
        cell_type=cell_type,
        window_size=window_size,
        gate_activation=gate_activation,
        previous_inputs=previous_inputs,
        sequence_positions=sequence_positions,
    )


def choose_implementation(hidden_states: torch.Tensor, sequence_positions: torch.Tensor | None) -> str:
    """
    "triton" on a GPU with Triton installed, "blocked" on a CPU, otherwise "shared_projection". That includes compiled
    code on a CPU, because a compiler fuses it anyway and would unroll the loop over blocks, and packed sequences on a
    CPU, which the blocked implementation does not support.
    """
    device_type = hidden_states.device.type
    if device_type == "cuda":
        if triton_local_rnn is not None:
            return "triton" if dtype_of_products(hidden_states) in SUPPORTED_DTYPES else "shared_projection"
        if not is_tracing(hidden_states):
            logger.warning_once("Triton is not installed: the LocalRNN runs without its GPU kernels, which is slower.")
    elif device_type == "cpu" and sequence_positions is None and not is_tracing(hidden_states):
        return "blocked"
    return "shared_projection"


def trust_kernels(
    hidden_states: torch.Tensor, recurrent_weight: torch.Tensor, cell_type: str, gate_activation: str
) -> bool:
    """Whether the GPU kernels pass their check on this device. Where the check cannot run, they are trusted."""
    if is_tracing(hidden_states) and not torch.compiler.is_dynamo_compiling():
        return True
    dtype = dtype_of_products(hidden_states)
    on_chip = fits_on_chip(recurrent_weight.shape[-1], dtype)
    num_heads = 2 if recurrent_weight.ndim == 3 else 1  # the check needs to know only whether there are several
    return kernels_pass_check(
        cell_type, dtype, on_chip, hidden_states.device, reference_local_rnn, gate_activation, num_heads
    )


def dtype_of_products(hidden_states: torch.Tensor) -> torch.dtype:
    device_type = hidden_states.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden_states.dtype
