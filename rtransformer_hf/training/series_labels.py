# SPDX-License-Identifier: Apache-2.0
"""
Labels of time series, one for the whole or one a step, classes or numbers: batches, metrics and baselines.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import EvalPrediction

from rtransformer_hf import RTransformerFeatureExtractor

from .errors import UsageError, listed
from .labels import in_order
from .time_series import Series, TimeSeriesArguments

VALIDATION_SEED = 0  # no flag: runs with different seeds are compared on the same series


@dataclass
class DataCollatorForInputValues:
    """
    Makes batches of sequences of unequal lengths: `input_values` (batch, time, channels) and `attention_mask` (batch,
    time), padded on the side that the feature extractor has, and `labels`, one a sequence or, padded by -100 or for
    numbers by NaN, one a step.

    Args:
        feature_extractor: what pads; it is not applied again.
    """

    feature_extractor: RTransformerFeatureExtractor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        values = [{"input_values": np.asarray(example["input_values"])} for example in examples]
        batch = dict(self.feature_extractor.pad(values, padding=True, return_tensors="pt"))
        if "labels" in examples[0]:
            labels = [torch.as_tensor(example["labels"]) for example in examples]
            if labels[0].ndim == 0:
                batch["labels"] = torch.stack(labels)
            else:
                value = float("nan") if labels[0].is_floating_point() else -100
                batch["labels"] = torch.nn.utils.rnn.pad_sequence(
                    labels, batch_first=True, padding_value=value, padding_side=self.feature_extractor.padding_side
                )
        return batch


class LabeledSeries(Dataset):
    """Normalised series with class indices or numbers as labels."""

    def __init__(
        self,
        series: Sequence[Series],
        extractor: RTransformerFeatureExtractor,
        label2id: dict[str, int] | None,
        label_column: str,
    ):
        self.values = [extractor.normalise(part.values) for part in series]
        self.labels = [encode_labels(part, label2id, label_column) for part in series]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_values": torch.from_numpy(self.values[index]), "labels": torch.as_tensor(self.labels[index])}

    def all_labels(self) -> np.ndarray:
        """Those of all series, one after the other."""
        return np.concatenate([np.atleast_1d(labels) for labels in self.labels])

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for values, labels in zip(self.values, self.labels, strict=True):
            digest.update(values.tobytes())
            digest.update(np.asarray(labels).tobytes())
        return digest.hexdigest()


def encode_labels(series: Series, label2id: dict[str, int] | None, label_column: str) -> np.ndarray:
    """
    Args:
        label_column: name of the labels' column, for messages.

    Raises:
        UsageError: a label is none of those of the training series.
    """
    labels = series.labels
    if label2id is None:
        return np.asarray(labels, dtype=np.float32)
    for step, label in enumerate([labels] if isinstance(labels, str) else labels):
        if label not in label2id:
            raise UsageError(
                f"{series.where}: column {label_column!r} holds {label!r} in row {series.rows[step]} (from 0), series "
                f"{series.name!r}, which is none of the training series' labels (expected {listed(label2id)})"
            )
    return np.asarray(label2id[labels] if isinstance(labels, str) else [label2id[label] for label in labels])


def make_label2id(series: Sequence[Series], where: str) -> dict[str, int]:
    """Class indices of the labels by name, as of `in_order`."""
    names = set()
    for part in series:
        names |= {part.labels} if isinstance(part.labels, str) else set(part.labels)
    if len(names) < 2:
        raise UsageError(f"{where}: all labels are {min(names)!r} (expected at least two different ones)")
    return {name: index for index, name in enumerate(in_order(names))}


def hold_out(args: TimeSeriesArguments, splits: dict[str, list[Series]]) -> dict[str, list[Series]]:
    """The splits with whole series, drawn at random, as "validation" where there is none."""
    if "validation" in splits:
        return splits
    series = splits["train"]
    num_held_out = round(len(series) * args.held_out_fraction)
    if not 0 < num_held_out < len(series):
        raise UsageError(
            f"--validation_fraction: {args.held_out_fraction} of {len(series)} series (expected a part of at least "
            "one that leaves some to train on; or --validation_file)"
        )
    order = np.random.RandomState(VALIDATION_SEED).permutation(len(series))
    held_out = set(order[:num_held_out].tolist())
    parts = {
        "train": [part for index, part in enumerate(series) if index not in held_out],
        "validation": [series[index] for index in sorted(held_out)],
    }
    return parts | {split: found for split, found in splits.items() if split not in parts}


def fit_extractor(args: TimeSeriesArguments, series: Sequence[Series]) -> RTransformerFeatureExtractor:
    """
    Raises:
        UsageError: a channel of the training series holds one value alone.
    """
    try:
        return RTransformerFeatureExtractor.fit(
            [part.values for part in series],
            channel_names=series[0].channels,
            padding_side=args.padding_side or "right",
        )
    except ValueError as error:
        rows = np.concatenate([part.rows for part in series])
        raise UsageError(
            f"{args.source('train')}, rows {rows.min()} to {rows.max()} (from 0): "
            f"{str(error).replace('`sequences`', 'the training series')}"
        ) from error


CLASS_METRICS = ("loss", "accuracy", "macro_f1")
NUMBER_METRICS = ("loss", "mae", "rmse", "r2")


def label_statistics(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    What metrics need of a batch, in place of its logits: batches of unequal lengths are padded again. Of classes
    (batch, time, 3): the class that is predicted, the label, -100 where there is none, and the loss. Of numbers:
    prediction, label, and 1 where there is one. One label a series is one step.
    """
    if labels.ndim == 1:
        logits, labels = logits[:, None], labels[:, None]
    if labels.is_floating_point():
        counts = ~labels.isnan()
        return torch.stack([logits[..., 0].float(), labels.nan_to_num(0), counts.float()], dim=-1)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none").view_as(labels)
    return torch.stack([logits.argmax(dim=-1).float(), labels.float(), losses], dim=-1)


def make_label_metrics(series: LabeledSeries, num_classes: int | None) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics` over `label_statistics`, for classes or, without their number, for numbers."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        statistics = prediction.predictions.astype(np.float64).reshape(-1, 3)  # padded by Trainer with -100
        if num_classes is None:
            predicted, labels = statistics[statistics[:, 2] == 1, :2].T
            return number_metrics(predicted, labels)
        predicted, labels, losses = statistics[statistics[:, 1] != -100].T
        return {"loss": losses.mean(), **class_metrics(predicted.astype(int), labels.astype(int), num_classes)}

    return compute_metrics


def class_metrics(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """
    "accuracy", and "macro_f1": the mean over the classes that are met, in labels or predictions, of
    2 TP / (2 TP + FP + FN).
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, predicted), 1)
    hits, met = counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1)
    f1 = 2 * hits[met > 0] / met[met > 0]
    return {"accuracy": float(hits.sum() / counts.sum()), "macro_f1": float(f1.mean()), "samples": len(labels)}


def number_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean squared error as "loss", mean absolute error, its root, and the share of the variance that is explained."""
    errors, variance = predicted - labels, labels.var()
    mse = float((errors**2).mean())
    r2 = {"r2": 1 - mse / float(variance)} if variance > 0 else {}  # not defined for labels that are all the same
    return {"loss": mse, "mae": float(np.abs(errors).mean()), "rmse": mse**0.5, **r2, "samples": len(labels)}


def label_baselines(train: LabeledSeries, test: LabeledSeries, num_classes: int | None) -> dict[str, dict[str, float]]:
    """
    The metrics of simple answers: the most frequent class or the mean of the training labels, and for whole series the
    label of the nearest training series, by the Euclidean distance of normalised values, padded with zeros.
    """
    known, labels = train.all_labels(), test.all_labels()

    def metrics(predicted: np.ndarray) -> dict[str, float]:
        found = number_metrics(predicted, labels)
        if num_classes is not None:
            found = class_metrics(predicted.astype(int), labels.astype(int), num_classes)
        return {name: value for name, value in found.items() if name != "samples"}

    constant = known.mean() if num_classes is None else np.bincount(known).argmax()
    name = "mean of the training labels" if num_classes is None else "most frequent class"
    baselines = {name: metrics(np.full(len(labels), constant))}
    if np.ndim(train.labels[0]) == 0:
        length = max(len(values) for part in (train, test) for values in part.values)

        def flat(part: LabeledSeries) -> torch.Tensor:
            padded = [F.pad(torch.from_numpy(values), (0, 0, 0, length - len(values))) for values in part.values]
            return torch.stack(padded).flatten(1).double()

        nearest = torch.cdist(flat(test), flat(train)).argmin(dim=1).numpy()
        baselines["nearest neighbour"] = metrics(known[nearest])
    return baselines
