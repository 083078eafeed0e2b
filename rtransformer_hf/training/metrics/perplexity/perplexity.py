# SPDX-License-Identifier: Apache-2.0
"""Perplexity, as an `evaluate` metric over losses that have already been computed."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
Perplexity: exp of the mean negative log-likelihood of a token, in nats. It is computed from sums, so that texts of
unequal length weigh as much as they have tokens.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (list of float): negative log-likelihood of each text, in nats, summed over its tokens.
    references (list of int): number of predicted tokens of each text.

Returns:
    perplexity (float)

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("rtransformer_hf/training/metrics/perplexity")
    >>> round(metric.compute(predictions=[6.0, 2.0], references=[3, 1])["perplexity"], 4)
    7.3891
"""


class Perplexity(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        if min(references) < 0 or sum(references) == 0:
            raise ValueError(f"`references` must be numbers of tokens, at least one in all, got {references}.")
        with np.errstate(over="ignore"):  # a model that knows nothing yet: infinity is the answer
            return {"perplexity": float(np.exp(sum(predictions) / sum(references)))}
