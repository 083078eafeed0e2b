"""The LocalRNN operator: both forms against torch.nn's RNNs, against each other, and their gradients."""

from functools import partial

import pytest
import torch
from torch import nn

from rtransformer_hf import local_rnn
from rtransformer_hf.local_rnn import CELLS, IMPLEMENTATIONS, num_gates

TORCH_RNNS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
every_cell = pytest.mark.parametrize("cell", CELLS)
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def make_inputs(cell, batch=2, time=5, width=3, hidden=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    gates = num_gates(cell) * hidden
    return [draw(batch, time, width), draw(gates, width), draw(gates, hidden), draw(gates), draw(gates)]


@every_cell
@every_implementation
@pytest.mark.parametrize("window_size", [1, 2, 5, 9])
def test_equals_torch_rnn_over_each_window(cell, implementation, window_size):
    inputs = make_inputs(cell)
    hidden_states, *weights = inputs
    rnn = TORCH_RNNS[cell](3, 4, batch_first=True).double()
    for parameter, weight in zip(rnn.parameters(), weights, strict=True):
        parameter.data.copy_(weight)

    output = local_rnn(*inputs, cell=cell, window_size=window_size, implementation=implementation)

    padded = torch.cat([torch.zeros(2, window_size - 1, 3, dtype=torch.float64), hidden_states], dim=1)
    for t in range(hidden_states.shape[1]):
        expected = rnn(padded[:, t : t + window_size])[0][:, -1]
        torch.testing.assert_close(output[:, t], expected, atol=1e-12, rtol=0)


@every_cell
@every_implementation
def test_gradients(cell, implementation):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(cell, time=4, width=2, hidden=2)]
    past = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    positions = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])

    def run(*inputs, past, positions):
        return local_rnn(
            *inputs, cell=cell, window_size=3, past=past, sequence_positions=positions, implementation=implementation
        )

    assert torch.autograd.gradcheck(partial(run, past=None, positions=None), inputs)
    assert torch.autograd.gradcheck(partial(run, past=None, positions=positions), inputs)
    assert torch.autograd.gradcheck(lambda past, *inputs: run(*inputs, past=past, positions=None), [past, *inputs])


@every_cell
@pytest.mark.parametrize("window_size, time", [(1, 1), (1, 6), (4, 1), (4, 3), (7, 7), (3, 20)])
@pytest.mark.parametrize("has_past", [False, True])
def test_implementations_agree(cell, window_size, time, has_past):
    inputs = make_inputs(cell, batch=3, time=time, width=8, hidden=8, dtype=torch.float32)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    past = torch.randn(3, window_size - 1, 8, generator=torch.Generator().manual_seed(1)) if has_past else None
    results = []
    for implementation in IMPLEMENTATIONS:
        output = local_rnn(*inputs, cell=cell, window_size=window_size, past=past, implementation=implementation)
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        results.append([output, *gradients])
    for reference, other in zip(*results, strict=True):
        torch.testing.assert_close(reference, other, atol=1e-5, rtol=1e-5)


@every_cell
@every_implementation
def test_bfloat16_error_is_that_of_the_textbook_form(cell, implementation):
    exact_inputs = make_inputs(cell, time=12, width=16, hidden=16)
    exact_inputs = [tensor * 0.3 for tensor in exact_inputs]
    run = partial(local_rnn, cell=cell, window_size=5)
    exact = run(*exact_inputs, implementation="textbook")
    half_inputs = [tensor.bfloat16() for tensor in exact_inputs]

    def error(name):
        return (run(*half_inputs, implementation=name).double() - exact).abs().max()

    assert error(implementation) <= 2 * error("textbook")


@every_cell
@every_implementation
def test_past_continues_a_sequence(cell, implementation):
    hidden_states, *weights = make_inputs(cell, time=9)
    run = partial(local_rnn, cell=cell, window_size=4, implementation=implementation)
    whole = run(hidden_states, *weights)
    continued = run(hidden_states[:, 5:], *weights, past=hidden_states[:, 2:5])
    torch.testing.assert_close(continued, whole[:, 5:], atol=1e-12, rtol=0)


@every_cell
@every_implementation
def test_packed_sequences_do_not_meet(cell, implementation):
    hidden_states, *weights = make_inputs(cell, batch=1, time=9)
    run = partial(local_rnn, cell=cell, window_size=4, implementation=implementation)
    lengths = (2, 6, 1)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = run(hidden_states, *weights, sequence_positions=positions)
    alone = [run(sequence, *weights) for sequence in hidden_states.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-12, rtol=0)


@every_cell
@every_implementation
def test_without_biases(cell, implementation):
    hidden_states, input_weight, recurrent_weight, bias, _ = make_inputs(cell)
    run = partial(local_rnn, hidden_states, input_weight, recurrent_weight, cell=cell, window_size=3)
    torch.testing.assert_close(
        run(None, None, implementation=implementation), run(0 * bias, 0 * bias, implementation="textbook")
    )


@every_implementation
def test_non_contiguous_inputs(implementation):
    hidden_states, *weights = make_inputs("gru")
    run = partial(local_rnn, cell="gru", window_size=3, implementation=implementation)
    strided = hidden_states.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(run(strided, *weights), run(hidden_states, *weights))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cell": "mgu"}, r"`cell` must be one of .*'mgu'"),
        ({"window_size": 0}, r"`window_size` must be .* at least 1, got 0"),
        ({"implementation": "cuda"}, r"`implementation` must be one of .*'cuda'"),
        ({"past": torch.zeros(2, 1, 3)}, r"`past` must have the shape \(2, 2, 3\), got \(2, 1, 3\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        local_rnn(*make_inputs("gru"), **{"cell": "gru", "window_size": 3, **arguments})
