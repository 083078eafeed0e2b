# SPDX-License-Identifier: Apache-2.0
"""The pipelines of Transformers run with the model and a tokenizer from a folder."""

from pathlib import Path

import datasets
import pytest
import torch
from conftest import SENTENCES
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)
from trl import SFTConfig, SFTTrainer

from rtransformer_hf import (
    RTransformerForCausalLM,
    RTransformerForSequenceClassification,
    RTransformerForTokenClassification,
    RTransformerModel,
)

ALPHABET = "?abcdefghijklmnopqrs .,"
TEXTS = ["a bad cab.", "pad"]


@pytest.fixture
def folder(tiny_config, tmp_path):
    """Writes a model of the class and a tokenizer of characters."""

    def write(model_class):
        vocab = {character: index for index, character in enumerate(ALPHABET)}
        tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token="?"))
        tokenizer.decoder = decoders.Fuse()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", pad_token="?").save_pretrained(tmp_path)
        model_class(tiny_config(vocab_size=len(ALPHABET), num_labels=3, pad_token_id=0)).save_pretrained(tmp_path)
        return str(tmp_path)

    return write


def test_text_generation(folder):
    generator = pipeline("text-generation", model=folder(RTransformerForCausalLM))
    batched = generator(TEXTS, max_new_tokens=5, do_sample=False, batch_size=2)
    for text, [output] in zip(TEXTS, batched, strict=True):
        assert output["generated_text"].startswith(text)
        assert output == generator(text, max_new_tokens=5, do_sample=False)[0]


def test_text_classification(folder):
    classifier = pipeline("text-classification", model=folder(RTransformerForSequenceClassification), top_k=None)
    for text, together in zip(TEXTS, classifier(TEXTS, batch_size=2), strict=True):
        assert {output["label"] for output in together} == {"LABEL_0", "LABEL_1", "LABEL_2"}
        assert sum(output["score"] for output in together) == pytest.approx(1, abs=1e-5)
        assert together[0]["score"] == pytest.approx(classifier(text)[0][0]["score"], abs=1e-5)


def test_token_classification(folder):
    outputs = pipeline("token-classification", model=folder(RTransformerForTokenClassification))(TEXTS)
    assert [len(output) for output in outputs] == [len(text) for text in TEXTS]


def test_feature_extraction(folder):
    model = folder(RTransformerModel)
    features = pipeline("feature-extraction", model=model, return_tensors=True)(TEXTS[0])
    input_ids = torch.tensor([[ALPHABET.index(character) for character in TEXTS[0]]])
    torch.testing.assert_close(features, RTransformerModel.from_pretrained(model)(input_ids).last_hidden_state)


# Folders that the training scripts have made


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_a_trained_model_writes_texts_to_their_ends(text_model, tokenizer):
    generator = pipeline("text-generation", model=text_model(tokenizer))
    prompts = [" ".join(sentence.split(" ")[:2]) for sentence in SENTENCES]
    outputs = generator(prompts, batch_size=2, do_sample=False, max_new_tokens=40)
    assert [output["generated_text"].rstrip("\n") for [output] in outputs] == list(SENTENCES)


@pytest.mark.parametrize("name", ["ptb_char_small", "ptb_word"])
def test_checkpoints_of_before_write_batches(name):
    generator = pipeline("text-generation", model=str(Path(__file__).parent.parent / "model_cards" / name))
    options = {"do_sample": False, "max_new_tokens": 5}
    prompts = ["the company", "mr."]
    # The word checkpoint has no token to spare for padding.
    batch_size = 1 if name == "ptb_word" else 2
    batched = generator(prompts, batch_size=batch_size, **options)
    assert batched == [generator(prompt, **options) for prompt in prompts]
    assert all(output["generated_text"].startswith(prompt) for prompt, [output] in zip(prompts, batched, strict=True))


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize("tokenizer", ["char", "word"])
def test_a_trained_model_answers_messages(text_model, tokenizer):
    generator = pipeline("text-generation", model=text_model(tokenizer))
    generator.tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "the cat"}]
    input_ids = generator.tokenizer.apply_chat_template(messages)["input_ids"]
    assert input_ids == generator.tokenizer("the cat")["input_ids"]
    [output] = generator(messages, do_sample=False, max_new_tokens=40)
    assert output["generated_text"][-1] == {"role": "assistant", "content": output["generated_text"][-1]["content"]}
    assert output["generated_text"][-1]["content"].rstrip("\n") == " sat on the mat"


def settings(kind: type[TrainingArguments], folder: Path, **options) -> TrainingArguments:
    steps = {"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_strategy": "no"}
    return kind(str(folder), **steps, report_to="none", use_cpu=True, disable_tqdm=True, **options)


def test_a_trained_model_learns_new_texts_and_their_ends(text_model, tmp_path):
    """By Transformers' own collator, in padded batches."""
    tokenizer = AutoTokenizer.from_pretrained(text_model("char"))
    rows = [{"input_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]} for text in ("the dog", "one roof")]
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(text_model("char")),
        settings(TrainingArguments, tmp_path),
        train_dataset=datasets.Dataset.from_list(rows * 2),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    outputs = pipeline("text-generation", model=str(tmp_path))(["the", "one"], batch_size=2, do_sample=False)
    assert [output["generated_text"] for [output] in outputs] == ["the dog", "one roof"]


def test_a_trained_model_learns_instructions(text_model, tmp_path):
    """By TRL, which ends completions with the end of a text."""
    tokenizer = AutoTokenizer.from_pretrained(text_model("char"))
    rows = [{"prompt": "the ", "completion": "dog"}, {"prompt": "one ", "completion": "roof"}]
    trainer = SFTTrainer(
        text_model("char"),
        args=settings(SFTConfig, tmp_path, bf16=False, gradient_checkpointing=False),
        train_dataset=datasets.Dataset.from_list(rows * 2),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    outputs = pipeline("text-generation", model=str(tmp_path))(["the ", "one "], batch_size=2, do_sample=False)
    assert [output["generated_text"] for [output] in outputs] == ["the dog", "one roof"]
