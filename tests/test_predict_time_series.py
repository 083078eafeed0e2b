# SPDX-License-Identifier: Apache-2.0
"""The command that writes predictions of time series, with models of a few thousand parameters."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import evaluate_checkpoint
import predict_time_series as script
import train_time_series
from conftest import TINY_SERIES_RECIPE

from rtransformer_hf import RTransformerConfig, RTransformerForSequenceClassification
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.time_series import Series, Spacing, parse_times

RECIPE = f"""{TINY_SERIES_RECIPE}
max_steps: 2
"""
MONTHS = pd.date_range("2020-01-01", periods=36, freq="MS").strftime("%Y-%m").tolist()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def train(file: str, *flags: str):
    train_time_series.main(["recipe.yaml", "--train_file", file, "--output_dir", "out", *flags])


def predict(file: str, *flags: str) -> pd.DataFrame:
    script.main(["out", "--data", file, "--output", "predictions/table.csv", *flags])
    return pd.read_csv("predictions/table.csv")


def sales() -> pd.DataFrame:
    """Two shops, whose prices are known for three months more than their sales."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "shop": np.repeat(["north", "south"], 36),
            "month": MONTHS * 2,
            "sold": np.concatenate([random.normal(20, 3, 36), random.normal(300, 40, 36)]).round(2),
            "back": np.concatenate([random.normal(5, 1, 36), random.normal(7, 1, 36)]).round(2),
            "price": random.normal(10, 1, 72).round(2),
        }
    )
    frame.loc[frame.month >= "2022-10", ["sold", "back"]] = np.nan
    return frame


def test_forecasts_go_on_from_the_last_values_with_known_covariates(folder, capsys):
    frame = sales()
    frame[frame.month < "2022-10"].to_csv("known.csv", index=False)
    columns = ("--id_column", "shop", "--time_column", "month", "--covariate_columns", "price")
    flags = (*columns, "--horizon", "2", "--context_length", "12", "--num_parallel_samples", "30")
    train("known.csv", *flags)
    capsys.readouterr()
    frame.to_csv("new.csv", index=False)
    train("new.csv", *flags)
    assert "out holds this training, finished at step 2" in capsys.readouterr().out  # on the same windows
    table = predict("new.csv", "--horizon", "3", "--seed", "5")
    assert "predictions/table.csv: 12 rows." in capsys.readouterr().err
    quantiles = [f"0.{level}" for level in range(1, 10)]
    assert table.columns.tolist() == ["shop", "month", "channel", *quantiles]
    assert table.shop.tolist() == ["north"] * 6 + ["south"] * 6 and table.channel[:4].tolist() == ["sold"] * 3 + [
        "back"
    ]
    assert table.month[:3].tolist() == ["2022-10-01", "2022-11-01", "2022-12-01"]
    assert (np.diff(table[quantiles]) >= 0).all()

    # What the model says of the same inputs, made by hand.
    model = AutoModelForTimeSeriesPrediction.from_pretrained("out").eval()
    extractor = AutoFeatureExtractor.from_pretrained("out")
    south = frame[frame.shop == "south"]
    phases = 2 * np.pi * np.arange(36) / 12
    inputs = np.column_stack([south[["sold", "back", "price"]], np.sin(phases), np.cos(phases)])
    inputs = torch.from_numpy((inputs - extractor.mean) / extractor.std).float()[None]
    samples = model.forecast(
        inputs[:, 21:33], 3, future_covariates=inputs[:, 33:, 2:], generator=torch.Generator().manual_seed(5)
    ).sequences
    median = samples[0].quantile(0.5, dim=0).T.flatten()
    np.testing.assert_allclose(table["0.5"][6:], median, rtol=1e-4)

    # Neither other series nor the order of rows and columns matter; without --horizon it is that of the training.
    order = ["back", "price", "month", "shop", "sold"]
    south.iloc[::-1][order].to_csv("new.csv", index=False)
    pd.testing.assert_frame_equal(
        predict("new.csv", "--horizon", "3", "--seed", "5"), table[6:].reset_index(drop=True), rtol=1e-4
    )
    assert len(predict("new.csv")) == 4

    for changed, message in [
        (south[:33], r"rows 0 to 32 \(from 0\), series 'south': 0 rows follow its last value \(expected at least 2"),
        (
            south.assign(price=south.price.where(south.month != "2022-10")),
            "column 'price' is empty in the last 12 or the next 2 steps",
        ),
        (south.drop(columns="price"), "has no column 'price'"),
        (south.rename(columns={"back": "other"}), "expected the same"),
        (south[south.month != "2022-03"], "goes from 2022-02-01 in row"),
    ]:
        changed.to_csv("new.csv", index=False)
        with pytest.raises(UsageError, match=message):
            predict("new.csv")


@pytest.mark.parametrize(
    "times, expected",
    [
        (["2026-01-31", "2026-02-28", "2026-03-31"], ["2026-04-30", "2026-05-31", "2026-06-30"]),
        (["2026-10-15", "2026-11-15", "2026-12-15"], ["2027-01-15", "2027-02-15", "2027-03-15"]),
        (["2026-03-31", "2026-06-30", "2026-09-30"], ["2026-12-31", "2027-03-31", "2027-06-30"]),
        (["2023-01-01", "2024-01-01", "2025-01-01"], ["2026-01-01", "2027-01-01", "2028-01-01"]),
        (["2026-11-26", "2026-11-27", "2026-11-30", "2026-12-01"], ["2026-12-02", "2026-12-03", "2026-12-04"]),
        (["2026-12-30 22:00", "2026-12-31 06:00"], ["2026-12-31 14:00", "2026-12-31 22:00", "2027-01-01 06:00"]),
        ([3.0, 3.5, 4.0], [4.5, 5.0, 5.5]),
    ],
)
def test_time_stamps_go_on_as_they_are(times, expected):
    times, expected = (parse_times(pd.Series(part), "file", "time") for part in (times, expected))
    series = Series("a", np.zeros((len(times), 1)), "file", np.arange(len(times)), ["x"])
    np.testing.assert_array_equal(Spacing.of(times, series, "time").ahead(times, 3), expected)


def test_time_stamps_follow_the_spacing_that_a_model_has_learnt(folder):
    frame = sales().drop(columns=["price", "back"]).dropna()
    frame.to_csv("known.csv", index=False)
    flags = ("--id_column", "shop", "--time_column", "month", "--horizon", "2", "--context_length", "12")
    train("known.csv", *flags)
    settings = json.loads(Path("out/evaluation.json").read_text())
    assert settings["spacing"] == {"unit": "month", "size": 1}
    summer = frame[(frame.shop == "north") & frame.month.between("2021-07", "2021-09")]  # all 31 days apart
    for known in (summer, summer[2:]):
        known.to_csv("new.csv", index=False)
        assert predict("new.csv").month.tolist() == ["2021-10-01", "2021-11-01"]
    for times, message in [
        (pd.date_range("2026-01-01", periods=3, freq="h"), "holds time stamps 0 days 01:00:00 apart"),
        (pd.date_range("2026-01-01", periods=3, freq="30D"), "holds time stamps 30 days apart"),
        ([1, 2, 3], "holds numbers"),
    ]:
        summer.assign(month=times).to_csv("new.csv", index=False)
        with pytest.raises(UsageError, match=rf"'month' {message} \(expected dates 1 month apart, as in the training"):
            predict("new.csv")
    with pytest.raises(UsageError, match="'month' holds numbers"):
        evaluate_checkpoint.main(["out", "--data", "new.csv"])
    del settings["spacing"]  # as older models are
    Path("out/evaluation.json").write_text(json.dumps(settings))
    predict("new.csv")


def business_days(start: str) -> np.ndarray:
    return pd.date_range(start, periods=4, freq="B").to_numpy()


@pytest.mark.parametrize(
    ("spacing", "times", "ahead"),
    [
        (Spacing("business day", 1), business_days("2026-11-23"), "2026-11-27"),
        (Spacing("business day", 1), pd.date_range("2026-11-26", periods=4).to_numpy(), None),
        (Spacing("number", 2), np.arange(0, 8, 2), 8),
        (Spacing("number", 2), np.arange(4), None),
    ],
)
def test_time_stamps_that_do_not_fit_a_spacing(spacing, times, ahead):
    assert spacing.fits(times) == (ahead is not None)
    if ahead is not None:
        assert spacing.ahead(times, 1).astype(str).tolist()[0][:10] == str(ahead)


def test_numbers_are_written_as_they_are(folder):
    seconds = 1765425600 + 3600 * np.arange(40)
    frame = pd.DataFrame({"time": seconds, "x": 12345678 + 10_000 * (np.arange(40) % 7)})
    frame.to_csv("train.csv", index=False)
    train("train.csv", "--time_column", "time", "--target_columns", "x", "--horizon", "2", "--max_steps", "1")
    predict("train.csv")
    rows = [line.split(",") for line in Path("predictions/table.csv").read_text().splitlines()[1:]]
    assert [row[1] for row in rows] == [str(seconds[-1] + 3600), str(seconds[-1] + 7200)]
    quantiles = [float(cell) for row in rows for cell in row[3:]]
    assert all(abs(value) > 1e6 for value in quantiles) and any(
        value % 10 for value in quantiles
    )  # more than 6 digits
    times = parse_times(pd.Series(["0.1", "0.2"]), "file", "time")
    series = Series("a", np.zeros((2, 1)), "file", np.arange(2), ["x"])
    assert Spacing.of(times, series, "time").ahead(times, 2).tolist() == [0.3, 0.4]


def test_a_series_without_time_stamps_is_forecast_by_steps(folder):
    pd.DataFrame({"a": np.sin(np.arange(40)), "b": np.cos(np.arange(40))}).to_csv("wide.csv", index=False)
    train("wide.csv", "--layout", "wide", "--horizon", "4")
    table = predict("wide.csv")
    assert table.columns[:3].tolist() == ["series", "step", "channel"] and table.series.unique().tolist() == ["a", "b"]
    assert table.step[:4].tolist() == [1, 2, 3, 4]


def motions(num_series: int, seed: int) -> pd.DataFrame:
    """Series of unequal lengths, a row a step, that go up or down."""
    random, parts = np.random.default_rng(seed), []
    for index in range(num_series):
        time = np.arange(6 + index % 4)
        label = ("up", "down")[index % 2]
        x = (1 if label == "up" else -1) * time + random.normal(size=len(time))
        parts.append(pd.DataFrame({"id": f"m{index}", "x": x, "y": random.normal(size=len(time)), "label": label}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("task", ["classify", "label_each_step"])
def test_labels_are_those_of_the_model_without_any_in_the_data(folder, task):
    motions(12, 0).to_csv("train.csv", index=False)
    train("train.csv", "--task", task, "--id_column", "id")
    new = motions(5, 1)
    new.drop(columns="label").to_csv("new.csv", index=False)
    table = predict("new.csv", "--batch_size", "2")
    is_whole = task == "classify"
    auto_class = AutoModelForSequenceClassification if is_whole else AutoModelForTokenClassification
    model, extractor = auto_class.from_pretrained("out").eval(), AutoFeatureExtractor.from_pretrained("out")
    expected = []
    for name, part in new.groupby("id"):
        with torch.no_grad():
            logits = model(**extractor(part[["x", "y"]].to_numpy(), return_tensors="pt")).logits[0]
        for step, row in enumerate(logits.view(-1, 2).softmax(dim=-1)):
            place = {} if is_whole else {"step": step}
            expected.append(
                {"id": name, **place, "label": model.config.id2label[int(row.argmax())], "probability": row.max()}
            )
    expected = pd.DataFrame(expected).astype({"probability": float})
    pd.testing.assert_frame_equal(table, expected, rtol=1e-4)

    new.assign(label="unheard of").to_csv("new.csv", index=False)
    pd.testing.assert_frame_equal(predict("new.csv"), expected, rtol=1e-4)
    with pytest.raises(UsageError, match="--horizon: 3, but out does not forecast"):
        predict("new.csv", "--horizon", "3")


@pytest.mark.parametrize("task", ["classify", "label_each_step"])
def test_labels_of_series_at_another_rate_are_refused(folder, task):
    def write(name: str, seconds: float, prefix: str = ""):
        frame = motions(12, 0)
        frame = frame.assign(time=seconds * frame.groupby("id").cumcount(), id=prefix + frame.id)
        frame.to_csv(name, index=False)

    write("train.csv", 0.2)
    flags = ("--task", task, "--id_column", "id", "--time_column", "time")
    train("train.csv", *flags)
    assert json.loads(Path("out/evaluation.json").read_text())["spacing"] == {"unit": "number", "size": 0.2}
    assert set(predict("train.csv").label) <= {"up", "down"}
    write("new.csv", 0.02)
    message = r"'time' holds time stamps 0.02 apart \(expected numbers 0.2 apart, as in the training\)"
    with pytest.raises(UsageError, match=message):
        predict("new.csv")
    with pytest.raises(UsageError, match=message):
        evaluate_checkpoint.main(["out", "--data", "new.csv"])
    with pytest.raises(UsageError, match=message):
        train("train.csv", *flags, "--test_file", "new.csv", "--overwrite_output_dir")
    write("new.csv", 0.02, prefix="other")
    message = r"steps are 0.2 apart in --train_file train\.csv and 0.02 in --train_file new\.csv"
    with pytest.raises(UsageError, match=message):
        train("train.csv", *flags, "--train_file", "train.csv", "new.csv", "--overwrite_output_dir")


def test_numbers_are_predicted_and_rows_and_arrays_read(folder):
    random = np.random.default_rng(0)
    values = random.normal(size=(12, 6))
    wide = pd.DataFrame(values, columns=[f"h{step}" for step in range(6)]).assign(size=values.sum(axis=1))
    wide.to_csv("train.csv", index=False)
    flags = ("--task", "classify", "--regression", "--label_column", "size")
    train("train.csv", *flags, "--layout", "wide")
    found = predict("train.csv")
    assert found.columns.tolist() == ["series", "size"] and found["size"].nunique() == 12
    new = wide.drop(columns="size")
    new.to_csv("new.csv", index=False)
    pd.testing.assert_frame_equal(predict("new.csv"), found)

    # Steps are known by the names of their columns.
    new[["h4", "h0", "h5", "h3", "h1", "h2"]].to_csv("new.csv", index=False)
    pd.testing.assert_frame_equal(predict("new.csv"), found)
    for changed, message in [
        (new.assign(age=50), r"--layout wide: --data new\.csv has the column 'age' \(expected the steps that"),
        (new.drop(columns="h2"), r"--layout wide: --data new\.csv has no column 'h2' \(expected .* h0, h1, h2, "),
    ]:
        changed.to_csv("new.csv", index=False)
        with pytest.raises(UsageError, match=message):
            predict("new.csv")
    settings = json.loads(Path("out/evaluation.json").read_text())
    assert settings.pop("step_columns") == [f"h{step}" for step in range(6)]
    Path("out/evaluation.json").write_text(json.dumps(settings))  # as older models are
    new.rename(columns="t{}".format).to_csv("new.csv", index=False)
    pd.testing.assert_frame_equal(predict("new.csv"), found)

    np.savez("train.npz", values=values, labels=values.sum(axis=1))
    train("train.npz", *flags[:3], "--overwrite_output_dir")
    np.savez("new.npz", values=values[:3])
    assert predict("new.npz").columns.tolist() == ["series", "label"]


def test_other_models_and_files_are_refused(folder, capsys):
    RTransformerForSequenceClassification(
        RTransformerConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained("out")
    Path("out/evaluation.json").write_text('{"text_column": "text"}')
    Path("new.csv").write_text("x\n1\n")
    with pytest.raises(UsageError, match="'out' is no model of time series"):
        predict("new.csv")
    with pytest.raises(SystemExit):
        script.main(["out", "--data", "new.csv", "--output", "table.txt"])
    assert "--output: 'table.txt' (expected a name that ends with .csv)" in capsys.readouterr().err
