# SPDX-License-Identifier: Apache-2.0
"""Accuracy, as an `evaluate` metric that needs neither the network nor scikit-learn."""

import datasets
import evaluate

DESCRIPTION = """
Accuracy: the share of examples whose predicted class is the true one.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (list of int): index of the predicted class of each example.
    references (list of int): index of its true class.

Returns:
    accuracy (float)

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("rtransformer_hf/training/metrics/accuracy")
    >>> metric.compute(predictions=[0, 2, 1, 1], references=[0, 2, 1, 0])["accuracy"]
    0.75
"""


class Accuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        if min(references) < 0:
            raise ValueError(f"`references` must be indices of classes, 0 or more, got {min(references)}.")
        num_right = sum(guess == truth for guess, truth in zip(predictions, references, strict=True))
        return {"accuracy": num_right / len(references)}
