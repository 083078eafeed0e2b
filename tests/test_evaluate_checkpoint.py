# SPDX-License-Identifier: Apache-2.0
"""What a training script reports of a checkpoint is what its folder alone gives again; and what is made of it."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import datasets
import evaluate_checkpoint
import make_hub_folder
import numpy as np
import plot_checkpoint
import pytest
import scipy.io
import torch
import torch.nn.functional as F
import train_causal_lm
import train_polyphonic_music
import train_sequence_classification
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForAudioFrameClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rtransformer_hf.training import evaluation
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_card import CONFUSION_FILE, FACTS_FILE, read_facts, render_card
from rtransformer_hf.training.report import sample_outputs
from rtransformer_hf.training.run import EVALUATION_FILE

TRAINING = """
hidden_size: 8
num_hidden_layers: 1
num_attention_heads: 2
local_window_size: 3
hidden_dropout: 0.1
max_steps: 2
per_device_train_batch_size: 4
dataloader_drop_last: true  # of training batches alone
eval_strategy: "no"
dataloader_pin_memory: false
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a checkpoint of every task and its data."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(TRAINING)
    run = [str(folder / "recipe.yaml"), "--output_dir"]

    for name, lines in (("train", 40), ("test", 15)):
        (folder / f"{name}.txt").write_text("".join(f"line {i * i} of a text\n" for i in range(lines)))
    text = ["--train_file", str(folder / "train.txt"), "--test_file", str(folder / "test.txt")]
    windows = ["--block_size", "16", "--stride", "12", "--eval_stride", "5", "--line_ending", ""]
    train_causal_lm.main([*run, str(folder / "language"), *text, *windows])

    random, arrays = np.random.RandomState(0), {}
    for name in ("traindata", "validdata", "testdata"):
        arrays[name] = np.empty((1, 5), dtype=object)
        arrays[name][0] = [(random.rand(random.randint(2, 13), 88) < 0.05).astype(np.uint8) for _ in range(5)]
    scipy.io.savemat(folder / "tunes.mat", arrays)
    music = ["--data", str(folder / "tunes.mat")]
    train_polyphonic_music.main([*run, str(folder / "music"), *music, "--key_head_type", "autoregressive"])

    for name, rows in (("train", 30), ("test", 12)):
        lines = [f"{i % 3},{'abc'[i % 3]} {'xyz'[i * i % 3]} {i}" for i in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["label,text", *lines]))
    labeled = ["--train_file", str(folder / "train.csv"), "--test_file", str(folder / "test.csv")]
    train_sequence_classification.main([*run, str(folder / "classifier"), *labeled])

    for split, rows in (("train", 24), ("test", 9)):
        images = [Image.fromarray(random.randint(0, 256, (4, 5), dtype=np.uint8)) for _ in range(rows)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"])})
        pictures = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(rows)]}, features)
        (folder / "pictures").mkdir(exist_ok=True)
        pictures.to_parquet(folder / "pictures" / f"{split}.parquet")
    pictures = ["--dataset_name", str(folder / "pictures"), "--test_split", "test", "--image_column", "image"]
    train_sequence_classification.main([*run, str(folder / "pixels"), *pictures, "--permutation_seed", "1"])
    return folder


def evaluate(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    evaluate_checkpoint.main(list(arguments))
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("task", "data", "metrics"),
    [
        ("language", "test.txt", ("perplexity", "bits_per_character", "predicted_tokens")),
        ("music", "tunes.mat", ("nll_per_frame", "predicted_frames")),
        ("classifier", "test.csv", ("accuracy",)),
        ("pixels", "pictures", ("accuracy",)),
    ],
)
def test_the_folder_gives_the_reported_metrics(trained, capsys, tmp_path, task, data, metrics):
    reported = json.loads((trained / task / "all_results.json").read_text())
    checkpoint = tmp_path / "moved"
    ignored = shutil.ignore_patterns("*_results.json", "trainer_state.json", "training_*", "checkpoint-*", "README.md")
    shutil.copytree(trained / task, checkpoint, ignore=ignored)
    result = evaluate(capsys, str(checkpoint), "--data", str(trained / data), "--batch_size", "3")
    for metric in (*metrics, "loss"):
        assert result[metric] == pytest.approx(reported[f"test_{metric}"], rel=1e-6)


@pytest.mark.parametrize("quantization", ["int8_weight_only", "int8_dynamic"])
@pytest.mark.parametrize(
    ("task", "data", "metric"), [("language", "test.txt", "perplexity"), ("music", "tunes.mat", "nll_per_frame")]
)
def test_quantization_changes_little(trained, capsys, tmp_path, quantization, task, data, metric):
    folder, data = str(trained / task), ("--data", str(trained / data))
    before = evaluate(capsys, folder, *data)
    weights = load_file(trained / task / "model.safetensors").values()
    assert before["model_bytes"] == sum(weight.nbytes for weight in weights)
    after = evaluate(capsys, folder, *data, "--quantization", quantization)
    assert after[metric] == pytest.approx(before[metric], rel=0.02) and after[metric] != before[metric]
    assert after["model_bytes"] < before["model_bytes"]


def test_a_quantized_folder(trained, capsys, tmp_path):
    arguments = argparse.Namespace(checkpoint=str(trained / "classifier"), quantization="int8_weight_only")
    model = evaluation.load_model(arguments, AutoModelForSequenceClassification)
    shutil.copytree(trained / "classifier", tmp_path, dirs_exist_ok=True)
    model.save_pretrained(tmp_path)
    data = ("--data", str(trained / "test.csv"))
    expected = evaluate(capsys, str(trained / "classifier"), *data, "--quantization", "int8_weight_only")
    assert evaluate(capsys, str(tmp_path), *data) == expected


def test_quantization_without_torchao(trained, monkeypatch):
    monkeypatch.setattr(evaluation, "is_torchao_available", lambda: False)
    arguments = [str(trained / "language"), "--data", str(trained / "test.txt"), "--quantization", "int8_dynamic"]
    with pytest.raises(UsageError, match="--quantization int8_dynamic: torchao is not installed"):
        evaluate_checkpoint.main(arguments)


def test_another_split(trained, capsys):
    reported = json.loads((trained / "music" / "all_results.json").read_text())
    result = evaluate(capsys, str(trained / "music"), "--data", str(trained / "tunes.mat"), "--split", "validation")
    assert result["nll_per_frame"] == pytest.approx(reported["eval_nll_per_frame"], rel=1e-6)


def test_the_split_that_is_read_is_said(trained, capsys):
    for arguments, said in (
        (["music", "--data", "tunes.mat"], "Data: split 'test' of {}."),
        (["music", "--data", "tunes.mat", "--split", "validation"], "Data: split 'validation' of {}."),
        (["pixels", "--data", "pictures", "--split", "train"], "Data: split 'train' of {}."),
        (["language", "--data", "test.txt"], "Data: all of {}."),
    ):
        checkpoint, _, data, *rest = arguments
        evaluate_checkpoint.main([str(trained / checkpoint), "--data", str(trained / data), *rest])
        assert said.format(trained / data) in capsys.readouterr().err
    for checkpoint, data in (("language", "test.txt"), ("classifier", "test.csv")):
        with pytest.raises(UsageError, match=f"--split: 'train' goes with a data set, and --data .*{data} is "):
            evaluate_checkpoint.main([str(trained / checkpoint), "--data", str(trained / data), "--split", "train"])


def test_what_is_asked_for_says_which_split_is_read(trained, tmp_path, capsys):
    """Rows are held out of the training data, and a card's validation figures are not those of the test data."""
    reported = json.loads((trained / "pixels" / "all_results.json").read_text())
    pixels = [str(trained / "pixels"), "--data", str(trained / "pictures")]
    evaluate_checkpoint.main([*pixels, "--validation_fraction", "0.1"])
    said = capsys.readouterr()
    assert f"Data: split 'train' of {trained / 'pictures'}." in said.err
    result = json.loads(said.out)
    assert result["samples"] == reported["eval_samples"]
    assert result["loss"] == pytest.approx(reported["eval_loss"], rel=1e-5)
    music = tmp_path / "music"
    shutil.copytree(trained / "music", music)
    for split in ("validation", "test"):
        evaluate_checkpoint.main([str(music), "--data", str(trained / "tunes.mat"), "--update_card", split])
        assert f"Data: split {split!r} of " in capsys.readouterr().err
    reported = json.loads((music / "all_results.json").read_text())
    figures = {split: value for split, name, value in read_facts(music).results if name == "nll_per_frame"}
    assert figures["validation"] == pytest.approx(reported["eval_nll_per_frame"], rel=1e-6)
    assert figures["test"] == pytest.approx(reported["test_nll_per_frame"], rel=1e-6)


def test_the_data_flags_of_the_training(trained, capsys, tmp_path):
    """--test_file and --dataset_name with a configuration read what --data reads."""
    expected = evaluate(capsys, str(trained / "classifier"), "--data", str(trained / "test.csv"))
    lines = (trained / "test.csv").read_text().splitlines()
    parts = [tmp_path / "first.csv", tmp_path / "second.csv"]
    for part, rows in zip(parts, (lines[1:6], lines[6:]), strict=True):
        part.write_text("\n".join([lines[0], *rows]))
    assert evaluate(capsys, str(trained / "classifier"), "--test_file", *map(str, parts)) == expected

    folder = tmp_path / "configured"
    folder.mkdir()
    for part in parts:
        part.rename(folder / part.name)
    configurations = [
        {"config_name": "all", "data_files": [{"split": "held_out", "path": ["first.csv", "second.csv"]}]},
        {"config_name": "half", "data_files": [{"split": "held_out", "path": "first.csv"}]},
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configurations)}\n---\n")
    data = ["--dataset_name", str(folder), "--test_split", "held_out", "--dataset_config_name"]
    assert evaluate(capsys, str(trained / "classifier"), *data, "all") == expected
    assert evaluate(capsys, str(trained / "classifier"), *data, "half")["samples"] == 5
    with pytest.raises(UsageError, match=r"--dataset_name .* \(--dataset_config_name none\) can't be loaded"):
        evaluate_checkpoint.main([str(trained / "classifier"), *data, "none"])


def test_columns_of_other_names(trained, capsys, tmp_path):
    """The same rows under other names give the same figures."""
    text = (trained / "test.txt").read_text().splitlines()
    datasets.Dataset.from_dict({"body": text}).to_csv(tmp_path / "lines.csv")
    rows = datasets.load_dataset("csv", data_files=str(trained / "test.csv"), split="train")
    rows.rename_columns({"text": "question", "label": "kind"}).to_csv(tmp_path / "rows.csv")
    pictures = datasets.load_dataset("parquet", data_files=str(trained / "pictures" / "test.parquet"), split="train")
    pictures.rename_columns({"image": "picture", "label": "kind"}).to_parquet(tmp_path / "pictures.parquet")
    for task, data, other, flags in (
        ("language", "test.txt", "lines.csv", ["--text_column", "body"]),
        ("classifier", "test.csv", "rows.csv", ["--text_column", "question", "--label_column", "kind"]),
        ("pixels", "pictures", "pictures.parquet", ["--image_column", "picture", "--label_column", "kind"]),
    ):
        folder = str(trained / task)
        expected = evaluate(capsys, folder, "--data", str(trained / data))
        assert evaluate(capsys, folder, "--data", str(tmp_path / other), *flags) == expected
    folder = tmp_path / "tunes"
    folder.mkdir()
    tunes = [tune.tolist() for tune in scipy.io.loadmat(trained / "tunes.mat")["testdata"][0]]
    datasets.Dataset.from_dict({"roll": tunes}).to_parquet(folder / "test.parquet")
    expected = evaluate(capsys, str(trained / "music"), "--data", str(trained / "tunes.mat"))
    assert evaluate(capsys, str(trained / "music"), "--data", str(folder), "--piano_roll_column", "roll") == expected

    for task, flag, accepted in (
        ("language", "--label_column", "--text_column"),
        ("pixels", "--text_column", "--image_column or --label_column"),
        ("music", "--text_column", "--piano_roll_column"),
    ):
        with pytest.raises(UsageError, match=rf"{flag}: 'x', which .* does not read \(expected {accepted}\)"):
            evaluate_checkpoint.main([str(trained / task), "--data", str(trained / "test.txt"), flag, "x"])


def test_another_context_length(trained, capsys, tmp_path):
    data = ["--data", str(trained / "test.txt")]
    whole = evaluate(capsys, str(trained / "language"), *data)
    output = tmp_path / "long" / "context.json"
    flags = ("--context_length", "48", "--output", str(output))
    longer = evaluate(capsys, str(trained / "language"), *data, *flags)
    assert json.loads(output.read_text()) == longer and longer["context_length"] == 48
    assert longer["predicted_tokens"] == whole["predicted_tokens"] and longer["loss"] != whole["loss"]

    # The folder with these settings in place of those of the training: 5 of 16 is 15 of 48.
    copy = tmp_path / "copy"
    shutil.copytree(trained / "language", copy)
    settings = json.loads((copy / "evaluation.json").read_text())
    (copy / "evaluation.json").write_text(json.dumps({**settings, "context_length": 48, "eval_stride": 15}))
    assert evaluate(capsys, str(copy), *data)["loss"] == longer["loss"]

    with pytest.raises(UsageError, match=r"--context_length 48: .*classifier holds RTransformerForSequenceClass"):
        evaluate_checkpoint.main([str(trained / "classifier"), "--data", "x", "--context_length", "48"])


def test_the_card_of_an_older_checkpoint_gets_todays_figures(trained, capsys, tmp_path):
    """As if it had been trained today: metrics, notes and confusion matrix, of held-out rows and of test rows."""
    folder = tmp_path / "old"
    shutil.copytree(trained / "classifier", folder)
    (folder / CONFUSION_FILE).unlink()
    today = read_facts(folder)
    accuracies = [result for result in today.results if result[1] == "accuracy"]
    old = dataclasses.replace(today, results=accuracies, has_confusion_matrix=False)
    (folder / FACTS_FILE).write_text(old.to_json())
    (folder / "README.md").write_text(render_card(old))

    held_out = ("--data", str(trained / "train.csv"), "--validation_fraction", "0.1")
    result = evaluate(capsys, str(folder), *held_out, "--update_card", "validation")
    assert result["samples"] == 3 and not (folder / CONFUSION_FILE).exists()  # which is of test rows
    evaluate_checkpoint.main([str(folder), "--data", str(trained / "test.csv"), "--update_card", "test"])
    assert f"{folder}/README.md: the figures of the test data" in capsys.readouterr().err
    updated = read_facts(folder)
    assert [(split, name) for split, name, _ in updated.results] == [(split, name) for split, name, _ in today.results]
    for (_, _, value), (_, _, expected) in zip(updated.results, today.results, strict=True):
        assert value == pytest.approx(expected, rel=1e-6)
    assert (folder / CONFUSION_FILE).read_bytes() == (trained / "classifier" / CONFUSION_FILE).read_bytes()
    assert (folder / "README.md").read_text() == render_card(updated)

    shutil.copytree(trained / "language", tmp_path / "language")  # any task's card, edited by hand
    readme = tmp_path / "language" / "README.md"
    readme.write_text(readme.read_text().replace("Do not take", "Never take"))
    evaluate_checkpoint.main([str(readme.parent), "--data", str(trained / "train.txt"), "--update_card", "test"])
    captured = capsys.readouterr()
    perplexity = json.loads(captured.out)["perplexity"]
    assert f"| test | perplexity | {perplexity:.4f} |" in readme.read_text() and "Never take" in readme.read_text()


@pytest.mark.parametrize(
    ("task", "flags", "named"),
    [
        ("none", ["--update_card", "test"], "--update_card: 'none' has no card (expected a folder with README.md and"),
        ("bare", ["--update_card", "test"], "--update_card: 'bare' has no card"),
        ("language", ["--validation_fraction", "0.1"], "--validation_fraction 0.1: language holds RTransformerForC"),
        ("classifier", ["--validation_fraction", "0.99"], "--validation_fraction 0.99 of the 12 rows of --data"),
        ("classifier", ["--update_card", "train"], "--update_card: invalid choice: 'train'"),
        (
            "classifier",
            ["--update_card", "test", "--quantization", "int8_dynamic"],
            "--quantization: 'int8_dynamic' go",
        ),
        ("language", ["--update_card", "test", "--context_length", "9"], "--context_length: 9 goes without --update"),
    ],
)
def test_cards_that_can_not_be_updated(trained, monkeypatch, capsys, task, flags, named):
    monkeypatch.chdir(trained)
    Path("bare").mkdir(exist_ok=True)
    try:
        evaluate_checkpoint.main([task, "--data", "test.csv", *flags])
    except UsageError as error:
        assert named in str(error)
    except SystemExit:
        assert named in capsys.readouterr().err
    else:
        pytest.fail("not refused")


def test_a_folder_to_share(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    make_hub_folder.main(["music", "cards/music", "--dtype", "float16"])
    files = {path.name for path in Path("cards/music").iterdir()}
    assert files == {"README.md", "model_card.json", "learning_curves.png", "learning_curves.json"} | {
        *("config.json", "evaluation.json", "model.safetensors")
    }
    model = AutoModelForAudioFrameClassification.from_pretrained("cards/music")
    assert model.dtype == torch.float32
    stored, trained_ones = (read_facts(name).sample_outputs for name in ("cards/music", "music"))
    assert stored == sample_outputs(model) != trained_ones  # of the rounded weights
    assert {weight.dtype for weight in load_file("cards/music/model.safetensors").values()} == {torch.float16}
    reported = json.loads(Path("music/all_results.json").read_text())["test_nll_per_frame"]
    result = evaluate(capsys, "cards/music", "--data", "tunes.mat")
    assert result["nll_per_frame"] == pytest.approx(reported, rel=1e-3)

    with pytest.raises(UsageError, match="hub_folder: 'cards/music' is not empty"):
        make_hub_folder.main(["music", "cards/music"])
    with pytest.raises(UsageError, match="output_dir: no finished run in 'cards/music'"):
        make_hub_folder.main(["cards/music", "cards/other"])
    shutil.copytree("music", "broken", ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file("broken/model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, "broken/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"'broken' can't be used: .* \(missing: model.layers.0.mlp.up_proj.weight\)"):
        make_hub_folder.main(["broken", "cards/other"])
    assert [path.name for path in Path("cards").iterdir()] == ["music"]

    with pytest.raises(SystemExit) as stop:
        make_hub_folder.main(["language", "cards/language", "--dataset_id", "anna/lines"])
    assert stop.value.code == 2
    make_hub_folder.main(["language", "cards/lines", "--dataset_name", "Lines", "--dataset_id", "anna/lines"])
    card = ModelCard.load("cards/lines/README.md")
    assert card.data.model_name == "lines" and "\n# lines\n" in card.text
    assert " parameters, trained on Lines.\n" in card.text
    assert card.data.datasets == ["anna/lines"]
    assert {(found.dataset_name, found.dataset_type) for found in card.data.eval_results} == {("Lines", "anna/lines")}
    result = evaluate(capsys, "cards/lines", "--data", "test.txt")
    reported = json.loads(Path("language/all_results.json").read_text())
    assert result["perplexity"] == pytest.approx(reported["test_perplexity"], rel=1e-6)


def test_checkpoints_of_before_know_no_end_of_text(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "language", "language")
    text = (trained / "test.txt").read_text().replace("\n", "")
    now = evaluate(capsys, "language", "--data", str(trained / "test.txt"))
    assert now["predicted_tokens"] == len(text)  # of which the first is not predicted, but the end
    settings = json.loads(Path("language", EVALUATION_FILE).read_text())
    assert settings.pop("end_of_text") == "file"
    Path("language", EVALUATION_FILE).write_text(json.dumps(settings))
    before = evaluate(capsys, "language", "--data", str(trained / "test.txt"))
    assert before["predicted_tokens"] == len(text) - 1


@torch.no_grad()
def test_the_loss_against_the_position(trained, monkeypatch):
    monkeypatch.chdir(trained)
    plot_checkpoint.main(["context", "language", "--data", "test.txt", "--factor", "2", "--output", "context.png"])
    assert Path("context.png").stat().st_size > 0
    numbers = json.loads(Path("context.json").read_text())["language"]
    assert numbers["positions"] == [2 * index + 1 for index in range(16)]  # two positions a bin, up to 2 * 16

    model = AutoModelForCausalLM.from_pretrained("language")
    text = Path("test.txt").read_text().replace("\n", "")
    tokenizer = AutoTokenizer.from_pretrained("language")
    tokens = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    starts = range(0, len(tokens) - 33, 32)
    windows = torch.stack([tokens[start : start + 33] for start in starts])
    losses = F.cross_entropy(model(windows).logits[:, :-1].mT, windows[:, 1:], reduction="none").sum(dim=0)
    last = tokens[-33:]  # it shares its beginning with the window before, and is not counted there
    fresh = 32 - (len(tokens) - 33 - starts[-1])
    last_losses = F.cross_entropy(model(last[None]).logits[0, :-1], last[1:], reduction="none")
    counts = torch.full((32,), len(windows))
    losses[fresh:] += last_losses[fresh:]
    counts[fresh:] += 1
    expected = (losses / counts).view(16, 2).mean(dim=-1)
    assert numbers["nats_per_token"] == pytest.approx(expected.tolist(), rel=1e-4)


def test_what_each_sublayer_adds(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    plot_checkpoint.main(["layers", "language", "--data", "test.txt", "--output", "layers.png"])
    numbers = json.loads(Path("layers.json").read_text())
    sublayers = ("LocalRNN 1", "attention", "feed-forward")
    assert list(numbers["rise_without"]) == [f"block 1, {name}" for name in sublayers]
    assert all(rise != 0 for rise in numbers["rise_without"].values())
    for arguments, named in (
        (["layers", "music", "--data", "test.txt"], "it holds RTransformerForPolyphonicMusic"),
        (["context", "language", "--data", "test.txt", "--factor", "1000"], "expected more than 16000"),
    ):
        with pytest.raises(UsageError) as stop:
            plot_checkpoint.main([*arguments, "--output", "other.png"])
        assert named in str(stop.value)
        assert not Path("other.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere", "--data", "tunes.mat"], "checkpoint 'nowhere' can't be used"),
        (["untrained", "--data", "tunes.mat"], "it holds a model of no named architecture"),
        (["other", "--data", "test.txt"], "evaluation.json"),
        (["music", "--data", "test.txt"], "test.txt"),
        (["music", "--data", "tunes.mat", "--split", "testing"], "'testing' of 'tunes.mat' does not exist"),
        (["language", "--data", "missing.txt"], "--data missing.txt"),
        (["language", "--data", "empty.txt"], "empty.txt"),
        (["classifier", "--data", "test.txt"], "'label' is no column of --data test.txt"),
        (["pixels", "--data", "pictures", "--split", "dev"], "--split dev of --data pictures does not exist"),
        (
            ["language", "--data", "test.txt", "--batch_size", "0"],
            "--batch_size: 0 (expected an integer",
        ),
        (["language", "--test_file", "missing.txt"], "--test_file: no such file: 'missing.txt'"),
        (["language", "--test_file", "empty.txt"], "--test_file: 'empty.txt' is empty"),
        (
            ["language", "--test_file", "test.txt", "--data", "test.txt"],
            "--data: not allowed with argument",
        ),
        (["language", "--test_file", "test.txt", "--split", "test"], "--split: 'test' goes with a data set"),
        (["classifier", "--test_file", "test.csv", "--dataset_config_name", "a"], "--dataset_config_name: 'a' goes"),
        (["music", "--test_file", "tunes.mat"], "--test_file: 'tunes.mat' is for rows (expected music as --data)"),
        (
            ["pixels", "--dataset_name", "pictures", "--split", "dev"],
            "--split dev of --dataset_name pictures",
        ),
        (["language"], "one of the arguments --data --test_file --dataset_name is required"),
    ],
)
def test_bad_input_is_named(trained, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(trained)
    Path("empty.txt").touch()
    Path("untrained").mkdir(exist_ok=True)
    Path("untrained/config.json").write_text('{"model_type": "rtransformer"}')
    shutil.copytree("language", "other", ignore=shutil.ignore_patterns("evaluation.json"), dirs_exist_ok=True)
    with pytest.raises((SystemExit, UsageError)) as stop:
        evaluate_checkpoint.main(arguments)
    assert named in f"{stop.value} {capsys.readouterr().err}"


def test_results_beside_published_ones(trained, monkeypatch):
    monkeypatch.chdir(trained)
    make_hub_folder.main(["music", "shared/tunes", "--dataset_name", "Nottingham"])
    make_hub_folder.main(["language", "shared/text", "--dataset_name", "Lines"])
    cards = ["shared/text/README.md", "shared/tunes/README.md"]
    plot_checkpoint.main(["results", *cards, "--output", "results.png"])
    assert Path("results.png").stat().st_size > 0
    music, language = (json.loads(Path(name, "all_results.json").read_text()) for name in ("music", "language"))
    assert json.loads(Path("results.json").read_text()) == {
        "Lines: perplexity": {"text": language["test_perplexity"]},
        "Nottingham: nll_per_frame": {
            "tunes": music["test_nll_per_frame"],
            "R-Transformer, paper": 2.37,
            "Transformer, paper": 3.34,
            "TCN": 3.07,
        },
    }
    Path("README.md").write_text("---\nlicense: apache-2.0\n---\n")
    with pytest.raises(UsageError, match="gives no test figure"):
        plot_checkpoint.main(["results", "README.md", "--output", "other.png"])
    with pytest.raises(UsageError, match="missing"):
        plot_checkpoint.main(["results", "missing/README.md", "--output", "other.png"])
    assert not Path("other.png").exists()
