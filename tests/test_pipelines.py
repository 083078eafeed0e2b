"""The pipelines of Transformers run with the model and a tokenizer from a folder."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, pipeline

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
