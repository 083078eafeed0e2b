# SPDX-License-Identifier: Apache-2.0
"""Negative log-likelihood of a frame of music, as an `evaluate` metric over losses that have already been computed."""

import datasets
import evaluate

DESCRIPTION = """
Negative log-likelihood of a frame of polyphonic music in nats, summed over its keys. It is computed from sums, so that
tunes of unequal length weigh as much as they have frames.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (list of float): negative log-likelihood of each tune, in nats, summed over its predicted frames.
    references (list of int): number of predicted frames of each tune.

Returns:
    nll_per_frame (float)

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("rtransformer_hf/training/metrics/nll_per_frame")
    >>> metric.compute(predictions=[600.0, 200.0], references=[300, 100])["nll_per_frame"]
    2.0
"""


class NLLPerFrame(evaluate.Metric):
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
            raise ValueError(f"`references` must be numbers of frames, at least one in all, got {references}.")
        return {"nll_per_frame": sum(predictions) / sum(references)}
