# SPDX-License-Identifier: Apache-2.0
"""The `evaluate` metric modules of the repository, loaded without network."""

import math
from pathlib import Path

import evaluate
import pytest

METRICS = Path(__file__).parent.parent / "rtransformer_hf" / "training" / "metrics"


@pytest.fixture
def load_metric(monkeypatch, tmp_path):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a metric asks for the network"))
    return lambda name: evaluate.load(str(METRICS / name), cache_dir=str(tmp_path))


def test_perplexity_weighs_texts_by_their_tokens(load_metric):
    result = load_metric("perplexity").compute(predictions=[6.0, 2.0], references=[3, 1])
    assert result == {"perplexity": pytest.approx(math.exp(8 / 4))}


def test_perplexity_of_a_uniform_model_is_its_vocabulary(load_metric):
    nats = [math.log(50)] * 7
    assert load_metric("perplexity").compute(predictions=nats, references=[1] * 7)["perplexity"] == pytest.approx(50)


def test_perplexity_beyond_floating_point_is_infinite(load_metric):
    assert load_metric("perplexity").compute(predictions=[1e6], references=[1])["perplexity"] == math.inf


def test_bits_per_character_are_log2_of_characters(load_metric):
    result = load_metric("bits_per_character").compute(predictions=[6.0, 2.0], references=[5, 3])
    assert result == {"bits_per_character": pytest.approx(8 / 8 / math.log(2))}


def test_nll_per_frame_weighs_tunes_by_their_frames(load_metric):
    result = load_metric("nll_per_frame").compute(predictions=[600.0, 20.0], references=[300, 10])
    assert result == {"nll_per_frame": pytest.approx(2)}


def test_spans_are_right_with_both_ends_and_their_type(load_metric):
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    predictions = [["B-PER", "I-PER", "O", "B-PER"], ["B-ORG", "I-ORG"]]
    result = load_metric("span_f1").compute(predictions=predictions, references=references)
    assert result == {name: pytest.approx(1 / 3) for name in ("span_precision", "span_recall", "span_f1")}
    nothing = load_metric("span_f1").compute(predictions=[["O"]], references=[["B-PER"]])
    assert nothing == {"span_precision": 0, "span_recall": 0, "span_f1": 0}
    with pytest.raises(ValueError, match="`references` of sentence 0, got 1"):
        load_metric("span_f1").compute(predictions=[["O"]], references=[["O", "O"]])


@pytest.mark.parametrize("prefixes", ["BIES", "BILU", "BMES"])
def test_spans_count_alike_in_every_scheme(load_metric, prefixes):
    def tagged(sentence: str) -> list[str]:
        tags = sentence.translate(str.maketrans("BIES", prefixes)).split()
        return [tag if tag == "O" else f"{tag}-PER" for tag in tags]

    def f1(predicted: str, true: str) -> float:
        return load_metric("span_f1").compute(predictions=[tagged(predicted)], references=[tagged(true)])["span_f1"]

    assert f1("S O O", "S S O") == pytest.approx(2 / 3)  # 1 of 1, and of 2
    assert f1("O S B E", "B E B E") == pytest.approx(1 / 2)
    assert f1("B I O B I E", "B E O B I E") == 1  # a span without an end lasts to its last word


def test_metrics_add_batches(load_metric):
    metric = load_metric("bits_per_character")
    metric.add_batch(predictions=[6.0], references=[5])
    metric.add_batch(predictions=[2.0], references=[3])
    assert metric.compute()["bits_per_character"] == pytest.approx(1 / math.log(2))


@pytest.mark.parametrize("name", ["perplexity", "bits_per_character", "nll_per_frame"])
@pytest.mark.parametrize("references", [[0], [-1]])
def test_metrics_name_bad_references(load_metric, name, references):
    with pytest.raises(ValueError, match="references"):
        load_metric(name).compute(predictions=[1.0], references=references)
