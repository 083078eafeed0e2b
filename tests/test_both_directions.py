# SPDX-License-Identifier: Apache-2.0
"""The model that reads in both directions: exact under padding and packing, and refused where it would read ahead."""

import itertools
import os

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rtransformer_hf import (
    RTransformerConfig,
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerForTimeSeriesPrediction,
    RTransformerForTokenClassification,
    RTransformerModel,
)
from rtransformer_hf.local_rnn import IMPLEMENTATIONS, choose_implementation

CLASSES = [RTransformerModel, RTransformerForSequenceClassification, RTransformerForTokenClassification]
TRANSFORMER = {"num_local_rnn_layers": 0, "position_embedding_type": "sinusoidal"}
# Every cell, several LocalRNN layers, a window of 1, heads, structured weights, and the Transformer encoder.
VARIANTS = [
    {"local_rnn_type": "rnn", "num_local_rnn_layers": 2},
    {"local_rnn_type": "gru", "local_window_size": 1, "position_embedding_type": "sinusoidal"},
    {"local_rnn_type": "gru", "local_rnn_num_heads": 2, "num_local_rnn_layers": 3},
    {"local_rnn_type": "lstm", "projection_type": "butterfly"},
    {"local_rnn_type": "lstm", "projection_type": "monarch", "input_size": 5},
    TRANSFORMER,
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))


@pytest.fixture
def make_model(tiny_config):
    """A model that reads in both directions; keyword arguments override the fields of its tiny configuration."""

    def make(model_class=RTransformerModel, **overrides):
        return model_class(tiny_config(**{"is_causal": False, "num_labels": 3, **overrides})).eval()

    return make


def make_input(model, batch=2, time=9):
    """The name of a model's input and a random one."""
    if model.config.input_size is None:
        return "input_ids", torch.randint(1, model.config.vocab_size, (batch, time))
    return "input_values", torch.rand(batch, time, model.config.input_size)


def main_output(outputs):
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


# --- exactness ---


@every_variant
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_padded_row_equals_row_alone(make_model, variant, attention):
    """With padding on the right, on the left, on both sides, and between inputs."""
    mask = torch.zeros(6, 9, dtype=torch.long)
    for row, real in enumerate([range(9), range(5), range(4, 9), range(2, 7), [8], [1, 2, 5, 8]]):
        mask[row, real] = 1
    for model_class in CLASSES:
        model = make_model(model_class, attn_implementation=attention, **variant)
        name, batch = make_input(model, batch=6)
        together = main_output(model(**{name: batch}, attention_mask=mask))
        for row, is_real in enumerate(mask.bool()):
            alone = main_output(model(**{name: batch[row, is_real][None]}))[0]
            one_per_row = model_class is RTransformerForSequenceClassification
            assert_equal(together[row] if one_per_row else together[row, is_real], alone)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_packed_sequences_equal_sequences_alone(make_model, attention):
    # Flex attention is compiled, which takes seconds.
    for variant in [{"num_hidden_layers": 1}] if attention == "flex_attention" else VARIANTS:
        model = make_model(attn_implementation=attention, hidden_size=32, **variant)
        lengths = (2, 8, 1, 5)
        name, inputs = make_input(model, time=sum(lengths))
        position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
        packed = main_output(model(**{name: inputs}, position_ids=position_ids))
        model.set_attn_implementation("eager")
        alone = [main_output(model(**{name: sequence})) for sequence in inputs.split(lengths, dim=1)]
        assert_equal(packed, torch.cat(alone, dim=1))


def test_local_rnn_depends_on_both_windows(make_model):
    """The one that ends at a position, and the one that begins there."""
    for window_size in (1, 2, 4):
        local_rnn = make_model(local_window_size=window_size).layers[0].local_rnns[0]
        hidden_states = torch.randn(1, 10, 16, requires_grad=True)
        for t in range(10):
            (gradient,) = torch.autograd.grad(local_rnn(hidden_states)[0, t].square().sum(), hidden_states)
            is_seen = gradient[0].abs().sum(-1) > 0
            assert is_seen.tolist() == [abs(t - s) < window_size for s in range(10)]


@torch.no_grad()
def test_both_directions_mirror_each_other(make_model):
    """The same input backwards, with the two LocalRNNs exchanged, gives the same outputs backwards."""
    layer = make_model().layers[0].local_rnns[0]
    hidden_states = torch.randn(2, 9, 16)
    expected = layer(hidden_states)
    layer.cell, layer.reverse_cell = layer.reverse_cell, layer.cell
    assert_equal(layer(hidden_states.flip(1)).flip(1), expected)


@torch.no_grad()
def test_every_position_sees_all(make_model):
    for attention in ("eager", "sdpa"):
        model = make_model(RTransformerForTokenClassification, attn_implementation=attention, num_hidden_layers=1)
        _, input_ids = make_input(model, batch=1)
        before = model(input_ids).logits
        for changed in (0, 4, 8):
            other = input_ids.clone()
            other[0, changed] = input_ids[0, changed] % 22 + 1
            assert not torch.isclose(model(other).logits, before).all(dim=-1).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_form_of_the_operator_is_exact(make_model, implementation):
    """Outputs and gradients in the model, with padding, of LSTMs and of block-diagonal weights."""
    if implementation == "triton":
        pytest.importorskip("triton")
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU, and TRITON_INTERPRET was not set to 1 before Triton was imported")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for variant in ({"local_rnn_type": "lstm"}, {"local_rnn_num_heads": 2}):
        sizes = {"num_hidden_layers": 1, "local_window_size": 3, **variant}
        reference = make_model(local_rnn_implementation="reference", **sizes).to(device)
        model = make_model(local_rnn_implementation=implementation, **sizes).to(device)
        model.load_state_dict(reference.state_dict())
        input_ids = make_input(model)[1].to(device)
        mask = torch.ones_like(input_ids)
        mask[0, :3], mask[1, 5:] = 0, 0
        outputs, gradients = [], []
        for each in (reference, model):
            outputs.append(each(input_ids, attention_mask=mask).last_hidden_state * mask[..., None])
            gradients.append(torch.autograd.grad(outputs[-1].square().sum(), list(each.layers.parameters())))
        assert_equal(*outputs)
        for expected, actual in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_the_operator_is_chosen_as_ever(make_model):
    """A flipped input needs no slower form."""
    local_rnn = make_model().layers[0].local_rnns[0]
    assert choose_implementation(torch.randn(1, 9, 16).flip(1), None) == "blocked"
    assert local_rnn.reverse_cell.weights() is not None


# --- pooling ---


@torch.no_grad()
def test_sequences_are_classified_by_the_mean_of_their_positions(make_model):
    model = make_model(RTransformerForSequenceClassification, pad_token_id=0)
    _, input_ids = make_input(model)
    input_ids[0, :3], input_ids[1, 7:] = 0, 0
    mask = (input_ids != 0).long()
    states = model.model(input_ids, attention_mask=mask).last_hidden_state
    expected = model.score(torch.stack([states[0, 3:].mean(dim=0), states[1, :7].mean(dim=0)]))
    assert_equal(model(input_ids, attention_mask=mask).logits, expected)
    assert_equal(model(input_ids).logits, expected)  # padding by its id
    mask[0] = 0
    assert model(input_ids, attention_mask=mask).logits.isfinite().all()


# --- training and tools ---


def test_every_parameter_learns(make_model):
    for model_class, variant in itertools.product(CLASSES, VARIANTS):
        model = make_model(model_class, **{**variant, "input_size": 5, "local_window_size": 3})
        name, inputs = make_input(model)
        main_output(model(**{name: inputs})).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradient_checkpointing_changes_nothing(make_model):
    model = make_model(RTransformerForTokenClassification, hidden_dropout=0.2, attention_dropout=0.1).train()
    _, input_ids = make_input(model)
    labels = torch.randint(3, input_ids.shape)
    losses, gradients = [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        losses.append(model(input_ids, labels=labels).loss)
        gradients.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    assert_equal(*losses)
    for expected, actual in zip(*gradients, strict=True):
        assert_equal(actual, expected)


@torch.no_grad()
def test_dense_weights_are_compressed(make_model):
    """With a single block, a Monarch matrix holds any dense one."""
    model = make_model(RTransformerForTokenClassification)
    compressed = RTransformerForTokenClassification.from_dense(model, num_monarch_blocks=1, include_local_rnn=True)
    _, input_ids = make_input(model)
    assert_equal(compressed(input_ids).logits, model(input_ids).logits)


@torch.no_grad()
def test_compiled_and_exported(make_model):
    model = make_model(RTransformerForSequenceClassification, num_hidden_layers=1, local_window_size=2)
    _, input_ids = make_input(model)
    mask = torch.ones_like(input_ids)
    mask[0, :3] = 0
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_equal(compiled(input_ids, attention_mask=mask).logits, model(input_ids, attention_mask=mask).logits)
    base, position_ids = model.model, torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3]])
    packed = torch.compile(base, fullgraph=True, backend="eager")(input_ids, position_ids=position_ids)
    assert_equal(packed.last_hidden_state, base(input_ids, position_ids=position_ids).last_hidden_state)

    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(
        model,
        (),
        {"input_ids": input_ids, "attention_mask": mask},
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        strict=False,
    ).module()
    _, longer = make_input(model, batch=3, time=15)
    mask = torch.ones_like(longer)
    mask[1, :4], mask[2, 7:] = 0, 0
    logits = exported(input_ids=longer, attention_mask=mask).logits
    assert_equal(logits, model(longer, attention_mask=mask).logits)


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, RTransformerModel),
        (AutoModelForSequenceClassification, RTransformerForSequenceClassification),
        (AutoModelForTokenClassification, RTransformerForTokenClassification),
    ],
)
def test_saved_and_loaded(make_model, tmp_path, auto_class, model_class):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is model_class and not loaded.config.is_causal and not loaded.config.use_cache
    _, input_ids = make_input(model)
    assert torch.equal(main_output(loaded(input_ids)), main_output(model(input_ids)))
    with pytest.raises(ValueError, match=r"`config\.is_causal` must be True for RTransformerForCausalLM"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_causal_transformer_becomes_an_encoder(tiny_config, tmp_path):
    """Without LocalRNN layers the weights are the same, so a language model can be fine-tuned in both directions."""
    causal = RTransformerForCausalLM(tiny_config(**TRANSFORMER))
    causal.save_pretrained(tmp_path)
    encoder = RTransformerForTokenClassification.from_pretrained(tmp_path, is_causal=False, use_cache=False).eval()
    weight = encoder.model.layers[1].self_attn.q_proj.weight
    assert torch.equal(weight, causal.model.layers[1].self_attn.q_proj.weight)
    first, second = encoder(torch.tensor([[1, 2], [1, 3]])).logits[:, 0]
    assert not torch.allclose(first, second)


def test_attention_kernels_are_told(make_model):
    """Flash attention masks what follows by the module's word, not by a mask."""
    told = []

    def attend(module, *args, is_causal=None, **kwargs):
        told.append(module.is_causal if is_causal is None else is_causal)
        return sdpa_attention_forward(module, *args, is_causal=is_causal, **kwargs)

    AttentionInterface.register("told", attend)
    AttentionMaskInterface.register("told", sdpa_mask)
    model = make_model(attn_implementation="told")
    model(make_input(model)[1])
    assert told == [False, False]


@pytest.mark.parametrize("is_causal", [False, True])
def test_flash_attention_takes_one_packed_row(make_model, is_causal):
    """Transformers looks for packed sequences in a batch of 1 alone; in a larger one they would see each other."""
    model = make_model(is_causal=is_causal)
    model.config._attn_implementation = "flash_attention_2"  # not installed here
    _, input_ids = make_input(model)
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"`position_ids` pack several .* batch of 1 alone, got 2 rows"):
        model(input_ids, position_ids=position_ids)


# --- what a model that reads ahead cannot do ---


@pytest.mark.parametrize(
    "model_class", [RTransformerForCausalLM, RTransformerForPolyphonicMusic, RTransformerForTimeSeriesPrediction]
)
def test_models_of_what_follows_are_refused(tiny_config, model_class):
    with pytest.raises(ValueError, match=rf"`config\.is_causal` must be True for {model_class.__name__}, .* False"):
        model_class(tiny_config(input_size=5, is_causal=False))


def test_caches_are_refused(make_model):
    for model_class in CLASSES:
        model = make_model(model_class)
        input_ids = torch.ones(1, 3, dtype=torch.long)
        with pytest.raises(ValueError, match=r"`use_cache` must be False .*`config\.is_causal=False`"):
            model(input_ids, use_cache=True)
        with pytest.raises(ValueError, match=r"must be None for a model with `config\.is_causal=False`"):
            model(input_ids, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match=r"`use_cache` must be False \(or unset\) with `is_causal=False`"):
        RTransformerConfig(is_causal=False, use_cache=True)


@pytest.mark.parametrize("is_causal", [False, True])
def test_direction_cannot_change(make_model, is_causal):
    """Transformers changes it in the mask for one call or for all, but the weights are those of one kind."""
    model = make_model(is_causal=is_causal)
    input_ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=f"`is_causal` must be {is_causal}, .* got {not is_causal}"):
        model(input_ids, is_causal=not is_causal)
    model(input_ids, is_causal=is_causal)
    model.config.is_causal = not is_causal
    with pytest.raises(ValueError, match=f"`is_causal` must be {is_causal}, .* got {not is_causal}"):
        model(input_ids)


def test_packed_rows_are_not_classified_as_one(make_model):
    model = make_model(RTransformerForSequenceClassification)
    with pytest.raises(ValueError, match="`position_ids` pack several sequences into a row"):
        model(torch.ones(1, 4, dtype=torch.long), position_ids=torch.tensor([[0, 1, 0, 1]]))


def test_padding_without_a_mask_is_named(make_model, caplog):
    """A causal model may read right-padded rows without a mask; this one would read the padding."""
    make_model(pad_token_id=0)(torch.tensor([[1, 2, 0]]))
    assert "passing in an `attention_mask`" in caplog.text
