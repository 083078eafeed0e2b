# Copyright 2026 The rtransformer_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
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
    >>> metric = evaluate.load("scripts/metrics/accuracy")
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
