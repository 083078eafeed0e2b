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
from rtransformer_hf.checkpoint_conversion import (
    Variant,
    convert_official_state_dict,
    parameter_names,
    split_joint_gates,
)

ARCHITECTURES = {
    "char": RTransformerForCausalLM,
    "word": RTransformerForCausalLM,
    "image": RTransformerForSequenceClassification,
    "music": RTransformerForPolyphonicMusic,
}


def is_unused(name: str) -> bool:
    return name.startswith(("rt.norm.", "rt.feed_forward.")) or "local_rnn.output." in name


def test_every_task_and_cell_is_here():
    assert {tuple(name.split("_")[:2]) for name in MODELS if not name.startswith("butterfly")} == {
        (task, cell) for task in ARCHITECTURES for cell in ("rnn", "gru", "lstm")
    }
    butterflies = {name.removeprefix("butterfly_") for name in MODELS if name.startswith("butterfly")}
    assert butterflies == {
        "image_gru_dense",
        "image_rnn",
        "music_gru",
        "word_custom",
        "word_custom_dense",
        "word_lstm",
    }


@pytest.mark.parametrize("name", MODELS)
def test_config(name):
    golden = Golden(name)
    model, dropped = convert_official_state_dict(golden.state_dict, **golden.sizes)
    arguments, config = golden.arguments, model.config
    assert type(model) is ARCHITECTURES[golden.task]
    assert not model.training
    assert all(is_unused(name) for name in dropped)
    assert config.hidden_size == arguments.get("d_model", arguments["input_size"])
    assert config.num_hidden_layers == arguments["n_level"]
    assert config.num_local_rnn_layers == arguments["n"]
    is_custom = arguments["rnn_type"] == "CUSTOM"
    assert config.local_rnn_type == ("lstm" if is_custom else arguments["rnn_type"].lower())
    assert config.local_rnn_gate_activation == ("hard_sigmoid" if is_custom else "sigmoid")
    is_butterfly = arguments.get("butterfly", False)
    assert config.projection_type == ("butterfly" if is_butterfly else "dense")
    assert config.local_rnn_projection_type == ("butterfly" if is_butterfly and is_custom else "dense")
    assert config.local_rnn_bias == ("butterfly" not in arguments)
    assert config.mlp_bias == (not is_butterfly)
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
    variant = Variant.of(golden.state_dict)
    names = parameter_names(type(model), config.num_hidden_layers, config.num_local_rnn_layers, variant)
    gradients = split_joint_gates({names[old]: gradient for old, gradient in golden.gradients.items()})
    parameters = dict(model.named_parameters())
    assert set(gradients) == set(parameters)
    largest = max(expected.abs().max() for expected in gradients.values())
    for name, expected in gradients.items():
        # Softmax ignores what the keys' bias adds to a row of scores: its gradient is 0, and both values are noise.
        is_zero = name.endswith("k_proj.bias")
        scale = 1e-2 * largest if is_zero else expected.abs().max()
        error = (parameters[name].grad - expected).abs().max()
        assert error <= 1e-4 * scale, f"{name}: {error:.1e} for gradients up to {scale:.1e}"
