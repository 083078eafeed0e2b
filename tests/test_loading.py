# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose weights, configuration or flags do not go together are refused by name."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForAudioFrameClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from rtransformer_hf import (
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerModel,
)
from rtransformer_hf.key_head import RTransformerAutoregressiveKeyHead
from rtransformer_hf.training import evaluation, onnx_export
from rtransformer_hf.training.checkpoints import load_causal_lm
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.loading import open_model
from rtransformer_hf.training.model_arguments import (
    CAUSAL_LM_ARCHITECTURES,
    PRETRAINED_ARCHITECTURES,
    ModelArguments,
    label_head,
    make_model,
)

TWIDDLE = "model.layers.0.mlp.up_proj.twiddle"
MISSING, LEFT_OVER = r"\(missing: model\.layers\.0\.\S+", r"left over: model\.layers\.0\.\S+"
BROKEN = {
    "missing": (lambda weights: weights.pop(TWIDDLE), {}, rf"\(missing: {TWIDDLE}\)"),
    "left over": (lambda weights: weights.update(x=torch.ones(1)), {}, r"\(left over: x\)"),
    "shape": (
        lambda weights: weights.update({TWIDDLE: weights[TWIDDLE][:1].clone()}),
        {},
        rf"\(of another shape: {TWIDDLE} \(\[1, 2, 4, 8, 2, 2\], expected \[4, 2, 4, 8, 2, 2\]\)\)",
    ),
    "not finite": (lambda weights: weights[TWIDDLE].view(-1)[:1].fill_(torch.nan), {}, f"not finite: {TWIDDLE}"),
    "another kind": (None, {"projection_type": "monarch"}, f"{MISSING} and .* more; {LEFT_OVER} and"),
    "other blocks": (None, {"num_butterfly_blocks": 3}, r"of another shape: .*\(\[\d, 2, .*expected \[\d, 3, "),
    "a string": (None, {"num_butterfly_blocks": "two"}, "'num_butterfly_blocks' expected int, got str .*'two'"),
    "zero": (None, {"num_butterfly_blocks": 0}, "`num_butterfly_blocks` must be an integer of at least 1, got 0"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_checkpoints_are_refused_by_every_reader(fault, tiny_config, tmp_path):
    RTransformerForCausalLM(tiny_config(projection_type="butterfly")).save_pretrained(tmp_path)
    change_weights, settings, message = BROKEN[fault]
    if change_weights is not None:
        weights = load_file(tmp_path / "model.safetensors")
        change_weights(weights)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **settings}))
    checkpoint = str(tmp_path)
    further = ModelArguments(model_name_or_path=checkpoint)
    for read in (
        lambda: load_causal_lm(checkpoint),
        lambda: onnx_export.load_model(checkpoint, with_cache=False),
        lambda: evaluation.load_model(
            argparse.Namespace(checkpoint=checkpoint, quantization=None), AutoModelForCausalLM
        ),
        lambda: make_model(further, RTransformerForCausalLM, AutoModelForCausalLM, CAUSAL_LM_ARCHITECTURES),
    ):
        with pytest.raises(UsageError, match=f"{tmp_path.name}' can't be used.*{message}"):
            read()


def test_a_damaged_file_is_refused(tiny_config, tmp_path):
    RTransformerForCausalLM(tiny_config()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"{tmp_path.name}' can't be used"):
        load_causal_lm(str(tmp_path))


def further_model(path: Path, **flags):
    further = ModelArguments(model_name_or_path=str(path), **flags)
    return make_model(further, RTransformerForCausalLM, AutoModelForCausalLM, CAUSAL_LM_ARCHITECTURES)


@pytest.mark.parametrize(
    "trained, flags, message",
    [
        ({}, {"projection_type": "butterfly"}, "projection_type butterfly (trained with dense): its weights do not"),
        ({"projection_type": "monarch"}, {"num_monarch_blocks": 2}, "num_monarch_blocks 2 (trained with 4): its"),
        ({"local_rnn_num_heads": 2}, {"local_rnn_num_heads": 4}, "local_rnn_num_heads 4 (trained with 2): its"),
        ({}, {"local_rnn_num_heads": 3}, "local_rnn_num_heads 3 (trained with 1): `local_rnn_num_heads` must divide"),
        ({}, {"mlp_bias": False}, "mlp_bias False (trained with True): its weights do not"),
        ({}, {"num_hidden_layers": 3}, "num_hidden_layers 3 (trained with 2): its weights do not"),
        ({}, {"num_hidden_layers": 1}, "num_hidden_layers 1 (trained with 2): its weights do not"),
        ({}, {"tie_word_embeddings": False}, "tie_word_embeddings False (trained with True): its weights do not"),
    ],
)
def test_flags_that_the_weights_do_not_fit(trained, flags, message, tiny_config, tmp_path):
    RTransformerForCausalLM(tiny_config(**trained)).save_pretrained(tmp_path)
    with pytest.raises(UsageError) as refused:
        further_model(tmp_path, **flags)
    assert f"{tmp_path.name}' can't be used with --{message}" in str(refused.value)


def test_flags_that_leave_the_weights_as_they_are(tiny_config, tmp_path):
    RTransformerForCausalLM(tiny_config(projection_type="monarch")).save_pretrained(tmp_path)
    model = further_model(tmp_path, projection_type="monarch", hidden_dropout=0.2, local_window_size=5)
    assert (model.config.hidden_dropout, model.config.local_window_size) == (0.2, 5)


def test_flags_of_another_architecture(tmp_path):
    sizes = {"vocab_size": 3, "hidden_size": 8, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"--projection_type: not with --model_name_or_path .*, a llama"):
        further_model(tmp_path, projection_type="monarch")
    assert isinstance(further_model(tmp_path), LlamaForCausalLM)


def test_new_heads(tiny_config, tmp_path):
    """The weights of a head may be new, those of the model below it may not."""
    music = tiny_config(input_size=88)
    RTransformerForPolyphonicMusic(music).save_pretrained(tmp_path / "music")
    model = open_model(AutoModelForAudioFrameClassification, tmp_path / "music", key_head_type="autoregressive")
    assert any(isinstance(module, RTransformerAutoregressiveKeyHead) for module in model.modules())

    path = tmp_path / "tokens"
    further = ModelArguments(model_name_or_path=str(path))
    classifier = RTransformerForSequenceClassification, AutoModelForSequenceClassification
    head = label_head({"a": 0, "b": 1, "c": 2})
    for model_class in (RTransformerForCausalLM, RTransformerModel):
        model_class(tiny_config(projection_type="butterfly")).save_pretrained(path)
        model = make_model(further, *classifier, PRETRAINED_ARCHITECTURES, head=head)
        assert model.score.weight.shape == (3, 16)
    further.num_butterfly_blocks = 3
    with pytest.raises(UsageError, match=r"num_butterfly_blocks 3 \(trained with 2\): its weights do not"):
        make_model(further, *classifier, PRETRAINED_ARCHITECTURES, head=head)
    further = ModelArguments(model_name_or_path=str(path), num_hidden_layers=1)
    with pytest.raises(UsageError, match=r"num_hidden_layers 1 \(trained with 2\): its weights do not"):
        make_model(further, *classifier, PRETRAINED_ARCHITECTURES, head=head)
