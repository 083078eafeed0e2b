# SPDX-License-Identifier: Apache-2.0
"""The training script for time series end to end, with models of a few thousand parameters, and what it reads."""

import json
import math
import re
import sys
import zlib
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import evaluate_checkpoint
import train_time_series as script
from conftest import TINY_SERIES_RECIPE

from rtransformer_hf import RTransformerFeatureExtractor
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.forecasting import (
    LEVELS,
    ForecastSetting,
    baseline_forecasts,
    fit_forecast_extractor,
    forecast_metrics,
    last_value,
    make_windows,
    normalised_series,
    seasonal_naive,
)
from rtransformer_hf.training.model_card import read_facts
from rtransformer_hf.training.series_labels import DataCollatorForInputValues, class_metrics, number_metrics
from rtransformer_hf.training.time_series import (
    Series,
    Spacing,
    TimeSeriesArguments,
    load_series,
    match_channels,
    parse_times,
)

RECIPE = f"""{TINY_SERIES_RECIPE}
hidden_dropout: 0.1
max_steps: 6
logging_steps: 1
save_steps: 2
eval_strategy: steps
eval_steps: 3
"""
MONTHS = pd.date_range("2020-01-01", periods=40, freq="MS").strftime("%Y-%m").tolist()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    sales().to_csv("sales.csv", index=False)
    return tmp_path


def sales(**columns) -> pd.DataFrame:
    """Two shops in long layout, one after the other; each column may be replaced."""
    random = np.random.default_rng(0)
    season = 5 * np.sin(np.arange(40) * 2 * np.pi / 12)
    frame = pd.DataFrame(
        {
            "shop": ["north"] * 40 + ["south"] * 40,
            "month": MONTHS * 2,
            "sold": np.concatenate([20 + season, 300 + 9 * season]) + random.normal(size=80),
            "price": random.normal(size=80),
        }
    )
    return frame.assign(**columns)


def forecast(*flags: str, **settings) -> dict:
    settings = {"horizon": 3, "context_length": 12, "num_parallel_samples": 20, **settings}
    data = ["--train_file", "sales.csv", "--id_column", "shop", "--time_column", "month", "--target_columns", "sold"]
    words = [f"--{name}={value}" for name, value in settings.items()]
    script.main(["recipe.yaml", *data, *words, "--output_dir", "out", *flags])
    return json.loads(Path("out/all_results.json").read_text())


def read(split="train", **settings):
    return load_series(TimeSeriesArguments(**settings), split)


# --- forecasts ---


def test_a_forecasting_run_leaves_a_model_ready_to_use(folder, capsys):
    results = forecast("--covariate_columns", "price", "--test_length", "6", "--dataloader_drop_last")
    said = capsys.readouterr().out
    assert "\nSteps: 6, 0.75 epochs of 8.\n" in said  # the last 2 of 34 windows are dropped, of evaluations none
    assert "Baseline on test: seasonal naive: mase " in said and "Baseline on validation: last value: mase " in said
    assert "2 series of 1 channels to forecast and 3 covariates; train 34, validation 2, test 4 windows" in said
    assert said.splitlines()[-1].endswith("evaluate_checkpoint.py out --data sales.csv")

    model = AutoModelForTimeSeriesPrediction.from_pretrained("out").eval()
    extractor = AutoFeatureExtractor.from_pretrained("out")
    assert model.config.prediction_length == 3 and model.config.context_length == 12
    assert extractor.channel_names == ["sold", "price", "sine of the season", "cosine of the season"]
    frame = pd.read_csv("sales.csv")
    assert extractor.mean[0] == 0 and extractor.std[0] == 1
    training = np.concatenate([frame.price[:31], frame.price[40:71]])
    assert extractor.mean[1] == pytest.approx(training.mean()) and extractor.std[1] == pytest.approx(training.std())

    # The test figures again, from the file.
    phases = np.array([2 * np.pi * ((MONTHS.index(month)) % 12) / 12 for month in frame.month])
    values = np.stack([frame.sold, frame.price, np.sin(phases), np.cos(phases)], axis=1)
    values = torch.from_numpy((values - extractor.mean) / extractor.std).float()
    windows = [(shop * 40, origin) for shop in (0, 1) for origin in (34, 37)]
    past = torch.stack([values[start + origin - 12 : start + origin] for start, origin in windows])
    future = torch.stack([values[start + origin : start + origin + 3] for start, origin in windows])
    generators = [torch.Generator().manual_seed(zlib.crc32(window.numpy().tobytes())) for window in past]
    samples = model.forecast(past, future_covariates=future[..., 1:], generator=generators).sequences
    errors = (samples.quantile(0.5, dim=1) - future[..., :1]).abs()[..., 0].double().numpy()
    scales = [np.abs(sold[12:31] - sold[:19]).mean() for sold in (frame.sold[:40].values, frame.sold[40:].values)]
    assert results["test_mase"] == pytest.approx((errors / np.repeat(scales, 2)[:, None]).mean(), rel=1e-4)
    with torch.no_grad():
        assert results["test_loss"] == pytest.approx(model(past, future_values=future).loss.item(), rel=1e-4)

    evaluate_checkpoint.main(["out", "--data", "sales.csv", "--batch_size", "3"])
    again = json.loads(capsys.readouterr().out)
    for name in ("loss", "mase", "smape", "weighted_quantile_loss", "coverage_80"):
        assert again[name] == pytest.approx(results[f"test_{name}"], rel=1e-4)

    card = ModelCard.load("out/README.md")
    assert "| test | seasonal naive |" in card.text and "(forecasts.png)" in card.text
    assert card.data.pipeline_tag == "time-series-forecasting"
    assert Path("out/forecasts.png").stat().st_size > 1000 and Path("out/modeling_rtransformer.py").exists()

    # With other data, baselines and picture are its own.
    before, picture = read_facts("out"), Path("out/forecasts.png").read_bytes()
    frame.assign(sold=frame.sold.to_numpy()[::-1]).to_csv("other.csv", index=False)
    args = TimeSeriesArguments(
        train_file=["other.csv"],
        id_column="shop",
        time_column="month",
        target_columns=["sold"],
        horizon=3,
        context_length=12,
        test_length=6,
    )
    series = load_series(args)
    expected = baseline_forecasts(make_windows(args, series, ForecastSetting.of(args, series))["test"])
    evaluate_checkpoint.main(["out", "--data", "other.csv", "--update_card", "test"])
    after = read_facts("out")
    assert after.baselines[:6] == before.baselines[:6]  # of validation, whose figures stay
    found = {(name, metric): value for _, name, metric, value in after.baselines[6:]}
    assert found == {(name, metric): value for name, metrics in expected.items() for metric, value in metrics.items()}
    assert Path("out/forecasts.png").read_bytes() != picture

    # The figures of the validation data are those of its steps, the ones before the test steps.
    capsys.readouterr()
    evaluate_checkpoint.main(["out", "--data", "sales.csv", "--update_card", "validation"])
    assert json.loads(capsys.readouterr().out)["mase"] == pytest.approx(results["eval_mase"], rel=1e-4)
    figures = {(split, name): value for split, name, value in read_facts("out").results}
    assert figures["validation", "mase"] == pytest.approx(results["eval_mase"], rel=1e-4)
    assert figures["test", "mase"] != pytest.approx(results["test_mase"], rel=1e-4)  # still of the other data


def test_a_resumed_run_gives_the_losses_of_an_uninterrupted_one(folder, killed_at):
    def losses() -> list[float]:
        history = json.loads(Path("out/trainer_state.json").read_text())["log_history"]
        return [entry.get("loss", entry.get("eval_loss")) for entry in history if {"loss", "eval_loss"} & entry.keys()]

    expected = forecast()
    expected_losses = losses()
    steps = killed_at(5)
    with pytest.raises(KeyboardInterrupt):
        forecast("--overwrite_output_dir")
    results = forecast()
    assert steps == [*range(6), 4, 5] and losses() == expected_losses
    assert results["test_mase"] == expected["test_mase"] and results["eval_loss"] == expected["eval_loss"]
    with pytest.raises(UsageError, match="holds another model"):
        forecast(horizon=4)


@pytest.mark.parametrize("distribution", ["normal", "quantiles"])
def test_other_distributions_missing_values_and_a_model_to_train_further(folder, distribution):
    sold = sales().sold.round(2).astype(str)
    sold[[3, 20, 36]] = ["", "NA", "?"]
    sales(sold=sold).to_csv("sales.csv", index=False)
    first = forecast(f"--distribution_output={distribution}", "--scaling=mean", "--test_length=0")
    assert math.isfinite(first["eval_loss"]) and "test_loss" not in first
    with pytest.raises(UsageError, match="--update_card test: out was trained without test steps"):
        evaluate_checkpoint.main(["out", "--data", "sales.csv", "--update_card", "test"])
    Path("out").rename("first")
    further = forecast("--model_name_or_path=first", "--learning_rate=1e-9", "--test_length=0")
    assert further["eval_loss"] == pytest.approx(first["eval_loss"], abs=1e-4)
    with pytest.raises(UsageError, match=r"'first' reads 3 channels, 2 of them covariates; the data has 1 and 0"):
        forecast("--model_name_or_path=first", "--time_features=false", "--overwrite_output_dir")


def test_windows_are_split_by_time(folder):
    args = TimeSeriesArguments(
        train_file=["sales.csv"], id_column="shop", target_columns=["sold"], covariate_columns=["price"], horizon=3
    )
    args.context_length, args.validation_length, args.test_length = 12, 6, 3

    def windows():
        series = load_series(args)
        setting = ForecastSetting.of(args, series)
        extractor = fit_forecast_extractor(series, setting)
        return make_windows(args, normalised_series(series, extractor), setting)

    splits = windows()
    assert {split: sorted({origin for _, origin in found.origins}) for split, found in splits.items()} == {
        "train": list(range(12, 29)),  # the last one ends with step 31 of 40
        "validation": [31, 34],
        "test": [37],
    }
    item = splits["train"][0]
    assert item["past_values"].shape == (12, 2) and item["future_values"].shape == (3, 2)
    before = [item["future_values"] for item in splits["train"]]
    frame = sales()
    for end in (40, 80):  # what comes later changes nothing in training
        frame.loc[end - 9 : end - 1, ["sold", "price"]] = 1e6 + np.arange(18).reshape(9, 2)
    frame.to_csv("sales.csv", index=False)
    after = [item["future_values"] for item in windows()["train"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    short = TimeSeriesArguments(
        train_file=["sales.csv"], id_column="shop", target_columns=["sold"], horizon=4, context_length=35
    )
    series = load_series(short)
    setting = ForecastSetting.of(short, series)
    item = make_windows(short, series, setting)["train"][0]
    assert item["attention_mask"].tolist() == [0] * 7 + [1] * 28 and (item["past_values"][:7] == 0).all()


def test_metrics_and_baselines(folder):
    values = [1.0, 5, 2, 6, 3, 7, 4, math.nan, 9, 8]
    pd.DataFrame({"x": values}).to_csv("x.csv", index=False)
    args = TimeSeriesArguments(
        train_file=["x.csv"], horizon=2, context_length=3, season_length=2, validation_length=2, test_length=2
    )
    series = load_series(args)
    windows = make_windows(args, series, ForecastSetting.of(args, series))["test"]
    assert last_value(windows).flatten().tolist() == [4, 4]
    assert seasonal_naive(windows).flatten().tolist() == [4, 7]  # the value before the missing one, a season earlier
    quantiles = np.stack([np.array([[8.0 + i], [4.0 + i]]) for i in range(9)])[None]  # medians 12 and 8
    metrics = forecast_metrics(quantiles, windows)
    assert metrics["mase"] == pytest.approx((3 / 1 + 0 / 1) / 2)  # 1, 5, 2, 6, 3, 7: a season apart by 1
    assert metrics["smape"] == pytest.approx((200 * 3 / 21 + 0) / 2)
    pinball = sum(
        2 * max(level * (y - q), (level - 1) * (y - q))
        for i, level in enumerate(LEVELS)
        for y, q in ((9, 8 + i), (8, 4 + i))
    )
    assert metrics["weighted_quantile_loss"] == pytest.approx(pinball / 9 / 17)
    assert metrics["coverage_80"] == 1


# --- labels ---


def write_motions(path: str, num_series: int, seed: int) -> pd.DataFrame:
    """Series of two channels and unequal lengths: 'up' ones rise, 'down' ones fall."""
    random = np.random.default_rng(seed)
    frames = []
    for index in range(num_series):
        length = 4 + index % 5
        slope = 1 if index % 2 else -1
        frames.append(
            pd.DataFrame(
                {
                    "id": f"s{index}",
                    "x": slope * np.arange(length) + random.normal(size=length),
                    "y": random.normal(size=length),
                    "label": "up" if slope == 1 else "down",
                    "phase": [f"{int(step > 2)}" for step in range(length)],
                    "level": slope * np.arange(length) / 4,
                }
            )
        )
    frame = pd.concat(frames)
    frame.to_csv(path, index=False)
    return frame


def label(task: str, *flags: str) -> dict:
    data = ["--train_file", "train.csv", "--test_file", "test.csv", "--id_column", "id", "--target_columns", "x", "y"]
    script.main(["recipe.yaml", "--task", task, *data, "--output_dir", "out", *flags])
    return json.loads(Path("out/all_results.json").read_text())


@pytest.mark.parametrize(("side", "flags"), [("left", ()), ("right", ()), ("left", ("--bidirectional",))])
def test_series_are_classified(folder, side, flags, capsys):
    write_motions("train.csv", 24, 0)
    frame = write_motions("test.csv", 9, 1)
    fraction = ("--validation_fraction", "0.25")
    results = label("classify", "--padding_side", side, *fraction, "--max_steps", "30", *flags)
    said = capsys.readouterr().out
    assert "train 18, validation 6, test 9 series of 2 channels with 2 labels" in said
    assert "Baseline on test: nearest neighbour: accuracy " in said
    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    extractor = AutoFeatureExtractor.from_pretrained("out")
    predicted, labels = [], []
    for _, series in frame.groupby("id", sort=False):
        inputs = extractor(series[["x", "y"]].to_numpy(), return_tensors="pt")
        predicted.append(model.config.id2label[model(**inputs).logits.argmax().item()])
        labels.append(series.label.iloc[0])
    accuracy = np.mean([a == b for a, b in zip(predicted, labels, strict=True)])
    assert results["test_accuracy"] == pytest.approx(accuracy) and accuracy > 0.7
    settings = json.loads(Path("out/evaluation.json").read_text())
    Path("out/evaluation.json").write_text(json.dumps(settings | {"target_columns": None}))
    frame = frame[["id", "y", "x", "label"]]
    frame.rename(columns={"x": "a"}).to_csv("renamed.csv", index=False)
    with pytest.raises(UsageError, match=r"renamed\.csv has 2 channels \(y, a\), out has 2 \(x, y\) \(expected"):
        evaluate_checkpoint.main(["out", "--data", "renamed.csv"])
    frame.to_csv("test.csv", index=False)  # channels are known by their names
    evaluate_checkpoint.main(["out", "--data", "test.csv"])
    again = json.loads(capsys.readouterr().out)
    assert again["accuracy"] == results["test_accuracy"] and again["loss"] == pytest.approx(results["test_loss"])
    card = ModelCard.load("out/README.md").text
    assert "| test | nearest neighbour |" in card and "macro f1" in card

    # Baselines stay beside figures of the same rows, not of others.
    baselines = read_facts("out").baselines
    evaluate_checkpoint.main(["out", "--data", "test.csv", "--update_card", "test"])
    assert read_facts("out").baselines == baselines and "left out" not in capsys.readouterr().err
    write_motions("other.csv", 9, 2)[["id", "y", "x", "label"]].to_csv("other.csv", index=False)
    evaluate_checkpoint.main(["out", "--data", "other.csv", "--update_card", "test"])
    said = capsys.readouterr().err
    assert "README.md: most frequent class and nearest neighbour of the test data left out: not known to be" in said
    assert read_facts("out").baselines == [row for row in baselines if row[0] == "validation"]
    card = ModelCard.load("out/README.md").text
    assert "| validation | nearest neighbour |" in card and "| test | nearest" not in card
    assert "| test | this model |" not in card and "| test | accuracy |" in card


@pytest.mark.parametrize("flags", [(), ("--bidirectional",)])
def test_each_step_is_labelled(folder, flags, capsys):
    write_motions("train.csv", 24, 0)
    frame = write_motions("test.csv", 9, 1)
    results = label("label_each_step", "--label_column", "phase", "--dataloader_drop_last", *flags)
    capsys.readouterr()
    model = AutoModelForTokenClassification.from_pretrained("out").eval()
    assert model.config.is_causal == (not flags)
    seen = "from all steps of its series" if flags else "from the steps up to it"
    assert seen in ModelCard.load("out/README.md").text
    extractor = AutoFeatureExtractor.from_pretrained("out")
    predicted, labels = [], []
    for _, series in frame.groupby("id", sort=False):
        inputs = extractor(series[["x", "y"]].to_numpy(), return_tensors="pt")
        predicted += model(**inputs).logits[0].argmax(-1).tolist()
        labels += series.phase.astype(int).tolist()
    assert results["test_samples"] == len(frame) and model.config.id2label == {0: "0", 1: "1"}
    expected = class_metrics(np.array(predicted), np.array(labels), 2)
    assert results["test_accuracy"] == pytest.approx(expected["accuracy"])
    assert results["test_macro_f1"] == pytest.approx(expected["macro_f1"])
    evaluate_checkpoint.main(["out", "--data", "test.csv"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == results["test_accuracy"]
    evaluate_checkpoint.main(["out", "--data", "train.csv", "--validation_fraction", "0.1"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == results["eval_accuracy"]


@pytest.mark.parametrize("task", ["classify", "label_each_step"])
def test_numbers_are_predicted(folder, task):
    frame = write_motions("train.csv", 24, 0)
    if task == "classify":
        for name in ("train", "test"):
            frame = write_motions(f"{name}.csv", 12, len(name))
            frame["level"] = frame.groupby("id")["x"].transform("mean").round(3)
            frame.to_csv(f"{name}.csv", index=False)
    else:
        write_motions("test.csv", 9, 1)
    results = label(task, "--label_column", "level", "--regression")
    frame = pd.read_csv("test.csv")
    auto_class = AutoModelForSequenceClassification if task == "classify" else AutoModelForTokenClassification
    model, extractor = auto_class.from_pretrained("out").eval(), AutoFeatureExtractor.from_pretrained("out")
    errors = []
    for _, series in frame.groupby("id", sort=False):
        logits = model(**extractor(series[["x", "y"]].to_numpy(), return_tensors="pt")).logits.detach().flatten()
        errors += (logits - torch.tensor(series.level.to_numpy()[: len(logits)])).tolist()
    assert results["test_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert results["test_loss"] == pytest.approx(np.square(errors).mean(), rel=1e-4)


def test_the_collator_pads_labels_with_their_values():
    examples = [{"input_values": np.ones((n, 2), dtype=np.float32), "labels": torch.arange(n)} for n in (2, 4)]
    left = DataCollatorForInputValues(RTransformerFeatureExtractor(2, padding_side="left"))(examples)
    assert left["labels"].tolist() == [[-100, -100, 0, 1], [0, 1, 2, 3]]
    assert left["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]] and left["input_values"].shape == (2, 4, 2)
    examples = [{**example, "labels": example["labels"].float()} for example in examples]
    right = DataCollatorForInputValues(RTransformerFeatureExtractor(2))(examples)
    assert right["labels"][0, :2].tolist() == [0, 1] and right["labels"][0, 2:].isnan().all()
    whole = DataCollatorForInputValues(RTransformerFeatureExtractor(2))([{**e, "labels": 1} for e in examples])
    assert whole["labels"].tolist() == [1, 1]


def test_series_to_test_on_that_were_trained_on_are_warned_of(folder, caplog):
    frame = write_motions("train.csv", 24, 0)
    frame[frame.id.isin(["s0", "s1", "s2"])].to_csv("test.csv", index=False)
    label("classify", "--max_steps", "1", "--validation_file", "train.csv")
    assert "--test_file test.csv: 3 of 3 inputs are in the training data as well" in caplog.text
    assert "--validation_file train.csv: 24 of 24 inputs are in" in caplog.text


def test_a_model_trained_further_keeps_its_channels_and_labels(folder, caplog):
    frame = write_motions("train.csv", 24, 0)
    label("classify", "--max_steps", "1", "--test_file", "train.csv")
    Path("out").rename("first")

    def further(frame: pd.DataFrame, *flags: str) -> RTransformerFeatureExtractor:
        frame.to_csv("train.csv", index=False)
        data = ["--train_file", "train.csv", "--id_column", "id", "--output_dir", "out", "--overwrite_output_dir"]
        words = ["recipe.yaml", "--task", "classify", *data, "--model_name_or_path", "first", "--max_steps", "1"]
        sizes = ("hidden_", "num_", "local_")
        recipe = [line for line in RECIPE.splitlines() if not line.startswith(sizes)]
        Path("recipe.yaml").write_text("\n".join(recipe))
        script.main([*words, *flags])
        return AutoFeatureExtractor.from_pretrained("out")

    frame = frame[["id", "y", "x", "label"]]
    extractor = further(frame)
    assert extractor.channel_names == ["x", "y"] and extractor.std[0] > extractor.std[1]
    with pytest.raises(
        UsageError, match=r"'first' has learnt the channels x, y, .*train\.csv has y, z \(expected the"
    ):
        further(frame.rename(columns={"x": "z"}))
    further(frame.rename(columns={"x": "a", "y": "b"}))
    assert "'first' has learnt other channels: b is read as x, a is read as y" in caplog.text
    with pytest.raises(
        UsageError, match=r"has 2 labels \(level, up\), those of --model_name_or_path are 2 \(down, up\)"
    ):
        further(frame.assign(label=frame.label.replace("down", "level")))
    with pytest.raises(UsageError, match="'first' was trained for single_label_classification, the data is for regr"):
        further(frame.assign(label=1.5), "--regression")
    Path("first", "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match="--model_name_or_path 'first': its feature extractor can't be read"):
        further(frame)


# --- what is read ---


def test_layouts_and_formats_hold_the_same_series(folder):
    frame = sales()
    long = read(train_file=["sales.csv"], id_column="shop", time_column="month", target_columns=["sold"])
    assert [part.name for part in long] == ["north", "south"] and long[1].rows.tolist() == list(range(40, 80))
    frame.sample(frac=1, random_state=0).to_parquet("shuffled.parquet")
    wide = frame.pivot(index="month", columns="shop", values="sold").reset_index()
    wide.to_csv("wide.csv", index=False)
    lists = pd.DataFrame({"shop": ["north", "south"], "sold": [part.values[:, 0].tolist() for part in long]})
    datasets.Dataset.from_pandas(lists).to_parquet("lists.parquet")
    np.savez("arrays.npz", values=np.stack([part.values for part in long]))
    for shop in ("north", "south"):
        frame[frame.shop == shop].to_csv(f"{shop}.csv", index=False)
    for settings in [
        {"train_file": ["shuffled.parquet"], "id_column": "shop", "time_column": "month", "target_columns": ["sold"]},
        {"train_file": ["wide.csv"], "layout": "wide", "time_column": "month"},
        {"train_file": ["lists.parquet"], "id_column": "shop"},
        {"train_file": ["arrays.npz"]},
        {"train_file": ["north.csv", "south.csv"], "time_column": "month", "target_columns": ["sold"]},
    ]:
        series = sorted(read(**settings), key=lambda part: part.values[0, 0])
        for part, expected in zip(series, long, strict=True):
            np.testing.assert_allclose(part.values, expected.values, rtol=1e-12)
            assert part.steps is None or part.steps.tolist() == expected.steps.tolist()


def test_channels_of_several_files_are_matched_by_name(folder):
    sales().to_csv("first.csv", index=False)
    others = sales(shop=["east"] * 40 + ["west"] * 40)
    others[["price", "month", "shop", "sold"]].to_csv("second.csv", index=False)
    settings = {"id_column": "shop", "time_column": "month"}
    series = read(train_file=["first.csv", "second.csv"], **settings)
    assert [part.channels for part in series] == [["sold", "price"]] * 4
    np.testing.assert_array_equal(series[0].values, series[2].values)
    others.rename(columns={"price": "cost"}).to_csv("second.csv", index=False)
    with pytest.raises(
        UsageError, match=r"second\.csv has 2 channels \(sold, cost\), .*first\.csv has 2 \(sold, price"
    ):
        read(train_file=["first.csv", "second.csv"], **settings)
    np.savez("arrays.npz", values=np.zeros((1, 9, 3)) + np.arange(9)[:, None])
    with pytest.raises(UsageError, match=r"arrays\.npz has 3 channels .*, .*first\.csv has 2"):
        args = TimeSeriesArguments(train_file=["first.csv"], **settings)
        match_channels(args, read(train_file=["arrays.npz"]), series[0].channels, series[0].where)


def test_series_to_classify_in_every_layout(folder):
    values = [[1.0, 2, 3], [4, 5]]
    Path("wide.csv").write_text("kind,a,b,c\n1,1,2,3\n2,4,5,\n")
    pd.DataFrame({"kind": [1, 2], "values": values}).to_json("lists.jsonl", orient="records", lines=True)
    rows = {"values": values, "kind": [0, 1]}
    features = datasets.Features({"values": datasets.List(datasets.Value("float32")), "kind": datasets.ClassLabel(2)})
    Path("hub").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet("hub/train-00000-of-00001.parquet")
    np.savez("arrays.npz", values=[[1, 2, 3], [4, 5, 0]], lengths=[3, 2], labels=[1, 2])
    label_column = {"task": "classify", "label_column": "kind"}
    for settings, labels in [
        ({"train_file": ["wide.csv"], "layout": "wide"}, ["1", "2"]),
        ({"train_file": ["lists.jsonl"]}, ["1", "2"]),
        ({"dataset_name": "hub"}, ["0", "1"]),
        ({"train_file": ["arrays.npz"]}, ["1", "2"]),
    ]:
        series = read(**settings, **label_column)
        assert [part.values[:, 0].tolist() for part in series] == values
        assert [part.labels for part in series] == labels


def write_labels(layout: str, labels: list, feature=None) -> dict:
    """Four series of two steps, with labels of each (series,) or (series, steps); gives how to read them."""
    values = [[1.0, 2], [3, 4], [5, 6], [7, 8]]
    settings = {"task": "classify" if np.ndim(labels) == 1 else "label_each_step"}
    if layout == "arrays":
        np.savez("x.npz", values=values, labels=labels)
        return {**settings, "train_file": ["x.npz"]}
    if layout == "lists":
        rows = datasets.Dataset.from_dict({"x": values, "label": labels})
        if feature is not None:
            feature = feature if np.ndim(labels) == 1 else datasets.List(feature)
            rows = rows.cast_column("label", feature)
        rows.to_parquet("x.parquet")
        return {**settings, "train_file": ["x.parquet"]}
    if layout == "wide":
        pd.DataFrame(values, columns=["a", "b"]).assign(label=labels).to_csv("x.csv", index=False)
        return {**settings, "train_file": ["x.csv"], "layout": "wide"}
    labels = np.repeat(labels, 2) if np.ndim(labels) == 1 else np.ravel(labels)
    pd.DataFrame({"id": np.repeat(range(4), 2), "x": np.ravel(values), "label": labels}).to_csv("x.csv", index=False)
    return {**settings, "train_file": ["x.csv"], "id_column": "id"}


WHOLE, STEPS = ("arrays", "lists", "wide", "long"), ("arrays", "lists", "long")


@pytest.mark.parametrize(("layout", "shape"), [*((name, (4,)) for name in WHOLE), *((name, (4, 2)) for name in STEPS)])
def test_labels_have_the_names_that_they_have_in_other_tasks(folder, layout, shape):
    def names(labels, feature=None) -> list:
        return [part.labels for part in read(**write_labels(layout, labels.reshape(shape).tolist(), feature))]

    count = np.prod(shape)
    assert names(np.arange(count) / 1.0) == np.arange(count).astype(str).reshape(shape).tolist()
    assert names(np.arange(count) % 2 == 0) == (np.arange(count) % 2 == 0).astype(str).reshape(shape).tolist()
    halves = np.arange(count) / 1.0
    halves[-1] = 0.5
    row = 3 if layout != "long" else 6 + len(shape) - 1
    with pytest.raises(
        UsageError, match=rf"x\..*: column 'label', row {row} \(from 0\): the fraction 0\.5 \(expected names"
    ):
        names(halves)
    if layout == "lists":
        classes = datasets.ClassLabel(names=["down", "up"])
        ups = np.arange(count) % 2
        assert names(ups, classes) == np.array(classes.names)[ups].reshape(shape).tolist()
        ups[-1] = -1
        with pytest.raises(
            UsageError, match=r"x\.parquet: column 'label' is empty in row 3 \(from 0\), and in 1 cells"
        ):
            names(ups, classes)


def test_labels_of_other_kinds(folder):
    write_labels("arrays", np.array([b"up", b"down", b"up", b"up"]))
    assert [part.labels for part in read(train_file=["x.npz"], task="classify")] == ["up", "down", "up", "up"]
    rows = {"x": [[1.0, 2], [3, 4]], "label": [["up"], ["down"]]}
    datasets.Dataset.from_dict(rows).to_parquet("x.parquet")
    with pytest.raises(UsageError, match=r"x\.parquet: column 'label' holds List \(expected classes"):
        read(train_file=["x.parquet"], task="classify")
    pd.DataFrame({**rows, "label": pd.date_range("2026", periods=2)}).to_parquet("x.parquet")
    with pytest.raises(UsageError, match=r"x\.parquet: column 'label' holds timestamp.* \(expected classes"):
        read(train_file=["x.parquet"], task="classify")


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (",x\n0,1.5\n1,2.5\n", {}, r"a column without a name, .*: 'Unnamed: 0' \(expected the columns to read by"),
        ("1.5,2\n2.5,3\n", {}, r"has numbers for names of columns, '1\.5', '2' \(expected the first line to name"),
        ("112\n118\n", {}, "has numbers for names of columns, '112'"),
        ("1,2,1\n2,3,4\n", {}, "the first line names '1' twice"),
        ("x\n1\n1e300\n", {}, r"column 'x' holds '1e300' in row 1 \(from 0\)"),
        ("x\n1\n\n9.96921e+36\n", {}, r"column 'x' holds '9\.96921e\+36' in row 2 \(from 0\).* at most 1e\+18"),
    ],
)
def test_tables_that_can_not_be_used_are_named(folder, content, flags, message):
    Path("x.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        read(train_file=["x.csv"], **flags)


def test_columns_that_are_not_read_need_no_name(folder):
    Path("x.csv").write_text(",x\n0,1.5\n1,2.5\n")
    assert read(train_file=["x.csv"], target_columns=["x"])[0].values.tolist() == [[1.5], [2.5]]
    for header in ("0", "0,1,2"):
        Path("x.csv").write_text(f"{header}\n" + header.replace("0", "7") + "\n")
        assert read(train_file=["x.csv"])[0].channels == header.split(",")


def test_missing_values_of_a_single_column_keep_their_places(folder):
    Path("x.csv").write_text("x\n1\n\n3\n")
    np.testing.assert_array_equal(read(train_file=["x.csv"])[0].values, [[1], [np.nan], [3]])


def test_a_series_to_forecast_is_in_one_file(folder):
    frame = sales()
    frame[:40].to_csv("first.csv", index=False)
    frame[30:].to_csv("second.csv", index=False)
    files = {"train_file": ["first.csv", "second.csv"]}
    named = r"'north' is in --train_file first\.csv and in --train_file second\.csv \(expected the whole series"
    with pytest.raises(UsageError, match=f"--id_column 'shop': the series {named}"):
        read(**files, id_column="shop", time_column="month")
    wide = frame.pivot(index="month", columns="shop", values="sold").reset_index()
    wide.to_csv("first.csv", index=False)
    wide.to_csv("second.csv", index=False)
    with pytest.raises(UsageError, match=f"--layout wide: the series {named}"):
        read(**files, layout="wide", time_column="month")


def test_steps_of_a_wide_table_are_in_order(folder):
    values = pd.DataFrame(np.arange(24.0).reshape(2, 12), columns=[f"t{step}" for step in range(12)])
    values.insert(0, "label", ["a", "b"])
    settings = {"train_file": ["wide.csv"], "layout": "wide", "task": "classify"}
    for columns in (values.columns, ["label", *values.columns[:0:-1]]):
        values[columns].to_csv("wide.csv", index=False)
        assert len(read(**settings)) == 2
    values[sorted(values.columns)].to_csv("wide.csv", index=False)
    with pytest.raises(UsageError, match=r"--layout wide: .*wide\.csv has the column 't2' after 't11' \(expected the"):
        read(**settings)


def test_steps_of_wide_tables_are_matched_by_name(folder, caplog):
    frame = pd.DataFrame(np.arange(32.0).reshape(8, 4), columns=["t0", "t1", "t2", "t3"])
    frame = frame.assign(label=["a", "b"] * 4)
    frame.loc[1, ["t2", "t3"]] = frame.loc[2, "t0"] = np.nan  # the first is shorter, the second is not
    reverse = frame[frame.columns[::-1]]
    frame.to_csv("first.csv", index=False)
    reverse.to_csv("second.csv", index=False)
    settings = {"layout": "wide", "task": "classify"}
    series = read(train_file=["first.csv", "second.csv"], **settings)
    assert [len(part.values) for part in series[:3]] == [4, 2, 4]
    for part, other in zip(series[:8], series[8:], strict=True):
        np.testing.assert_array_equal(part.values, other.values)
        assert other.rows.tolist() == part.rows.tolist()

    flags = ("--task", "classify", "--layout", "wide", "--max_steps", "1", "--train_file", "first.csv")

    def train(test_file: str, *more: str) -> dict:
        out = ("--output_dir", "out", "--overwrite_output_dir")
        script.main(["recipe.yaml", *flags, "--validation_file", "second.csv", "--test_file", test_file, *out, *more])
        return json.loads(Path("out/all_results.json").read_text())

    results = train("second.csv")
    assert results["test_loss"] == train("first.csv")["test_loss"] == results["eval_loss"]
    assert json.loads(Path("out/evaluation.json").read_text())["step_columns"] == ["t0", "t1", "t2", "t3"]
    frame.assign(age=50).to_csv("third.csv", index=False)
    with pytest.raises(UsageError, match=r"--test_file third\.csv has the column 'age' \(expected the steps that"):
        train("third.csv")

    # A model to train further keeps the order that it has learnt, and takes other steps as they come.
    Path("out").rename("learnt")
    sizes = ("hidden_", "num_", "local_")
    recipe = [line for line in RECIPE.splitlines() if not line.startswith(sizes)]
    Path("recipe.yaml").write_text("\n".join(recipe))
    reverse.to_csv("first.csv", index=False)
    train("second.csv", "--model_name_or_path", "learnt")
    assert json.loads(Path("out/evaluation.json").read_text())["step_columns"] == ["t0", "t1", "t2", "t3"]
    frame.rename(columns={"t3": "t9"}).to_csv("first.csv", index=False)
    with pytest.raises(UsageError, match=r"second\.csv has no column 't9'"):
        train("second.csv", "--model_name_or_path", "learnt")
    assert "'learnt' has learnt other steps, t0, t1, t2, t3; those of the data are read in its order" in caplog.text


def test_static_covariates_tell_series_apart(folder):
    sales(price=[1.0] * 40 + [3.0] * 40).to_csv("sales.csv", index=False)
    args = TimeSeriesArguments(
        train_file=["sales.csv"], id_column="shop", target_columns=["sold"], covariate_columns=["price"], horizon=3
    )
    series = load_series(args)
    setting = ForecastSetting.of(args, series)
    windows = make_windows(args, normalised_series(series, fit_forecast_extractor(series, setting)), setting)["test"]
    assert [windows[index]["future_values"][:, 1].tolist() for index in (0, 1)] == [[-1, -1, -1], [1, 1, 1]]


@pytest.mark.parametrize(
    "times, season",
    [
        (pd.date_range("2020-01-31", periods=9, freq="ME"), 12),
        (pd.date_range("2020-01-01", periods=9, freq="QS"), 4),
        (pd.date_range("2019-12-30", periods=9, freq="D"), 7),
        (pd.date_range("2020-01-01", periods=9, freq="B"), 5),
        (pd.date_range("2020-01-01", periods=9, freq="W"), 52),
        (pd.date_range("2020-01-01 05:00", periods=9, freq="h"), 24),
        (pd.date_range("2020-01-01", periods=9, freq="15min"), 96),
        (pd.Index([1950 + year for year in range(9)]), 1),
        (pd.Index([0.1 * step for step in range(9)]), 1),
    ],
)
def test_the_spacing_of_time_stamps(folder, times, season):
    pd.DataFrame({"time": times, "x": range(9)}).to_csv("x.csv", index=False)
    (series,) = read(train_file=["x.csv"], time_column="time")
    assert series.spacing.season_length == season
    assert np.diff(series.steps).tolist() == [1] * 8


@pytest.mark.parametrize("freq, season", [("h", 24), ("D", 7), ("MS", 12)])
@pytest.mark.parametrize("start", ["2024-03-29", "2024-10-25"])
def test_clocks_that_are_put_forward_or_back_change_no_spacing(folder, freq, season, start):
    times = pd.date_range(start, periods=100, freq=freq, tz="Europe/Berlin")
    frame = pd.DataFrame({"time": times, "x": range(100)})
    frame.to_parquet("x.parquet")
    frame.astype({"time": str}).to_csv("x.csv", index=False)
    for name in ("x.parquet", "x.csv"):
        (series,) = read(train_file=[name], time_column="time")
        assert np.diff(series.steps).tolist() == [1] * 99 and series.spacing.season_length == season


def test_numbers_of_seconds_are_named_in_full(folder):
    Path("x.csv").write_text("time,x\n1711753200,1\n1711756800,2\n1711760400,3\n1711767600,4\n")
    with pytest.raises(UsageError, match=r"from 1711760400 in row 2 to 1711767600 in row 3 .* steps are 3600 apart"):
        read(train_file=["x.csv"], time_column="time")


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2026-11-28 10:00:00.007", periods=3000, freq="1ms").to_numpy().astype("datetime64[ns]"),
        1764351594 + 0.01 * np.arange(3000),  # which floats hold to a quarter of a microsecond
        2**60 + np.arange(9),
    ],
)
def test_steps_follow_by_one_where_they_are_small(times):
    series = Series("a", np.zeros((len(times), 1)), "x.csv", np.arange(len(times)), ["x"])
    spacing = Spacing.of(times, series, "time")
    assert spacing.size in (10**6, 0.01, 1)
    steps = spacing.number(times, series, "time")
    assert np.diff(steps).tolist() == [1] * (len(times) - 1)
    assert spacing.number(times[5:], series, "time")[0] == steps[5]


def stamps(text: str) -> pd.Series:
    return pd.Series(text.split())


@pytest.mark.parametrize(
    "cells, expected",
    [
        ("11.12.2025 12.12.2025", "2025-12-12"),
        ("30/11/2025 01/12/2025", "2025-12-01"),
        ("11/30/2025 12/01/2025", "2025-12-01"),
        ("01/11/2025 01/12/2025 01/01/2026", "2026-01-01"),  # months
        ("11/1/2025 12/1/2025 1/1/2026", "2026-01-01"),
        ("04/04/2025 05/05/2025", "2025-05-05"),
        ("2025-12-11 2025-12-12", "2025-12-12"),
        ("03.04.26 04.05.26", "2026-05-04"),
        ("01/12/25 01/01/26 01/02/26", "2026-02-01"),
        ("31/12/25 31/01/26 28/02/26", "2026-02-28"),
        ("11/30/25 12/01/25", "2025-12-01"),
        ("98-11-30 12-12-01", "2012-12-01"),
        ("26-11-30 26-12-01", "2026-12-01"),
        ("29.11.26 30.11.26", "2026-11-30"),
    ],
)
def test_dates_may_begin_with_the_day(cells, expected):
    assert parse_times(stamps(cells), "x.csv", "day")[-1] == np.datetime64(expected)


def test_dates_that_may_be_read_in_two_ways_are_named():
    with pytest.raises(UsageError, match=r"x\.csv: column 'day' holds '03/04/2025' in row 0 .* the day or the month"):
        parse_times(stamps("03/04/2025 04/04/2025"), "x.csv", "day")
    with pytest.raises(UsageError, match=r"holds '03/14/2025' in row 0 and '14/03/2025' in row 1 .* in the other"):
        parse_times(stamps("03/14/2025 14/03/2025"), "x.csv", "day")
    for cells in ("01/01/26 01/02/26 01/03/26", "03-04-26 04-04-26"):
        with pytest.raises(UsageError, match=r"in row 0 .* which may begin with the day or the month"):
            parse_times(stamps(cells), "x.csv", "day")
    with pytest.raises(UsageError, match=r"'26-11-27' in row 0 .* which may begin with the day or the year"):
        parse_times(stamps("26-11-27 26-11-28"), "x.csv", "day")


@pytest.mark.parametrize(
    ("cells", "first"),
    [
        ([f"2026-01-{day:02}T00:00:00+01:00" for day in range(5, 9)], "2026-01-05"),
        (["2026-03-28T23:00:00+01:00", "2026-03-29T23:00:00+01:00"], "2026-03-28T22"),
        (["2026-01-05", "2026-01-06"], "2026-01-05"),
        ([20260228, 20260301], "2026-02-28"),
        (["20260228", "20260301"], "2026-02-28"),
    ],
)
def test_dates_of_json_are_those_of_csv(folder, cells, first):
    frame = pd.DataFrame({"x": range(len(cells)), "day": cells})
    frame.to_csv("x.csv", index=False)
    Path("hub").mkdir()
    for name in ("x.jsonl", "hub/train.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    Path("x.json").write_text(json.dumps(frame.to_dict("records")))
    for source in (
        *({"train_file": [name]} for name in ("x.csv", "x.jsonl", "x.json")),
        {"dataset_name": "hub"},
    ):
        (series,) = read(**source, time_column="day")
        assert series.times[0] == np.datetime64(first) and series.channels == ["x"]
        assert series.spacing == Spacing("nanosecond", 24 * 3600 * 10**9)


def test_eight_digits_that_are_no_dates_are_numbers(folder):
    for cells in ([99999901, 99999902], ["99999901", "99999902"]):
        assert parse_times(pd.Series(cells), "x.csv", "step").tolist() == [99999901, 99999902]
    with pytest.raises(UsageError, match=r"'20260229' in row 1 .* is no date"):
        parse_times(pd.Series([20260228, 20260229]), "x.csv", "day")


def test_time_stamps_of_which_some_have_a_zone_are_named(folder):
    cells = ["2026-03-28T00:00:00", "2026-03-28T01:00:00+01:00", "2026-03-28T02:00:00Z"]
    Path("x.jsonl").write_text("".join(json.dumps({"t": cell, "x": 1}) + "\n" for cell in cells))
    with pytest.raises(
        UsageError, match=r"x\.jsonl: column 't' holds '2026-03-28T00:00:00' in row 0 and '.*one with a"
    ):
        read(train_file=["x.jsonl"], time_column="t")
    assert parse_times(pd.Series(cells[1:]), "x.csv", "t")[1] == np.datetime64("2026-03-28T02")


def assert_says(refused: BaseException, capsys, message: str):
    """What is wrong with a flag is said by its parser, what is wrong with a file by an error."""
    said = capsys.readouterr().err if isinstance(refused, SystemExit) else str(refused)
    assert re.search(message, said), said
    assert not Path("out").exists()


def test_lengths_follow_from_the_season(folder):
    for freq, expected in (("MS", (12, 12, 36)), ("D", (7, 8, 24)), ("W", (52, 52, 156)), ("min", (1440, 96, 512))):
        times = pd.date_range("2020-01-01", periods=400, freq=freq)
        pd.DataFrame({"time": times, "x": np.arange(400) % 9}).to_csv("x.csv", index=False)
        args = TimeSeriesArguments(train_file=["x.csv"], time_column="time")
        setting = ForecastSetting.of(args, load_series(args))
        assert (setting.season_length, setting.horizon, setting.context_length) == expected
        assert (setting.validation_length, setting.test_length) == (setting.horizon, setting.horizon)


def replaced(column: str, row: int, value) -> dict:
    cells = sales()[column].astype(object)
    cells[row] = value
    return {column: cells}


@pytest.mark.parametrize(
    "columns, flags, message",
    [
        ({}, ["--target_columns", "seld"], r"sales\.csv has no column 'seld' \(expected one of 'shop'"),
        ({}, ["--covariate_columns", "cost"], r"--covariate_columns: .*sales\.csv has no column 'cost'"),
        ({}, ["--target_columns", "shop"], "'shop' is named by another flag"),
        ({}, ["--target_columns", "sold", "month"], "'month' is named by another flag"),
        (
            replaced("sold", 17, "many"),
            [],
            r"sales\.csv: column 'sold' holds 'many' in row 17 \(from 0\)",
        ),
        (replaced("sold", 17, "inf"), [], r"column 'sold' holds 'inf' in row 17"),
        (replaced("month", 5, "2020-05"), [], r"'month' holds 2020-05-01 in row 4 and again in row 5 .*'north'"),
        (replaced("month", 39, "2023-06"), [], r"from 2023-03-01 in row 38 to 2023-06-01 in row 39 .* 1 month apart"),
        (replaced("month", 3, "soon"), [], r"column 'month' holds 'soon' in row 3 .* no date"),
        (replaced("month", 3, ""), [], r"column 'month' is empty in row 3"),
        (replaced("shop", 50, ""), [], r"column 'shop' is empty in row 50"),
        ({"sold": [5.0] * 80}, [], r"rows 0 to 33 \(from 0\), series 'north': column 'sold' holds 5 alone"),
        ({"sold": [math.nan] * 80}, [], r"rows 0 to 39 .* series 'north': column 'sold' has no value at all"),
        ({"price": [1.0] * 80}, ["--covariate_columns", "price"], r"column 'price' holds 1 alone"),
        (replaced("price", 7, ""), ["--covariate_columns", "price"], r"column 'price' is empty in row 7"),
        ({}, ["--horizon", "20"], r"rows 0 to 39 .* 40 steps \(expected at least 62"),
        ({}, ["--test_length", "4"], r"--test_length: 4 \(expected a multiple of --horizon, 3\)"),
        ({}, ["--task", "guess"], r"--task: 'guess' \(expected forecast, classify, label_each_step\)"),
        ({}, ["--test_file", "sales.csv"], r"--test_file: forecasts are .* \(expected --validation_length"),
        ({}, ["--validation_fraction", "0.1"], r"--validation_fraction: 0.1: forecasts .* --validation_length"),
        ({}, ["--classifier_dropout", "0.1"], r"--classifier_dropout: 0.1 has no meaning for --task forecast"),
        ({}, ["--bidirectional"], r"--bidirectional: True has no meaning for --task forecast"),
        ({}, ["--padding_side", "left"], r"--padding_side: left goes with --task classify and label_each_step"),
        ({}, ["--layout", "wide"], r"--id_column: a column of --layout wide is a series"),
    ],
)
def test_what_can_not_be_forecast_is_named_before_any_training(folder, columns, flags, message, capsys):
    sales(**columns).to_csv("sales.csv", index=False)
    with pytest.raises((UsageError, SystemExit)) as refused:
        forecast(*flags)
    assert_says(refused.value, capsys, message)


@pytest.mark.parametrize(
    "change, flags, message",
    [
        (
            {"label": "sideways"},
            [],
            r"test\.csv: column 'label' holds 'sideways' in row 0 \(from 0\), series 's0', which is none",
        ),
        ({"x": 1.5}, [], r"train\.csv, rows 0 to \d+ .* the value 1.5 alone in 'x'"),
        ({}, ["--label_column", "kind"], r"--label_column: .*has no column 'kind'"),
        ({}, ["--label_column", "phase"], r"column 'phase' holds '1' in row 3 .* '0' in row 0, both of series 's0'"),
        ({}, ["--regression"], r"column 'label' holds 'down' in row 0"),
        ({}, ["--horizon", "0"], r"--horizon: 0 \(expected an integer of at least 1\)"),
        *(
            ({}, [f"--{name}", "1"], rf"--{name}: 1 goes with --task forecast \(got classify\)")
            for name in ("horizon", "context_length", "season_length", "test_length", "window_stride")
        ),
        ({}, ["--scaling", "mean"], "--scaling: mean has no meaning for --task classify"),
        ({}, ["--validation_fraction", "0.001"], r"--validation_fraction: 0.001 of 12 series"),
        (
            {},
            ["--validation_fraction", "0.2", "--validation_file", "test.csv"],
            r"--validation_fraction: 0.2 goes without --validation_file test.csv",
        ),
        ({}, ["--padding_side", "both"], r"--padding_side: 'both' \(expected right, left\)"),
        ({}, ["--covariate_columns", "level"], "--covariate_columns go with --task forecast"),
    ],
)
def test_what_can_not_be_classified_is_named_before_any_training(folder, change, flags, message, capsys):
    for name in ("train", "test"):
        frame = write_motions(f"{name}.csv", 12, len(name))
        if name == "test" or "x" in change:
            frame.assign(**change).to_csv(f"{name}.csv", index=False)
    with pytest.raises((UsageError, SystemExit)) as refused:
        label("classify", *flags)
    assert_says(refused.value, capsys, message)


def test_a_metric_that_the_labels_leave_undefined_is_no_best_one(folder):
    for name in ("train.csv", "test.csv"):
        write_motions(name, 12, 5).assign(level=1.5).to_csv(name, index=False)
    flags = ("--label_column", "level", "--regression", "--metric_for_best_model", "r2")
    with pytest.raises(UsageError, match="not defined where all labels are the same"):
        label("classify", *flags)
    assert not Path("out").exists()
    assert "r2" not in number_metrics(np.array([1.0, 2.0]), np.array([1.5, 1.5]))
    assert number_metrics(np.array([1.0, 2.0]), np.array([1.0, 2.0]))["r2"] == 1


def test_lists_that_can_not_be_used_are_named(folder):
    good = {"x": [1.0, 2.0], "label": ["a", "b"]}
    for change, message in [
        ({"x": [1.0]}, r"row 1 \(from 0\) has 2 labels for 1 steps"),
        ({"x": None}, r"the lists of row 1 \(from 0\) have the lengths \{'x': 0\}"),
        ({"label": None}, r"column 'label' holds None in row 1 \(from 0\) \(expected a list, with a label for each"),
        ({"x": [1.0, math.inf]}, r"lists\.jsonl: column 'x' holds '[iI]nf.*' in row 1 \(from 0\)"),
        ({"x": [1.0, 1e30]}, r"lists\.jsonl: column 'x' holds '1e\+30' in row 1 \(from 0\)"),
        ({"x": ["1", "many"]}, r"lists\.jsonl: column 'x' holds '.?many.?' in row 1 \(from 0\)"),
        ({"x": [[1.0], [2.0]]}, r"lists\.jsonl: column 'x' holds .* in row 1 \(from 0\)"),
        ({"label": ["a", None]}, r"lists\.jsonl: column 'label' is empty in row 1"),
    ]:
        Path("lists.jsonl").write_text("\n".join(json.dumps(row) for row in (good, {**good, **change})))
        with pytest.raises(UsageError, match=message):
            read(train_file=["lists.jsonl"], task="label_each_step")


def test_arrays_that_can_not_be_used_are_named(folder):
    good = {"values": np.zeros((2, 4, 1)), "labels": np.array([0, 1])}
    for change, message in [
        ({"values": np.array([["a"]])}, "`values` are <U1"),
        ({"values": np.zeros(3)}, r"of the shape \(3,\)"),
        ({"values": np.full((2, 4), np.inf)}, r"`values` hold inf at \[0, 0, 0\]"),
        ({"values": np.full((2, 4), 1e30)}, r"`values` hold 1e\+30 at \[0, 0, 0\]"),
        ({"labels": np.array([0, np.nan])}, r"arrays\.npz: column 'label' is empty in row 1"),
        ({"labels": np.zeros((2, 4))}, r"`labels` are float64 of the shape \(2, 4\) \(expected names .* \(2,\)\)"),
        ({"lengths": np.array([0, 4])}, "`lengths` must be a number from 1 to 4"),
    ]:
        np.savez("arrays.npz", **{**good, **change})
        with pytest.raises(UsageError, match=message):
            read(train_file=["arrays.npz"], task="classify")
    np.savez("arrays.npz", labels=good["labels"])
    with pytest.raises(UsageError, match="has no array 'values'"):
        read(train_file=["arrays.npz"], task="classify")
    with pytest.raises(UsageError, match=r"--id_column: a \.npz file has arrays"):
        TimeSeriesArguments(train_file=["arrays.npz"], id_column="id")
