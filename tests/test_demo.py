# SPDX-License-Identifier: Apache-2.0
"""The demo: what its models do, and its page in a browser, used as a person would."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import demo
import numpy as np
import pytest
import torch
from transformers import pipeline

from rtransformer_hf import (
    RTransformerConfig,
    RTransformerForSequenceClassification,
    RTransformerForTokenClassification,
    RTransformerImageProcessor,
)
from rtransformer_hf.training import checkpoints, demo_drawing, demo_inputs, demo_page, generation
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.forecasting import forecast_ahead, forecast_table
from rtransformer_hf.training.new_tokenizers import load_tokenizer
from rtransformer_hf.training.piano_rolls import read_midi, write_midi

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")


MODEL_CARDS = Path(__file__).parent.parent / "model_cards"
DIGIT_MODEL = str(MODEL_CARDS / "smnist_small")
FORECAST_MODEL = str(MODEL_CARDS / "air_passengers")
TAGS_MODEL = str(MODEL_CARDS / "japanese_ner")
LABEL_MODEL = str(MODEL_CARDS / "sst2_seed3")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# The written Space's own app, with a journal of its generators: a line as each is given up or comes to its end.
SERVER = """
import json, runpy, sys

space, journal = sys.argv[1:]
sys.path[:0] = [space, f"{space}/scripts"]
import demo, rtransformer_hf
from rtransformer_hf.training import demo_page

def note(*entry):
    with open(journal, "a") as file:
        print(json.dumps(entry), file=file, flush=True)

def journaled(generate):
    def wrapper(*args):
        count, how = 0, "closed"
        try:
            for item in generate(*args):
                count += 1
                yield item
            how = "finished"
        finally:
            note(generate.__name__, count, how)
    return wrapper

note("files", demo.__file__, rtransformer_hf.__file__)
for name in ("generate_tokens", "generate_frames"):
    setattr(demo_page, name, journaled(getattr(demo_page, name)))
runpy.run_path(f"{space}/app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def text_model():
    return checkpoints.load_causal_lm(str(MODEL_CARDS / "ptb_char_small"))


@pytest.fixture(scope="module")
def music_model():
    return checkpoints.load_music_model(str(MODEL_CARDS / "nottingham_joint"))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# What the models do


def test_text_is_drawn_from_the_distributions_shown(text_model):
    model, tokenizer = text_model
    input_ids, notes = demo_inputs.read_prompt(tokenizer, "the company ")
    assert notes == []
    steps = list(generation.generate_tokens(model, tokenizer, input_ids, 12, 0.8, 0.5, generator(0)))
    text = "the company "
    for written, probabilities, token in steps:
        with torch.no_grad():
            logits = model(tokenizer(text, return_tensors="pt").input_ids).logits[0, -1] / 0.8
        full = logits.softmax(dim=-1).sort(descending=True)
        kept = full.indices[: int((full.values.cumsum(dim=-1) < 0.5).sum()) + 1]
        assert set(probabilities.nonzero()[:, 0].tolist()) == set(kept.tolist()) and token in kept
        torch.testing.assert_close(probabilities[kept], logits[kept].softmax(dim=-1), atol=1e-5, rtol=1e-4)
        text += tokenizer.decode([token])
        assert written == text


def test_runs_at_the_same_time_do_not_mix(text_model):
    model, tokenizer = text_model

    def run(prompt: str, seed: int):
        input_ids, _ = demo_inputs.read_prompt(tokenizer, prompt)
        return generation.generate_tokens(model, tokenizer, input_ids, 10, 1.0, 1.0, generator(seed))

    alone = [[text for text, *_ in run(prompt, seed)] for prompt, seed in (("the ", 1), ("a bank ", 2))]
    together = [(one, other) for (one, *_), (other, *_) in zip(run("the ", 1), run("a bank ", 2), strict=True)]
    assert together == list(zip(*alone, strict=True))


def test_prompts(text_model):
    _, tokenizer = text_model
    input_ids, notes = demo_inputs.read_prompt(tokenizer, "b" * 10 + "a" * demo_inputs.MAX_PROMPT)
    assert tokenizer.decode(input_ids[0]) == "a" * demo_inputs.MAX_PROMPT
    assert len(notes) == 1 and "cut to its last 2,000 characters" in notes[0]
    input_ids, notes = demo_inputs.read_prompt(tokenizer, "The Ünion ☃ is <unk>")
    assert tokenizer.decode(input_ids[0]) == "the nion  is <unk>"
    assert len(notes) == 1 and "does not know T Ü ☃:" in notes[0]
    for nothing in ("", "☃雪"):
        with pytest.raises(UsageError, match="Write a beginning"):
            demo_inputs.read_prompt(tokenizer, nothing)


def test_a_tune_goes_on_as_the_model_samples_it(music_model):
    tune = demo_inputs.example_tune()
    frames = list(generation.generate_frames(music_model, tune, 6, 0.9, generator(0)))
    sampled = music_model.sample(torch.from_numpy(tune)[None], 6, temperature=0.9, generator=generator(0))
    np.testing.assert_array_equal(np.stack(frames), sampled[0, len(tune) :].numpy())
    silence, _ = demo_inputs.read_tune("Silence", None, 48)
    frames = list(generation.generate_frames(music_model, silence, 6, 0.9, generator(0)))
    sampled = music_model.sample(torch.zeros(1, 1, 88), 6, temperature=0.9, generator=generator(0))
    np.testing.assert_array_equal(np.stack(frames), sampled[0, 1:].numpy())


@torch.no_grad()
def test_the_example_tune_is_of_the_models_kind(music_model):
    frames = torch.from_numpy(demo_inputs.example_tune())[None].float()
    assert music_model(input_values=frames, labels=frames).loss < 3  # nats a frame; music of other kinds has 10


def test_bad_midi_files(tmp_path):
    (tmp_path / "damaged.mid").write_bytes(b"MThd and no more")
    write_midi(tmp_path / "silent.mid", np.zeros((4, 88), dtype=np.uint8), 2, 120)
    for file, named in (
        (None, "Choose a MIDI file"),
        ("damaged.mid", "'damaged.mid' can't be read"),
        ("silent.mid", "no notes"),
    ):
        with pytest.raises(UsageError, match=named) as error:
            demo_inputs.read_tune("MIDI file", file and str(tmp_path / file), 48)
        assert str(tmp_path) not in str(error.value)


def test_the_models_frames_per_beat(music_model, tmp_path, monkeypatch):
    """Tunes are read, and written, by the frames for each quarter note that the model was trained on."""
    example = demo_inputs.example_tune()
    np.testing.assert_array_equal(demo_inputs.example_tune(4), example.repeat(2, axis=0))
    np.testing.assert_array_equal(demo_inputs.example_tune(1), example[::2])
    write_midi(tmp_path / "tune.mid", example, frames_per_beat=2, tempo=100)
    for frames_per_beat in (1, 2, 4):
        tune, _ = demo_inputs.read_tune("MIDI file", str(tmp_path / "tune.mid"), 200, frames_per_beat)
        np.testing.assert_array_equal(tune, demo_inputs.example_tune(frames_per_beat))
    monkeypatch.setattr(demo_page, "load_music_model", lambda checkpoint: music_model)
    monkeypatch.setattr(demo_page, "trained_frames_per_beat", lambda checkpoint: 4)
    with demo_page.gr.Blocks() as page:
        demo_page.music_tab("any")
    assert "Frames given, 4 a beat" in [getattr(block, "label", None) for block in page.blocks.values()]


@torch.no_grad()
def test_a_digit_is_read_causally():
    model, processor = checkpoints.load_digit_classifier(DIGIT_MODEL)
    image = demo_inputs.prepare_drawing(demo_inputs.EXAMPLE_DRAWING)
    probabilities = demo_inputs.read_digit(model, processor, image)
    assert probabilities.shape == (784, 10) and probabilities[-1].argmax() == 2
    pixels = (image.reshape(1, -1, 1) / 255 - 0.1307) / 0.3081
    for num_read in (1, 300, 784):
        logits = model(input_values=torch.from_numpy(pixels[:, :num_read]).float()).logits
        torch.testing.assert_close(probabilities[num_read - 1], logits[0].softmax(dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "points", [[(60, 40), (200, 40), (60, 240), (200, 240)], [(140, 20), (140, 250)], [(30, 35), (36, 38)]]
)
def test_a_drawing_becomes_what_mnist_has(points):
    image = demo_inputs.prepare_drawing([" ".join(f"{x},{y}" for x, y in points)])
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.max() > 200
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    sides = (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
    assert max(sides) == 20
    centre = [np.average(np.arange(28), weights=image.sum(axis=axis, dtype=int)) for axis in (1, 0)]
    np.testing.assert_allclose(centre, 14, atol=0.5)
    moved = demo_inputs.prepare_drawing([" ".join(f"{x + 4},{y + 2}" for x, y in points)])
    np.testing.assert_array_equal(moved, image)


def test_an_empty_drawing():
    with pytest.raises(UsageError, match="Nothing is drawn"):
        demo_inputs.prepare_drawing([])


def write_passengers(path: Path) -> Path:
    """Four years of months, rising, with a season and a missing one."""
    months = [f"{1949 + step // 12}-{step % 12 + 1:02}" for step in range(48)]
    counts = [f"{100 + step + 20 * np.sin(step * np.pi / 6):.1f}" for step in range(48)]
    counts[40] = ""
    rows = "".join(f"{month},{count}\n" for month, count in zip(months, counts, strict=True))
    path.write_text(f"Date,Passengers\n{rows}")
    return path


TARGETS = ["Passengers"]


def test_a_table_is_forecast(tmp_path):
    model, extractor, settings = checkpoints.load_forecaster(FORECAST_MODEL)
    (series,) = demo_inputs.read_series(
        str(write_passengers(tmp_path / "new.csv")), settings, TARGETS, "Date", "Passengers"
    )
    quantiles = forecast_ahead(model, extractor, series, settings["season_length"], 14, generator(0))
    assert quantiles.shape == (9, 14, 1) and (np.diff(quantiles, axis=0) >= 0).all()
    # The covariates of the steps ahead are those that the training would give them.
    phases = 2 * np.pi * ((np.arange(62) + 12 * 1949) % 12) / 12
    season = (np.stack([np.sin(phases), np.cos(phases)], axis=1) - extractor.mean[1:]) / extractor.std[1:]
    past = torch.from_numpy(np.column_stack([series.values, season[:48]])[-36:]).float()
    samples = model.forecast(
        past[None], 14, generator=generator(0), future_covariates=torch.from_numpy(season[48:]).float()[None]
    )
    np.testing.assert_allclose(quantiles[4], samples.sequences[0].quantile(0.5, dim=0).numpy(), rtol=1e-4)
    drawn = demo_drawing.draw_forecasts([series], [quantiles])
    assert drawn.count('class="band"') == 2 and drawn.count('class="line known"') == 2  # before the gap and after
    table = forecast_table([series], [quantiles], None, "Date")
    assert len(table) == 14 and table.columns[:4].tolist() == ["series", "Date", "channel", "0.1"]
    assert table.Date.astype(str)[[0, 13]].tolist() == ["1953-01-01", "1954-02-01"]

    for file, columns, message in [
        (None, ("Date", "Passengers"), "Choose a CSV file"),
        ("new.csv", ("Date", "Sales"), r"^--target_columns: new\.csv has no column 'Sales'"),
        ("new.csv", ("", "Date"), r"^new\.csv: column 'Date' holds '1949-01' in row 0"),
    ]:
        with pytest.raises(UsageError, match=message):
            demo_inputs.read_series(file and str(tmp_path / file), settings, TARGETS, *columns)
    assert demo_inputs.season_notes([series], settings["season_length"]) == []
    days = "".join(f"2026-01-{day:02},{day}\n" for day in range(1, 15))
    (tmp_path / "days.csv").write_text(f"Date,Passengers\n{days}")
    daily = demo_inputs.read_series(str(tmp_path / "days.csv"), settings, TARGETS, "Date", "Passengers")
    (note,) = demo_inputs.season_notes(daily, settings["season_length"])
    assert "seasons of 7 steps; this model has learnt seasons of 12" in note

    text = (tmp_path / "new.csv").read_text()
    (tmp_path / "semicolons.csv").write_text(text.replace(",", ";").replace(".", ","))
    with pytest.raises(UsageError, match=r"^semicolons\.csv: the first line, .* has ';' between its cells"):
        demo_inputs.read_series(str(tmp_path / "semicolons.csv"), settings, TARGETS, "Date", "Passengers")
    odd = "".join(f"{line},\r\n" for line in text.splitlines()[:4])  # with a mark, an empty column and three rows
    (tmp_path / "odd.csv").write_text(f"\ufeff{odd}", newline="", encoding="utf-8")
    (series,) = demo_inputs.read_series(str(tmp_path / "odd.csv"), settings, TARGETS, "Date", "Passengers")
    assert np.isfinite(forecast_ahead(model, extractor, series, 12, 3, generator(0))).all()

    (tmp_path / "two.csv").write_text("b,a\n1,2\n3,4\n,\n")  # the last row is one to forecast
    (series,) = demo_inputs.read_series(str(tmp_path / "two.csv"), settings, ["a", "b"], "", "")
    assert series.channels == ["a", "b"] and series.values.tolist() == [[2, 1], [4, 3]]
    (series,) = demo_inputs.read_series(str(tmp_path / "two.csv"), settings, ["x", "y"], "", "b, a")
    assert series.channels == ["b", "a"]

    (series,) = demo_inputs.read_series(str(tmp_path / "new.csv"), settings, TARGETS, "", "Passengers")
    with pytest.raises(UsageError, match="no time stamps"):
        forecast_ahead(model, extractor, series, 12, 3)


SENTENCE = "5 月 3 日 、 東京 で 中国 と アメリカ の 代表 が 会談 し た 。"


def test_spans_are_those_of_the_pipeline():
    model, tokenizer, settings = checkpoints.load_tagger(TAGS_MODEL)
    text, spans, notes = demo_inputs.tag_text(model, tokenizer, SENTENCE, settings["word_separator"])
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
    expected = [(found["start"], found["end"], found["entity_group"]) for found in tagger(SENTENCE)]
    assert [(span.start, span.end, span.tag) for span in spans] == expected and text == SENTENCE
    assert notes == ["The model does not know 代表, 会談."]
    assert [(text[span.start : span.end], span.tag) for span in spans] == [
        ("5 月 3 日", "DAT"),
        ("東京", "LOC"),
        ("中国", "LOC"),
        ("アメリカ", "LOC"),
    ]
    for span, found in zip(spans, tagger(SENTENCE), strict=True):
        assert span.probability == pytest.approx(found["score"], abs=1e-5)
    drawn = demo_drawing.draw_spans(text, spans)
    assert "DAT: 5 月 3 日</th>" in drawn and f"{100 * spans[1].probability:.1f} %" in drawn
    assert "Nothing found" in demo_drawing.draw_spans(text, [])


@pytest.mark.parametrize(
    ("kind", "separator", "words"),
    [
        # A word is tagged by its first token, whatever the tokenizer makes of the rest.
        ("char", " ", ["Zoë", "can", "'", "t", "write", "(", "日本", ")", "."]),
        ("bpe", " ", ["Zoë", "can", "'t", "write", "(", "日本", ")."]),
        ("char", "", [*"Zoëcan'twrite(日本)."]),
    ],
)
def test_words_are_found_with_any_tokenizer(kind, separator, words):
    text = "Zoë can't\twrite (日本)."
    tokenizer = load_tokenizer(kind, [text])
    names = ["A", "B", "C"]  # no spans
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "id2label": dict(enumerate(names))}
    model = RTransformerForTokenClassification(RTransformerConfig(vocab_size=len(tokenizer), **sizes)).eval()
    _, spans, _ = demo_inputs.tag_text(model, tokenizer, text, separator)
    assert [text[span.start : span.end] for span in spans] == words
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    firsts = [next(i for i, (start, end) in enumerate(offsets) if start <= span.start < end) for span in spans]
    assert [span.tag for span in spans] == [names[index] for index in logits[firsts].argmax(-1)]


def test_spans_of_bilou_tags():
    tokenizer = load_tokenizer("char", ["abcd"])
    names = ["O", "B-X", "L-X", "U-X"]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "id2label": dict(enumerate(names))}
    model = RTransformerForTokenClassification(RTransformerConfig(vocab_size=len(tokenizer), **sizes)).eval()
    model.forward = lambda **inputs: SimpleNamespace(logits=torch.eye(4)[[3, 3, 1, 2]][None])
    _, spans, _ = demo_inputs.tag_text(model, tokenizer, "abcd", "")
    assert [(span.start, span.end, span.tag) for span in spans] == [(0, 1, "X"), (1, 2, "X"), (2, 4, "X")]


def test_scores_are_those_of_the_pipeline():
    model, tokenizer, _ = checkpoints.load_text_classifier(LABEL_MODEL)
    scores, notes = demo_inputs.label_text(model, tokenizer, ["A warm, funny and touching zxcv film."])
    assert notes == ["The model does not know zxcv."]
    classifier = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    model.config.id2label = {1: "1", 0: "0"}  # whose order says nothing
    for function, problem_type in (
        ("softmax", None),
        ("sigmoid", "multi_label_classification"),
        ("none", "regression"),
    ):
        model.config.problem_type = problem_type
        scores, _ = demo_inputs.label_text(model, tokenizer, ["A warm, funny and touching film."])
        [expected] = classifier(["A warm, funny and touching film."], function_to_apply=function)
        assert list(scores) == [output["label"] for output in expected] == ["1", "0"]
        assert list(scores.values()) == pytest.approx([output["score"] for output in expected], abs=1e-5)
        said = {
            "softmax": f"Label: 1, with {100 * scores['1']:.1f} %",
            "sigmoid": "Labels above one half: 1<",
            "none": f"1: <strong>{scores['1']:.4g}</strong>",
        }
        assert said[function] in demo_drawing.draw_labels(scores, demo_inputs.label_kind(model))
    assert "one half: none<" in demo_drawing.draw_labels({"a": 0.4, "b": 0.1}, "multi_label_classification")


def test_texts_that_are_read_in_part_or_not_at_all():
    model, tokenizer, _ = checkpoints.load_text_classifier(LABEL_MODEL)
    _, notes = demo_inputs.label_text(model, tokenizer, ["film " * 500])
    assert notes == ["The text was cut to its first 2,000 characters."]
    tokenizer.model_max_length = 5
    _, notes = demo_inputs.label_text(model, tokenizer, ["a film " * 5])
    assert notes == ["The model reads 5 of the 10 tokens; the rest was cut off."]
    for texts, message in (([" \n"], "Write a text"), (["a", ""], "Write both texts")):
        with pytest.raises(UsageError, match=message):
            demo_inputs.label_text(model, tokenizer, texts)


# The page without its server


def test_a_tab_without_a_model_says_what_makes_one(tmp_path, capsys):
    missing = {name: str(tmp_path / name) for name in demo_page.TRAINED_BY}
    page = demo_page.make_page(missing)
    shown = "\n".join(str(block.value) for block in page.blocks.values() if isinstance(block, demo_page.gr.Markdown))
    for name, command in demo_page.TRAINED_BY.items():
        assert f"`{tmp_path / name}` can't be opened" in shown and f"python {command}" in shown
        recipe = command.split()[1]
        assert (Path(__file__).parent.parent / recipe).exists()
    assert capsys.readouterr().err.count("has no model") == len(demo_page.TRAINED_BY)


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match="RTransformerForCausalLM"):
        checkpoints.load_digit_classifier(str(MODEL_CARDS / "ptb_char_small"))
    with pytest.raises(UsageError, match=r"a tagger of words .*RTransformerForSequenceClassification"):
        checkpoints.load_tagger(LABEL_MODEL)
    with pytest.raises(UsageError, match=r"a classifier of texts .*it reads vectors of 1 values"):
        checkpoints.load_text_classifier(DIGIT_MODEL)
    shutil.copytree(DIGIT_MODEL, tmp_path / "permuted")
    RTransformerImageProcessor(permutation_seed=3).save_pretrained(tmp_path / "permuted")
    with pytest.raises(UsageError, match=r"permutation_seed are \(1, 10, True, 3\)"):
        checkpoints.load_digit_classifier(str(tmp_path / "permuted"))
    # A drawing's answer is shown after each pixel, which a model that reads ahead does not have.
    sizes = {"input_size": 1, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 10}
    RTransformerForSequenceClassification(RTransformerConfig(**sizes, is_causal=False)).save_pretrained(
        tmp_path / "both"
    )
    RTransformerImageProcessor().save_pretrained(tmp_path / "both")
    with pytest.raises(UsageError, match=r"is_causal and permutation_seed are \(1, 10, False, None\)"):
        checkpoints.load_digit_classifier(str(tmp_path / "both"))


def test_bad_flags(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--port", "0"])
    assert stop.value.code == 2 and "--port: 0 (expected" in capsys.readouterr().err
    (tmp_path / "mine").write_text("")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UsageError, match=f"--make_space: '{taken}' is (not empty|a file)"):
            demo.main(["--make_space", str(taken)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_space_holds_what_others_need_of_each_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left_out = ("training_args.bin", "trainer_state.json", "checkpoint-18/optimizer.pt", "checkpoint-18/config.json")
    for owner in ("anna", "bert"):  # trainings whose folders have one name
        for name in ("config.json", "model.safetensors", "tokenizer.json", "evaluation.json", *left_out):
            file = Path(owner, "model", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(owner)
    flags = [flag for name in demo.TABS for flag in (f"--{name}_model", "some/one")]
    demo.main([*flags, "--text_model", "anna/model", "--label_model", "bert/model", "--make_space", "space"])
    for tab, owner in (("text", "anna"), ("label", "bert")):
        files = {file.name: file.read_text() for file in Path("space/models", tab).iterdir()}
        names = ("config.json", "model.safetensors", "tokenizer.json", "evaluation.json")
        assert files == dict.fromkeys(names, owner)
        assert f"'{tab}': 'models/{tab}'" in Path("space/app.py").read_text()
    assert "'music': 'some/one'" in Path("space/app.py").read_text()

    Path("bert/model/model.safetensors").rename("bert/model/pytorch_model.bin")
    with pytest.raises(UsageError, match=r"--label_model: no model\*\.safetensors in 'bert/model'"):
        demo.main([*flags, "--label_model", "bert/model", "--make_space", "other"])
    assert not Path("other").exists()


def test_a_port_that_is_taken(tmp_path):
    missing = [flag for name in demo_page.TRAINED_BY for flag in (f"--{name}_model", str(tmp_path / name))]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UsageError, match=f"--port {port}: can't be served at"):
            demo.main([*missing, "--host", "127.0.0.1", "--port", port])


# The page in a browser


class Server:
    def __init__(self, url: str, journal: Path):
        self.url = url
        self.journal = journal

    def entries(self, name: str) -> list[list]:
        """What the journal says of one generator or file: [number of items, how it ended] for each run."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [entry for first, *entry in map(json.loads, lines) if first == name]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The Space that the script writes, as it runs by itself: one server for all tests."""
    folder = tmp_path_factory.mktemp("demo")
    space, journal = folder / "space", folder / "journal"
    models = {"text": MODEL_CARDS / "ptb_char_small", "music": MODEL_CARDS / "nottingham_joint", "digit": DIGIT_MODEL}
    models |= {"forecast": FORECAST_MODEL, "tags": TAGS_MODEL, "label": LABEL_MODEL}
    flags = [flag for name, path in models.items() for flag in (f"--{name}_model", str(path))]
    demo.main([*flags, "--make_space", str(space)])
    assert "license" not in (space / "README.md").read_text()  # whose models they are, the script can't know
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    (folder / "serve.py").write_text(SERVER)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "serve.py", space, journal], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 240
        while f"http://127.0.0.1:{port}" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        server = Server(f"http://127.0.0.1:{port}", journal)
        assert all(file.startswith(str(space)) for file in server.entries("files")[0])
        yield server
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as session:
        try:
            browser = session.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        except playwright.Error as error:
            pytest.skip(f"no Chromium; `apt install chromium` or `playwright install chromium` brings one: {error}")
        yield browser
        browser.close()


@pytest.fixture
def open_page(server, browser):
    """Opens the page as a new visitor. At the end of the test, none must have had an error or reached elsewhere."""
    problems, contexts = [], []

    def visit(width: int = 1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("response", lambda response: response.status >= 400 and problems.append(response.url))
        page.on(
            "request",
            lambda request: request.url.startswith((server.url, "data:", "blob:")) or problems.append(request.url),
        )
        page.goto(server.url)
        page.get_by_role("button", name="Write").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def button(page, name: str):
    """A button of the tab that is open."""
    return page.get_by_role("button", name=name, exact=True).filter(visible=True)


def wait_for_tab(page):
    """Gradio gives a tab's components their first values once more in the frame after the one that shows them."""
    page.get_by_role("tabpanel").get_by_role("button").filter(visible=True).first.wait_for()
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def open_tab(page, name: str):
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():  # on a phone, tabs that don't fit are in a menu
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name)
    tab.click()
    wait_for_tab(page)


def set_slider(page, name: str, value: int):
    page.get_by_role("spinbutton", name=name).filter(visible=True).fill(str(value))
    page.keyboard.press("Tab")


def wait_for_file(page, name: str):
    """For a file to be listed. While it is on its way, at times too briefly to be seen, its name is there as text."""
    page.get_by_label(name).wait_for()


def text_of(page) -> str:
    return page.get_by_label("Text", exact=True).and_(page.get_by_role("textbox")).input_value()


def wait_until(page, is_so):
    """For what a page's own locators can't wait for; 60 seconds at most."""
    for _ in range(600):
        if is_so():
            return
        page.wait_for_timeout(100)
    raise AssertionError("waited in vain")


def test_text_is_written_token_by_token(open_page):
    page = open_page()
    page.evaluate(
        """() => {
            window.captions = new Set();
            new MutationObserver(() => document.querySelectorAll(".bars caption").forEach(
                caption => window.captions.add(caption.innerText)
            )).observe(document.body, {childList: true, subtree: true, characterData: true});
        }"""
    )
    page.get_by_label("Beginning").fill("The stock ")
    set_slider(page, "Length", 40)
    button(page, "Write").click()
    page.get_by_text("The model does not know T: read in lower case, or left out.").wait_for()
    wait_until(page, lambda: len(text_of(page)) == 50)
    assert text_of(page).startswith("the stock ")
    assert page.locator(".bars tr").count() == 10
    assert page.evaluate("window.captions.size") > 10  # bars have moved
    drawn = page.locator(".bars caption").inner_text().split(",")[0].removeprefix("Drawn: ")
    assert drawn.replace("space", " ") == text_of(page)[-1]


def test_bad_text_is_met_with_a_message(open_page):
    page = open_page()
    page.get_by_label("Beginning").fill("")
    button(page, "Write").click()
    page.get_by_text("Write a beginning").wait_for()
    assert text_of(page) == "" and page.locator(".bars").count() == 0
    page.get_by_label("Beginning").fill("a b " * 1000)
    set_slider(page, "Length", 1)
    button(page, "Write").click()
    page.get_by_text("cut to its last 2,000 characters").wait_for()
    wait_until(page, lambda: len(text_of(page)) == 2001)


def test_text_by_keyboard_alone(open_page):
    page = open_page()
    page.get_by_role("tab", name="Text").focus()
    page.evaluate("document.addEventListener('focusin', event => (window.last = event.target))")
    visited = []
    while not visited or visited[-1] != "Stop":
        page.keyboard.press("Tab")
        visited.append(
            page.evaluate(
                "() => (window.last.getAttribute('aria-label') || window.last.labels?.[0]?.innerText"
                " || window.last.innerText).trim()"
            )
        )
        assert visited[-1] and len(visited) < 30, visited
        if visited[-1] == "Beginning":
            page.keyboard.press("Control+A")
            page.keyboard.type("a market ")
        if visited[-1] == "number input for Length, in tokens":
            page.keyboard.type("1000")
        if visited[-1] == "Write":
            page.keyboard.press("Enter")
            wait_until(page, lambda: len(text_of(page)) > 20)
    for _ in range(5):
        page.keyboard.press("Space")
        page.wait_for_timeout(1000)
        stopped = text_of(page)
        assert stopped.startswith("a market ")
        if len(stopped) < 1009:
            break
        # On a busy machine the text may be complete before the key arrives.
        button(page, "Write").focus()
        page.keyboard.press("Enter")
        wait_until(page, lambda: 20 < len(text_of(page)) < 1009)
        button(page, "Stop").focus()
    else:
        pytest.fail("no stop came in time")
    page.wait_for_timeout(1000)
    assert text_of(page) == stopped


def test_two_visitors_at_once(open_page):
    prompts = ["the ", "new york stock "]
    pages = [open_page() for _ in prompts]
    for page, prompt in zip(pages, prompts, strict=True):
        page.get_by_label("Beginning").fill(prompt)
        set_slider(page, "Length", 60)
    for page in pages:
        button(page, "Write").click()
    for page, prompt in zip(pages, prompts, strict=True):
        wait_until(page, lambda page=page, prompt=prompt: len(text_of(page)) == len(prompt) + 60)
        assert text_of(page).startswith(prompt)
    assert text_of(pages[0])[-60:] != text_of(pages[1])[-60:]


@pytest.mark.parametrize("tab", ["Text", "Music"])
def test_a_closed_page_ends_its_generation(open_page, server, tab):
    name, start, length, whole = {
        "Text": ("generate_tokens", "Write", "Length", 1000),
        "Music": ("generate_frames", "Play on", "Frames to add", 512),
    }[tab]
    before = server.entries(name)
    page = open_page()
    open_tab(page, tab)
    set_slider(page, length, whole)
    button(page, start).click()
    page.locator(".bars, .chart").first.wait_for()
    page.wait_for_timeout(500)
    page.context.close()
    deadline = time.monotonic() + 60
    while len(server.entries(name)) == len(before) and time.monotonic() < deadline:
        time.sleep(0.1)
    ((count, how),) = server.entries(name)[len(before) :]
    assert how == "closed" and 0 < count < whole


def keep_midi(page, tmp_path: Path) -> np.ndarray:
    link = page.locator("a[download='tune.mid']")
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "kept.mid")
    return read_midi(tmp_path / "kept.mid", demo_inputs.FRAMES_PER_BEAT)  # by pretty_midi


def test_music(open_page, tmp_path):
    page = open_page()
    open_tab(page, "Music")
    set_slider(page, "Frames to add", 8)
    button(page, "Play on").click()
    page.get_by_text("Frames: 48 given, 8 of 8 new ones").wait_for()
    tune = keep_midi(page, tmp_path)
    np.testing.assert_array_equal(tune[:48], demo_inputs.example_tune())
    assert 48 < len(tune) <= 56
    assert page.locator(".notes").get_attribute("d").count("M") == tune.sum()
    assert page.get_by_role("button", name="Play", exact=True).is_visible()

    uploaded = np.eye(20, 88, k=40, dtype=np.uint8)
    write_midi(tmp_path / "mine.mid", uploaded, demo_inputs.FRAMES_PER_BEAT, 100)
    page.get_by_role("radio", name="MIDI file").check()
    button(page, "Play on").click()
    page.get_by_text("Choose a MIDI file, or another start.").wait_for()
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Click to Upload").click()
    chooser.value.set_files(tmp_path / "mine.mid")
    wait_for_file(page, "mine.mid")
    set_slider(page, "Frames given", 10)
    button(page, "Play on").click()
    page.get_by_text("The tune was cut to the first 10 of its 20 frames.").wait_for()
    page.get_by_text("Frames: 10 given, 8 of 8 new ones").wait_for()
    tune = keep_midi(page, tmp_path)
    np.testing.assert_array_equal(tune[:10], uploaded[:10])

    # What there is at a stop can be kept as well. On a busy machine the tune may be complete before the click arrives.
    page.get_by_role("radio", name="Example tune").check()
    set_slider(page, "Frames to add", 512)
    for _ in range(5):
        button(page, "Play on").click()
        page.get_by_text(re.compile("Frames: 10 given, (?!512 )[1-9][0-9]* of 512")).first.wait_for()
        button(page, "Stop").click()
        tune = keep_midi(page, tmp_path)
        np.testing.assert_array_equal(tune[:10], demo_inputs.example_tune()[:10])
        if len(tune) < 522:
            return
    pytest.fail("no stop came in time")


def drawn_strokes(page) -> list[str]:
    return page.locator(".drawing polyline").evaluate_all("lines => lines.map(line => line.getAttribute('points'))")


def read_drawing(page):
    """Clicks Read, and asserts that the page shows what the model says of what is drawn."""
    expected = demo_inputs.read_digit(
        *checkpoints.load_digit_classifier(DIGIT_MODEL), demo_inputs.prepare_drawing(drawn_strokes(page))
    )
    button(page, "Read").click()
    page.get_by_text("784 of 784 pixels read", exact=True).wait_for()
    page.get_by_text(f"Read as {int(expected[-1].argmax())}, with").wait_for()
    percentages = page.locator(".bars tr td:last-child").filter(visible=True).all_inner_texts()
    np.testing.assert_allclose([float(text.rstrip(" %")) for text in percentages], 100 * expected[-1], atol=0.11)
    lines = page.locator("polyline.line").evaluate_all("lines => lines.map(line => line.getAttribute('points'))")
    shown = np.array([[float(value) for value in line.split()] for line in lines]).reshape(10, 784, 2)
    np.testing.assert_array_equal(shown[..., 0], np.tile(np.arange(1, 785), (10, 1)))
    np.testing.assert_allclose(1 - shown[..., 1], expected.T, atol=0.001)


def test_a_digit_drawn_with_the_mouse(open_page):
    page = open_page()
    open_tab(page, "Digit")
    button(page, "Read").click()
    page.get_by_text("Nothing is drawn yet").wait_for()
    page.evaluate(
        """() => {
            window.captions = new Set();
            new MutationObserver(() => window.captions.add(document.querySelector(".digit figcaption")?.innerText))
                .observe(document.body, {childList: true, subtree: true, characterData: true});
        }"""
    )
    area = page.locator(".drawing svg")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    for stroke in ([(100, 60), (100, 150), (190, 150)], [(170, 100), (170, 230)]):  # a four
        page.mouse.move(box["x"] + stroke[0][0], box["y"] + stroke[0][1])
        page.mouse.down()
        for x, y in stroke[1:]:
            page.mouse.move(box["x"] + x, box["y"] + y, steps=5)
        page.mouse.up()
    page.mouse.move(box["x"] + 20, box["y"] + 20)  # draws nothing
    strokes = drawn_strokes(page)
    assert len(strokes) == 2
    np.testing.assert_allclose([float(value) for value in strokes[1].split()[-1].split(",")], (170, 230), atol=1.5)
    read_drawing(page)
    assert page.evaluate("window.captions.size") > 5  # it has been seen reading
    button(page, "Clear").click()
    wait_until(page, lambda: drawn_strokes(page) == [])


def test_a_digit_drawn_by_keyboard_alone(open_page):
    page = open_page()
    page.get_by_role("tab", name="Digit").focus()
    page.keyboard.press("Enter")
    wait_for_tab(page)
    has_focus = 'document.activeElement.getAttribute("role") === "application"'
    for _ in range(5):  # past the buttons of the tabs that follow
        if not page.evaluate(has_focus):
            page.keyboard.press("Tab")
    assert page.evaluate(has_focus)
    for key in ["Space"] + 6 * ["ArrowDown"] + ["Space"] + 3 * ["ArrowUp"] + ["Space"] + 4 * ["ArrowRight"]:
        page.keyboard.press(key)
    assert drawn_strokes(page) == [
        "140,140 140,140 140,150 140,160 140,170 140,180 140,190 140,200",
        "140,170 140,170 150,170 160,170 170,170 180,170",
    ]
    read_drawing(page)

    # A button lifts a pen that was down: there is no stroke to go on with.
    button(page, "Clear").press("Enter")
    wait_until(page, lambda: drawn_strokes(page) == [])
    page.get_by_role("application").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowLeft")
    assert [len(stroke.split()) for stroke in drawn_strokes(page)] == [3]


def test_phone(open_page, tmp_path):
    page = open_page(width=375)

    def assert_fits():
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        cut_off = page.locator("button, input, textarea, table, svg, figcaption").evaluate_all(
            """elements => elements.filter(
                element => element.checkVisibility() && !element.closest(".visually-hidden")  // Gradio measures tabs
            )
                .filter(element => element.getBoundingClientRect().right > 375).map(element => element.outerHTML)"""
        )
        assert cut_off == []

    assert_fits()
    set_slider(page, "Length", 5)
    button(page, "Write").click()
    page.locator(".bars").wait_for()
    assert_fits()
    open_tab(page, "Music")
    set_slider(page, "Frames to add", 5)
    button(page, "Play on").click()
    page.locator("a[download='tune.mid']").wait_for()
    assert_fits()
    open_tab(page, "Digit")
    button(page, "Draw an example").click()
    wait_until(page, lambda: drawn_strokes(page) == demo_inputs.EXAMPLE_DRAWING)
    button(page, "Read").click()
    page.get_by_text("784 of 784 pixels read", exact=True).wait_for()
    assert_fits()
    open_tab(page, "Forecast")
    chooser = page.get_by_role("tabpanel").filter(visible=True).locator("input[type=file]")
    chooser.set_input_files(write_passengers(tmp_path / "new.csv"))
    wait_for_file(page, "new.csv")
    button(page, "Forecast").click()
    page.get_by_text("new.csv, Passengers: the last 48 known values").wait_for()
    page.locator("a[download='forecast.csv']").wait_for()
    assert_fits()
    page.get_by_label("Columns to forecast").fill("Sales")
    button(page, "Forecast").click()
    page.get_by_text("new.csv has no column 'Sales'").first.wait_for()
    open_tab(page, "Tags")
    page.get_by_label("Text to tag").fill(SENTENCE)
    button(page, "Tag").click()
    page.get_by_text("DAT: 5 月 3 日").wait_for()
    assert_fits()
    open_tab(page, "Label")
    page.get_by_label("Text to label").fill("a warm film " * 30)
    button(page, "Label").click()
    page.get_by_text("Label: 1, with").wait_for()
    assert_fits()


def test_tags_and_labels(open_page):
    page = open_page()
    open_tab(page, "Tags")
    page.get_by_label("Text to tag").fill("")
    button(page, "Tag").click()
    page.get_by_text("Write a text.").first.wait_for()
    page.get_by_label("Text to tag").fill(SENTENCE)
    button(page, "Tag").click()
    page.get_by_text("DAT: 5 月 3 日").wait_for()
    assert page.locator(".bars tr").filter(visible=True).count() == 4
    marked = page.locator(".token.highlighted").all_inner_texts()
    assert [text.split() for text in marked] == [
        ["5", "月", "3", "日", "DAT"],
        ["東京", "LOC"],
        ["中国", "LOC"],
        ["アメリカ", "LOC"],
    ]
    open_tab(page, "Label")
    page.get_by_label("Text to label").fill("zxcv")
    button(page, "Label").click()
    page.get_by_text("The model does not know zxcv.").first.wait_for()
    page.get_by_label("Text to label").fill("A warm, funny and touching film.")
    button(page, "Label").click()
    page.get_by_text("Label: 1, with 99.2 %").wait_for()


def test_every_control_has_a_name(open_page):
    page = open_page()
    for tab in ("Text", "Music", "Digit", "Forecast", "Tags", "Label"):
        open_tab(page, tab)
        nameless = page.locator("input, textarea, button, a").evaluate_all(
            """controls => controls.filter(control => control.checkVisibility() && !(
                control.getAttribute("aria-label") || control.title || control.innerText || control.labels?.length
            )).map(control => control.outerHTML)"""
        )
        assert nameless == []
