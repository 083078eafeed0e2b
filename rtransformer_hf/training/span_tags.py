# SPDX-License-Identifier: Apache-2.0
"""Tags that mark spans of words, as B-PER, I-PER and O do. What reads no data, such as the demo, needs no more."""

import re
from collections.abc import Iterable

SPAN_TAG = re.compile(r"O|[BIESLUM]-.+")
OTHER_PREFIXES = {"L": "E", "U": "S", "M": "I"}  # of BILOU and BMES, by those of IOBES


def are_spans(tags: Iterable[str]) -> bool:
    """Whether tags mark spans of words (B-PER, I-PER, O), and are not of single words (NOUN, VERB)."""
    tags = set(tags)
    return all(map(SPAN_TAG.fullmatch, tags)) and tags != {"O"}


def in_iobes(tags: Iterable[str]) -> list[str]:
    """Tags of spans with the prefixes of IOBES, which seqeval knows, in place of those of BILOU and BMES."""
    return [tag if tag == "O" else OTHER_PREFIXES.get(tag[0], tag[0]) + tag[1:] for tag in tags]
