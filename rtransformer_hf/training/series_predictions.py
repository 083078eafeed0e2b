# SPDX-License-Identifier: Apache-2.0
"""What a model of time series says of new ones, as tables: forecasts, classes, numbers, or labels of each step."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from rtransformer_hf import RTransformerFeatureExtractor

from .checkpoints import open_checkpoint
from .errors import UsageError
from .evaluation import SeriesData, load_settings, place
from .forecasting import SEASON_CHANNELS, forecast_ahead, forecast_table, until_last_value
from .loading import open_model
from .model_arguments import default_device
from .series_labels import DataCollatorForInputValues
from .time_series import TASKS, Series, load_series, match_channels

ARCHITECTURES = ("ForTimeSeriesPrediction", "ForSequenceClassification", "ForTokenClassification")
AUTO_CLASSES = {
    "forecast": AutoModelForTimeSeriesPrediction,
    "classify": AutoModelForSequenceClassification,
    "label_each_step": AutoModelForTokenClassification,
}


@dataclass
class UnlabeledSeries(SeriesData):
    """Series whose labels are to be predicted; where the file has some, they are not read."""

    needs_labels = False

    @property
    def unread_columns(self) -> set[str]:
        return set() if self.task == "forecast" else {self.label_column}


def predict(args: argparse.Namespace) -> pd.DataFrame:
    """
    Args:
        args: `checkpoint`, what `add_data_arguments` adds, `horizon`, `seed` and `batch_size`.

    Returns:
        the table of [`forecast_table`] or [`label_table`].

    Raises:
        UsageError: there is no such checkpoint or data, or they don't go together.
    """
    _, settings = load_settings(args.checkpoint, *ARCHITECTURES)
    if (task := settings.get("task")) not in TASKS:
        raise UsageError(
            f"checkpoint {args.checkpoint!r} is no model of time series (expected one of train_time_series.py)"
        )
    if args.horizon is not None and task != "forecast":
        raise UsageError(f"--horizon: {args.horizon}, but {args.checkpoint} does not forecast (expected none)")
    data_args = UnlabeledSeries(**place(args, settings))
    series = load_series(data_args)
    with open_checkpoint(args.checkpoint, "a model of time series with its feature extractor", *ARCHITECTURES):
        model = open_model(AUTO_CLASSES[task], args.checkpoint).to(default_device())
        extractor = AutoFeatureExtractor.from_pretrained(args.checkpoint)
    known = [name for name in extractor.channel_names if name not in SEASON_CHANNELS]
    match_channels(data_args, series, known, args.checkpoint)
    if task != "forecast":
        predicted = predict_labels(model, extractor, series, args.batch_size)
        return label_table(model, series, predicted, data_args)

    horizon = args.horizon or model.config.prediction_length
    generator = torch.Generator(model.device)
    found = [until_last_value(part, model.config.num_target_channels) for part in series]
    quantiles = [
        forecast_ahead(
            model,
            extractor,
            part,
            data_args.season_length,
            horizon,
            generator.manual_seed(args.seed),  # so that no series depends on those before it
            future,
        )
        for part, future in tqdm(found, desc="series")
    ]
    return forecast_table([part for part, _ in found], quantiles, data_args.id_column, data_args.time_column)


@torch.no_grad()
def predict_labels(
    model: PreTrainedModel, extractor: RTransformerFeatureExtractor, series: Sequence[Series], batch_size: int
) -> list[np.ndarray]:
    """The logits of each series, (labels,), or of each of its steps, (time, labels)."""
    inputs = [{"input_values": extractor.normalise(part.values)} for part in series]
    batches = DataLoader(inputs, batch_size, collate_fn=DataCollatorForInputValues(extractor))
    found = []
    for batch in tqdm(batches, desc="batches"):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits = model(**batch).logits.float().cpu()
        if logits.ndim == 2:
            found += logits.unbind()
        else:
            is_real = batch["attention_mask"].bool().cpu()
            found += [steps[mask] for steps, mask in zip(logits, is_real, strict=True)]
    return [logits.numpy() for logits in found]


def label_table(
    model: PreTrainedModel, series: Sequence[Series], predicted: Sequence[np.ndarray], args: SeriesData
) -> pd.DataFrame:
    """
    A row for each series or step: the most probable label with its probability, or the number.

    Args:
        model: that has predicted.
        series: of which it has.
        predicted: as of [`predict_labels`].
        args: how the series were read.
    """
    parts = []
    for part, logits in zip(series, predicted, strict=True):
        where = {args.id_column or "series": part.name}
        if logits.ndim == 2 and part.times is not None:
            where[args.time_column] = part.times
        elif logits.ndim == 2:
            where["step"] = np.arange(len(logits))
        logits = torch.from_numpy(np.atleast_2d(logits))
        if args.regression:
            values = {args.label_column: logits[:, 0].numpy()}
        else:
            probabilities, indices = logits.softmax(dim=-1).max(dim=-1)
            names = [model.config.id2label[index] for index in indices.tolist()]
            values = {args.label_column: names, "probability": probabilities.numpy()}
        parts.append(pd.DataFrame({**where, **values}))
    return pd.concat(parts, ignore_index=True)
