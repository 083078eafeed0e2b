# SPDX-License-Identifier: Apache-2.0
"""The script that writes text from a checkpoint."""

import io
from pathlib import Path

import generate
import pytest
import torch
from transformers import TextStreamer, pipeline

from rtransformer_hf import RTransformerForCausalLM, RTransformerForSequenceClassification
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.new_tokenizers import load_tokenizer


@pytest.fixture
def checkpoint(tmp_path, tiny_config):
    tokenizer = load_tokenizer("char", ["abcdefgh \n"])
    tokenizer.save_pretrained(tmp_path)
    RTransformerForCausalLM(tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    return str(tmp_path)


def test_text_is_streamed_as_it_is_made(checkpoint, capsys, monkeypatch):
    pieces = []
    monkeypatch.setattr(TextStreamer, "on_finalized_text", lambda self, text, stream_end=False: pieces.append(text))
    generate.main([checkpoint, " a b", "--max_new_tokens", "60"])
    assert len(pieces) > 2
    text = "".join(pieces).replace("<|pad|>", "_")  # an untrained model writes it too
    assert text.startswith(" a b") and 30 < len(text) <= 64
    assert set(text) <= set("abcdefgh \n\N{REPLACEMENT CHARACTER}_")


def train_to_say(folder: Path, name: str, sentence: str, tiny_config) -> str:
    """A model that knows one text alone, to its end."""
    tokenizer = load_tokenizer(name, [sentence])
    tokenizer.save_pretrained(folder)
    special_tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    model = RTransformerForCausalLM(tiny_config(vocab_size=len(tokenizer), **special_tokens))
    input_ids = torch.tensor([[*tokenizer(sentence)["input_ids"], tokenizer.eos_token_id]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["char", "word"])
def test_text_ends_where_texts_do_and_reads_the_same_everywhere(tmp_path, tiny_config, capsys, name):
    checkpoint = train_to_say(tmp_path, name, "mr. <unk> said so", tiny_config)
    generate.main([checkpoint, "mr.", "--no-do_sample", "--max_new_tokens", "30"])
    assert capsys.readouterr().out == "mr. <unk> said so\n"
    generator = pipeline("text-generation", model=checkpoint)
    outputs = generator(["mr.", "mr. <unk> said"], batch_size=2, do_sample=False, max_new_tokens=30)
    assert [output["generated_text"] for [output] in outputs] == ["mr. <unk> said so"] * 2
    [[from_nothing]] = [generator("", do_sample=False, max_new_tokens=3)]
    assert from_nothing["generated_text"]


def test_the_word_checkpoint_reads_as_sentences(capsys):
    """Tokenizers of before had no decoder, and dropped what is unknown."""
    folder = str(Path(__file__).parent.parent / "model_cards" / "ptb_word")
    generate.main([folder, "mr.", "--no-do_sample", "--max_new_tokens", "4"])
    written = capsys.readouterr().out.rstrip()
    [output] = pipeline("text-generation", model=folder)("mr.", do_sample=False, max_new_tokens=4)
    assert output["generated_text"] == written
    assert written == "mr. <unk> said"


def test_the_same_seed_gives_the_same_text(checkpoint, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        generate.main([checkpoint, "a", "--max_new_tokens", "30", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_without_sampling_the_seed_does_not_matter(checkpoint, capsys):
    texts = []
    for seed in ("1", "2"):
        generate.main([checkpoint, "a", "--no-do_sample", "--max_new_tokens", "30", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_the_prompt_may_come_from_standard_input(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("abba"))
    generate.main([checkpoint, "--max_new_tokens", "5"])
    assert capsys.readouterr().out.startswith("abba")


def test_unknown_characters_of_the_prompt_are_counted(checkpoint, capsys):
    generate.main([checkpoint, "aXYb", "--max_new_tokens", "5"])
    assert "2 of the prompt's 4 tokens are unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temperature", "0"], "--temperature: 0 (expected"),
        (["--top_p", "1.5"], "--top_p: 1.5 (expected"),
        (["--top_k", "-1"], "--top_k: -1 (expected"),
        (["--max_new_tokens", "0"], "--max_new_tokens: 0 (expected"),
        (["--seed", "-1"], "--seed: -1 (expected"),
        (["--temp", "1"], "--temp"),
    ],
)
def test_bad_flags(capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        generate.main(["any", "a", *flags])
    assert stop.value.code == 2 and named in capsys.readouterr().err


def test_what_is_no_causal_language_model(tmp_path, tiny_config, checkpoint):
    RTransformerForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    (tmp_path / "empty").mkdir()
    for bad, named in (
        ("classifier", "it holds RTransformerForSequenceClassification"),
        ("empty", "can't be used"),
        ("missing", "can't be used"),
    ):
        path = str(tmp_path / bad)
        with pytest.raises(UsageError) as refusal:
            generate.main([path, "a"])
        message = str(refusal.value)
        assert path in message and named in message and "expected a folder or Hub id of a causal language" in message


def test_a_prompt_without_tokens(checkpoint):
    with pytest.raises(UsageError, match="prompt: ''"):
        generate.main([checkpoint, ""])
