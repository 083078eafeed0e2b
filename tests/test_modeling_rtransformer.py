# SPDX-License-Identifier: Apache-2.0
"""What the model promises: the cache, padding, packing and causality are exact, and bad input is refused."""

import itertools
import math
import os
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging import version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModel,
    AutoModelForAudioFrameClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
    DynamicCache,
    StaticCache,
)

from rtransformer_hf import (
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerForTokenClassification,
    RTransformerModel,
    cpu_linear,
)
from rtransformer_hf.cpu_linear import MAX_DECODE_ROWS, MAX_FP32_ATTENTION_LENGTH, linear_for_decoding
from rtransformer_hf.local_rnn import IMPLEMENTATIONS

KEYS = 5
EVERY_CLASS = [
    RTransformerModel,
    RTransformerForCausalLM,
    RTransformerForSequenceClassification,
    RTransformerForTokenClassification,
    RTransformerForPolyphonicMusic,
]
POSITIONWISE_CLASSES = [c for c in EVERY_CLASS if c is not RTransformerForSequenceClassification]
every_class = pytest.mark.parametrize("model_class", EVERY_CLASS)
every_positionwise_class = pytest.mark.parametrize("model_class", POSITIONWISE_CLASSES)
every_cell = pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
both_inputs = pytest.mark.parametrize("input_name", ["input_ids", "input_values"])


def make_model(model_class, config):
    return model_class(config).eval()


def make_input(config, batch=2, time=9):
    """Keyword arguments of a forward pass: token ids, or vectors where the model reads those."""
    if config.input_size is None:
        return {"input_ids": torch.randint(1, config.vocab_size, (batch, time))}
    return {"input_values": torch.rand(batch, time, config.input_size)}


def main_output(outputs):
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


# --- the cache ---


CACHE_GRID = list(
    itertools.product(
        ["rnn", "gru", "lstm"],
        [  # window, LocalRNN layers, blocks, heads, tied
            (1, 1, 2, 2, True),
            (2, 1, 1, 1, False),
            (4, 2, 2, 4, True),
            (9, 1, 3, 2, False),
            (5, 0, 2, 2, True),
            (14, 3, 1, 8, True),
        ],
        ["none", "left", "right"],
    )
)


@pytest.mark.parametrize("cell, sizes, padding", CACHE_GRID)
def test_cached_equals_uncached(tiny_config, cell, sizes, padding):
    window, layers, blocks, heads, tied = sizes
    config = tiny_config(
        local_rnn_type=cell,
        local_window_size=window,
        num_local_rnn_layers=layers,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        tie_word_embeddings=tied,
    )
    model = make_model(RTransformerForCausalLM, config)
    input_ids = make_input(config, batch=3, time=12)["input_ids"]
    mask = torch.ones_like(input_ids)
    if padding == "left":
        mask[1, :2], mask[2, :7] = 0, 0
    elif padding == "right":
        mask[1, 10:], mask[2, 5:] = 0, 0

    with torch.no_grad():
        full = model(input_ids, attention_mask=mask, use_cache=False).logits

        def run_in_pieces(lengths, cache, reorder=None):
            logits, start = [], 0
            for length in lengths:
                piece = slice(start, start + length)
                start += length
                outputs = model(input_ids[:, piece], attention_mask=mask[:, :start], cache=cache)
                logits.append(outputs.logits)
            return torch.cat(logits, dim=1)

        def real(logits):
            return logits[mask.bool()]

        for lengths in ([5] + [1] * 7, [1] * 12, [1, 4, 2, 5], [11, 1]):
            assert_equal(real(run_in_pieces(lengths, DynamicCache(config=config))), real(full))
            static_cache = StaticCache(config=config, max_cache_len=12)
            assert_equal(real(run_in_pieces(lengths, static_cache)), real(full))

        for lengths in ([8], [7, 1]):
            cache = DynamicCache(config=config)
            run_in_pieces(lengths, cache)
            beams = torch.tensor([2, 0, 0])
            cache.reorder_cache(beams)
            for t in range(8, 12):
                logits = model(input_ids[beams, t, None], attention_mask=mask[beams, : t + 1], cache=cache).logits
                is_real = mask[beams, t].bool()
                assert_equal(logits[is_real, 0], full[beams, t][is_real])


@every_cell
@pytest.mark.parametrize("prompt_length", [1, 2, 7])
def test_rolled_back_cache_equals_uncached(tiny_config, cell, prompt_length):
    config = tiny_config(local_rnn_type=cell, num_local_rnn_layers=2)
    model = make_model(RTransformerForCausalLM, config)
    input_ids = make_input(config, batch=1, time=14)["input_ids"]
    rejected_ids = make_input(config, batch=1, time=5)["input_ids"]
    cache = DynamicCache(config=config)
    cache.activate_past_recording()
    with torch.no_grad():
        full = model(input_ids, use_cache=False).logits
        model(input_ids[:, :prompt_length], cache=cache)
        start = prompt_length
        for length in (2, 1, 1, 2, 1):
            for rejected_id in rejected_ids.split(length, dim=1):  # drafted one by one, or several at once
                model(rejected_id, cache=cache)
            cache.crop(-5)
            logits = model(input_ids[:, start : start + length], cache=cache).logits
            cache.crop(0)
            assert_equal(logits, full[:, start : start + length])
            start += length


def test_generation_strategies_agree(tiny_config):
    config = tiny_config(num_local_rnn_layers=2, local_rnn_type="lstm")
    model = make_model(RTransformerForCausalLM, config)
    input_ids = make_input(config, batch=1, time=7)["input_ids"]
    generate = {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(input_ids, **generate, use_cache=False)
    assert torch.equal(model.generate(input_ids, **generate), expected)
    assert torch.equal(model.generate(input_ids, **generate, cache_implementation="static"), expected)
    assert torch.equal(model.generate(input_ids, **generate, prefill_chunk_size=3), expected)
    assert torch.equal(model.generate(input_ids, **generate, prompt_lookup_num_tokens=3), expected)
    assistant = make_model(RTransformerForCausalLM, config)
    assert torch.equal(model.generate(input_ids, **generate, assistant_model=assistant), expected)
    beams = model.generate(input_ids, **generate, num_beams=3)
    assert torch.equal(beams, model.generate(input_ids, **generate, num_beams=3, use_cache=False))


def test_unfinished_windows_take_one_product_a_token(tiny_config):
    """And without gradients, in inference mode too."""
    model = make_model(RTransformerForCausalLM, tiny_config(num_hidden_layers=1))
    input_ids = make_input(model.config, batch=1, time=12)["input_ids"]
    full = model(input_ids, use_cache=False).logits
    calls = []
    projection = model.model.layers[0].local_rnns[0].cell.recurrent_proj
    projection.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        for start, end in [(0, 3), (3, 4), (4, 5), (5, 8), (8, 9), (9, 10), (10, 11)]:
            calls.clear()
            assert_equal(model(input_ids[:, start:end], cache=cache).logits, full[:, start:end])
            if start in (4, 9, 10):  # decoding goes on
                assert calls == [(1, model.config.local_window_size, model.config.hidden_size)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (MAX_DECODE_ROWS, 1), (MAX_DECODE_ROWS + 1, 1), (2, 3)])
@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("out_features", [6, 8])  # no multiple of the threads, and a multiple
@torch.no_grad()
def test_projecting_a_few_rows_changes_nothing(shape, num_threads, has_bias, out_features, monkeypatch):
    monkeypatch.setattr(cpu_linear, "MIN_DECODE_WEIGHT", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    linear = torch.nn.Linear(5, out_features, bias=has_bias)
    hidden_states = torch.randn(*shape, 10)[..., ::2]  # not contiguous
    assert_equal(linear_for_decoding(linear, hidden_states), linear(hidden_states))
    assert linear_for_decoding(linear.double(), hidden_states.double()).dtype == torch.float64

    linear.float().register_forward_hook(lambda module, args, output: output + 1)
    assert_equal(linear_for_decoding(linear, hidden_states), linear(hidden_states))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize("mask_dtype", [None, torch.bool, torch.bfloat16])
def test_short_sequences_attend_in_float32(tiny_config, autocast, is_short, mask_dtype):
    attention = RTransformerForCausalLM(tiny_config()).model.layers[0].self_attn.bfloat16()
    length = MAX_FP32_ATTENTION_LENGTH + (0 if is_short else 1)
    hidden_states = torch.randn(2, length, attention.q_proj.in_features).bfloat16()
    mask = None if mask_dtype is None else torch.rand(2, 1, length, length).log().to(mask_dtype)
    states = [
        projection(hidden_states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    exact = [x.float() if is_short and x is not None and x.dtype != torch.bool else x for x in (*states, mask)]
    attended = F.scaled_dot_product_attention(*exact, is_causal=mask is None)
    expected = attention.o_proj(attended.bfloat16().transpose(1, 2).flatten(2))
    if autocast:
        attention, hidden_states = attention.float(), hidden_states.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, _ = attention(hidden_states, mask)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_cache_without_config_is_refused(tiny_config):
    model = make_model(RTransformerForCausalLM, tiny_config())
    with pytest.raises(ValueError, match=r"`cache` must be made from the model's config"):
        model(torch.ones(1, 3, dtype=torch.long), cache=DynamicCache())


def test_cache_by_another_name_is_refused(tiny_config):
    """Ignored, it would make a model generate from the last token alone."""
    model = make_model(RTransformerForCausalLM, tiny_config())
    with pytest.raises(ValueError, match="`kv_cache` holds a cache; expected it as `cache`"):
        model(torch.ones(1, 3, dtype=torch.long), kv_cache=DynamicCache(config=model.config))


@every_class
def test_cache_by_either_name(tiny_config, model_class):
    """Transformers calls it `past_key_values` before 5.24, and so does code written for that."""
    sizes = {"input_size": KEYS} if model_class is RTransformerForPolyphonicMusic else {}
    model = make_model(model_class, tiny_config(num_labels=3, **sizes))
    inputs = make_input(model.config)
    pieces = [{name: values[:, piece] for name, values in inputs.items()} for piece in (slice(5), slice(5, None))]
    outputs = {}
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        for name in ("cache", "past_key_values"):
            cache = {name: DynamicCache(config=model.config)}
            outputs[name] = [main_output(model(**piece, **cache)) for piece in pieces]
            assert cache[name].get_seq_length() == 9
    assert_equal(outputs["past_key_values"], outputs["cache"])
    # As with every model of Transformers, which itself uses the name that does not warn.
    is_old = version.parse(transformers.__version__) < version.parse("5.24")
    assert ["past_key_values" in str(warning.message) for warning in caught] == (
        [] if is_old else [True] * len(pieces)
    )


# --- padding ---


@every_class
@both_inputs
@every_cell
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padded_row_equals_row_alone(tiny_config, model_class, input_name, cell, side, attention):
    config = tiny_config(
        input_size=KEYS if input_name == "input_values" else None,
        local_rnn_type=cell,
        num_local_rnn_layers=2,
        num_labels=3,
        attn_implementation=attention,
    )
    model = make_model(model_class, config)
    lengths = (9, 5, 1)
    (batch,) = make_input(config, batch=3, time=9).values()
    mask = torch.zeros(3, 9, dtype=torch.long)
    real = [slice(0, length) if side == "right" else slice(9 - length, 9) for length in lengths]
    for row, positions in enumerate(real):
        mask[row, positions] = 1

    with torch.no_grad():
        together = main_output(model(**{input_name: batch}, attention_mask=mask))
        for row, positions in enumerate(real):
            alone = main_output(model(**{input_name: batch[row : row + 1, positions]}))[0]
            in_batch = (
                together[row] if model_class is RTransformerForSequenceClassification else together[row, positions]
            )
            assert_equal(in_batch, alone)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sequence_classification_finds_padding_by_its_id(tiny_config, side):
    config = tiny_config(pad_token_id=0, num_labels=3)
    model = make_model(RTransformerForSequenceClassification, config)
    input_ids = make_input(config, batch=2, time=6)["input_ids"]
    real = slice(2, 6) if side == "left" else slice(0, 4)
    expected = torch.cat([model(input_ids[:1]).logits, model(input_ids[1:, real]).logits])
    input_ids[1] = F.pad(input_ids[1, real], (2, 0) if side == "left" else (0, 2))
    assert_equal(model(input_ids).logits, expected)


@every_class
def test_masks_that_attention_and_local_rnn_would_read_differently(tiny_config, model_class):
    config = tiny_config(num_labels=3)
    model = make_model(model_class, config)
    inputs = make_input(config, batch=2, time=6)
    mask = F.pad(torch.ones(2, 4, dtype=torch.long), (2, 0))
    with torch.no_grad():
        expected = main_output(model(**inputs, attention_mask=mask))
        for other in (2 * mask, mask.bool(), mask.float()):  # numbers of segments, for one
            assert torch.equal(main_output(model(**inputs, attention_mask=other)), expected)
    for bad in (torch.ones(6), torch.ones(2, 5), torch.ones(2, 7), torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()):
        with pytest.raises(ValueError, match=r"`attention_mask` must have .* here \(2, 6\); got"):
            model(**inputs, attention_mask=bad)


def test_a_mask_of_the_new_inputs_alone_is_refused(tiny_config):
    config = tiny_config()
    model = make_model(RTransformerModel, config)
    inputs = make_input(config, batch=1, time=6)["input_ids"]
    cache = DynamicCache(config=config)
    model(inputs[:, :5], cache=cache, use_cache=True)
    with pytest.raises(ValueError, match=r"here \(1, 6\); got \(1, 1\)"):
        model(inputs[:, 5:], attention_mask=torch.ones(1, 1), cache=cache)
    model(inputs[:, 5:], attention_mask=torch.ones(1, 6), cache=cache)


def test_music_loss_excludes_padding(tiny_config):
    config = tiny_config(input_size=KEYS)
    model = make_model(RTransformerForPolyphonicMusic, config)
    frames = torch.bernoulli(torch.full((2, 7, KEYS), 0.3))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    losses = [model(input_values=f, labels=f).loss for f in (frames[:1], frames[1:, :4])]
    expected = (6 * losses[0] + 3 * losses[1]) / 9
    assert_equal(model(input_values=frames, attention_mask=mask, labels=frames).loss, expected)
    labels = frames.masked_fill(mask[..., None] == 0, -100)
    assert_equal(model(input_values=frames, labels=labels).loss, expected)

    probabilities = torch.sigmoid(model(input_values=frames[:1]).logits[0, :-1])
    log_likelihood = torch.distributions.Bernoulli(probabilities).log_prob(frames[0, 1:]).sum(-1).mean()
    assert_equal(losses[0], -log_likelihood)


@pytest.mark.parametrize("key_head_type", ["independent", "autoregressive"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_frames_may_hold_anything_on_either_side(tiny_config, key_head_type, side):
    model = make_model(RTransformerForPolyphonicMusic, tiny_config(input_size=KEYS, key_head_type=key_head_type))
    tune = torch.bernoulli(torch.full((1, 4, KEYS), 0.3))
    padding = (3, 0) if side == "left" else (0, 3)
    mask = F.pad(torch.ones(1, 4, dtype=torch.long), padding)
    padded = F.pad(tune, (0, 0, *padding), value=math.nan)
    loss = model(input_values=tune, labels=tune).loss
    assert_equal(model(input_values=padded, attention_mask=mask, labels=padded).loss, loss)
    with pytest.raises(ValueError, match=r"`logits_to_keep` must be 0 with `labels`.* got 1"):
        model(input_values=tune, labels=tune, logits_to_keep=1)


# --- causality and the window ---


@every_positionwise_class
@both_inputs
@every_cell
@pytest.mark.parametrize("changed", [0, 4, 8])
def test_no_output_depends_on_later_inputs(tiny_config, model_class, input_name, cell, changed):
    config = tiny_config(input_size=KEYS if input_name == "input_values" else None, local_rnn_type=cell)
    model = make_model(model_class, config)
    (inputs,) = make_input(config).values()
    other = inputs.clone()
    other[:, changed] = (inputs[:, changed] + 1) % config.vocab_size if input_name == "input_ids" else 0
    with torch.no_grad():
        before, after = main_output(model(**{input_name: inputs})), main_output(model(**{input_name: other}))
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.isclose(before[:, changed], after[:, changed]).all()


@every_cell
@pytest.mark.parametrize("window_size", [1, 2, 4])
def test_local_rnn_depends_on_exactly_its_window(tiny_config, cell, window_size):
    config = tiny_config(local_rnn_type=cell, local_window_size=window_size)
    local_rnn = make_model(RTransformerModel, config).layers[0].local_rnns[0]
    hidden_states = torch.randn(1, 10, config.hidden_size, requires_grad=True)
    for t in range(10):
        (gradient,) = torch.autograd.grad(local_rnn(hidden_states)[0, t].square().sum(), hidden_states)
        is_seen = gradient[0].abs().sum(-1) > 0
        assert is_seen.tolist() == [max(0, t - window_size + 1) <= s <= t for s in range(10)]


# --- packed sequences ---


@every_positionwise_class
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("first_position", [0, 3])
def test_packed_sequences_equal_sequences_alone(tiny_config, model_class, attention, use_cache, first_position):
    check_packed_sequences(tiny_config, model_class, attention, use_cache, first_position)


def test_packed_sequences_with_flex_attention(tiny_config):
    check_packed_sequences(tiny_config, RTransformerModel, "flex_attention", use_cache=False, first_position=0)


def check_packed_sequences(tiny_config, model_class, attention, use_cache, first_position):
    config = tiny_config(attn_implementation=attention, hidden_size=32)
    model = make_model(model_class, config)
    lengths = (2, 8, 1, 5)
    sequences = [make_input(config, batch=2, time=length)["input_ids"] for length in lengths]
    position_ids = torch.cat([torch.arange(length) + first_position * i for i, length in enumerate(lengths)])[None]
    with torch.no_grad():
        packed = main_output(model(input_ids=torch.cat(sequences, 1), position_ids=position_ids, use_cache=use_cache))
        model.set_attn_implementation("eager")  # flex attention would be compiled for each length
        alone = [main_output(model(input_ids=sequence)) for sequence in sequences]
    assert_equal(packed, torch.cat(alone, dim=1))


def test_data_collator_with_flattening(tiny_config):
    config = tiny_config()
    model = make_model(RTransformerForCausalLM, config)
    sequences = [make_input(config, batch=1, time=length)["input_ids"][0] for length in (3, 9, 4)]
    batch = DataCollatorWithFlattening(return_tensors="pt")([{"input_ids": s.tolist()} for s in sequences])
    loss = model(**batch).loss
    total = sum(model(s[None], labels=s[None]).loss * (len(s) - 1) for s in sequences)
    assert_equal(loss, total / sum(len(s) - 1 for s in sequences))


# --- heads, inputs, training ---


@every_class
@both_inputs
def test_inputs_embeds_stand_for_the_embedded_inputs(tiny_config, model_class, input_name):
    config = tiny_config(input_size=KEYS if input_name == "input_values" else None)
    model = make_model(model_class, config)
    (inputs,) = make_input(config).values()
    embeds = model.get_input_embeddings()(inputs)
    assert_equal(main_output(model(inputs_embeds=embeds)), main_output(model(**{input_name: inputs})))


@every_class
@every_cell
@pytest.mark.parametrize("window_size, layers", [(1, 1), (3, 2), (3, 0)])
def test_every_parameter_learns(tiny_config, model_class, cell, window_size, layers):
    config = tiny_config(
        local_rnn_type=cell, local_window_size=window_size, num_local_rnn_layers=layers, input_size=KEYS
    )
    model = model_class(config)
    main_output(model(**make_input(config))).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # a zero state makes nothing of the recurrent weight when it is all that a window of 1 has
        if not (window_size == 1 and name.endswith("recurrent_proj.weight")):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(tiny_config, checkpointing):
    model = RTransformerForCausalLM(tiny_config(hidden_dropout=0.2, attention_dropout=0.1))
    input_ids = make_input(model.config)["input_ids"]
    if checkpointing:
        model.gradient_checkpointing_enable()
    torch.manual_seed(1)
    loss = model(input_ids, labels=input_ids).loss
    loss.backward()
    gradient = model.model.layers[0].local_rnns[0].cell.input_proj.weight.grad.norm()

    reference = RTransformerForCausalLM(model.config)
    reference.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    reference_loss = reference(input_ids, labels=input_ids).loss
    reference_loss.backward()
    assert_equal(loss, reference_loss)
    assert_equal(gradient, reference.model.layers[0].local_rnns[0].cell.input_proj.weight.grad.norm())


def test_gradient_checkpointing_takes_no_cache(tiny_config):
    """A block that runs twice would add to it twice."""
    model = RTransformerForCausalLM(tiny_config())
    model.gradient_checkpointing_enable()
    cache = DynamicCache(config=model.config)
    input_ids = make_input(model.config)["input_ids"]
    model(input_ids, labels=input_ids, cache=cache).loss.backward()
    assert cache.get_seq_length() == 0


def labels_of(model, batch_size: int, time: int, problem_type: str | None) -> torch.Tensor:
    """For the loss of a model, some of them unlabeled where there is a label a position."""
    if problem_type == "multi_label_classification":
        return torch.randint(2, (batch_size, 3)).float()
    if isinstance(model, RTransformerForSequenceClassification):
        return torch.randint(3, (batch_size,))
    shape = (batch_size, time, KEYS) if isinstance(model, RTransformerForPolyphonicMusic) else (batch_size, time)
    labels = torch.randint(2, shape)
    labels[0, 2:] = -100
    if not isinstance(model, RTransformerForTokenClassification):
        labels[:, 0] = -100  # nothing predicts it
    return labels


@pytest.mark.parametrize(
    ("model_class", "problem_type"),
    [
        (RTransformerForCausalLM, None),
        (RTransformerForTokenClassification, None),
        (RTransformerForSequenceClassification, None),
        (RTransformerForSequenceClassification, "multi_label_classification"),
        (RTransformerForPolyphonicMusic, None),
    ],
)
def test_losses_of_parts_of_a_batch(tiny_config, model_class, problem_type):
    """Trainer tells a part, that of a process or an accumulated step, how many labels the whole batch has."""
    sizes = {"input_size": KEYS} if model_class is RTransformerForPolyphonicMusic else {}
    model = make_model(model_class, tiny_config(num_labels=3, problem_type=problem_type, **sizes))
    ((name, inputs),) = make_input(model.config, batch=5).items()
    labels = labels_of(model, *inputs.shape[:2], problem_type)
    num_labels = (labels != -100).sum()
    for count in (num_labels, int(num_labels)):
        parts = [
            model(**{name: inputs[rows]}, labels=labels[rows], num_items_in_batch=count).loss
            for rows in (slice(1), slice(1, 3), slice(3, 5))
        ]
        assert_equal(sum(parts), model(**{name: inputs}, labels=labels).loss)


def test_adapted_projections_are_called(tiny_config):
    """A projection that computes more than its weights say is not read around."""
    model = make_model(RTransformerModel, tiny_config())
    input_ids = make_input(model.config)["input_ids"]
    before = model(input_ids).last_hidden_state
    cell = model.layers[0].local_rnns[0].cell

    handle = cell.recurrent_proj.register_forward_hook(lambda module, args, output: output + 1)
    assert not torch.allclose(model(input_ids).last_hidden_state, before)
    handle.remove()
    assert_equal(model(input_ids).last_hidden_state, before)

    class Doubled(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def forward(self, hidden_states):
            return 2 * self.linear(hidden_states)

    cell.input_proj = Doubled(cell.input_proj)
    doubled = model(input_ids).last_hidden_state
    cell.input_proj = cell.input_proj.linear
    with torch.no_grad():
        cell.input_proj.weight.mul_(2)
        cell.input_proj.bias.mul_(2)
    assert_equal(doubled, model(input_ids).last_hidden_state)


# --- the forms of the operator ---


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    if request.param == "triton":
        pytest.importorskip("triton")
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU, and TRITON_INTERPRET was not set to 1 before Triton was imported")
    return request.param


@every_cell
def test_every_form_of_the_operator_is_exact(tiny_config, cell, implementation):
    """In the model: its outputs and gradients, with padding, and with a cache that is fed in pieces."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference = RTransformerModel(tiny_config(local_rnn_type=cell, local_rnn_implementation="reference"))
    model = RTransformerModel(tiny_config(local_rnn_type=cell, local_rnn_implementation=implementation))
    model.load_state_dict(reference.state_dict())
    for each in (reference, model):
        each.to(device)
    input_ids = make_input(model.config)["input_ids"].to(device)
    mask = torch.ones_like(input_ids)
    mask[0, :3] = 0

    outputs, gradients = [], []
    for each in (reference, model):
        output = each(input_ids, attention_mask=mask).last_hidden_state * mask[..., None]
        outputs.append(output)
        gradients.append(torch.autograd.grad(output.square().sum(), list(each.layers.parameters())))
    assert_equal(*outputs)
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(input_ids).last_hidden_state
        pieces = [model(piece, cache=cache).last_hidden_state for piece in input_ids.split([4, 1, 4], dim=1)]
    assert_equal(torch.cat(pieces, dim=1), whole)


def test_torch_compile_fullgraph(tiny_config):
    config = tiny_config(num_hidden_layers=1)
    model = make_model(RTransformerForCausalLM, config)
    input_ids = make_input(config)["input_ids"]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_equal(compiled(input_ids, use_cache=False).logits, model(input_ids).logits)


def test_compiled_decoding_with_a_static_cache(tiny_config):
    model = make_model(RTransformerForCausalLM, tiny_config(num_hidden_layers=1))
    input_ids = make_input(model.config)["input_ids"]
    generate = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(input_ids, **generate)
    model.forward = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert torch.equal(model.generate(input_ids, **generate, cache_implementation="static"), expected)


class ShapesOfResults(TorchDispatchMode):
    """Records the shape of every tensor that an operation returns, those of the backward pass included."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.shapes.update(tuple(leaf.shape) for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor))
        return results


def test_no_tensor_grows_with_the_square_of_the_length(tiny_config):
    """Training, in the default configuration but for its sizes, none of which reaches the length."""
    model = RTransformerForCausalLM(tiny_config())
    input_ids = make_input(model.config, time=97)["input_ids"]
    with ShapesOfResults() as results:
        model(input_ids, labels=input_ids).loss.backward()
    assert (2, 97, 16) in results.shapes
    assert not [shape for shape in results.shapes if sum(size >= 97 for size in shape) > 1]


def test_torch_export(tiny_config):
    config = tiny_config(num_hidden_layers=1)
    model = make_model(RTransformerForCausalLM, config)
    input_ids = make_input(config)["input_ids"]
    dynamic = {"input_ids": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}, "use_cache": None}
    exported = torch.export.export(
        model, (), {"input_ids": input_ids, "use_cache": False}, dynamic_shapes=dynamic, strict=False
    ).module()
    longer = make_input(config, batch=3, time=15)["input_ids"]
    assert_equal(exported(input_ids=longer, use_cache=False).logits, model(longer).logits)


# --- music ---


class FrameCollector:
    def __init__(self):
        self.received, self.ended = [], False

    def put(self, value):
        self.received.append(value)

    def end(self):
        self.ended = True


def test_music_sampling(tiny_config):
    config = tiny_config(input_size=KEYS)
    model = make_model(RTransformerForPolyphonicMusic, config)
    frames = torch.bernoulli(torch.full((2, 6, KEYS), 0.3))
    streamer = FrameCollector()
    sampled = model.sample(frames, 9, generator=torch.Generator().manual_seed(3), streamer=streamer)
    assert sampled.shape == (2, 15, KEYS)
    assert torch.equal(sampled[:, :6], frames)
    assert set(sampled.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(model.sample(frames, 9, generator=torch.Generator().manual_seed(3)), sampled)
    assert not torch.equal(model.sample(frames, 9, generator=torch.Generator().manual_seed(4)), sampled)

    assert streamer.ended
    assert torch.equal(streamer.received[0], frames)
    assert torch.equal(torch.stack(streamer.received[1:], dim=1), sampled[:, 6:])

    # each frame is drawn from what the model says of the frames before, without a cache
    generator = torch.Generator().manual_seed(3)
    for t in range(6, 15):
        probabilities = torch.sigmoid(model(input_values=sampled[:, :t], use_cache=False).logits[:, -1:])
        assert torch.equal(torch.bernoulli(probabilities, generator=generator)[:, 0], sampled[:, t])


def test_music_sampling_of_padded_tunes(tiny_config):
    config = tiny_config(input_size=KEYS)
    model = make_model(RTransformerForPolyphonicMusic, config)
    with torch.no_grad():
        model.key_head.weight.mul_(1e4)  # so that every key is all but certain and the draw plays no part
    frames = torch.bernoulli(torch.full((1, 4, KEYS), 0.3))
    padded = F.pad(frames, (0, 0, 3, 0), value=math.nan)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    assert torch.equal(model.sample(padded, 5, attention_mask=mask)[:, 3:], model.sample(frames, 5))
    with pytest.raises(ValueError, match="`attention_mask` must be padded on the left"):
        model.sample(padded, 5, attention_mask=mask.flip(1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": 0}, "`temperature` must be greater than 0, got 0"),
        ({"max_new_frames": -1}, "`max_new_frames` must be .* at least 0, got -1"),
        ({"input_values": torch.zeros(1, 0, KEYS)}, "`input_values` must have the shape .* at least one frame"),
        ({"input_values": torch.zeros(1, 2, KEYS + 1)}, r"`input_values` must have the shape .*5.*got \(1, 2, 6\)"),
    ],
)
def test_music_sampling_refuses(tiny_config, arguments, message):
    model = make_model(RTransformerForPolyphonicMusic, tiny_config(input_size=KEYS))
    with pytest.raises(ValueError, match=message):
        model.sample(**{"input_values": torch.zeros(1, 2, KEYS), "max_new_frames": 2, **arguments})


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("input_values", 64, "`input_values` must hold values from 0 to 1, got 64"),
        ("input_values", -0.5, "`input_values` must hold values from 0 to 1, got -0.5"),
        ("input_values", float("nan"), "`input_values` must hold values from 0 to 1, got nan"),
        ("labels", 0.5, "`labels` must hold zeros and ones, or -100 in all keys of a frame, got 0.5"),
        ("labels", 2, "`labels` must hold zeros and ones, .* got 2"),
        ("labels", -100, "`labels` must hold zeros and ones, or -100 in all keys of a frame, got -100"),
    ],
)
def test_values_that_are_no_music(tiny_config, name, value, named):
    model = make_model(RTransformerForPolyphonicMusic, tiny_config(input_size=KEYS))
    frames = {"input_values": torch.full((2, 5, KEYS), 0.5), "labels": torch.ones(2, 5, KEYS)}
    model(**frames)
    frames[name][1, 3, 2] = value
    with pytest.raises(ValueError, match=named):
        model(**frames)
    if name == "input_values":
        with pytest.raises(ValueError, match=named):
            model(input_values=frames[name])
        with pytest.raises(ValueError, match=named):
            model.sample(frames[name], 2)
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    model(**frames, attention_mask=mask)  # what is masked may hold anything


def test_compiled_code_does_not_look_at_values(tiny_config):
    config = tiny_config(input_size=KEYS, local_rnn_implementation="shared_projection")
    model = make_model(RTransformerForPolyphonicMusic, config)
    frames = torch.full((2, 5, KEYS), 0.5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_equal(compiled(input_values=frames, use_cache=False).logits, model(input_values=frames).logits)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return model(input_values=values[None], labels=frames[:1].round(), use_cache=False).logits.sum()

    assert torch.func.vmap(torch.func.grad(loss))(frames).shape == frames.shape


def every_frame(keys: int) -> torch.Tensor:
    """(2 ** keys, keys): every frame that there is."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=keys)))


def autoregressive_model(config_maker, keys: int = 4):
    config = config_maker(
        input_size=keys, key_head_type="autoregressive", key_head_size=3, final_layer_norm=True, initializer_range=0.4
    )
    return make_model(RTransformerForPolyphonicMusic, config)


def frame_probabilities(model, past: torch.Tensor) -> torch.Tensor:
    """(2 ** keys,): the probability that each possible frame follows the frames (time, keys)."""
    probabilities = []
    for frame in every_frame(past.shape[1]):
        frames = torch.cat([past, frame[None]])[None]
        labels = frames.clone()
        labels[:, :-1] = -100
        probabilities.append(torch.exp(-model(input_values=frames, labels=labels).loss))
    return torch.stack(probabilities)


@torch.no_grad()
def test_autoregressive_keys_are_a_distribution_of_frames(tiny_config):
    past = torch.bernoulli(torch.full((5, 4), 0.4))
    probabilities = frame_probabilities(autoregressive_model(tiny_config), past)
    assert_equal(probabilities.sum(), torch.tensor(1.0))
    # and not that of independent keys
    keys_alone = probabilities @ every_frame(4)
    independent = torch.where(every_frame(4) == 1, keys_alone, 1 - keys_alone).prod(dim=-1)
    assert (probabilities - independent).abs().max() > 0.01


@torch.no_grad()
def test_autoregressive_keys_are_sampled_from_their_distribution(tiny_config):
    model = autoregressive_model(tiny_config)
    past = torch.bernoulli(torch.full((5, 4), 0.4))
    probabilities = frame_probabilities(model, past)
    sampled = model.sample(past.expand(20_000, -1, -1), 1, generator=torch.Generator().manual_seed(0))[:, -1]
    indices = (sampled * torch.tensor([8, 4, 2, 1])).sum(-1).long()
    frequencies = torch.bincount(indices, minlength=16) / len(sampled)
    assert (frequencies - probabilities).abs().max() < 0.015  # four standard deviations of a frequency


@torch.no_grad()
def test_logits_of_a_key_depend_on_the_keys_below_it_alone(tiny_config):
    model = autoregressive_model(tiny_config)
    frames = torch.bernoulli(torch.full((1, 6, 4), 0.4))
    logits = model(input_values=frames, labels=frames).logits
    for key in range(4):
        labels = frames.clone()
        labels[:, 3, key] = 1 - labels[:, 3, key]
        changed = (model(input_values=frames, labels=labels).logits != logits)[0]
        assert not changed[2, : key + 1].any() and changed[2, key + 1 :].all()
        assert not changed[[0, 1, 3, 4, 5]].any()


# --- the Transformer of the paper: no LocalRNN, sinusoidal positions ---


@torch.no_grad()
def test_gated_feed_forward_layer(tiny_config):
    config = tiny_config(mlp_type="gated", hidden_act="silu", intermediate_size=24)
    mlp = RTransformerForCausalLM(config).model.layers[0].mlp
    hidden_states = torch.randn(2, 3, config.hidden_size)
    expected = mlp.down_proj(F.silu(mlp.gate_proj(hidden_states)) * mlp.up_proj(hidden_states))
    torch.testing.assert_close(mlp(hidden_states), expected)
    plain = RTransformerForCausalLM(tiny_config(mlp_type="plain", intermediate_size=36)).model.layers[0].mlp
    assert not hasattr(plain, "gate_proj")
    matrices = [sum(weight.numel() for weight in part.parameters() if weight.ndim == 2) for part in (mlp, plain)]
    assert matrices[0] == matrices[1]


def test_sinusoidal_positions(tiny_config):
    config = tiny_config(num_local_rnn_layers=0, position_embedding_type="sinusoidal", num_hidden_layers=1)
    model = make_model(RTransformerModel, config)
    inputs_embeds, received = torch.randn(1, 9, 16), []
    model.layers[0].register_forward_pre_hook(lambda module, args: received.append(args[0]))
    model(inputs_embeds=inputs_embeds)
    for t, channel in itertools.product(range(9), range(8)):
        angle = t / 10000 ** (2 * channel / 16)
        for index, expected in ((channel, math.sin(angle)), (channel + 8, math.cos(angle))):
            position = received[0][0, t, index] - 4 * inputs_embeds[0, t, index]
            assert position.item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_sinusoidal_positions_count_from_the_first_real_input(tiny_config, side):
    config = tiny_config(num_local_rnn_layers=0, position_embedding_type="sinusoidal")
    model = make_model(RTransformerForCausalLM, config)
    input_ids = torch.randint(1, config.vocab_size, (1, 9))
    alone = model(input_ids).logits
    padding = (3, 0) if side == "left" else (0, 3)
    padded, mask = F.pad(input_ids, padding), F.pad(torch.ones_like(input_ids), padding)
    real = slice(3, None) if side == "left" else slice(9)
    assert_equal(model(padded, attention_mask=mask).logits[:, real], alone)

    cache = DynamicCache(config=config)
    pieces = [model(piece, cache=cache).logits for piece in input_ids.split([4, 1, 4], dim=1)]
    assert_equal(torch.cat(pieces, dim=1), alone)
    with_mask = [model(input_ids[:, :4], attention_mask=torch.ones(1, 4), cache=(cache := DynamicCache()))]
    with_mask.append(model(input_ids[:, 4:], attention_mask=torch.ones(1, 9), cache=cache))
    assert_equal(torch.cat([outputs.logits for outputs in with_mask], dim=1), alone)

    generated = model.generate(input_ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(input_ids, max_new_tokens=5, do_sample=False, use_cache=False), generated)


# --- bad input ---


@every_class
def test_wrong_inputs_are_named(tiny_config, model_class):
    ids, values, embeds = torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3, KEYS), torch.zeros(1, 3, 16)
    reads_ids = make_model(model_class, tiny_config())
    reads_values = make_model(model_class, tiny_config(input_size=KEYS))
    for model, arguments, message in [
        (reads_ids, {}, "Exactly one of `input_ids` and `inputs_embeds` .* got neither"),
        (reads_ids, {"input_ids": ids, "inputs_embeds": embeds}, "got input_ids and inputs_embeds"),
        (reads_ids, {"input_values": values}, "Exactly one of `input_ids` .* got input_values"),
        (reads_values, {}, "Exactly one of `input_values` and `inputs_embeds` .* got neither"),
        (reads_values, {"input_ids": ids}, "Exactly one of `input_values` .* got input_ids"),
        (reads_values, {"input_values": values[..., 1:]}, r"`input_values` must have .*5\).* got \(1, 3, 4\)"),
        (reads_values, {"input_values": values[0]}, r"`input_values` must have .*5\).* got \(3, 5\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**arguments)


# --- Auto classes ---


@pytest.mark.parametrize(
    "auto_class, model_class",
    [
        (AutoModel, RTransformerModel),
        (AutoModelForCausalLM, RTransformerForCausalLM),
        (AutoModelForSequenceClassification, RTransformerForSequenceClassification),
        (AutoModelForTokenClassification, RTransformerForTokenClassification),
        (AutoModelForAudioFrameClassification, RTransformerForPolyphonicMusic),
    ],
)
def test_auto_classes(tiny_config, tmp_path, auto_class, model_class):
    model = make_model(model_class, tiny_config(input_size=KEYS))
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is model_class
    inputs = make_input(model.config)
    assert torch.equal(main_output(loaded(**inputs)), main_output(model(**inputs)))


@pytest.mark.parametrize(
    "loading_class", [AutoModelForCausalLM, AutoModel, RTransformerForCausalLM, RTransformerModel]
)
def test_pickled_weights_are_loaded_on_request_alone(tiny_config, tmp_path, loading_class):
    model = make_model(RTransformerForCausalLM, tiny_config())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for arguments in ({}, {"use_safetensors": None}, {"use_safetensors": True}):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            loading_class.from_pretrained(tmp_path, **arguments)
    loaded = loading_class.from_pretrained(tmp_path, use_safetensors=False)
    assert_equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
