# SPDX-License-Identifier: Apache-2.0
"""The training script for classifiers end to end, with models of a few thousand parameters."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import evaluate
import evaluate_checkpoint
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import train_sequence_classification as script
from card_code import code_of
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    get_scheduler,
    pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from rtransformer_hf import (
    RTransformerConfig,
    RTransformerForCausalLM,
    RTransformerForSequenceClassification,
    RTransformerImageProcessor,
)
from rtransformer_hf.training import classification_metrics, metric_modules, sequence_classification
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import label_head
from rtransformer_hf.training.new_tokenizers import load_tokenizer

SCRIPTS = Path(script.__file__).parent
RECIPE = """
hidden_size: 8
num_hidden_layers: 1
num_attention_heads: 2
local_window_size: 3
hidden_dropout: 0.1
max_steps: 6
logging_steps: 1
save_steps: 2
eval_strategy: steps
eval_steps: 3
per_device_train_batch_size: 4
per_device_eval_batch_size: 5
learning_rate: 1e-2
dataloader_pin_memory: false
disable_tqdm: true
"""
TRANSFORMER = ("--num_local_rnn_layers", "0", "--position_embedding_type", "sinusoidal")
ARGUMENT_TYPES = (script.ClassifierArguments, script.ClassificationArguments, script.ResumableTrainingArguments)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in, with a recipe and three files of texts of unequal length, "long" or "short"."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    for name, num_rows in (("train", 40), ("validation", 13), ("test", 7)):
        lengths = [1 + (i * i + len(name)) % 6 for i in range(num_rows)]
        texts = [" ".join(f"word{(i * j) % 9}" for j in range(length)) for i, length in enumerate(lengths)]
        write_csv(name, texts, ["long" if length > 3 else "short" for length in lengths])
    return tmp_path


def write_csv(name: str, texts: list, labels: list):
    datasets.Dataset.from_dict({"text": texts, "label": labels}).to_csv(f"{name}.csv")


def random_pixels(num_images: int, *size: int) -> np.ndarray:
    return np.random.default_rng(num_images).integers(0, 256, (num_images, *(size or (5, 4))), dtype=np.uint8)


def write_images(split: str, images: list[Image.Image], labels: list[int] | None = None):
    """A folder that is a data set with images and labels, as data sets on the Hub are laid out."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "grey", "bright"])}
    labels = [i % 3 for i in range(len(images))] if labels is None else labels
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=datasets.Features(features))
    Path("images").mkdir(exist_ok=True)
    rows.to_parquet(f"images/{split}-00000-of-00001.parquet")


def train(*flags: str, files: tuple[str, ...] = ("train", "validation")) -> dict:
    data = [part for name in files for part in (f"--{name}_file", f"{name}.csv")]
    script.main(["recipe.yaml", *data, "--output_dir", "out", *flags])
    return json.loads(Path("out/all_results.json").read_text())


def train_on_images(*flags: str) -> dict:
    return train("--dataset_name", "images", "--image_column", "image", *flags, files=())


def log_history() -> list[dict]:
    return json.loads(Path("out/trainer_state.json").read_text())["log_history"]


def assert_metrics(results: dict, prefix: str, logits: torch.Tensor, labels: torch.Tensor):
    assert results[f"{prefix}_accuracy"] == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
    assert results[f"{prefix}_loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-5)
    assert results[f"{prefix}_samples"] == len(labels)


def test_a_run_on_text_leaves_a_model_ready_to_use(folder, capsys):
    results = train(files=("train", "validation", "test"))
    said = capsys.readouterr().out
    assert "\nData: train 40, validation 13, test 7 texts with 2 labels.\n" in said
    assert "\nSteps: 6, 0.6 epochs of 10.\n" in said
    assert said.splitlines()[-1].endswith("evaluate_checkpoint.py out --data test.csv")

    files = {path.name for path in Path("out").iterdir() if path.is_file()}
    assert files >= {"model.safetensors", "config.json", "tokenizer.json", "all_results.json", "README.md"}
    assert files >= {"learning_curves.png", "training_run.json", "modeling_rtransformer.py"}
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    others = dict.fromkeys(("text_pair_column", "image_column", "label_separator", "max_length"))
    assert evaluation == {"text_column": "text", "label_column": "label", "regression": False, **others}

    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert model.config.id2label == {0: "long", 1: "short"} and model.config.label2id == {"long": 0, "short": 1}
    assert model.config.vocab_size == len(tokenizer) and model.config.pad_token_id == tokenizer.pad_token_id
    for prefix, name in (("eval", "validation"), ("test", "test")):
        rows = datasets.Dataset.from_csv(f"{name}.csv")[:]
        with torch.no_grad():  # one at a time, without padding
            logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in rows["text"]])
        assert_metrics(results, prefix, logits, torch.tensor([model.config.label2id[name] for name in rows["label"]]))
        predictions = pipeline("text-classification", model="out")(rows["text"], batch_size=4)
        assert [output["label"] for output in predictions] == [
            model.config.id2label[i.item()] for i in logits.argmax(-1)
        ]

    card = ModelCard.load("out/README.md")
    assert card.data.pipeline_tag == "text-classification"
    values = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert values["test", "accuracy"] == results["test_accuracy"]
    assert str(folder) not in card.content
    assert values["test", "macro_f1"] == results["test_macro_f1"] and "Macro F1 is" in card.text
    assert Path("out/confusion_matrix.png").exists() and "(confusion_matrix.png)" in card.text


def test_a_run_on_images_leaves_a_model_ready_to_use(folder, capsys):
    pixels = {"train": random_pixels(20), "test": random_pixels(8)}
    for split, images in pixels.items():
        write_images(split, [Image.fromarray(image) for image in images])
    flags = ("--permutation_seed", "3", "--image_mean", "0.4", "--image_std", "0.2", "--max_steps", "2")
    results = train_on_images("--test_split", "test", "--validation_fraction", "0.3", *flags)
    said = capsys.readouterr().out
    assert "\nData: train 14, test 8, validation 6 images with 3 labels.\n" in said
    assert said.splitlines()[-1].endswith("evaluate_checkpoint.py out --data images --split test")

    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    processor = AutoImageProcessor.from_pretrained("out")
    assert model.config.input_size == 1 and model.config.id2label == {0: "dark", 1: "grey", 2: "bright"}
    assert results["eval_samples"] == 6 and results["test_samples"] == 8
    values = (pixels["test"].reshape(8, 20, 1) / 255 - 0.4) / 0.2
    values = torch.tensor(values[:, np.random.RandomState(3).permutation(20)], dtype=torch.float32)
    images = [Image.fromarray(image) for image in pixels["test"]]
    torch.testing.assert_close(processor(images, return_tensors="pt").input_values, values)
    with torch.no_grad():
        assert_metrics(results, "test", model(input_values=values).logits, torch.arange(8) % 3)
    card = ModelCard.load("out/README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert "reads the pixels of every image in the same random order (seed 3)." in card.text

    with pytest.raises(UsageError, match="encoded training rows"):  # of another permutation
        train_on_images("--permutation_seed", "4", "--image_mean", "0.4", "--image_std", "0.2")
    # The processor of the model to train further is kept, but for what flags say.
    train_on_images("--model_name_or_path", "out", "--image_mean", "0.5", "--max_steps", "1", "--output_dir", "next")
    processor = AutoImageProcessor.from_pretrained("next")
    assert (processor.permutation_seed, *processor.image_mean, *processor.image_std) == (3, 0.5, 0.2)


@pytest.mark.parametrize(
    ("labels", "flags", "problem_type", "said"),
    [
        ([["dark"], [], ["dark", "square"]], (), "multi_label_classification", "with 2 labels"),
        (["dark", "", "dark; square"], ("--label_separator", ";"), "multi_label_classification", "with 2 labels"),
        ([0.5, 1.5, -1.0], ("--regression",), "regression", "with a number"),
    ],
)
def test_several_labels_or_a_number_of_images(folder, capsys, labels, flags, problem_type, said):
    pixels = random_pixels(12)
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": labels * 4}
    feature = datasets.Value("float64") if problem_type == "regression" else datasets.Value("string")
    feature = datasets.List(feature) if isinstance(labels[0], list) else feature
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    datasets.Dataset.from_dict(rows, features).to_parquet("rows.parquet")
    data = ("--train_file", "rows.parquet", "--validation_file", "rows.parquet", "--image_column", "image")
    results = train(*data, *flags, "--max_steps", "2", files=())
    assert f"12 images {said}" in capsys.readouterr().out

    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    assert model.config.problem_type == problem_type
    inputs = AutoImageProcessor.from_pretrained("out")(rows["image"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    if problem_type == "regression":
        errors = logits[:, 0].double() - torch.tensor(labels * 4)
        assert results["eval_loss"] == pytest.approx(errors.square().mean().item(), rel=1e-4)
        assert results["eval_mae"] == pytest.approx(errors.abs().mean().item(), rel=1e-4)
    else:
        expected = torch.tensor([[1, 0], [0, 0], [1, 1]] * 4)
        assert results["eval_accuracy"] == ((logits > 0) == expected).all(-1).double().mean()
        assert results["eval_loss"] == pytest.approx(
            F.binary_cross_entropy_with_logits(logits.double(), expected.double()).item(), rel=1e-4
        )
    capsys.readouterr()
    evaluate_checkpoint.main(["out", "--data", "rows.parquet"])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(results["eval_loss"], rel=1e-4)
    card = ModelCard.load("out/README.md")
    assert card.data.pipeline_tag == "image-classification" and "pixel sequence" in card.text
    exec(code_of(card.content).replace(", trust_remote_code=True", ""), {})
    printed = capsys.readouterr().out
    assert "'square'" in printed if problem_type != "regression" else float(printed)


def test_colour_images(folder):
    write_images("train", [Image.fromarray(image) for image in random_pixels(12, 3, 2, 3)])
    flags = ("--image_mean", "0.5", "0.4", "0.3", "--image_std", "0.2", "0.2", "0.3")
    train_on_images(*flags, "--max_steps", "1")
    assert AutoModelForSequenceClassification.from_pretrained("out").config.input_size == 3


def test_a_killed_run_goes_on_with_the_same_losses(folder, killed_at, caplog):
    def losses() -> list[tuple]:
        entries = [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in log_history()]
        return [entry for entry in entries if entry[1] is not None or entry[2] is not None]

    train()
    expected = losses()
    weights = AutoModelForSequenceClassification.from_pretrained("out").state_dict()
    Path("out").rename("uninterrupted")

    steps = killed_at(4)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert not Path("out/model.safetensors").exists()
    with caplog.at_level("INFO"):
        train()
    assert "checkpoint-4" in caplog.text and steps[5:] == [4, 5]
    assert losses() == expected
    for name, weight in AutoModelForSequenceClassification.from_pretrained("out").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


def test_a_killed_run_with_muon_and_augmented_images_goes_on_with_the_same_losses(folder, killed_at):
    write_images("train", [Image.fromarray(pixels) for pixels in random_pixels(12)])
    flags = (
        "--muon",
        "--augment_shift",
        "1",
        "--augment_rotation",
        "20",
        "--augment_scale",
        "0.1",
        "--augment_interpolation",
        "bicubic",
        "--image_size",
        "6",
        "--local_rnn_num_heads",
        "2",
    )
    train_on_images(*flags)
    expected = [entry["loss"] for entry in log_history() if "loss" in entry]
    assert RTransformerImageProcessor.from_pretrained("out").size == {"height": 6, "width": 6}
    Path("out").rename("uninterrupted")

    killed_at(3)
    with pytest.raises(KeyboardInterrupt):
        train_on_images(*flags)
    train_on_images(*flags)
    assert [entry["loss"] for entry in log_history() if "loss" in entry] == expected
    Path("out").rename("resumed")
    train_on_images(*flags[1:])  # AdamW alone
    assert [entry["loss"] for entry in log_history() if "loss" in entry] != expected


@pytest.mark.parametrize("best", [False, True])
def test_averaged_weights_are_evaluated_and_saved_and_a_killed_run_goes_on_with_them(folder, killed_at, best):
    # Evaluation keeps a butterfly's matrix until its weights change, as they do when the average takes their place.
    flags = ("--average_decay", "0.5", "--save_steps", "3", "--projection_type", "butterfly")
    if best:  # the first evaluation is the better one then
        flags += ("--load_best_model_at_end", "--metric_for_best_model", "loss", "--greater_is_better", "true")
    train(*flags)
    expected, weights = log_history(), AutoModelForSequenceClassification.from_pretrained("out").state_dict()
    Path("out").rename("uninterrupted")
    train(*flags[2:6])
    plain = log_history()
    assert [entry.get("loss") for entry in plain] == [entry.get("loss") for entry in expected]
    assert plain[3]["eval_loss"] != expected[3]["eval_loss"]

    # The average is what a checkpoint's model.safetensors and the output folder hold.
    steps = [load_file(f"uninterrupted/checkpoint-{step}/model.safetensors") for step in (3, 6)]
    eval_losses = [entry["eval_loss"] for entry in expected if "eval_loss" in entry]
    for name, weight in steps[eval_losses.index(max(eval_losses)) if best else 1].items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
    last = load_file("uninterrupted/checkpoint-6/last_weights.safetensors")
    for name, weight in load_file("out/checkpoint-6/model.safetensors").items():
        torch.testing.assert_close(last[name], weight, rtol=0, atol=0)

    Path("out").rename("plain")
    killed_at(4)
    with pytest.raises(KeyboardInterrupt):
        train(*flags)
    train(*flags)
    keys = ("step", "loss", "eval_loss", "eval_accuracy")
    assert [[entry.get(key) for key in keys] for entry in log_history()] == [
        [entry.get(key) for key in keys] for entry in expected
    ]
    for name, weight in AutoModelForSequenceClassification.from_pretrained("out").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


def test_a_finished_run_is_evaluated_again_without_training(folder, monkeypatch):
    first = train("--max_steps", "2")
    monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: pytest.fail("trains again"))
    second = train("--max_steps", "2")
    assert first["eval_loss"] == second["eval_loss"] and first["eval_accuracy"] == second["eval_accuracy"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--hidden_size", "16"], "hidden_size is 8 there and 16 here"),
        (["--tokenizer", "char"], "vocabulary"),
        (["--train_file", "test.csv"], "encoded training rows"),
    ],
)
def test_a_folder_with_another_model(folder, flags, named):
    train("--max_steps", "1")
    with pytest.raises(UsageError, match="--output_dir: 'out' holds another model") as error:
        train(*flags)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("labels", "label2id"),
    [
        ([2, 0, 1, 0], {"0": 0, "1": 1, "2": 2}),
        ([1, 10, 2, 1], {"1": 0, "2": 1, "10": 2}),
        (["None", "NA", "00", "NA"], {"00": 0, "NA": 1, "None": 2}),
        (["b", "a", "b", "a"], {"a": 0, "b": 1}),
        ([True, False, True, True], {"False": 0, "True": 1}),
    ],
)
def test_labels(folder, labels, label2id):
    write_csv("train", [f"text {label}" for label in labels], labels)
    args = script.ClassificationArguments(train_file=["train.csv"])
    rows = sequence_classification.load_rows(args, "train")
    assert sequence_classification.make_label2id(rows, args) == label2id
    tokenizer = sequence_classification.make_tokenizer(args, rows, None)
    encoded = sequence_classification.encode(rows, tokenizer, args, "train", label2id)
    assert encoded["labels"][:] == [label2id[str(label)] for label in labels]
    assert tokenizer.batch_decode(encoded["input_ids"][:]) == [f"text {label}".lower() for label in labels]


def test_held_out_rows_are_the_same_for_every_seed(folder):
    args = script.ClassificationArguments(train_file=["train.csv"], validation_fraction=0.25)
    splits = sequence_classification.load_splits(args)
    parts = [sequence_classification.hold_out(splits, args) for _ in range(2)]
    assert len(parts[0]["train"]) == 30 and len(parts[0]["validation"]) == 10 and "test" not in parts[0]
    assert parts[0]["validation"][:] == parts[1]["validation"][:]
    rows = splits["train"]["text"][:]
    assert sorted(parts[0]["train"]["text"][:] + parts[0]["validation"]["text"][:]) == sorted(rows)
    assert parts[0]["validation"]["text"][:] != rows[30:]
    args.validation_fraction = 0.99
    with pytest.raises(UsageError, match=r"--validation_fraction 0.99 of the 40 rows of --train_file train.csv leav"):
        sequence_classification.hold_out(splits, args)


def test_a_share_to_hold_out_is_taken_in_place_of_a_split(folder):
    """A data set's own split is used where no share is asked for."""
    for name, rows in (("train", 40), ("validation", 3)):
        Path("data").mkdir(exist_ok=True)
        table = "".join(f"{name} {row},{row % 2}\n" for row in range(rows))
        Path(f"data/{name}.csv").write_text(f"text,label\n{table}")
    for fraction, expected in ((None, (40, 3)), (0.25, (30, 10))):
        args = script.ClassificationArguments(dataset_name="data", validation_fraction=fraction)
        splits = sequence_classification.hold_out(sequence_classification.load_splits(args), args)
        assert (len(splits["train"]), len(splits["validation"])) == expected
    assert args.source("validation") == (
        "the validation part (--validation_fraction 0.25) of --train_split train of --dataset_name data"
    )


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_max_length(folder, tokenizer):
    train("--tokenizer", tokenizer, "--max_length", "2", "--max_steps", "1")
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert tokenizer.model_max_length == 2
    assert len(tokenizer("word1 word2 word3", truncation=True)["input_ids"]) == 2
    assert json.loads(Path("out/evaluation.json").read_text())["max_length"] == 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--train_file", "none.csv"], "--train_file: no such file: 'none.csv' (expected CSV, TSV, JSON or Parquet)"),
        (["--validation_file", "empty.csv"], "--validation_file: 'empty.csv' is empty (expected CSV"),
        (["--dataset_name", "images"], "Give either --dataset_name or --train_file"),
        (["--validation_fraction", "1"], "--validation_fraction: 1 (expected a number of more than 0"),
        (["--max_length", "0"], "--max_length: 0 (expected an integer of at least 1)"),
        (["--vocab_size", "1"], "--vocab_size: 1 (expected an integer of at least 2)"),
        (["--image_size", "0"], "--image_size: 0 (expected an integer of at least 1)"),
        (["--augment_scale", "1"], "--augment_scale: 1 (expected a number of at least 0 and less than 1)"),
        (["--augment_rotation", "-1"], "--augment_rotation: -1 (expected a number of at least 0 and less than 360)"),
        (["--augment_share", "0"], "--augment_share: 0 (expected a number of more than 0 and at most 1)"),
        (["--augment_shift", "2"], "are for images (expected with --image_column)"),
        (["--augment_interpolation", "bicubic"], "--augment_interpolation: bicubic goes with --augment_shift, --au"),
        (["--augment_share", "0.2"], "--augment_share: 0.2 goes with --augment_shift, --augment_rotation or"),
        (
            ["--validation_fraction", "0.2", "--validation_file", "train.csv"],
            "--validation_fraction: 0.2 goes without --validation_file train.csv",
        ),
        (["--image_size", "8"], "--image_size: 8 is for images (expected with --image_column)"),
        (["--image_mean", "0.5"], "--image_mean: [0.5] is for images"),
        (["--permutation_seed", "3"], "--permutation_seed: 3 is for images"),
        (
            ["--image_column", "i", "--max_length", "9"],
            "--max_length: 9 is for texts (expected without --image_column",
        ),
    ],
)
def test_bad_flags(folder, capsys, flags, named):
    Path("empty.csv").touch()
    with pytest.raises(SystemExit):
        train(*flags)
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "labels", "named"),
    [
        ("train", ["long"] * 3, "holds a single label, 'long'"),
        ("train", ["long", None, None], "--train_file train.csv is missing in row 1 (from 0), and in 2 rows in all"),
        ("train", [0, None, 1], "--train_file train.csv is missing in row 1 (from 0), and in 1 rows in all"),
        (
            "train",
            [0.5, 0.1, 1.0],
            "--train_file train.csv, row 0 (from 0): the fraction 0.5 (expected names or integers",
        ),
        (
            "validation",
            ["long", "wide", "short"],
            "of --validation_file validation.csv holds 'wide', first in row 1 (from 0; expected the labels of the",
        ),
        (
            "validation",
            [0, 1, 0],
            "--validation_file validation.csv holds '0', '1', first in row 0 (from 0; expected",
        ),
    ],
)
def test_bad_labels(folder, name, labels, named):
    write_csv(name, ["a text", "another", "more"], labels)
    assert_refused(named, train)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            ["--text_column", "txt"],
            "--text_column 'txt' is no column of --train_file train.csv (expected 'text', 'label'; the",
        ),
        (["--label_column", "y"], "--label_column 'y' is no column of --train_file train.csv (expected 'text',"),
        (
            ["--image_column", "text"],
            "--image_column 'text' of --train_file train.csv holds string (expected images, the",
        ),
        (["--text_column", "gap"], "--text_column 'gap' of --train_file numbers.csv is missing in row 1"),
        (["--text_column", "blank"], "--text_column 'blank' of --train_file numbers.csv is missing in row 1"),
        (["--tokenizer", "./none"], "--tokenizer './none' can't be loaded"),
        (["--num_attention_heads", "3"], "num_attention_heads"),
        (["--model_name_or_path", "./none"], "--model_name_or_path './none' can't be opened"),
    ],
)
def test_bad_text(folder, flags, named):
    rows = {"text": ["a", "b"], "gap": ["a", None], "blank": ["a", " "], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).to_csv("numbers.csv")
    file = "train.csv" if "train.csv" in named else "numbers.csv"
    assert_refused(named, train, "--train_file", file, "--validation_file", file, *flags, files=())


@pytest.mark.parametrize(
    ("images", "labels", "flags", "named"),
    [
        ([(5, 4), (4, 5)], [0, 1], [], "holds an image that can't be used: Images must have the height"),
        ([(5, 4), (5, 4)], [0, -1], [], "--label_column 'label' of --train_split train of --dataset_name images is"),
        ([(5, 4), None], [0, 1], [], "--image_column 'image' of --train_split train of --dataset_name images is miss"),
        ([(5, 4, 3)] * 2, [0, 1], [], "as many channels as `image_mean` has values, 1"),
        ([(5, 4)] * 2, [0, 1], ["--image_std", "0"], "--image_std [0.0]: `image_std` must be greater than 0"),
        ([(5, 4)] * 2, [0, 1], ["--permutation_seed", "-1"], "--permutation_seed -1: `permutation_seed` must be"),
        (
            [(5, 4)] * 2,
            [0, 1],
            ["--test_split", "tests"],
            "--test_split tests of --dataset_name images does not exist",
        ),
        ([(5, 4)] * 2, [0, 1], ["--image_column", "x"], "--image_column 'x' is no column of --train_split train"),
    ],
)
def test_bad_images(folder, images, labels, flags, named):
    images = [size and Image.fromarray(random_pixels(1, *size)[0]) for size in images]
    write_images("train", images, labels)
    assert_refused(named, train_on_images, "--validation_fraction", "0.5", *flags)


def assert_refused(named: str, run, *flags: str, **files):
    with pytest.raises(UsageError) as error:
        run(*flags, **files)
    assert named in str(error.value)
    assert not Path("out").exists()


def test_several_labels_a_row(folder, capsys):
    texts = [f"word{i % 3} word{i % 4}" for i in range(40)]
    labels = [[name for name, step in (("red", 3), ("big", 4)) if i % step == 0] for i in range(40)]
    write_csv("train", texts, ["; ".join(names) for names in labels])
    steps = ("--max_steps", "60", "--eval_steps", "60", "--save_steps", "60", "--class_weights", "balanced")
    results = train("--label_separator", ";", *steps, "--test_file", "train.csv", files=("train",))
    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    assert model.config.problem_type == "multi_label_classification" and model.config.label2id == {"big": 0, "red": 1}
    tokenizer = AutoTokenizer.from_pretrained("out")
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    true = torch.tensor([[name in names for name in ("big", "red")] for names in labels])
    assert results["test_loss"] == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, true.float()).item(), rel=1e-4
    )
    predicted = logits > 0
    assert results["test_accuracy"] == pytest.approx((predicted == true).all(dim=1).double().mean().item())
    f1 = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    assert results["test_micro_f1"] == pytest.approx(f1.item()) and results["test_micro_f1"] > 0.8
    assert results["test_auroc"] > 0.9 and 0 <= results["test_calibration_error"] <= 1
    [found] = pipeline("text-classification", model="out", top_k=None)([texts[0]])
    assert all(output["score"] > 0.5 for output in found)  # each with a probability of its own
    assert not Path("out/confusion_matrix.png").exists()
    assert "top_k=None" in Path("out/README.md").read_text()

    # Lists in JSON give the same; and the folder alone gives the figures again.
    rows = [{"text": text, "label": names} for text, names in zip(texts, labels, strict=True)]
    Path("train.json").write_text("\n".join(map(json.dumps, rows)))
    args = script.ClassificationArguments(train_file=["train.json"])
    assert sequence_classification.load_rows(args, "train")["label"][:] == labels
    capsys.readouterr()
    evaluate_checkpoint.main(["out", "--data", "train.csv"])
    again = json.loads(capsys.readouterr().out)
    for name in ("loss", "micro_f1", "macro_f1", "auroc", "calibration_error"):
        assert again[name] == pytest.approx(results[f"test_{name}"], rel=1e-4)
    with pytest.raises(UsageError, match="trained for multi_label_classification, the data is for single_label"):
        train("--model_name_or_path", "out", "--output_dir", "next", "--train_file", "test.csv", files=())


def test_several_labels_of_a_saved_model(folder):
    labels = [[str(i), str((i + 3) % 12)] for i in range(12)]
    rows = [{"text": "text", "label": names} for names in labels]
    Path("train.json").write_text("\n".join(map(json.dumps, rows)))
    args = script.ClassificationArguments(train_file=["train.json"])
    rows = sequence_classification.load_rows(args, "train")
    RTransformerConfig(**label_head(sequence_classification.make_label2id(rows, args))).save_pretrained("saved")
    config = AutoConfig.from_pretrained("saved")
    assert [*config.label2id][:3] == ["0", "1", "10"]  # whose order is not that of the classes
    tokenizer = sequence_classification.make_tokenizer(args, rows, None)
    encoded = sequence_classification.encode(rows, tokenizer, args, "train", config.label2id)
    for names, row in zip(labels, encoded["labels"][:], strict=True):
        assert {config.id2label[index] for index, value in enumerate(row) if value} == set(names)


def test_numbers_of_texts(folder):
    write_csv("train", [f"word{i % 4}" for i in range(40)], [i % 4 - 0.5 for i in range(40)])
    steps = ("--max_steps", "80", "--eval_steps", "40", "--save_steps", "40", "--learning_rate", "0.03")
    best = ("--load_best_model_at_end",)
    results = train("--regression", *steps, *best, "--test_file", "train.csv", files=("train",))
    assert results["test_r2"] > 0.8 and results["test_spearman"] > 0.8
    assert results["test_mae"] < 0.6 and results["test_loss"] < 0.5
    scorer = pipeline("text-classification", model="out")
    assert scorer.model.config.problem_type == "regression"
    [output] = scorer("word3")
    assert output["label"] == "label" and output["score"] > 1.5


def test_pairs_of_texts(folder, capsys):
    rows = {"text": ["a b", "b", "a", "b a"] * 5, "other": ["b", "b", "a b", "a"] * 5, "label": [0, 1, 0, 1] * 5}
    datasets.Dataset.from_dict(rows).to_csv("train.csv")
    for name in ("word", "char", "bpe"):
        args = script.ClassificationArguments(train_file=["train.csv"], tokenizer=name, text_pair_column="other")
        loaded = sequence_classification.load_rows(args, "train")
        sequence_classification.make_tokenizer(args, loaded, None).save_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        ids = tokenizer("a b", "b")["input_ids"]
        assert ids == [*tokenizer("a b")["input_ids"], tokenizer.sep_token_id, *tokenizer("b")["input_ids"]]
    assert tokenizer.sep_token == "<|endoftext|>" and AutoTokenizer.from_pretrained("word").sep_token == "<sep>"

    results = train("--text_pair_column", "other", "--max_steps", "2", "--test_file", "train.csv", files=("train",))
    classifier = pipeline("text-classification", model="out")
    outputs = [classifier({"text": a, "text_pair": b}) for a, b in zip(rows["text"], rows["other"], strict=True)]
    found = [output["label"] == str(label) for output, label in zip(outputs, rows["label"], strict=True)]
    assert results["test_accuracy"] == pytest.approx(np.mean(found))
    assert '{"text": "Your text here.", "text_pair": "Your text here."}' in Path("out/README.md").read_text()
    capsys.readouterr()
    evaluate_checkpoint.main(["out", "--data", "train.csv"])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(results["test_loss"], rel=1e-4)


def test_balanced_weights_are_those_of_a_loss_over_balanced_classes(folder, killed_at):
    labels = torch.tensor([0] * 6 + [1] * 2)
    rows = datasets.Dataset.from_dict({"labels": labels.tolist()})
    weighted = classification_metrics.make_weighted_loss(rows, "single_label_classification", {"a": 0, "b": 1})
    logits = torch.randn(8, 2)
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = (losses[:6].mean() + losses[6:].mean()) / 2
    torch.testing.assert_close(weighted({"logits": logits}, labels), expected)
    parts = [weighted({"logits": logits[part]}, labels[part], 8) for part in (slice(3), slice(3, 8))]
    torch.testing.assert_close(sum(parts), expected)  # of an accumulated batch

    flags = ("--class_weights", "balanced")
    train(*flags)
    expected = [entry["loss"] for entry in log_history() if "loss" in entry]
    Path("out").rename("uninterrupted")
    killed_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(*flags)
    train(*flags)
    assert [entry["loss"] for entry in log_history() if "loss" in entry] == expected


def test_metrics_of_classes():
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.3, 0.65, 0.05]])
    labels = np.array([0, 1, 1, 1])  # none of the last
    prediction = EvalPrediction(probabilities.log().numpy(), labels)
    metrics = classification_metrics.make_compute_metrics()(prediction)
    assert metrics["accuracy"] == 0.75 and metrics["samples"] == 4
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metrics["auroc"] == 1  # each row of the first label is above all others, and of the second
    # Confidences of 0.9, 0.7, 0.6 and 0.65, each in a bin of its own but for the last two.
    assert metrics["calibration_error"] == pytest.approx((0.1 + 0.3 + abs(0.6 - 0) + abs(0.65 - 1)) / 4, abs=0.2)
    one_label = EvalPrediction(probabilities.log().numpy(), np.zeros(4, dtype=int))
    assert "auroc" not in classification_metrics.make_compute_metrics()(one_label)
    metrics = classification_metrics.make_compute_metrics("regression")(
        EvalPrediction(np.ones((2, 1)), np.array([1.0, 2.0]))
    )
    assert metrics["spearman"] == 0  # or a training that looks for the best model would stop
    constant = EvalPrediction(np.ones((3, 1)), np.array([2.0, 2.0, 2.0]))
    assert classification_metrics.make_compute_metrics("regression")(constant) == {"loss": 1, "mae": 1, "samples": 3}


@pytest.mark.parametrize(
    ("labels", "validation", "flags", "metric"),
    [
        (["a", "b"], ["b", "b"], (), "auroc"),
        (["a|b", "b", ""], ["a|b"] * 3, ("--label_separator", "|"), "auroc"),
        ([1.5, 2.5], [1.5, 1.5], ("--regression",), "r2"),
        ([1.5, 2.5], [1.5], ("--regression",), "eval_spearman"),
    ],
)
def test_best_models_by_a_metric_that_is_not_defined(folder, labels, validation, flags, metric):
    write_csv("train", ["word"] * 4 * len(labels), labels * 4)
    write_csv("validation", ["word"] * len(validation), validation)
    named = (
        f"--metric_for_best_model {metric}: {metric.removeprefix('eval_')} is not defined where all labels are the "
        "same, as those of --validation_file validation.csv are"
    )
    assert_refused(named, train, *flags, "--metric_for_best_model", metric)


def test_calibration_error():
    confidences, hits = np.array([0.95, 0.95, 0.95, 0.95, 0.5, 0.5]), np.array([1, 1, 1, 0, 1, 0])
    expected = (abs(4 * 0.95 - 3) + abs(2 * 0.5 - 1)) / 6
    assert classification_metrics.calibration_error(confidences, hits) == pytest.approx(expected)
    assert classification_metrics.calibration_error(np.ones(2), np.ones(2)) == 0


@pytest.mark.parametrize(
    ("labels", "flags", "named"),
    [
        (
            [[0, 1, 1], [1, 0, 0]],
            [],
            "row 0, from 0, has a label twice: [0, 1, 1] (expected the labels that a",
        ),
        ([["a", None], ["b"]], [], "row 0, from 0, has a label that is missing: ['a', None]"),
        ([["a"], None], [], "--label_column 'label' of --train_file train.json is missing in row 1"),
        ([[0.5], [1.0]], [], "holds lists of float64 (expected lists of classes, names or integers)"),
        ([[], []], [], "--label_column 'label' of --train_file train.json holds"),
        ([["a"], ["b"]], ["--regression"], "holds List (expected numbers, with --regression)"),
        ([["a"], ["b"]], ["--label_separator", ","], "holds List (expected text, with --label_separator)"),
        (["1.5", "two"], ["--regression"], "of --train_file train.json: 'two' in row 1, from 0 (expected a finite"),
        (["1.5", "inf"], ["--regression"], "'inf' in row 1, from 0 (expected a finite number"),
        (
            ["a,b", "b"],
            ["--label_separator", ",", "--class_weights", "balanced"],
            "balanced: label 'b' is in 2 of 2",
        ),
        ([0, 1], ["--regression", "--metric_for_best_model", "auroc"], "--metric_for_best_model: unknown: 'auroc'"),
        ([0, 1], ["--text_pair_column", "x"], "--text_pair_column 'x' is no column of --train_file train.json"),
    ],
)
def test_bad_labels_of_other_kinds(folder, labels, flags, named):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    Path("train.json").write_text("\n".join(map(json.dumps, rows)))
    files = ("--train_file", "train.json", "--validation_file", "train.json")
    assert_refused(named, train, *files, *flags, files=())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--regression", "--class_weights", "balanced"], "--class_weights: 'balanced' goes with classes, not with"),
        (["--regression", "--label_separator", ","], "--label_separator: ',' goes with classes, not with"),
        (["--label_separator="], "--label_separator: '' (expected at least one"),
        (["--image_column", "i", "--text_pair_column", "t"], "--text_pair_column: 't' goes without --image_column"),
        (["--bidirectional", "--model_type", "bert"], "--bidirectional: not with --model_type bert, which has"),
    ],
)
def test_flags_that_do_not_go_together(folder, capsys, flags, named):
    with pytest.raises(SystemExit):
        train(*flags)
    assert named in capsys.readouterr().err


def test_natural_words(folder):
    texts = ["What's the longest river?", "I don't know 3.5 of them", "the U.S. (the naïve),"]
    write_csv("train", texts, ["a", "b", "a"])
    args = script.ClassificationArguments(train_file=["train.csv"])
    rows = sequence_classification.load_rows(args, "train")
    sequence_classification.make_tokenizer(args, rows, None).save_pretrained("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    for text, spaced in (
        ("What\u2019s the longest river?", "what 's the longest river ?"),
        ("I DON'T know (3.5)", "i do n't know ( 3.5 )"),
        ("the U.S. river,them", "the u . s . river , them"),
        ("nai\u0308ve", "naïve"),
    ):
        assert tokenizer.tokenize(text) == spaced.split()
        assert tokenizer(text)["input_ids"] == tokenizer(spaced)["input_ids"]
    assert tokenizer.decode(tokenizer("The nile?")["input_ids"]) == "the <unk> ?"
    assert tokenizer.pad_token == "<pad>" and len(tokenizer) == len(tokenizer.get_vocab())

    smaller = sequence_classification.make_tokenizer(replace(args, vocab_size=4), rows, None)
    assert smaller.get_vocab().keys() == {"<unk>", "<pad>", ".", "the"}


def test_unknown_words_are_counted_for_every_split(folder, caplog):
    write_csv("test", ["word1 word2", "new word1, word2!"], ["long", "short"])
    Path("validation.csv").write_text(Path("train.csv").read_text())
    with caplog.at_level("INFO", logger="rtransformer_hf.training.sequence_classification"):
        train("--max_steps", "1", files=("train", "validation", "test"))
    assert "--train_file train.csv: 0 of " in caplog.text
    assert "--validation_file validation.csv: 0 of " in caplog.text
    assert "--validation_file validation.csv: 40 of 40 inputs are in the training data as well" in caplog.text
    assert "--test_file test.csv: 3 of 7 tokens are unknown (42.9 %)." in caplog.text
    caplog.clear()
    evaluate_checkpoint.main(["out", "--data", "test.csv"])
    assert "--data test.csv: 3 of 7 tokens are unknown (42.9 %)." in caplog.text


def test_training_goes_on_from_a_language_model(folder):
    texts = datasets.Dataset.from_csv("train.csv")["text"][:]
    tokenizer = load_tokenizer("char", texts)
    tokenizer.pad_token = None
    model = RTransformerForCausalLM(
        RTransformerConfig(vocab_size=len(tokenizer), hidden_size=8, num_attention_heads=2)
    )
    model.save_pretrained("language_model")
    tokenizer.save_pretrained("language_model")
    sizes = ("hidden_size", "num_hidden", "num_attention", "local_window")
    Path("recipe.yaml").write_text("\n".join(line for line in RECIPE.splitlines() if not line.startswith(sizes)))
    train("--model_name_or_path", "language_model", "--max_steps", "1", "--learning_rate", "0")
    classifier = AutoModelForSequenceClassification.from_pretrained("out")
    assert classifier.config.pad_token_id == len(tokenizer) and classifier.config.vocab_size == len(tokenizer) + 1
    embedding = classifier.get_input_embeddings().weight[: len(tokenizer)]
    torch.testing.assert_close(embedding, model.get_input_embeddings().weight)

    write_csv("train", [f"{text} ÄÖÜ" for text in texts], ["long", "short"] * (len(texts) // 2))
    Path("out").rename("first")
    assert_refused(
        "gives token ids up to", train, "--model_name_or_path", "first", "--tokenizer", "char", files=("train",)
    )


def test_training_goes_on_from_a_classifier(folder):
    tokenizer = load_tokenizer("word", datasets.Dataset.from_csv("train.csv")["text"][:])
    tokenizer.save_pretrained("first")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}

    def save(names: list[str] | None, **settings):
        labels = {"num_labels": 3} if names is None else {"id2label": dict(enumerate(names))}
        config = RTransformerConfig(**sizes, local_window_size=3, **labels, **settings)
        RTransformerForSequenceClassification(config).save_pretrained("first")

    flags = ("--model_name_or_path", "first", "--max_steps", "1")
    save(["short", "tall", "long"])
    train(*flags)
    assert AutoModelForSequenceClassification.from_pretrained("out").config.id2label == {
        0: "short",
        1: "tall",
        2: "long",
    }
    Path("out").rename("second")

    save(["good", "bad"])
    assert_refused("has 2 labels (long, short), those of --model_name_or_path are 2 (good, bad)", train, *flags)
    save(None)
    assert_refused("has 2 labels (long, short), those of --model_name_or_path are 3 (LABEL_0", train, *flags)
    write_images("train", [Image.fromarray(image) for image in random_pixels(9)])
    assert_refused("'first' reads tokens (expected, with --image_column", train_on_images, *flags)
    save(None, input_size=2)
    assert_refused(
        "of images of 1 channels (expected as many values as the input_size 2 of --model_name_or_path 'first'",
        train_on_images,
        *flags,
    )
    save(["short", "long"], input_size=1)
    assert_refused("'first' reads vectors of 1 values, its input_size (expected, with --text_column", train, *flags)
    save(None, input_size=1)  # as a converted checkpoint is: no names of labels, no processor
    Path("first", "preprocessor_config.json").write_text("{")
    assert_refused("no image processor can be made of that of --model_name_or_path 'first'", train_on_images, *flags)
    Path("first", "preprocessor_config.json").unlink()
    train_on_images(*flags)
    assert AutoModelForSequenceClassification.from_pretrained("out").config.id2label[2] == "bright"


@pytest.mark.parametrize("flags", [(), TRANSFORMER])
@pytest.mark.parametrize("name", ["smnist", "smnist_paper", "sst2", "trec"])
def test_recipes_are_valid(folder, name, flags):
    argv = [str(SCRIPTS / "recipes" / f"{name}.yaml"), "--train_file", "train.csv", "--output_dir", "out", *flags]
    model_args, data_args, training_args = script.parse_arguments(ARGUMENT_TYPES, argv, "")
    assert training_args.metric_for_best_model == "accuracy" and training_args.greater_is_better
    is_image = data_args.image_column is not None
    processing_class = RTransformerImageProcessor() if is_image else load_tokenizer("word", ["a b"])
    with torch.device("meta"):
        model = script.make_classifier(model_args, data_args, processing_class, label_head({"a": 0, "b": 1}))
    assert model.config.num_local_rnn_layers == (0 if flags else 2 if is_image else 1)


def test_the_paper_divides_the_learning_rate_every_10_epochs(folder):
    argv = [str(SCRIPTS / "recipes" / "smnist_paper.yaml"), "--train_file", "train.csv", "--output_dir", "out"]
    _, _, args = script.parse_arguments(ARGUMENT_TYPES, argv, "")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    for epoch in range(50):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 10 ** (epoch // 10))
        scheduler.step(0.9 + 0.001 * epoch * (-1) ** epoch)  # accuracy on validation


def test_accuracy(monkeypatch, tmp_path):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a metric asks for the network"))
    metric = evaluate.load(str(metric_modules.METRICS / "accuracy"), cache_dir=str(tmp_path))
    assert metric.compute(predictions=[0, 2, 1, 1], references=[0, 2, 1, 0]) == {"accuracy": 0.75}
    metric.add_batch(predictions=[1, 1, 1], references=[1, 0, 0])
    metric.add_batch(predictions=[2], references=[2])
    assert metric.compute() == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="references"):
        metric.compute(predictions=[0, 1], references=[0, -100])


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "--image_column" in output and "--classifier_dropout" in output and "--id2label" not in output
    assert "--bidirectional" in output and "--is_causal" not in output
