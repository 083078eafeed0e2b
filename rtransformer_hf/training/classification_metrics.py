# SPDX-License-Identifier: Apache-2.0
"""Metrics of sequence classification, the picture of a confusion matrix, and the loss that weighs rare labels more."""

import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import scipy  # loads its parts on first use, as sklearn does
import sklearn
import torch
import torch.nn.functional as F
from transformers import EvalPrediction

from .errors import UsageError
from .files import write_figure
from .metric_modules import compute_metric
from .model_card import CONFUSION_FILE
from .output_folder import check_labels_differ
from .run import ReportingTrainer

logger = logging.getLogger(__name__)

METRIC_NAMES = {
    "single_label_classification": ("loss", "accuracy", "macro_f1", "auroc", "calibration_error"),
    "multi_label_classification": ("loss", "accuracy", "micro_f1", "macro_f1", "auroc", "calibration_error"),
    "regression": ("loss", "mae", "r2", "spearman"),
}
CALIBRATION_BINS = 15


def logits_alone(outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Trainer's `preprocess_logits_for_metrics`: the logits, without what some architectures give after them."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def make_compute_metrics(
    problem_type: str = "single_label_classification",
) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    Trainer's `compute_metrics` over all rows of a split: loss (in nats, of a regression the mean squared error), and
    the others of `METRIC_NAMES`, as far as they are defined.

    - Of several labels a row, loss and calibration error are means over rows and labels, a label is predicted where
      its probability is above one half, and accuracy is the share of rows that are right in all labels. Micro F1
      counts all labels alike; where a row has one label, it would be the accuracy.
    - Macro F1 is the mean over the labels that are met, in rows or predictions.
    - AUROC is the mean over the labels that some rows have and others have not, each against the rest.
    - Calibration error is the expected one in `CALIBRATION_BINS` bins of equal width, of the likeliest label.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = torch.from_numpy(prediction.predictions).double(), torch.from_numpy(prediction.label_ids)
        # Replaces Trainer's own loss, a mean over batches, by the mean over rows.
        if problem_type == "regression":
            metrics = regression_metrics(logits[:, 0], labels.double())
        elif problem_type == "multi_label_classification":
            metrics = {"loss": F.binary_cross_entropy_with_logits(logits, labels.double()).item()}
            metrics |= several_labels_metrics(logits.sigmoid().numpy(), labels.numpy() > 0)
        else:
            predicted = logits.argmax(dim=-1)
            metrics = {
                "loss": F.cross_entropy(logits, labels).item(),
                **compute_metric("accuracy", predicted, labels),
                "macro_f1": float(
                    sklearn.metrics.f1_score(labels.numpy(), predicted.numpy(), average="macro", zero_division=0)
                ),
            }
            hits = F.one_hot(labels, logits.shape[1]).bool().numpy()
            metrics |= auroc(logits.softmax(dim=-1).numpy(), hits)
            confidence, _ = logits.softmax(dim=-1).max(dim=-1)
            metrics["calibration_error"] = calibration_error(confidence.numpy(), (predicted == labels).numpy())
        return {**metrics, "samples": len(labels)}

    return compute_metrics


def check_best_metric(metric: str | None, rows: datasets.Dataset, problem_type: str, where: str):
    """
    Args:
        metric: --metric_for_best_model.
        rows: those of validation, as of [`encode`].
        where: their name, for the message.

    Raises:
        UsageError: the metric is not defined on these labels, whatever the model says.
    """
    needing = ("r2", "spearman") if problem_type == "regression" else ("auroc",)
    labels = rows.select_columns("labels").with_format("arrow")
    check_labels_differ(metric, needing, lambda: np.array(labels[:]["labels"].to_pylist()), where)


def regression_metrics(predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    errors = predicted - labels
    metrics = {"loss": errors.square().mean().item(), "mae": errors.abs().mean().item()}
    if len(labels) > 1 and labels.std() > 0:  # or else neither is defined
        metrics["r2"] = float(sklearn.metrics.r2_score(labels.numpy(), predicted.numpy()))
        metrics["spearman"] = 0.0  # of predictions that are all the same, and so order nothing
        if predicted.std() > 0:
            metrics["spearman"] = float(scipy.stats.spearmanr(labels.numpy(), predicted.numpy()).statistic)
    return metrics


def several_labels_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    predicted = probabilities > 0.5
    return {
        "accuracy": float((predicted == labels).all(axis=1).mean()),
        "micro_f1": float(sklearn.metrics.f1_score(labels, predicted, average="micro", zero_division=0)),
        "macro_f1": float(
            np.mean(
                [
                    sklearn.metrics.f1_score(labels[:, index], predicted[:, index], zero_division=0)
                    for index in np.flatnonzero(labels.any(axis=0) | predicted.any(axis=0))
                ]
                or [0.0]
            )
        ),
        **auroc(probabilities, labels),
        "calibration_error": calibration_error(probabilities.ravel(), labels.ravel()),
    }


def auroc(scores: np.ndarray, hits: np.ndarray) -> dict[str, float]:
    """The mean over the columns, (rows, labels), that hold both hits and misses; nothing where none does."""
    columns = [index for index in range(hits.shape[1]) if 0 < hits[:, index].sum() < len(hits)]
    values = [sklearn.metrics.roc_auc_score(hits[:, index], scores[:, index]) for index in columns]
    return {"auroc": float(np.mean(values))} if values else {}


def calibration_error(confidences: np.ndarray, hits: np.ndarray) -> float:
    """
    Expected calibration error (arXiv 1706.04599): how far, on average, the share of hits is from the confidence among
    predictions of like confidence.
    """
    bins = np.minimum((confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidences - hits, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidences))


class ClassifierTrainer(ReportingTrainer):
    """A trainer whose card has the confusion matrix of the last evaluation, where a row has one label."""

    confusion: tuple[str, np.ndarray] | None = None

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        compute_metrics = self.compute_metrics

        def keep_confusion(prediction: EvalPrediction) -> dict[str, float]:
            if self.model.config.problem_type == "single_label_classification":
                split = "validation" if metric_key_prefix == "eval" else metric_key_prefix
                self.confusion = (split, count_confusion(prediction))
            return compute_metrics(prediction)

        self.compute_metrics = keep_confusion
        try:
            return super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self.compute_metrics = compute_metrics

    def create_model_card(self, **kwargs):
        if self.outcome.metrics and self.confusion is not None and self.is_world_process_zero():
            names = [name for name, _ in sorted(self.model.config.label2id.items(), key=lambda item: item[1])]
            path = Path(self.args.output_dir, CONFUSION_FILE)
            self.outcome.has_confusion_matrix = plot_confusion(path, *self.confusion, names)
        super().create_model_card(**kwargs)


def count_confusion(prediction: EvalPrediction) -> np.ndarray:
    """How many rows of a label (first) the model takes for which, (labels, labels)."""
    classes, predicted = range(prediction.predictions.shape[1]), prediction.predictions.argmax(axis=-1)
    return sklearn.metrics.confusion_matrix(prediction.label_ids, predicted, labels=classes)


def plot_confusion(path: Path, split: str, counts: np.ndarray, names: list[str]) -> bool:
    """
    Draws which labels (rows) are taken for which (columns), as shares of a label's rows. Returns whether there is a
    picture: matplotlib may be missing.

    Args:
        split: of the data, for the title.
        counts: (labels, labels), true ones first.
        names: of the labels, by their class indices.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("No picture of the confusion matrix: matplotlib is not installed.")
        return False
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(0.5 * len(names), 3, 9))
    figure = Figure(figsize=(size + 1.5, size + 1), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the rows with the true label", shrink=0.8)
    axes.set(xlabel="predicted label", ylabel="true label", title=f"{split}, {counts.sum():,} rows")
    if len(names) <= 30:  # more can't be read
        short = [name if len(name) <= 20 else f"{name[:19]}\N{HORIZONTAL ELLIPSIS}" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), short, fontsize=8)
    if len(names) <= 15:
        for row, column in np.ndindex(counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    write_figure(path, figure, dpi=150)
    return True


# Class weights


def make_weighted_loss(
    rows: datasets.Dataset, problem_type: str, label2id: dict[str, int]
) -> Callable[..., torch.Tensor]:
    """
    Trainer's `compute_loss_func`, in which rare labels weigh more: the weights are in inverse proportion to the rows
    of a label and have a mean of 1 over the rows; of several labels a row, the rows with a label weigh as much in all
    as those without.

    Args:
        rows: the training rows, as of [`encode`].
        label2id: class indices by name.

    Raises:
        UsageError: a label is in no row, or, of several labels a row, in all of them.
    """
    labels = torch.as_tensor(np.array(rows.with_format("arrow")[:]["labels"].to_pylist()))
    several = problem_type == "multi_label_classification"
    counts = labels.sum(dim=0) if several else torch.bincount(labels, minlength=len(label2id))
    for name, index in label2id.items():
        count = int(counts[index])
        if count == 0 or (several and count == len(labels)):
            raise UsageError(
                f"--class_weights balanced: label {name!r} is in {count} of {len(labels)} training rows (expected "
                "each in some of them)"
            )
    weights = (len(labels) - counts) / counts if several else len(labels) / (len(label2id) * counts)

    def loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        num_items = labels.numel() if num_items_in_batch is None else num_items_in_batch
        logits, weight = outputs["logits"], weights.to(outputs["logits"])
        if several:
            total = F.binary_cross_entropy_with_logits(logits, labels.to(logits), pos_weight=weight, reduction="sum")
        else:
            total = F.cross_entropy(logits, labels, weight=weight, reduction="sum")
        return total / num_items

    return loss
