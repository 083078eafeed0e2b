# SPDX-License-Identifier: Apache-2.0
"""Tags that mark spans of words, as B-PER, I-PER and O do. What reads no data, such as the demo, needs no more."""

import re
from collections.abc import Iterable

SPAN_TAG = re.compile(r"O|[BIESLUM]-.+")


def are_spans(tags: Iterable[str]) -> bool:
    """Whether tags mark spans of words (B-PER, I-PER, O), and are not of single words (NOUN, VERB)."""
    tags = set(tags)
    return all(map(SPAN_TAG.fullmatch, tags)) and tags != {"O"}
