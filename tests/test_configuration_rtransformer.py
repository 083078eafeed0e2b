# SPDX-License-Identifier: Apache-2.0
"""The configuration: what it derives, what it refuses, and that it survives a round trip."""

import pytest
from transformers import AutoConfig

from rtransformer_hf import RTransformerConfig


def test_defaults_are_derived():
    config = RTransformerConfig(hidden_size=96, num_attention_heads=4, num_hidden_layers=2)
    assert config.intermediate_size == 384
    assert config.layer_types == ["hybrid", "hybrid"]
    assert config.number_of_conv_states == config.num_local_rnn_layers == 1


@pytest.mark.parametrize("arguments", [{"local_window_size": 1}, {"num_local_rnn_layers": 0}])
def test_no_local_state_to_keep(arguments):
    assert RTransformerConfig(num_hidden_layers=2, **arguments).layer_types == ["full_attention"] * 2


def test_vector_inputs_have_no_embedding_to_tie():
    assert not RTransformerConfig(input_size=3, tie_word_embeddings=True).tie_word_embeddings


def test_gated_feed_forward_layers_are_split_too(tmp_path):
    plan = "layers.*.mlp.gate_proj"
    config = RTransformerConfig(mlp_type="gated")
    config.save_pretrained(tmp_path)
    for gated in (config, AutoConfig.from_pretrained(tmp_path)):
        assert gated.base_model_tp_plan[plan] == "colwise"
    assert "tp_plan" not in (tmp_path / "config.json").read_text()
    assert plan not in RTransformerConfig().base_model_tp_plan


def test_round_trip(tmp_path):
    config = RTransformerConfig(local_rnn_type="lstm", local_window_size=3, num_local_rnn_layers=2, num_labels=5)
    config.save_pretrained(tmp_path)
    assert RTransformerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert AutoConfig.from_pretrained(tmp_path, num_hidden_layers=7).layer_types == ["hybrid"] * 7


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"hidden_size": 10, "num_attention_heads": 4}, "`num_attention_heads` must divide .*=4.*=10"),
        ({"local_window_size": 0}, "`local_window_size` must be .* at least 1, got 0"),
        ({"num_local_rnn_layers": -1}, "`num_local_rnn_layers` must be .* at least 0, got -1"),
        ({"local_rnn_type": "mgu"}, r"`local_rnn_type` must be one of \('rnn', 'gru', 'lstm'\), got 'mgu'"),
        ({"local_rnn_implementation": "cuda"}, "`local_rnn_implementation` must be one of .*reference.*got 'cuda'"),
        (
            {"position_embedding_type": "rotary"},
            r"`position_embedding_type` must be .*sinusoidal.*got 'rotary'",
        ),
        ({"key_head_type": "joint"}, r"`key_head_type` must be one of .*autoregressive.*got 'joint'"),
        ({"key_head_size": 0}, "`key_head_size` must be an integer of at least 1, got 0"),
        ({"hidden_act": "rely"}, "`hidden_act` must be one of .*relu.*got 'rely'"),
        ({"mlp_type": "glu"}, r"`mlp_type` must be one of \('plain', 'gated'\), got 'glu'"),
        ({"input_size": 0}, "`input_size` must be .* at least 1, got 0"),
        ({"hidden_dropout": 1.0}, "`hidden_dropout` must be at least 0 and less than 1, got 1.0"),
        ({"layer_types": ["sliding_attention"]}, "`layer_types` follows from .*sliding_attention"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        RTransformerConfig(**arguments)
