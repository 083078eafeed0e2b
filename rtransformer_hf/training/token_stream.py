# SPDX-License-Identifier: Apache-2.0
"""
Rows of text as one stream of token ids. The stream lies on the disk, in the cache of `datasets`, and is read through a
memory map: a text may be larger than the memory, and is tokenized once.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from .new_tokenizers import NUM_CODE_POINTS, code_points, in_parts, unknown_token_id

# What a tokenizer's model has to be for a character's token to depend on this character alone.
CHARACTERS_ALONE = {
    "type": "BPE",
    "merges": [],
    "dropout": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
}


def with_line_endings(texts: Iterable[str | None], line_ending: str) -> list[str]:
    return [(text or "") + line_ending for text in texts]


@dataclass
class Tokenization:
    """
    Makes of a table of rows, with "text" and whether a text "ends" with the row, a table of one row: their "input_ids"
    with the end-of-text token where a text ends, once, but without other special tokens that some tokenizers put
    around a text; "num_characters" of the text, of which tokens that are "unknown"; and the "largest" id.

    Args:
        tokenizer: any; those that only look characters up are many times faster.
        line_ending: what stands after each row.
        version: counts the changes of what is made, by which `datasets` knows what it has from before.
    """

    tokenizer: PreTrainedTokenizerBase
    line_ending: str
    version: int = 1

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}  # without what can be had from them

    @cached_property
    def dtype(self) -> np.dtype:
        """The smallest that holds every id."""
        return np.min_scalar_type(max(self.tokenizer.get_vocab().values(), default=0))

    @cached_property
    def added_tokens(self) -> list[str]:
        return list(self.tokenizer.get_added_vocab())

    @cached_property
    def character_ids(self) -> np.ndarray | None:
        """(NUM_CODE_POINTS,) the token of every character; None: the tokenizer looks at more than one at a time."""
        if not self.tokenizer.is_fast:
            return None
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        model, steps = state["model"], ("normalizer", "pre_tokenizer", "truncation", "padding")
        if any(state[step] is not None for step in steps):
            return None
        if any(model.get(name) != value for name, value in CHARACTERS_ALONE.items()):
            return None
        if model["unk_token"] not in model["vocab"]:
            return None
        ids = np.full(NUM_CODE_POINTS, model["vocab"][model["unk_token"]], dtype=self.dtype)
        for token, token_id in model["vocab"].items():
            if len(token) == 1:
                ids[ord(token)] = token_id
        return ids

    def __call__(self, rows: pa.Table) -> pa.Table:
        texts = with_line_endings(rows["text"].to_pylist(), self.line_ending)
        ends = rows["ends"].to_numpy()
        text = "".join(texts)
        if self.character_ids is None or any(token in text for token in self.added_tokens):
            ids = self.by_tokenizer(texts, ends)
        else:
            ids = self.by_table(text, np.cumsum([len(text) for text in texts])[ends])
        unknown_id = unknown_token_id(self.tokenizer)
        counts = {
            "num_characters": len(text),
            "unknown": 0 if unknown_id is None else np.count_nonzero(ids == unknown_id),
            "largest": ids.max(initial=0),
        }
        columns = {name: pa.array([int(count)]) for name, count in counts.items()}
        return pa.table({"input_ids": pa.ListArray.from_arrays([0, len(ids)], pa.array(ids)), **columns})

    def by_table(self, text: str, ends: np.ndarray) -> np.ndarray:
        """
        Args:
            text: without tokens that were added to the vocabulary, which are looked for as a whole.
            ends: numbers of characters after which a text ends.
        """
        ids = [np.empty(0, self.dtype), *(self.character_ids[part] for part in code_points(text))]
        end_of_text = self.tokenizer.eos_token_id
        return np.concatenate(ids) if end_of_text is None else np.insert(np.concatenate(ids), ends, end_of_text)

    def by_tokenizer(self, texts: list[str], ends: np.ndarray) -> np.ndarray:
        end_of_text, parts, end_of_row = self.tokenizer.eos_token_id, [np.empty(0, self.dtype)], iter(ends)
        for part in in_parts(texts):
            rows = self.tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for ids in rows["input_ids"]:
                # To the word tokenizer, a line's end is that of a text.
                if next(end_of_row) and end_of_text is not None and ids[-1:] != [end_of_text]:
                    ids.append(end_of_text)
            parts.append(np.fromiter(chain.from_iterable(rows["input_ids"]), self.dtype))
        return np.concatenate(parts)


class TokenStream:
    """
    Token ids that are read like those of an array: `len(stream)` and `stream[start:stop]`.

    Args:
        rows: with "input_ids", as of [`Tokenization`], memory-mapped.
    """

    def __init__(self, rows: datasets.Dataset):
        self.rows = rows
        column = rows.with_format("arrow")[:]["input_ids"]
        self.parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
        self.part_ends = np.cumsum([len(part) for part in self.parts])

    def __reduce__(self):
        return TokenStream, (self.rows,)  # a memory map to another process, not what it maps

    def __len__(self) -> int:
        return int(self.part_ends[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        first = int(np.searchsorted(self.part_ends, start, side="right"))
        found, position = [], int(self.part_ends[first - 1]) if first else 0
        for part in self.parts[first:]:
            if position >= stop:
                break
            found.append(part[max(0, start - position) : stop - position])
            position += len(part)
        return np.concatenate(found)[::step] if found else np.empty(0, self.parts[0].dtype)


def tokenize(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, line_ending: str, num_processes: int | None = None
) -> datasets.Dataset:
    """
    What [`Tokenization`] makes of rows of text, a row of it for so many of those, in the cache of `datasets`: the same
    rows, tokenizer and line ending are not tokenized again.
    """
    return rows.with_format("arrow").map(
        Tokenization(tokenizer, line_ending),
        batched=True,
        remove_columns=rows.column_names,
        num_proc=num_processes,
        desc="Tokenizing",
    )
