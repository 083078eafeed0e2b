# SPDX-License-Identifier: Apache-2.0
"""Models with linear layers of 8 or 4 bits, as libraries make them."""

import copy
import os

import pytest
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import (
    AutoModelForAudioFrameClassification,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    TorchAoConfig,
)

from rtransformer_hf import RTransformerForCausalLM, RTransformerForPolyphonicMusic

every_cell = pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
every_config = pytest.mark.parametrize("config_class", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])


def assert_close_but_quantized(logits, expected, tolerance=0.2):
    """Few bits change something, but little: eight at most 0.2 of a standard deviation; other numbers would by 3."""
    error = (logits - expected).abs().max() / expected.std()
    assert 0 < error < tolerance


def assert_cache_agrees(model, input_ids):
    """Generation with the cache, where a single position goes its own way, gives what the model gives without."""
    generate = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 6, "do_sample": False}
    output = model.generate(input_ids, **generate, pad_token_id=0)
    again = model.generate(input_ids, **generate, pad_token_id=0, use_cache=False)
    assert torch.equal(output, again) and output.shape[1] == input_ids.shape[1] + 6


LIBRARIES = {
    "torchao": TorchAoConfig(Int8WeightOnlyConfig()),
    "bitsandbytes": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}


@pytest.mark.parametrize("library", LIBRARIES)
@torch.no_grad()
def test_structured_weights_stay_as_they_are(tiny_config, tmp_path, library):
    """The dense layers beside them are quantised. A model without any in its blocks is refused."""
    settings = {"projection_type": "monarch", "local_rnn_projection_type": "dense", "local_rnn_num_heads": 2}
    model = RTransformerForCausalLM(tiny_config(hidden_size=64, **settings)).eval()
    input_ids = torch.randint(23, (2, 9))
    model.save_pretrained(tmp_path / "float")
    quantization = {"quantization_config": LIBRARIES[library]}
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "float", **quantization)
    layer = quantized.model.layers[0]
    assert type(layer.local_rnns[0].cell.input_proj.weight) is not torch.nn.Parameter
    for weight in (layer.local_rnns[0].cell.recurrent_proj.weight, layer.mlp.up_proj.left):
        assert type(weight) is torch.nn.Parameter and weight.dtype == torch.float32
    assert_close_but_quantized(quantized(input_ids).logits, model(input_ids).logits, tolerance=1.5)
    assert_cache_agrees(quantized, input_ids)
    quantized.save_pretrained(tmp_path / "quantized")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized")
    assert torch.equal(loaded(input_ids).logits, quantized(input_ids).logits)

    RTransformerForCausalLM(tiny_config(projection_type="butterfly")).save_pretrained(tmp_path / "butterfly")
    named = r"`quantization_config` must be None for `config\.projection_type='butterfly'`"
    with pytest.raises(ValueError, match=named):
        AutoModelForCausalLM.from_pretrained(tmp_path / "butterfly", **quantization)


@every_cell
@every_config
@torch.no_grad()
def test_torchao(tiny_config, tmp_path, cell, config_class):
    """Quantised as it is loaded; saved as safetensors, which are smaller, and loaded again without change."""
    model = RTransformerForCausalLM(tiny_config(hidden_size=64, local_rnn_type=cell)).eval()
    input_ids = torch.randint(23, (2, 9))
    model.save_pretrained(tmp_path / "float")
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=TorchAoConfig(config_class())
    )
    projection = quantized.model.layers[0].local_rnns[0].cell.recurrent_proj
    assert type(projection.weight) is not torch.nn.Parameter and projection.weight.qdata.dtype == torch.int8
    logits = quantized(input_ids).logits
    assert_close_but_quantized(logits, model(input_ids).logits)
    assert_cache_agrees(quantized, input_ids)

    quantized.save_pretrained(tmp_path / "quantized")
    sizes = [os.path.getsize(tmp_path / name / "model.safetensors") for name in ("quantized", "float")]
    assert sizes[0] < sizes[1] / 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized")
    assert torch.equal(loaded(input_ids).logits, logits)


@every_config
@torch.no_grad()
def test_torchao_music(tiny_config, tmp_path, config_class):
    """Vectors as inputs, and the masked layers of autoregressive keys, which stay as they are."""
    config = tiny_config(hidden_size=64, input_size=5, key_head_type="autoregressive")
    model = RTransformerForPolyphonicMusic(config).eval()
    frames = torch.bernoulli(torch.full((2, 9, 5), 0.3))
    model.save_pretrained(tmp_path)
    quantized = AutoModelForAudioFrameClassification.from_pretrained(
        tmp_path, quantization_config=TorchAoConfig(config_class())
    )
    assert quantized.key_head.weight.qdata.dtype == torch.int8
    assert quantized.chord_head.frame_proj.weight.dtype == torch.float32
    assert_close_but_quantized(quantized(frames, labels=frames).logits, model(frames, labels=frames).logits)
    assert quantized.sample(frames, max_new_frames=2).shape == (2, 11, 5)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@every_cell
@torch.no_grad()
def test_dynamic_quantization_of_pytorch(tiny_config, cell):
    model = RTransformerForCausalLM(tiny_config(local_rnn_type=cell, tie_word_embeddings=False)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})
    assert not any(type(module) is torch.nn.Linear for module in quantized.modules())
    input_ids = torch.randint(23, (2, 9))
    assert_close_but_quantized(quantized(input_ids).logits, model(input_ids).logits)
    assert_cache_agrees(quantized, input_ids)

    model = RTransformerForPolyphonicMusic(tiny_config(local_rnn_type=cell, input_size=5)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})
    frames = torch.bernoulli(torch.full((2, 9, 5), 0.3))
    assert_close_but_quantized(quantized(frames).logits, model(frames).logits)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning")
@every_cell
@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_bitsandbytes(tiny_config, tmp_path, cell, bits):
    """Its 4-bit layers are an `nn.Linear` whose weight is a column of bytes, its 8-bit ones have scales beside it."""
    model = RTransformerForCausalLM(tiny_config(hidden_size=64, local_rnn_type=cell)).eval()
    input_ids = torch.randint(23, (2, 9))
    model.save_pretrained(tmp_path / "float")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    # Before the first output: at that, bitsandbytes packs 4 bits anew on a CPU with bfloat16 instructions, and saves
    # the scales of any linear layer in the wrong order afterwards.
    quantized.save_pretrained(tmp_path / "quantized")
    projection = quantized.model.layers[0].local_rnns[0].cell.recurrent_proj
    assert type(projection).__name__ == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    logits = quantized(input_ids).logits
    assert_close_but_quantized(logits, model(input_ids).logits, tolerance=0.2 if bits == 8 else 1.5)
    assert_cache_agrees(quantized, input_ids)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized")
    assert torch.equal(loaded(input_ids).logits, logits)
