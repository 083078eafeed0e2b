# SPDX-License-Identifier: Apache-2.0
"""The LocalRNN operator: its implementations against torch.nn's RNNs and each other, and their gradients."""

import inspect
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rtransformer_hf.local_rnn import CELLS, advance_windows, local_rnn, num_gates, recurrent_linear
from rtransformer_hf.local_rnn_blocked import blocked_local_rnn, blocks, merge_small_heads

module = sys.modules["rtransformer_hf.local_rnn"]  # its name in the package is that of the function

IMPLEMENTATIONS = ["reference", "shared_projection", "blocked"]  # the GPU kernels have tests of their own
TORCH_RNNS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
every_cell = pytest.mark.parametrize("cell_type", CELLS)
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_packing_implementation = pytest.mark.parametrize("implementation", ["reference", "shared_projection"])


def make_inputs(cell_type, batch=2, time=5, width=3, hidden=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    gates = num_gates(cell_type) * hidden
    return [draw(batch, time, width), draw(gates, width), draw(gates, hidden), draw(gates), draw(gates)]


@every_cell
@every_implementation
@pytest.mark.parametrize("window_size", [1, 2, 5, 9])
def test_equals_torch_rnn_over_each_window(cell_type, implementation, window_size):
    inputs = make_inputs(cell_type)
    hidden_states, *weights = inputs
    rnn = TORCH_RNNS[cell_type](3, 4, batch_first=True).double()
    for parameter, weight in zip(rnn.parameters(), weights, strict=True):
        parameter.data.copy_(weight)

    output = local_rnn(*inputs, cell_type=cell_type, window_size=window_size, implementation=implementation)

    padded = torch.cat([torch.zeros(2, window_size - 1, 3, dtype=torch.float64), hidden_states], dim=1)
    for t in range(hidden_states.shape[1]):
        expected = rnn(padded[:, t : t + window_size])[0][:, -1]
        torch.testing.assert_close(output[:, t], expected, atol=1e-12, rtol=0)


@every_cell
@every_implementation
def test_gradients(cell_type, implementation):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(cell_type, time=4, width=2, hidden=2)]
    previous_inputs = torch.randn(
        2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    positions = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]]) if implementation != "blocked" else None

    def run(*inputs, previous_inputs, positions):
        return local_rnn(
            *inputs,
            cell_type=cell_type,
            window_size=3,
            previous_inputs=previous_inputs,
            sequence_positions=positions,
            implementation=implementation,
        )

    assert torch.autograd.gradcheck(partial(run, previous_inputs=None, positions=None), inputs)
    assert torch.autograd.gradcheck(partial(run, previous_inputs=None, positions=positions), inputs)
    assert torch.autograd.gradcheck(
        lambda previous_inputs, *inputs: run(*inputs, previous_inputs=previous_inputs, positions=None),
        [previous_inputs, *inputs],
    )


@every_cell
@pytest.mark.parametrize("window_size, time", [(1, 1), (1, 6), (4, 1), (4, 3), (7, 7), (3, 20)])
@pytest.mark.parametrize("has_past", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_implementations_agree(cell_type, window_size, time, has_past, dtype, tolerance):
    hidden_states, *weights = make_inputs(cell_type, batch=3, time=time, width=8, hidden=8, dtype=dtype)
    if dtype == torch.float32:  # larger weights make an RNN chaotic: each step multiplies the rounding errors
        weights = [weight / 8**0.5 for weight in weights]
    inputs = [tensor.requires_grad_() for tensor in (hidden_states, *weights)]
    generator = torch.Generator().manual_seed(1)
    previous_inputs = torch.randn(3, window_size - 1, 8, generator=generator, dtype=dtype) if has_past else None
    results = []
    for implementation in IMPLEMENTATIONS:
        output = local_rnn(
            *inputs,
            cell_type=cell_type,
            window_size=window_size,
            previous_inputs=previous_inputs,
            implementation=implementation,
        )
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        results.append([output, *gradients])
    for reference, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(reference, other, atol=tolerance, rtol=tolerance)


@every_cell
@every_implementation
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_error_of_16_bits_is_that_of_the_reference(cell_type, implementation, half):
    """At most twice that, of the output and of every gradient, against float64."""
    half_inputs = [(0.3 * tensor).to(half) for tensor in make_inputs(cell_type, time=12, width=16, hidden=16)]

    def run(name, dtype):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in half_inputs]
        output = local_rnn(*inputs, cell_type=cell_type, window_size=5, implementation=name)
        return [output, *torch.autograd.grad(output.double().square().sum(), inputs)]

    exact = run("reference", torch.float64)
    references, others = run("reference", half), run(implementation, half)
    for expected, reference, actual in zip(exact, references, others, strict=True):
        assert (actual - expected).abs().max() <= 2 * (reference - expected).abs().max()


def assert_blocked_is_the_reference(cell_type, inputs):
    results = []
    for implementation in ("reference", "blocked"):
        output = local_rnn(*inputs, cell_type=cell_type, window_size=4, implementation=implementation)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for reference, other in zip(*results, strict=True):
        torch.testing.assert_close(reference, other, atol=1e-12, rtol=1e-12)


@every_cell
@pytest.mark.parametrize("block_bytes", [1, 192, 800, 10**7])
def test_blocks_change_nothing(cell_type, block_bytes, monkeypatch):
    monkeypatch.setattr("rtransformer_hf.local_rnn_blocked.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("rtransformer_hf.local_rnn_blocked.BLOCK_POSITIONS", 1)
    inputs = [tensor.requires_grad_() for tensor in make_inputs(cell_type, batch=5, time=13)]
    assert_blocked_is_the_reference(cell_type, inputs)


# ---- Heads and hard sigmoids ----


def make_inputs_with_heads(cell_type, num_heads, hidden=6, **kwargs):
    hidden_states, input_weight, recurrent_weight, *biases = make_inputs(cell_type, width=3, hidden=hidden, **kwargs)
    head_size = hidden // num_heads
    blocks_of_gates = recurrent_weight.unflatten(0, (-1, num_heads, head_size))  # (gates, heads, head size, hidden)
    blocks_of_gates = blocks_of_gates.unflatten(-1, (num_heads, head_size))
    recurrent_weight = torch.stack([blocks_of_gates[:, head, :, head].flatten(0, 1) for head in range(num_heads)])
    return [hidden_states, input_weight, recurrent_weight, *biases]


def dense_recurrent_weight(weight, num_gates):
    """(heads, gates * head size, head size) -> (gates * hidden, hidden), by its definition."""
    by_gate = weight.unflatten(1, (num_gates, -1)).unbind(1)
    return torch.cat([torch.block_diag(*heads) for heads in by_gate])


@every_cell
@every_implementation
@pytest.mark.parametrize("num_heads", [1, 2, 3])
@pytest.mark.parametrize("gate_activation", ["sigmoid", "hard_sigmoid"])
def test_heads_are_a_block_diagonal_weight(cell_type, implementation, num_heads, gate_activation):
    inputs = [tensor.requires_grad_() for tensor in make_inputs_with_heads(cell_type, num_heads, time=7)]
    run = partial(local_rnn, cell_type=cell_type, window_size=4, gate_activation=gate_activation)

    def run_dense(hidden_states, input_weight, recurrent_weight, *biases):
        dense = dense_recurrent_weight(recurrent_weight, num_gates(cell_type))
        return run(hidden_states, input_weight, dense, *biases, implementation="reference")

    output, expected = run(*inputs, implementation=implementation), run_dense(*inputs)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=0)
    gradients = (torch.autograd.grad(result.square().sum(), inputs) for result in (output, expected))
    for gradient, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-12, rtol=1e-12)


@every_cell
@pytest.mark.parametrize("min_head_size, num_runs", [(1, 6), (4, 3), (5, 2), (32, 1)])
def test_merging_small_heads_changes_nothing(cell_type, min_head_size, num_runs, monkeypatch):
    monkeypatch.setattr("rtransformer_hf.local_rnn_blocked.MIN_HEAD_SIZE", min_head_size)
    monkeypatch.setattr("rtransformer_hf.local_rnn_blocked.BLOCK_BYTES", 192)
    monkeypatch.setattr("rtransformer_hf.local_rnn_blocked.BLOCK_POSITIONS", 1)
    inputs = [tensor.requires_grad_() for tensor in make_inputs_with_heads(cell_type, 6, hidden=12, time=13)]
    assert len(merge_small_heads(inputs[2])) == num_runs
    assert_blocked_is_the_reference(cell_type, inputs)


@every_cell
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_heads_in_16_bits(cell_type, half):
    inputs = [0.3 * tensor for tensor in make_inputs_with_heads(cell_type, 2, time=12, dtype=torch.float32)]
    exact = local_rnn(*(tensor.double() for tensor in inputs), cell_type=cell_type, window_size=4)
    output = local_rnn(
        *(tensor.to(half) for tensor in inputs), cell_type=cell_type, window_size=4, implementation="blocked"
    )
    torch.testing.assert_close(output.double(), exact, atol=2e-2, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hard_sigmoid_is_that_of_the_published_cell(implementation):
    """An LSTM of one unit, by hand: a gate is clip(0.2 x + 0.5, 0, 1)."""
    weight, bias = torch.zeros(4, 1), torch.tensor([1.0, 0.0, 10.0, 4.0])  # input, forget, candidate, output
    arguments = {"cell_type": "lstm", "window_size": 1, "gate_activation": "hard_sigmoid"}
    output = local_rnn(torch.zeros(1, 1, 1), weight, weight, bias, None, **arguments, implementation=implementation)
    torch.testing.assert_close(output.squeeze(), torch.tensor(0.7).tanh())


@every_cell
@pytest.mark.parametrize("gate_activation", ["sigmoid", "hard_sigmoid"])
def test_decoding_with_heads(cell_type, gate_activation):
    hidden_states, *weights = make_inputs_with_heads(cell_type, 2, batch=1, time=6)
    settings = {"cell_type": cell_type, "window_size": 3, "gate_activation": gate_activation}
    expected = local_rnn(
        hidden_states, *weights, **settings, previous_inputs=torch.zeros(1, 2, 3, dtype=torch.float64)
    )
    input_weight, recurrent_weight, input_bias, recurrent_bias = weights
    windows = None
    for position, inputs in enumerate(nn.functional.pad(hidden_states, (0, 0, 2, 0)).split(1, dim=1)):
        output, windows = advance_windows(
            inputs,
            windows,
            partial(nn.functional.linear, weight=input_weight, bias=input_bias),
            partial(recurrent_linear, weight=recurrent_weight, bias=recurrent_bias),
            **settings,
        )
        if position >= 2:
            torch.testing.assert_close(output[:, 0], expected[:, position - 2], atol=1e-12, rtol=0)


@pytest.mark.parametrize("batch, time, hidden", [(1, 1, 1), (5, 13, 4), (3, 1000, 512), (1, 7, 10**6)])
def test_blocks_cover_every_position_once(batch, time, hidden):
    count = torch.zeros(batch, time)
    for rows, times in blocks(torch.empty(batch, time, hidden, device="meta")):
        count[rows, times] += 1
    assert (count == 1).all()


@every_cell
def test_autocast(cell_type):
    inputs = [0.3 * tensor for tensor in make_inputs(cell_type, dtype=torch.float32, width=16, hidden=16)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    exact = local_rnn(*(tensor.double() for tensor in inputs), cell_type=cell_type, window_size=4)
    with torch.autocast("cpu", torch.bfloat16):
        output = local_rnn(*inputs, cell_type=cell_type, window_size=4)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), exact, atol=2e-2, rtol=0)
    gradients = torch.autograd.grad(output.float().square().sum(), inputs)
    expected = torch.autograd.grad(exact.square().sum(), inputs)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 2e-2 * reference.norm()


@every_cell
@every_implementation
def test_past_continues_a_sequence(cell_type, implementation):
    hidden_states, *weights = make_inputs(cell_type, time=9)
    run = partial(local_rnn, cell_type=cell_type, window_size=4, implementation=implementation)
    whole = run(hidden_states, *weights)
    continued = run(hidden_states[:, 5:], *weights, previous_inputs=hidden_states[:, 2:5])
    torch.testing.assert_close(continued, whole[:, 5:], atol=1e-12, rtol=0)


@every_cell
@every_packing_implementation
def test_packed_sequences_do_not_meet(cell_type, implementation):
    hidden_states, *weights = make_inputs(cell_type, batch=1, time=9)
    run = partial(local_rnn, cell_type=cell_type, window_size=4, implementation=implementation)
    lengths = (2, 6, 1)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = run(hidden_states, *weights, sequence_positions=positions)
    alone = [run(sequence, *weights) for sequence in hidden_states.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-12, rtol=0)


@every_cell
@every_implementation
def test_without_biases(cell_type, implementation):
    hidden_states, input_weight, recurrent_weight, bias, _ = make_inputs(cell_type)
    run = partial(local_rnn, hidden_states, input_weight, recurrent_weight, cell_type=cell_type, window_size=3)
    torch.testing.assert_close(
        run(None, None, implementation=implementation), run(0 * bias, 0 * bias, implementation="reference")
    )


@every_implementation
def test_non_contiguous_inputs(implementation):
    hidden_states, *weights = make_inputs("gru")
    run = partial(local_rnn, cell_type="gru", window_size=3, implementation=implementation)
    strided = hidden_states.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(run(strided, *weights), run(hidden_states, *weights))


def test_operators_take_their_weights_in_one_order():
    """Biases of the same shape could be swapped unnoticed."""
    operators = [local_rnn, blocked_local_rnn]
    if module.triton_local_rnn is not None:
        operators.append(module.triton_local_rnn)
    for operator in operators:
        names = [name for name in inspect.signature(operator).parameters if name.endswith(("_weight", "_bias"))]
        expected = ["input_weight", "recurrent_weight", "input_bias", "recurrent_bias"]
        assert names == expected[-len(names) :]


@pytest.mark.parametrize(
    "device, dtype, has_triton, expected",
    [
        ("cpu", torch.float32, True, "blocked"),
        ("cuda", torch.bfloat16, True, "triton"),
        ("cuda", torch.float64, True, "shared_projection"),
        ("cuda", torch.float32, False, "shared_projection"),
        ("meta", torch.float32, True, "shared_projection"),
    ],
)
def test_choice_of_implementation(device, dtype, has_triton, expected, monkeypatch):
    monkeypatch.setattr(module, "triton_local_rnn", object() if has_triton else None)
    monkeypatch.setattr(module, "SUPPORTED_DTYPES", (torch.float32, torch.bfloat16, torch.float16), raising=False)
    warnings = []
    monkeypatch.setattr(module.logger, "warning_once", warnings.append)
    hidden_states = SimpleNamespace(device=torch.device(device), dtype=dtype)  # there need not be such a device
    assert module.choose_implementation(hidden_states, sequence_positions=None) == expected
    assert len(warnings) == (device == "cuda" and not has_triton)


def test_packed_sequences_and_traces_on_a_cpu_take_the_plain_form():
    hidden_states = torch.zeros(1, 2, 3)
    assert module.choose_implementation(hidden_states, torch.zeros(1, 2)) == "shared_projection"
    chosen = []

    @torch.compile(backend="eager", fullgraph=True)
    def traced(hidden_states):
        chosen.append(module.choose_implementation(hidden_states, None))
        return hidden_states + 1

    traced(hidden_states)
    assert chosen == ["shared_projection"]


@every_cell
def test_blocks_keep_less_than_the_plain_form(cell_type):
    """Of the bytes that autograd saves for the backward pass; and nothing where there will be none."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs(cell_type, time=50, width=16, hidden=16)]
    sizes = {}
    for implementation in ("shared_projection", "blocked"):
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = local_rnn(*inputs, cell_type=cell_type, window_size=6, implementation=implementation)
        sizes[implementation] = sum(storages.values())
        del output
    assert 0 < sizes["blocked"] < (0.6 if cell_type == "rnn" else 0.5) * sizes["shared_projection"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cell_type": "mgu"}, r"`cell_type` must be one of .*'mgu'"),
        ({"window_size": 0}, r"`window_size` must be .* at least 1, got 0"),
        ({"implementation": "cuda"}, r"`implementation` must be one of .*'cuda'"),
        (
            {"implementation": "blocked", "sequence_positions": torch.zeros(2, 5, dtype=torch.long)},
            "`sequence_positions` must be None for `implementation='blocked'`",
        ),
        (
            {"previous_inputs": torch.zeros(2, 1, 3)},
            r"`previous_inputs` must have the shape \(2, 2, 3\), got \(2, 1, 3\)",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        local_rnn(*make_inputs("gru"), **{"cell_type": "gru", "window_size": 3, **arguments})
