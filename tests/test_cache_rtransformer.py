# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a cache, and wherever padding lies, a row goes on as it does alone and without a cache."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from rtransformer_hf import (
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerForTokenClassification,
    RTransformerModel,
)
from rtransformer_hf.cache_rtransformer import CACHE_NAME

MAX_LENGTH = 40
every_cell = pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
both_caches = pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])


def make_cache(cache_class, config):
    return cache_class(config=config) if cache_class is DynamicCache else cache_class(config, max_cache_len=MAX_LENGTH)


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


class Rows:
    """Rows of tokens, None for padding, that are fed to a model with a cache and compared with each row alone."""

    def __init__(self, model, cache, num_rows: int):
        self.model, self.cache, self.rows = model, cache, [[] for _ in range(num_rows)]

    def feed(self, *masks: str):
        """Feeds new columns: a string for each row, with "x" for a token and "." for padding."""
        for row, mask in zip(self.rows, masks, strict=True):
            row += [random.randrange(1, self.model.config.vocab_size) if char == "x" else None for char in mask]
        length = len(masks[0])
        input_ids = torch.tensor([[token or 0 for token in row[-length:]] for row in self.rows])
        attention_mask = torch.tensor([[int(token is not None) for token in row] for row in self.rows])
        logits = self.model(input_ids, attention_mask=attention_mask, cache=self.cache, use_cache=True).logits
        for row, mask, actual in zip(self.rows, masks, logits, strict=True):
            if "x" in mask:
                alone = self.model(torch.tensor([[token for token in row if token]]), use_cache=False).logits[0]
                is_real = torch.tensor([char == "x" for char in mask])
                assert_equal(actual[is_real], alone[-int(is_real.sum()) :])

    def feed_tokens(self, length: int = 1):
        self.feed(*["x" * length] * len(self.rows))

    def crop(self, num_columns: int):
        self.cache.crop(-num_columns)
        self.rows = [row[: len(row) - num_columns] for row in self.rows]

    def select(self, method: str, indices: list[int]):
        getattr(self.cache, method)(torch.tensor(indices))
        self.rows = [list(self.rows[index]) for index in indices]

    def repeat(self, repeats: int):
        self.cache.batch_repeat_interleave(repeats)
        self.rows = [list(row) for row in self.rows for _ in range(repeats)]

    def reset(self):
        self.cache.reset()
        self.rows = [[] for _ in self.rows]


@pytest.fixture
def make_rows(tiny_config):
    random.seed(0)

    def make(cache_class, num_rows=3, **sizes):
        model = RTransformerForCausalLM(tiny_config(**{"num_local_rnn_layers": 2, **sizes})).eval()
        return Rows(model, make_cache(cache_class, model.config), num_rows)

    with torch.no_grad():
        yield make


# --- padding ---


@both_caches
@every_cell
@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_padding_anywhere_leaves_no_trace(make_rows, cache_class, cell, window):
    """In a prompt, a later piece or a single column: on the right, on the left, or between tokens."""
    rows = make_rows(cache_class, num_rows=4, local_rnn_type=cell, local_window_size=window)
    rows.feed("xxxxxx", "xx....", "..xxxx", "x.x..x")
    rows.feed_tokens()
    rows.feed_tokens()
    rows.feed("xxx", "x..", "..x", "...")
    rows.feed("x", ".", "x", ".")
    rows.feed("x", "x", ".", ".")
    rows.feed_tokens(3)
    rows.feed_tokens()


@both_caches
def test_prompt_with_padding_step_by_step(make_rows, cache_class):
    rows = make_rows(cache_class)
    for column in zip("xxxxxx", "..xxxx", "xx..xx", strict=True):
        rows.feed(*column)


@pytest.mark.parametrize("num_local_rnn_layers", [0, 2])
def test_padding_with_sinusoidal_positions(make_rows, num_local_rnn_layers):
    sizes = {"position_embedding_type": "sinusoidal", "num_local_rnn_layers": num_local_rnn_layers}
    rows = make_rows(DynamicCache, **sizes)
    rows.feed("xxxxx", "xx...", "x.x.x")
    rows.feed("xxx", "xx.", ".xx")
    rows.feed_tokens()


def test_padded_prompt_in_inference_mode_and_with_gradients(make_rows):
    for mode in (torch.inference_mode(), torch.enable_grad()):
        with mode:
            rows = make_rows(DynamicCache)
            rows.feed("xxxxx", "xx...", "x.x.x")
            rows.feed_tokens()
            rows.feed("x", ".", "x")
            rows.feed_tokens()


def test_gap_in_a_mask_has_the_right_gradients(tiny_config):
    model = RTransformerModel(tiny_config(num_local_rnn_layers=2))
    inputs = torch.randn(1, 5, 16, requires_grad=True)
    gap, mask = torch.randn(1, 2, 16), torch.tensor([[1, 1, 0, 0, 1, 1, 1]])
    with_gap = torch.cat([inputs[:, :2], gap, inputs[:, 2:]], dim=1)
    outputs = model(inputs_embeds=with_gap, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()]
    alone = model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
    assert_equal(outputs, alone)
    leaves = [inputs, *model.layers.parameters()]
    for actual, expected in zip(
        torch.autograd.grad(outputs.square().sum(), leaves),
        torch.autograd.grad(alone.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "model_class", [RTransformerForTokenClassification, RTransformerForPolyphonicMusic, RTransformerModel]
)
def test_every_task_goes_on_after_padding_on_the_right(tiny_config, model_class):
    model = model_class(tiny_config(input_size=5, num_labels=3)).eval()
    inputs, mask = torch.rand(2, 9, 5), torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 1, 1, 0, 1]])
    cache = DynamicCache(config=model.config)
    pieces = [
        model(input_values=inputs[:, start:end], attention_mask=mask[:, :end], cache=cache)
        for start, end in ((0, 5), (5, 8), (8, 9))
    ]
    outputs = torch.cat([piece["logits" if "logits" in piece else "last_hidden_state"] for piece in pieces], dim=1)
    for row, is_real, actual in zip(inputs, mask.bool(), outputs, strict=True):
        alone = model(input_values=row[None, is_real])
        assert_equal(actual[is_real], alone["logits" if "logits" in alone else "last_hidden_state"][0])


@torch.no_grad()
def test_sequence_classification_goes_on_after_padding_on_the_right(tiny_config):
    model = RTransformerForSequenceClassification(tiny_config(num_labels=3)).eval()
    input_ids, mask = torch.randint(1, 23, (2, 9)), torch.tensor([[1] * 9, [1, 1, 0, 0, 0, 1, 1, 1, 0]])
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :5], attention_mask=mask[:, :5], cache=cache)
    logits = model(input_ids[:, 5:], attention_mask=mask, cache=cache).logits
    for row, is_real, actual in zip(input_ids, mask.bool(), logits, strict=True):
        assert_equal(actual, model(row[None, is_real]).logits[0])
    with pytest.raises(ValueError, match=r"`attention_mask` has nothing but padding in rows \[1\] of the new inputs"):
        model(input_ids[:, :2], attention_mask=torch.cat([mask, torch.tensor([[1, 1], [0, 0]])], dim=1), cache=cache)


@both_caches
def test_compiled_model_goes_on_after_padding_on_the_right(make_rows, cache_class):
    rows = make_rows(cache_class, num_hidden_layers=1, num_local_rnn_layers=1, local_window_size=3)
    eager = rows.model.forward
    compiled = torch.compile(eager, fullgraph=True, backend="eager", dynamic=False)
    rows.model.forward = lambda *args, **kwargs: (compiled if "cache" in kwargs else eager)(*args, **kwargs)
    rows.feed("xxxxx", "xx...", "x.x.x")
    rows.feed("xxx", "xx.", ".xx")
    rows.model.forward = eager
    rows.select("batch_select_indices", [2, 1])
    rows.feed_tokens()


@torch.no_grad()
def test_exported_model_takes_padding_anywhere(tiny_config):
    model = RTransformerForCausalLM(tiny_config(num_hidden_layers=1)).eval()
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    arguments = {"input_ids": torch.ones(2, 6, dtype=torch.long), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    exported = torch.export.export(
        model,
        (),
        {**arguments, "use_cache": False},
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes, "use_cache": None},
        strict=False,
    ).module()
    input_ids, mask = (
        torch.randint(1, 23, (3, 7)),
        torch.tensor([[1] * 7, [1, 1, 0, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1, 0]]),
    )
    logits = exported(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    for row, is_real, actual in zip(input_ids, mask.bool(), logits, strict=True):
        assert_equal(actual[is_real], model(row[None, is_real]).logits[0])


def test_padding_where_it_was_costs_nothing(tiny_config, monkeypatch):
    """No mask, padding on the left, and padding on the right without a cache: no input is moved."""
    monkeypatch.setattr("rtransformer_hf.masking_rtransformer.PaddingOrder.from_mask", None)
    model = RTransformerForCausalLM(tiny_config())
    input_ids = torch.randint(1, 23, (2, 5))
    model(input_ids, use_cache=True)
    for mask in ([[1] * 5, [1] * 5], [[1] * 5, [0, 0, 1, 1, 1]]):
        cache = DynamicCache(config=model.config)
        model(input_ids, attention_mask=torch.tensor(mask), cache=cache)
        for new in (1, 2):
            mask = [row + [1] * new for row in mask]
            model(input_ids[:, :new], attention_mask=torch.tensor(mask), cache=cache)
    model(input_ids, attention_mask=torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]), use_cache=False)


# --- generation ---


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 2}, {"use_cache": False}, {"prefill_chunk_size": 2}])
@pytest.mark.parametrize("cache_implementation", [None, "static"])
def test_generation_refuses_prompts_that_end_with_padding(tiny_config, arguments, cache_implementation):
    model = RTransformerForCausalLM(tiny_config()).eval()
    if cache_implementation and "use_cache" not in arguments:
        arguments = {**arguments, "cache_implementation": cache_implementation, "disable_compile": True}
    input_ids, mask = torch.randint(1, 23, (2, 5)), torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    with pytest.raises(ValueError, match=r'`attention_mask`, .* has rows that end with 0.*`padding_side="left"`'):
        model.generate(input_ids, attention_mask=mask, max_new_tokens=3, do_sample=False, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_beams": 3},
        {"prefill_chunk_size": 1},
        {"prefill_chunk_size": 2},
        {"cache_implementation": "static", "disable_compile": True},
        {"cache_implementation": "static", "disable_compile": True, "prefill_chunk_size": 1},
        {"cache_implementation": "static", "disable_compile": True, "num_beams": 3},
    ],
)
@pytest.mark.parametrize("position_embedding_type", ["none", "sinusoidal"])
def test_generation_of_padded_prompts(tiny_config, arguments, position_embedding_type):
    """Padding on the left, and between tokens, as after a conversation's earlier turns."""
    config = tiny_config(local_rnn_type="lstm", position_embedding_type=position_embedding_type, initializer_range=0.3)
    model = RTransformerForCausalLM(config).eval()
    input_ids = torch.randint(1, 23, (3, 7))
    mask = torch.tensor([[1] * 7, [0, 0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 0, 1]])
    generate = {"max_new_tokens": 8, "do_sample": False}
    together = model.generate(input_ids, attention_mask=mask, **generate, **arguments)[:, 7:]
    for row, is_real, new in zip(input_ids, mask.bool(), together, strict=True):
        alone = model.generate(row[None, is_real], **generate, num_beams=arguments.get("num_beams", 1))
        assert new.tolist() == alone[0, is_real.sum() :].tolist()


def test_generation_goes_on_from_a_prompt_padded_on_the_right(tiny_config):
    model = RTransformerForCausalLM(tiny_config(initializer_range=0.3)).eval()
    input_ids, mask = torch.randint(1, 23, (2, 7)), torch.tensor([[1] * 7, [1, 1, 0, 0, 0, 1, 1]])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids[:, :5], attention_mask=mask[:, :5], cache=cache)
    generate = {"max_new_tokens": 8, "do_sample": False}
    together = model.generate(input_ids, attention_mask=mask, **{CACHE_NAME: cache}, **generate)[:, 7:]
    for row, is_real, new in zip(input_ids, mask.bool(), together, strict=True):
        assert new.tolist() == model.generate(row[None, is_real], **generate)[0, is_real.sum() :].tolist()


@pytest.mark.parametrize("assistance", ["prompt lookup", "assistant"])
def test_assisted_generation_with_a_static_cache(tiny_config, assistance):
    """The same tokens as greedy ones, or an error."""
    model, assistant = (RTransformerForCausalLM(tiny_config(vocab_size=6, initializer_range=0.3)).eval() for _ in "ma")
    assistant.load_state_dict(model.state_dict())
    with torch.no_grad():
        assistant.model.layers[1].mlp.down_proj.weight.add_(torch.randn(16, 64) * 0.3)  # right at times
    draft = {"prompt_lookup_num_tokens": 3} if assistance == "prompt lookup" else {"assistant_model": assistant}
    input_ids = torch.randint(1, 6, (1, 9)).repeat(1, 2)
    expected = model.generate(input_ids, max_new_tokens=20, do_sample=False)
    for cache in (
        {"cache_implementation": "static", "disable_compile": True},
        {CACHE_NAME: StaticCache(model.config, max_cache_len=60)},
        {},
    ):
        try:
            generated = model.generate(input_ids, max_new_tokens=20, do_sample=False, **draft, **cache)
        except ValueError as error:  # by Transformers before 5.17
            assert "not supported with Static cache" in str(error)
        else:
            assert torch.equal(generated, expected)


def test_cache_under_both_names_is_refused(tiny_config):
    """As `generate(cache=...)` gives it before Transformers 5.24, beside a cache of its own."""
    model = RTransformerForCausalLM(tiny_config()).eval()
    caches = {name: DynamicCache(config=model.config) for name in ("cache", "past_key_values")}
    with pytest.raises(ValueError, match="Both `past_key_values` and `cache` are set"):
        model(torch.ones(1, 3, dtype=torch.long), **caches)


# --- what a cache can be asked for ---


@both_caches
@every_cell
def test_rows_are_selected_and_repeated(make_rows, cache_class, cell):
    rows = make_rows(cache_class, local_rnn_type=cell)
    rows.feed("xxxxxx", "xx....", "..xxxx")
    rows.select("batch_select_indices", [2, 0, 0])
    rows.feed_tokens()
    rows.feed_tokens()
    rows.select("batch_select_indices", [0, 2])
    rows.feed_tokens()
    rows.repeat(3)
    rows.feed_tokens()
    rows.feed("xx", "x.", ".x", "xx", "..", "xx")
    rows.select("reorder_cache", [5, 4, 3, 2, 1, 1])
    rows.feed_tokens()
    if cache_class is StaticCache:
        assert rows.cache.batch_size == 6


@both_caches
@pytest.mark.parametrize("window, layers", [(4, 2), (2, 1), (9, 2)])
def test_rolled_back_rows(make_rows, cache_class, window, layers):
    """Columns of padding too: they added nothing to a row, so nothing is taken back with them."""
    rows = make_rows(cache_class, local_window_size=window, num_local_rnn_layers=layers)
    rows.cache.activate_past_recording()
    rows.feed("xxxxx", "xx...", "..xxx")
    rows.feed("xx", "x.", "xx")
    rows.feed("xx", "..", "x.")
    rows.crop(3)
    rows.feed_tokens()
    rows.feed_tokens()
    rows.crop(1)
    rows.feed_tokens(2)
    rows.crop(0)
    rows.feed("xxx", "...", "x.x")
    rows.select("batch_select_indices", [1, 2, 0])
    rows.repeat(2)
    rows.crop(2)
    rows.feed_tokens(3)
    rows.crop(3)
    rows.feed_tokens(1)
    rows.feed("xx", "x.", ".x", "xx", "..", "xx")
    rows.crop(0)
    rows.crop(1)
    rows.feed_tokens(1)


@both_caches
def test_rollback_of_a_whole_prompt(make_rows, cache_class):
    rows = make_rows(cache_class, num_rows=1)
    rows.cache.activate_past_recording()
    rows.feed_tokens(2)
    rows.crop(2)
    rows.feed_tokens(3)
    rows.feed_tokens()


@both_caches
def test_rollback_further_than_recorded_is_refused(make_rows, cache_class):
    rows = make_rows(cache_class, num_rows=1)  # its window is 4
    rows.feed_tokens(8)
    with pytest.raises(RuntimeError, match="`activate_past_recording`"):
        rows.cache.crop(-1)
    rows.cache.activate_past_recording()
    rows.feed_tokens(2)
    with pytest.raises(RuntimeError, match=r"`crop\(-4\)` goes back further than this cache has recorded.* 3 tokens"):
        rows.crop(4)
    with pytest.raises(RuntimeError, match="negative int"):
        rows.cache.crop(2)
    rows.crop(3)
    rows.feed_tokens()
    rows.crop(1)
    with pytest.raises(RuntimeError, match=r"`crop\(-1\)` goes back further"):
        rows.crop(1)
    rows.feed_tokens()


@both_caches
def test_recording_can_end(make_rows, cache_class):
    rows = make_rows(cache_class, num_rows=2)
    rows.cache.activate_past_recording()
    rows.feed_tokens(2)
    for layer in rows.cache.layers:
        layer.record_past = False
    rows.feed_tokens(3)
    rows.cache.activate_past_recording()
    rows.feed_tokens(6)
    rows.crop(5)
    for layer in rows.cache.layers:
        layer.record_past = False
    rows.feed_tokens(1)
    rows.feed_tokens(1)


@both_caches
@pytest.mark.parametrize("recording", [False, True])
def test_reset(make_rows, cache_class, recording):
    rows = make_rows(cache_class)
    rows.reset()
    if recording:
        rows.cache.activate_past_recording()
    for _ in range(3):
        rows.feed("xxxxxx", "xx....", "..xxxx")
        rows.feed_tokens()
        rows.feed_tokens()
        rows.reset()
        assert rows.cache.get_seq_length() == 0
        assert rows.cache.layers[0].record_past == recording
        assert not rows.cache.has_previous_state()
    for layer in rows.cache.layers:
        layer.record_past = False
    rows.feed_tokens()
    rows.feed_tokens(2)


@both_caches
def test_lengths(make_rows, cache_class):
    rows = make_rows(cache_class)
    assert rows.cache.get_seq_length() == rows.cache.get_query_offset() == 0
    rows.feed("xxxxx", "xx...", "..xxx")
    assert rows.cache.get_seq_length() == rows.cache.get_seq_length(1) == 5
    is_static = cache_class is StaticCache
    assert rows.cache.get_mask_sizes(3, 0) == ((MAX_LENGTH if is_static else 8), 0)
    assert rows.cache.get_max_length() == (MAX_LENGTH if is_static else -1)
    assert len(rows.cache) == 2
    assert rows.cache.has_previous_state() and rows.cache.has_previous_state(1, state_idx=1)
    assert rows.cache.is_sliding == [False, False]


def test_rollback_is_known_to_be_possible(make_rows):
    rows = make_rows(DynamicCache)
    if not hasattr(rows.cache, "is_croppable"):
        pytest.skip("Transformers before 5.24")
    rows.feed_tokens()
    assert rows.cache.is_croppable


@both_caches
def test_a_copy_goes_its_own_way(make_rows, cache_class):
    rows = make_rows(cache_class)
    rows.feed("xxxxx", "xx...", "..xxx")
    rows.feed_tokens()
    other = Rows(rows.model, copy.deepcopy(rows.cache), 3)
    other.rows = copy.deepcopy(rows.rows)
    for _ in range(3):
        rows.feed_tokens()
        other.feed_tokens()


@both_caches
def test_early_initialization(make_rows, cache_class):
    rows = make_rows(cache_class)
    rows.cache.early_initialization(3, 2, 8, torch.float32, torch.device("cpu"))
    rows.feed("xxxxx", "xx...", "..xxx")
    rows.feed_tokens()


@both_caches
def test_layers_that_are_offloaded_and_fetched(make_rows, cache_class):
    """By hand: the library's own offloading needs a GPU."""
    rows = make_rows(cache_class)
    rows.feed("xxxxx", "xx...", "..xxx")
    for _ in range(3):
        for layer in rows.cache.layers:
            layer.offload()
            layer.prefetch()
        rows.feed_tokens()


def test_caches_that_hold_no_local_inputs_are_refused(tiny_config):
    model = RTransformerForCausalLM(tiny_config()).eval()
    self_attention, cross_attention = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for cache in (DynamicCache(), EncoderDecoderCache(self_attention, cross_attention)):
        with pytest.raises(ValueError, match=r"`cache` must be made from the model's config"):
            model(torch.ones(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="only supported for models with only full attention layers"):
        QuantizedCache("quanto", model.config)
