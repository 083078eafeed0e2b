# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels against the reference: output and every gradient. Without a GPU, in Triton's interpreter."""

import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from rtransformer_hf import local_rnn as local_rnn_module
from rtransformer_hf.local_rnn import CELLS, num_gates, prepend_previous_inputs, recurrent_linear, reference_local_rnn

kernels = pytest.importorskip("rtransformer_hf.local_rnn_triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="no GPU, and TRITON_INTERPRET was not set to 1 before Triton was imported",
)
every_cell = pytest.mark.parametrize("cell_type", CELLS)


@pytest.fixture(autouse=True)
def bfloat16_products_of_the_interpreter(monkeypatch):
    """Triton's interpreter keeps bfloat16 numbers as the integers of their bits, and multiplies those."""
    if DEVICE == "cuda":
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    create_dot = InterpreterBuilder.create_dot
    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: create_dot(self, widened(a), widened(b), *rest)
    )


def make_inputs(cell_type, batch=2, time=5, hidden=5, has_bias=True):
    """Inputs, both weights and both biases, float64. The generator of the process was seeded by conftest."""
    gates = num_gates(cell_type) * hidden
    weights = [torch.randn(gates, hidden) / hidden**0.5 for _ in range(2)]
    biases = [torch.randn(gates) / 2 if has_bias else None for _ in range(2)]
    tensors = [torch.randn(batch, time, hidden), *weights, *biases]
    return [None if tensor is None else tensor.double().to(DEVICE) for tensor in tensors]


def run_reference(hidden_states, input_weight, recurrent_weight, input_bias, recurrent_bias, **arguments):
    input_proj = partial(F.linear, weight=input_weight, bias=input_bias)
    recurrent_proj = partial(recurrent_linear, weight=recurrent_weight, bias=recurrent_bias)
    return reference_local_rnn(hidden_states, input_proj, recurrent_proj, **arguments)


def run_triton(
    hidden_states,
    input_weight,
    recurrent_weight,
    input_bias,
    recurrent_bias,
    *,
    window_size,
    previous_inputs=None,
    **arguments,
):
    projected = F.linear(
        prepend_previous_inputs(hidden_states, previous_inputs, window_size), input_weight, input_bias
    )
    return kernels.triton_local_rnn(
        projected, recurrent_weight, input_bias, recurrent_bias, window_size=window_size, **arguments
    )


def output_and_gradients(run, inputs, dtype, **arguments):
    """The output, and for a fixed gradient of it those of all inputs, `previous_inputs` among them."""
    inputs = [None if tensor is None else tensor.to(dtype).requires_grad_() for tensor in inputs]
    if arguments.get("previous_inputs") is not None:
        arguments["previous_inputs"] = arguments["previous_inputs"].to(dtype).requires_grad_()
    output = run(*inputs, **arguments)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=dtype, device=DEVICE).view_as(output)
    leaves = [tensor for tensor in (*inputs, arguments.get("previous_inputs")) if tensor is not None]
    return [output, *torch.autograd.grad(output, leaves, grad_output)]


def check(inputs, dtype, on_chip, **arguments):
    exact = output_and_gradients(run_reference, inputs, torch.float64, **arguments)
    results = output_and_gradients(partial(run_triton, on_chip=on_chip), inputs, dtype, **arguments)
    if dtype == torch.float32:
        for result, expected in zip(results, exact, strict=True):
            torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)
        return
    references = output_and_gradients(run_reference, inputs, dtype, **arguments)
    for result, reference, expected in zip(results, references, exact, strict=True):
        assert result.dtype == dtype
        error, reference_error = (result.double() - expected).norm(), (reference.double() - expected).norm()
        assert error <= 2 * reference_error


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "hidden, window_size, batch, time, on_chip",
    [
        # More than one block of rows and of units, the last ones not full.
        (5, 4, 2, 37, True),
        (33, 2, 1, 35, True),
        (67, 3, 1, 20, True),
        (33, 3, 2, 70, False),
        (130, 3, 1, 18, False),
        (160, 2, 1, 6, False),
    ],
)
def test_equals_the_reference(cell_type, dtype, hidden, window_size, batch, time, on_chip):
    if on_chip and not kernels.fits_on_chip(hidden, dtype):
        pytest.skip("too wide for the window kernels")
    if DEVICE == "cpu" and hidden > 100 and dtype == torch.float16:
        pytest.skip("slow in the interpreter; narrower layers are tested")
    check(make_inputs(cell_type, batch, time, hidden), dtype, on_chip, cell_type=cell_type, window_size=window_size)


@every_cell
def test_a_width_of_many_blocks(cell_type):
    if DEVICE == "cpu" and cell_type != "gru":
        pytest.skip("slow in the interpreter")
    check(
        make_inputs(cell_type, batch=1, time=2, hidden=500),
        torch.float32,
        on_chip=False,
        cell_type=cell_type,
        window_size=2,
    )


@every_cell
@pytest.mark.parametrize("on_chip", [True, False])
@pytest.mark.parametrize("num_heads, gate_activation", [(1, "hard_sigmoid"), (2, "sigmoid"), (3, "hard_sigmoid")])
def test_heads_and_hard_sigmoids(cell_type, on_chip, num_heads, gate_activation):
    inputs = make_inputs(cell_type, hidden=6)
    head_size = 6 // num_heads
    inputs[2] = inputs[2][:, :head_size].reshape(num_heads, -1, head_size).contiguous()
    check(inputs, torch.float32, on_chip, cell_type=cell_type, window_size=3, gate_activation=gate_activation)


def test_heads_of_many_blocks():
    """More units than a block has, and in heads that are no multiple of it."""
    inputs = make_inputs("gru", batch=1, time=3, hidden=144)
    inputs[2] = inputs[2][:, :72].reshape(2, -1, 72).contiguous()
    check(inputs, torch.float32, False, cell_type="gru", window_size=3)


@every_cell
@pytest.mark.parametrize("on_chip", [True, False])
@pytest.mark.parametrize("window_size, time", [(1, 1), (1, 3), (2, 1), (5, 2)])
def test_short_windows_and_sequences(cell_type, on_chip, window_size, time):
    check(make_inputs(cell_type, time=time), torch.float32, on_chip, cell_type=cell_type, window_size=window_size)


@every_cell
@pytest.mark.parametrize("on_chip", [True, False])
def test_past_and_packed_sequences(cell_type, on_chip):
    previous_inputs = torch.randn(2, 3, 5, dtype=torch.float64, device=DEVICE)
    positions = torch.tensor([[0, 1, 0, 1, 2, 3, 4, 0, 0], [5, 6, 7, 0, 1, 2, 3, 4, 5]], device=DEVICE)
    inputs = make_inputs(cell_type, time=9)
    run = partial(check, inputs, torch.float32, on_chip, cell_type=cell_type, window_size=4)
    run(previous_inputs=previous_inputs)
    run(previous_inputs=previous_inputs, sequence_positions=positions)


@pytest.mark.parametrize("on_chip", [True, False])
def test_without_biases(on_chip):
    inputs = make_inputs("gru", has_bias=False)
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]], device=DEVICE)
    check(inputs, torch.float32, on_chip, cell_type="gru", window_size=3)
    check(inputs, torch.float32, on_chip, cell_type="gru", window_size=3, sequence_positions=positions)


@pytest.mark.parametrize("on_chip", [True, False])
def test_non_contiguous_tensors(on_chip):
    hidden_states, input_weight, recurrent_weight, *biases = make_inputs("lstm")
    positions = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 1], [4, 2]], device=DEVICE).T
    strided = [
        tensor.transpose(0, 1).contiguous().transpose(0, 1)
        for tensor in (hidden_states, input_weight, recurrent_weight)
    ]
    check([*strided, *biases], torch.float32, on_chip, cell_type="lstm", window_size=3, sequence_positions=positions)


def test_non_contiguous_projection_and_gradient():
    _, _, recurrent_weight, _, recurrent_bias = (tensor.float() for tensor in make_inputs("gru"))
    projected = torch.randn(15, 7, 2, device=DEVICE).requires_grad_()
    run = partial(kernels.triton_local_rnn, cell_type="gru", window_size=3)
    results = []
    for inputs in (projected.transpose(0, 2), projected.transpose(0, 2).contiguous()):
        output = run(inputs, recurrent_weight, None, recurrent_bias)
        (gradient,) = torch.autograd.grad(output.transpose(1, 2).sum(), projected)
        results.append((output, gradient))
    for strided, contiguous in zip(*results, strict=True):
        assert torch.equal(strided, contiguous)


@pytest.mark.parametrize("on_chip", [True, False])
def test_empty_batch(on_chip):
    inputs = make_inputs("gru", batch=0)
    check(inputs, torch.float32, on_chip, cell_type="gru", window_size=3)


@every_cell
@pytest.mark.parametrize("on_chip", [True, False])
def test_without_gradients_nothing_is_kept(cell_type, on_chip):
    inputs = [tensor.float() for tensor in make_inputs(cell_type)]
    run = partial(run_triton, cell_type=cell_type, window_size=4, on_chip=on_chip)
    with_gradients = run(*(tensor.clone().requires_grad_() for tensor in inputs))
    assert torch.equal(run(*inputs), with_gradients)
    projected = torch.zeros(2, 8, inputs[1].shape[0], device=DEVICE)
    _, *kept = kernels.local_rnn_forward(
        projected, inputs[2][None], None, inputs[4], None, cell_type, False, 4, False, on_chip
    )
    assert all(tensor.numel() == 0 for tensor in kept)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter runs one program after the other")
@every_cell
@pytest.mark.parametrize("on_chip", [True, False])
def test_same_inputs_give_the_same_bits(cell_type, on_chip):
    inputs = make_inputs(cell_type, time=70)
    run = partial(output_and_gradients, partial(run_triton, on_chip=on_chip), inputs, torch.bfloat16)
    first, second = (run(cell_type=cell_type, window_size=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("on_chip, packed", [(True, True), (False, False)])
def test_operators_are_registered_in_full(on_chip, packed):
    inputs = (tensor.float() for tensor in make_inputs("lstm", time=3))
    hidden_states, _, recurrent_weight, input_bias, recurrent_bias = inputs
    recurrent_weight = recurrent_weight[None]  # one head
    projected = torch.randn(2, 5, 20, device=DEVICE)
    positions = torch.tensor([[0, 1, 0], [0, 1, 2]], device=DEVICE) if packed else None
    operands = [projected, recurrent_weight, input_bias if packed else None, recurrent_bias]
    operands = [None if tensor is None else tensor.requires_grad_() for tensor in operands]
    torch.library.opcheck(kernels.local_rnn_forward, (*operands, positions, "lstm", True, 3, True, on_chip))

    operands = [None if tensor is None else tensor.detach() for tensor in operands]
    _, *kept = kernels.local_rnn_forward(*operands, positions, "lstm", True, 3, True, on_chip)
    arguments = (hidden_states, *operands, positions, *kept, "lstm", True, 3, on_chip)
    torch.library.opcheck(kernels.local_rnn_backward, arguments)


@every_cell
@pytest.mark.parametrize("on_chip", [True, False])
def test_right_kernels_pass_their_check(cell_type, on_chip, caplog):
    for dtype in kernels.SUPPORTED_DTYPES:
        arguments = (cell_type, dtype, on_chip, torch.device(DEVICE), reference_local_rnn)
        assert kernels.run_check.__wrapped__(*arguments), caplog.text
    assert kernels.run_check.__wrapped__(*arguments, "hard_sigmoid", 2), caplog.text


def wrong_kernels(*args, **kwargs):
    return 1.1 * kernels_of_the_module(*args, **kwargs)


def not_a_number(*args, **kwargs):
    return float("nan") * kernels_of_the_module(*args, **kwargs)


def no_compiler(*args, **kwargs):
    raise RuntimeError("ptxas: out of registers")


kernels_of_the_module = kernels.triton_local_rnn


@pytest.mark.parametrize(
    "broken, problem",
    [(wrong_kernels, "relative error is 0.1"), (not_a_number, "error is nan"), (no_compiler, "out of registers")],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_broken_kernels_are_replaced(broken, problem, compiled, monkeypatch, caplog):
    """Chosen by default, they are checked before their first use: the output is right, and a warning tells why."""
    hidden_states, *weights = (tensor.float() for tensor in make_inputs("gru"))
    arguments = {"cell_type": "gru", "window_size": 3}
    expected = local_rnn_module.local_rnn(hidden_states, *weights, **arguments, implementation="reference")
    monkeypatch.setattr(kernels, "triton_local_rnn", broken)
    monkeypatch.setattr(local_rnn_module, "triton_local_rnn", broken)
    monkeypatch.setattr(local_rnn_module, "choose_implementation", lambda *_: "triton")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(kernels.logger, "propagate", True)
    kernels.run_check.cache_clear()
    torch.compiler.reset()
    run = partial(local_rnn_module.local_rnn, **arguments)
    run = torch.compile(run, backend="eager", fullgraph=True) if compiled else run
    with caplog.at_level("WARNING"):
        for _ in range(2):
            torch.testing.assert_close(run(hidden_states, *weights), expected, atol=1e-5, rtol=1e-5)
    kernels.run_check.cache_clear()
    assert caplog.text.count("The LocalRNN's GPU kernels fail their check (gru, torch.float32") == 1
    assert problem in caplog.text


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_to_one_graph(backend):
    inputs = make_inputs("gru")
    run = partial(run_triton, cell_type="gru", window_size=3)
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for expected, result in zip(
        output_and_gradients(run, inputs, torch.float32),
        output_and_gradients(compiled, inputs, torch.float32),
        strict=True,
    ):
        torch.testing.assert_close(result, expected)


def test_checkpointing_and_autocast():
    inputs = [tensor.float().requires_grad_() for tensor in make_inputs("gru")]
    run = partial(run_triton, cell_type="gru", window_size=3)
    results = []
    for checkpointed in (True, False):
        with torch.autocast(DEVICE, torch.bfloat16):
            output = checkpoint(run, *inputs, use_reentrant=False) if checkpointed else run(*inputs)
        assert output.dtype == torch.bfloat16
        results.append([output, *torch.autograd.grad(output.float().square().sum(), inputs)])
    for checkpointed, plain in zip(*results, strict=True):
        assert torch.equal(checkpointed, plain)


@pytest.mark.parametrize(
    "hidden, dtype, on_chip, message",
    [
        (5, torch.float64, None, r"`projected` must be of one of the types .*float32.*, got torch.float64"),
        (200, torch.float32, True, r"`on_chip` must be False or None for a hidden size of 200 .*, got True"),
    ],
)
def test_bad_arguments(hidden, dtype, on_chip, message):
    projected, weight = torch.zeros(1, 4, hidden, dtype=dtype), torch.zeros(hidden, hidden, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        kernels.triton_local_rnn(projected, weight, None, None, cell_type="rnn", window_size=3, on_chip=on_chip)


@every_cell
def test_kernels_compile_for_a_gpu(cell_type, tmp_path):
    script = Path(__file__).parent / "compiled_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, script, cell_type], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    compiled = json.loads(output.splitlines()[-1])
    assert {kernel["name"] for kernel in compiled} == {
        "forward_window_kernel",
        "backward_window_kernel",
        "forward_step_kernel",
        "backward_step_kernel",
        "sum_over_windows_kernel",
    }
    for kernel in compiled:
        assert kernel["shared"] <= 227 * 1024  # what a block of threads may have on an H100 or H200
        assert kernel["spilled"] <= 256  # bytes a thread: a few values in the LSTM's step kernels
