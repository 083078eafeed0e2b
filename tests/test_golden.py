# SPDX-License-Identifier: Apache-2.0
"""Converted models against the published one's outputs and gradients."""

import pytest
import torch
from golden import MODELS, Golden

from rtransformer_hf import (
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
)
from rtransformer_hf.checkpoint_conversion import convert_official_state_dict, parameter_names

ARCHITECTURES = {
    "char": RTransformerForCausalLM,
    "word": RTransformerForCausalLM,
    "image": RTransformerForSequenceClassification,
    "music": RTransformerForPolyphonicMusic,
}


def test_every_task_and_cell_is_here():
    assert {tuple(name.split("_")[:2]) for name in MODELS} == {
        (task, cell) for task in ARCHITECTURES for cell in ("rnn", "gru", "lstm")
    }


@pytest.mark.parametrize("name", MODELS)
def test_config(name):
    golden = Golden(name)
    model, dropped = convert_official_state_dict(golden.state_dict, **golden.sizes)
    arguments, config = golden.arguments, model.config
    assert type(model) is ARCHITECTURES[golden.task]
    assert not model.training
    assert not dropped
    assert config.hidden_size == arguments.get("d_model", arguments["input_size"])
    assert config.num_hidden_layers == arguments["n_level"]
    assert config.num_local_rnn_layers == arguments["n"]
    assert config.local_rnn_type == arguments["rnn_type"].lower()
    assert config.local_window_size == arguments["ksize"]
    assert config.num_attention_heads == arguments["h"]
    if golden.task in ("char", "word"):
        assert config.vocab_size == arguments["output_size"]
        assert config.tie_word_embeddings == arguments.get("tied_weights", True)
    else:
        assert config.input_size == arguments["input_size"]
    if golden.task == "image":
        assert config.num_labels == arguments["output_size"]


@pytest.mark.parametrize("name", MODELS)
def test_outputs(name):
    golden = Golden(name)
    model, _ = convert_official_state_dict(golden.state_dict, **golden.sizes)
    assert len(golden.inputs) == len(golden.outputs) > 1
    for inputs, expected in zip(golden.inputs, golden.outputs, strict=True):
        torch.testing.assert_close(golden.run(model, inputs), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    golden = Golden(name)
    model, _ = convert_official_state_dict(golden.state_dict, **golden.sizes)
    output = golden.run(model, golden.inputs[-1])
    (output * torch.arange(output.numel()).cos().view_as(output)).sum().backward()

    config = model.config
    names = parameter_names(type(model), config.num_hidden_layers, config.num_local_rnn_layers)
    parameters = dict(model.named_parameters())
    assert {names[old] for old in golden.gradients} == set(parameters)
    largest = max(expected.abs().max() for expected in golden.gradients.values())
    for old, expected in golden.gradients.items():
        gradient = parameters[names[old]].grad
        # Softmax ignores what the keys' bias adds to a row of scores: its gradient is 0, and both values are noise.
        is_zero = old.endswith("pooling.linears.1.bias")
        scale = 1e-2 * largest if is_zero else expected.abs().max()
        error = (gradient - expected).abs().max()
        assert error <= 1e-4 * scale, f"{old}: {error:.1e} for gradients up to {scale:.1e}"
