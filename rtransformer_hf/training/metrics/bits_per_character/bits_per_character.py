# SPDX-License-Identifier: Apache-2.0
"""Bits per character, as an `evaluate` metric over losses that have already been computed."""

import math

import datasets
import evaluate

DESCRIPTION = """
Bits per character: negative log-likelihood of a text in bits (log2), divided by its number of characters. It is
computed from sums, and compares models whatever their tokens are: characters, words or parts of words.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (list of float): negative log-likelihood of each text, in nats, summed over its tokens.
    references (list of int): number of characters of each text.

Returns:
    bits_per_character (float)

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("rtransformer_hf/training/metrics/bits_per_character")
    >>> round(metric.compute(predictions=[6.0, 2.0], references=[5, 3])["bits_per_character"], 4)
    1.4427
"""


class BitsPerCharacter(evaluate.Metric):
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
            raise ValueError(f"`references` must be numbers of characters, at least one in all, got {references}.")
        return {"bits_per_character": sum(predictions) / math.log(2) / sum(references)}
