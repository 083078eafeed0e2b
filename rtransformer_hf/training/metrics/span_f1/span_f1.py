# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and F1 of tagged spans, as an `evaluate` metric that needs no network."""

import datasets
import evaluate
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from rtransformer_hf.training.span_tags import in_iobes

DESCRIPTION = """
Precision, recall and F1 of spans: a predicted span is right where its first word, its last word and its type are. All
spans count alike (micro average). Tags are IOB1, IOB2, IOE1, IOE2 or IOBES, counted by seqeval as conlleval does;
BILOU and BMES count as the same spans in IOBES.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions (list of list of str): the predicted tags of each sentence, such as B-PER, I-PER and O.
    references (list of list of str): its true tags.

Returns:
    span_precision, span_recall, span_f1 (float): 0 where nothing is predicted, or nothing is there to be found.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("rtransformer_hf/training/metrics/span_f1")
    >>> metric.compute(predictions=[["B-PER", "O", "B-LOC"]], references=[["B-PER", "I-PER", "B-LOC"]])["span_f1"]
    0.5
"""


class SpanF1(evaluate.Metric):
    def _info(self):
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references):
        for row, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            if len(predicted) != len(true):
                raise ValueError(
                    f"`predictions` must have a tag for each of the {len(true)} `references` of sentence {row}, got "
                    f"{len(predicted)}."
                )
        references, predictions = (list(map(in_iobes, sentences)) for sentences in (references, predictions))
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average="micro", zero_division=0
        )
        return {"span_precision": float(precision), "span_recall": float(recall), "span_f1": float(f1)}
