# SPDX-License-Identifier: Apache-2.0
"""
Sentences of words with a tag each, for token classification: from CoNLL files or a data set to checked rows, from
those to token ids with the class index of a word at its first token; and the metrics over words and spans.
"""

import io
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import datasets
import numpy as np
import sklearn  # loads its parts when they are used
import torch
import torch.nn.functional as F
from transformers import EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LabelSmoother

from .classification_metrics import logits_alone
from .data_files import (
    DataFileArguments,
    check_content,
    check_utf8,
    format_of,
    joined,
    kind_of,
    load_split,
    open_unpacked,
    suffix,
)
from .errors import UsageError, listed
from .flags import positive_integer
from .labels import INTEGER, in_order
from .metric_modules import compute_metric
from .new_tokenizers import VOCAB_SIZE, load_tokenizer, train_natural_word_tokenizer
from .span_tags import SPAN_TAG, are_spans

logger = logging.getLogger(__name__)

ARCHITECTURE = "ForTokenClassification"
NO_LABEL = LabelSmoother.ignore_index
DOCUMENT_START = "-DOCSTART-"  # a line of CoNLL-2003 that is no word
CONLLU_ID = re.compile(r"\d+(-\d+|\.\d+)?")  # of a word, of a range of words, of an empty node


@dataclass
class TaggingArguments(DataFileArguments):
    file_kinds: ClassVar[str] = "CoNLL, JSON or Parquet"

    tokens_column: str = field(
        default="tokens", metadata={"help": "Column with a list of words; of JSON, Parquet and data sets."}
    )
    tags_column: str = field(
        default="tags",
        metadata={
            "help": "Column with a list of tags, as many as words: names, or integers, or classes of the data set; of "
            "JSON, Parquet and data sets."
        },
    )
    conll_columns: list[int] | None = field(
        default=None,
        metadata={
            "help": "Columns of the word and of its tag in CoNLL files, counted from 0, or from the end with -1. "
            "Unset: 0 -1, and of .conllu files 1 3, the universal part of speech."
        },
    )
    word_separator: str = field(
        default=" ",
        metadata={
            "help": "What is put between the words of a sentence to tokenize it; '' for languages without spaces."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "char, word or bpe, trained on the training text; or a folder or an id on the Hub. Unset: that of "
            "--model_name_or_path, or else word: words and punctuation marks with their capitals."
        },
    )
    vocab_size: int | None = field(default=None, metadata=VOCAB_SIZE)
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a sentence that are read. The words of the rest are neither trained on nor counted. "
            "Unset: all.",
            "type": positive_integer,
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.conll_columns is not None and len(self.conll_columns) != 2:
            raise UsageError(
                f"--conll_columns: {' '.join(map(str, self.conll_columns))} (expected two integers, the column of "
                "the word and that of its tag)"
            )
        if self.word_separator.strip():
            raise UsageError(f"--word_separator: {self.word_separator!r} (expected white space, or nothing: '')")
        self.lines = {}  # of each CoNLL file, as of `source`: those of its words, by sentence

    def word_place(self, where: str, row: int, index: int) -> str:
        """Where a word stands in a file, for messages."""
        line = f", in line {self.lines[where][row][index]}" if where in self.lines else ""
        return f"row {row}, from 0, word {index}{line}"

    def words_of(self, where: str) -> str:
        """What messages call the words of a part of the data, as of `source`."""
        return f"the words (--tokens_column {self.tokens_column!r}; of CoNLL, --conll_columns) of {where}"

    def tags_of(self, where: str) -> str:
        """What messages call the tags of a part of the data, as of `source`."""
        return f"the tags (--tags_column {self.tags_column!r}; of CoNLL, --conll_columns) of {where}"


# From files to checked rows


def load_splits(args: TaggingArguments) -> dict[str, datasets.Dataset]:
    """The rows of "train", and of "validation" and "test" where they are given, as of [`load_rows`]."""
    splits = {split: load_rows(args, split) for split in ("train", "validation", "test")}
    return {split: rows for split, rows in splits.items() if rows is not None}


def load_rows(args: TaggingArguments, split: str) -> datasets.Dataset | None:
    """
    The sentences of a split, with the columns `tokens` and `tags`, lists of strings of one length; None where none is
    asked for. Tags are classes (ClassLabel) where the data set has them.

    Raises:
        UsageError: files, split or columns do not exist or hold something else, or a sentence has no words, not as
            many tags as words, or names and numbers as tags.
    """
    parts = load_parts(args, split)
    if parts is None:
        return None
    args.keep_parts(split, parts)
    for where, rows in parts:
        check_lists(rows, where, args)
    features = [rows.features[args.tags_column].feature for _, rows in parts]
    classes = None
    if isinstance(features[0], datasets.ClassLabel) and all(feature == features[0] for feature in features):
        classes = features[0]
    checked = [(where, list(sentences(rows, where, args))) for where, rows in parts]
    if classes is None:
        check_names(checked, args)
    tags = datasets.List(datasets.Value("string") if classes is None else classes)
    columns = {"tokens": datasets.List(datasets.Value("string")), "tags": tags}
    return joined(
        [
            datasets.Dataset.from_dict(
                {"tokens": [words for words, _ in part], "tags": [names for _, names in part]},
                datasets.Features(columns),
            )
            for _, part in checked
        ]
    )


def load_parts(args: TaggingArguments, split: str) -> list[tuple[str, datasets.Dataset]] | None:
    """As `data_files.load_split`, with files of CoNLL in place of those of bare text, CSV and TSV."""
    files = getattr(args, f"{split}_file") or []
    for file in files:
        if suffix(file) == ".csv":
            raise UsageError(
                f"--{split}_file: {file!r} is CSV, whose cells hold no lists (expected {args.file_kinds})"
            )
    are_conll = [format_of(file) in ("text", "csv") for file in files]
    if not any(are_conll):
        columns = {"--tokens_column": args.tokens_column, "--tags_column": args.tags_column}
        return load_split(args, split, columns)
    if not all(are_conll):
        raise UsageError(f"{args.source(split)} mixes CoNLL and {format_of(files[are_conll.index(False)])} files.")
    return [(where, read_conll(where, file, args)) for file in files for where in (args.source(split, [file]),)]


def read_conll(where: str, file: str, args: TaggingArguments) -> datasets.Dataset:
    """
    The sentences of a CoNLL file: a word a line with its tag, in columns between tabs or spaces, and an empty line
    after each sentence. Of CoNLL-U files, comments, ranges of words and empty nodes are left out.

    Raises:
        UsageError: the file is no text in UTF-8, has no sentences, or a line has not as many columns, or in CoNLL-U
            another id.
    """
    check_content(where, file)
    check_utf8(where, file)
    is_conllu = suffix(file) == ".conllu"
    word_column, tag_column = args.conll_columns or ((1, 3) if is_conllu else (0, -1))
    all_words, all_tags, all_lines, width = [], [], [], None
    starts_new = True
    with io.TextIOWrapper(open_unpacked(file), encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.rstrip("\r\n")
            if not line.strip(" \t"):
                starts_new = True
                continue
            if is_conllu and line.startswith("#"):
                continue
            # Not at any white space: words may hold no-break spaces.
            cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            if cells[0] == DOCUMENT_START:
                starts_new = True
                continue
            if is_conllu:
                if not CONLLU_ID.fullmatch(cells[0]):
                    raise UsageError(
                        f"{where}: line {number} starts with {cells[0]!r} (expected, in CoNLL-U, the number of a "
                        "word, a range as 3-4 or an empty node as 5.1)"
                    )
                if not cells[0].isdecimal():
                    continue
                starts_new |= cells[0] == "1"
            width = len(cells) if width is None else width
            # With -1, a line that lacks its tag would give another column for it.
            is_uniform = args.conll_columns is not None or (len(cells) == width and width > 1)
            if not is_uniform or not all(-len(cells) <= column < len(cells) for column in (word_column, tag_column)):
                others = "" if args.conll_columns is not None or width < 2 else f", and {width} in the lines before"
                raise UsageError(
                    f"{where}: line {number} has {counted(len(cells), 'column')}{others} (expected a word in column "
                    f"{word_column} and its tag in column {tag_column}, as --conll_columns has them, and an empty "
                    "line after each sentence)"
                )
            if starts_new:
                all_words.append([])
                all_tags.append([])
                all_lines.append([])
                starts_new = False
            all_words[-1].append(cells[word_column])
            all_tags[-1].append(cells[tag_column])
            all_lines[-1].append(number)
    args.lines[where] = all_lines
    if not all_words:
        raise UsageError(f"{where} holds no sentences (expected a word and its tag a line)")
    texts = datasets.List(datasets.Value("string"))
    columns = {args.tokens_column: all_words, args.tags_column: all_tags}
    return datasets.Dataset.from_dict(columns, datasets.Features(dict.fromkeys(columns, texts)))


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_lists(rows: datasets.Dataset, where: str, args: TaggingArguments):
    """
    Raises:
        UsageError: a column holds no lists, or other things in them.
    """
    wanted = {
        ("--tokens_column", args.tokens_column): ("words", ("string", "large_string", "null")),
        ("--tags_column", args.tags_column): ("tags", ("string", "large_string", "null", "ClassLabel", "int", "uint")),
    }
    for (flag, column), (what, kinds) in wanted.items():
        feature = rows.features[column]
        inner = getattr(feature, "feature", None)
        found = kind_of(feature) if inner is None else f"lists of {kind_of(inner)}"
        if inner is None or not (kind_of(inner) in kinds or kind_of(inner).rstrip("0123456789") in kinds):
            more = ", names or integers, not both" if flag == "--tags_column" else ""
            raise UsageError(f"{flag} {column!r} of {where} holds {found} (expected lists of {what}{more})")


def sentences(rows: datasets.Dataset, where: str, args: TaggingArguments) -> Iterable[tuple[list[str], list]]:
    """
    The words and the tags of each row, checked: names of tags without white space around them, integers as their
    digits, classes of the data set as their indices.

    Raises:
        UsageError: a sentence has no words, a word no text, or there are not as many tags as words.
    """
    feature = rows.features[args.tags_column].feature
    is_class = isinstance(feature, datasets.ClassLabel)
    columns = (rows.with_format("arrow")[:][name].to_pylist() for name in (args.tokens_column, args.tags_column))
    for row, (words, tags) in enumerate(zip(*columns, strict=True)):
        if not words:
            raise UsageError(f"{args.words_of(where)}: none in row {row}, from 0 (expected at least one in each)")
        if len(words) != len(tags or []):
            raise UsageError(
                f"{args.tags_of(where)}: {len(tags or [])} in row {row}, from 0, which has "
                f"{counted(len(words), 'word')} (expected as many)"
            )
        for index, (word, tag) in enumerate(zip(words, tags, strict=True)):
            if not word:
                raise UsageError(f"{args.words_of(where)}: {args.word_place(where, row, index)}, is {word!r}")
            if tag is None or (is_class and tag == -1) or not str(tag).strip():
                raise UsageError(f"{args.tags_of(where)}: none in {args.word_place(where, row, index)} ({word!r})")
        yield words, tags if is_class else [str(tag).strip() for tag in tags]


def check_names(parts: list[tuple[str, list[tuple[list[str], list[str]]]]], args: TaggingArguments):
    """
    Raises:
        UsageError: some tags are names, others integers.
    """
    found = {tag for _, part in parts for _, tags in part for tag in tags}
    numbers = {tag for tag in found if INTEGER.fullmatch(tag)}
    if not numbers or numbers == found:
        return
    names = sorted(found - numbers)
    where, row, index = next(
        (where, row, index)
        for where, part in parts
        for row, (_, tags) in enumerate(part)
        for index, tag in enumerate(tags)
        if tag in numbers
    )
    number = dict(parts)[where][row][1][index]
    raise UsageError(
        f"{args.tags_of(where)}: the integer {number} in {args.word_place(where, row, index)}, beside names "
        f"({listed(names)}) (expected names or integers, not both)"
    )


# Tags as classes


def make_label2id(rows: datasets.Dataset, args: TaggingArguments) -> dict[str, int]:
    """
    Class indices of the training rows' tags, by name: those of the data set's classes, or else counted from 0,
    integers by size and other names in alphabetical order.

    Raises:
        UsageError: there is a single tag.
    """
    feature = rows.features["tags"].feature
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    else:
        names = in_order({tag for tags in rows["tags"][:] for tag in tags})
    if len(names) < 2:
        raise UsageError(f"{args.source('train')} holds a single tag, {names[0]!r} (expected at least two)")
    return {name: index for index, name in enumerate(names)}


def log_tags_beside_spans(rows: datasets.Dataset, label2id: dict[str, int], args: TaggingArguments):
    """Warns of tags that mark no spans among others that do: F1 is then that of single words, not of spans."""
    others = [tag for tag in label2id if not SPAN_TAG.fullmatch(tag)]
    spans = [tag for tag in label2id if tag not in (*others, "O")]
    if not spans or not others:
        return
    feature = rows.features["tags"].feature
    is_class = isinstance(feature, datasets.ClassLabel)
    found = (feature.int2str(tags) if is_class else tags for tags in rows["tags"][:])
    row = next((row for row, tags in enumerate(found) if set(tags) & set(others)), None)
    where, row = (args.source("train"), None) if row is None else args.place("train", rows, row)
    first = "" if row is None else f", first in row {row}, from 0"
    logger.warning(
        f"{args.tags_of(where)}: {listed(others)}{first}, mark no spans, beside {listed(spans)} "
        "(expected B-, I- and the like, or O, for F1 of spans): tags are counted word by word."
    )


# From rows to what the model reads


def make_tokenizer(args: TaggingArguments, rows: datasets.Dataset, checkpoint: str | None) -> PreTrainedTokenizerBase:
    """
    A tokenizer that pads and tells which characters a token is of.

    Args:
        args: says which tokenizer, and how long a sentence may be.
        rows: the training rows, for a new one.
        checkpoint: the model to train further, if it is one.

    Raises:
        UsageError: there is no such tokenizer.
    """
    name = args.tokenizer or checkpoint or "word"
    texts = (args.word_separator.join(words) for words in rows["tokens"][:])
    if name == "word":
        tokenizer = train_natural_word_tokenizer(texts, args.vocab_size, lowercase=False)
    else:
        tokenizer = load_tokenizer(name, texts, args.vocab_size)
    if not tokenizer.is_fast:
        raise UsageError(
            f"--tokenizer {name!r} is {type(tokenizer).__name__}, which does not tell the characters of a token "
            "(expected a fast tokenizer, of the package tokenizers)"
        )
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if args.max_length is not None:
        tokenizer.model_max_length = args.max_length
    return tokenizer


def encode(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: TaggingArguments,
    split: str,
    label2id: dict[str, int],
) -> datasets.Dataset:
    """
    `input_ids` of each sentence, its words joined by `args.word_separator`, and as many `labels`: the class index of a
    word at its first token, -100 at all others. A word without a token of its own, or cut off, has no label anywhere;
    how many there are is logged.

    Args:
        rows: as of [`load_rows`].
        tokenizer: as of [`make_tokenizer`].
        args: the separator, and `max_length`.
        split: that of the rows, for messages.
        label2id: the model's classes, by name.

    Raises:
        UsageError: a tag that the model has not, or a sentence without a word that has a token.
    """
    feature = rows.features["tags"].feature
    is_class = isinstance(feature, datasets.ClassLabel)

    def names_of(tags: list) -> list[str]:
        return feature.int2str(tags) if is_class else tags

    for row, tags in enumerate(rows["tags"][:]):
        for index, name in enumerate(names_of(tags)):
            if name not in label2id:
                word = rows[row]["tokens"][index]
                where, row = args.place(split, rows, row)
                raise UsageError(
                    f"{args.tags_of(where)}: unknown: {name!r} in {args.word_place(where, row, index)} ({word!r}) "
                    f"(expected those of the training rows, or of the trained model: {listed(label2id)})"
                )

    separator, max_length = args.word_separator, args.max_length  # Datasets hashes all that the function refers to

    def encode_batch(batch: dict) -> dict:
        texts = [separator.join(words) for words in batch["tokens"]]
        encoded = tokenizer(
            texts,
            truncation=max_length is not None,
            max_length=max_length,
            return_offsets_mapping=True,
            verbose=False,
        )
        labels, num_missed = [], []
        for words, tags, text, offsets in zip(
            batch["tokens"], batch["tags"], texts, encoded["offset_mapping"], strict=True
        ):
            firsts = first_tokens(words, text, offsets, len(separator))
            ids = [label2id[name] for name in names_of(tags)]
            labels.append([ids[firsts[token]] if token in firsts else NO_LABEL for token in range(len(offsets))])
            num_missed.append(len(words) - len(firsts))
        return {"input_ids": encoded["input_ids"], "labels": labels, "missed": num_missed}

    encoded = rows.map(
        encode_batch,
        batched=True,
        remove_columns=rows.column_names,
        desc=f"Encoding {split}",
    )
    if num_missed := sum(encoded["missed"][:]):
        num_words = 0
        for index, (words, missed) in enumerate(zip(rows["tokens"][:], encoded["missed"][:], strict=True)):
            num_words += len(words)
            if missed == len(words):
                where, row = args.place(split, rows, index)
                raise UsageError(
                    f"{args.words_of(where)}: the tokenizer makes no token of row {row}, from 0: "
                    f"{args.word_separator.join(words)!r} (expected at least one word with a token)"
                )
        logger.warning(
            f"{args.source(split)}: {num_missed:,} of {num_words:,} words have no token of their own or are cut off; "
            "they are neither trained on nor counted in the metrics."
        )
    return encoded.remove_columns("missed")


def first_tokens(words: list[str], text: str, offsets: list[tuple[int, int]], gap: int) -> dict[int, int]:
    """
    The first token of each word, as the indices of words by those of tokens. A token is of the word of its first
    character that is not white space.

    Args:
        words: the sentence.
        text: its words, joined.
        offsets: start and end in the text of each token; equal for special tokens.
        gap: characters between two words.
    """
    word_at = np.full(len(text), -1)
    start = 0
    for index, word in enumerate(words):
        word_at[start : start + len(word)] = index
        start += len(word) + gap
    firsts, last_word = {}, -1
    for token, (start, end) in enumerate(offsets):
        inside = start + len(text[start:end]) - len(text[start:end].lstrip())
        if inside < end and word_at[inside] > last_word:
            last_word = int(word_at[inside])
            firsts[token] = last_word
    return firsts


# Metrics


METRIC_NAMES = ("loss", "accuracy", "span_f1", "span_precision", "span_recall", "macro_f1")


def metric_names(label2id: Iterable[str]) -> list[str]:
    """The metrics of tags: those of spans where they mark spans, or else F1 as a mean over the tags."""
    wanted = "span_" if are_spans(label2id) else "macro_"
    return [name for name in METRIC_NAMES if name in ("loss", "accuracy") or name.startswith(wanted)]


def tag_statistics(
    outputs: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Trainer's `preprocess_logits_for_metrics`: the likeliest class of each token, and its loss in nats."""
    logits = logits_alone(outputs, labels)
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=NO_LABEL)
    return logits.argmax(dim=-1), losses


def make_compute_metrics(label2id: dict[str, int]) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    Trainer's `compute_metrics` over the results of [`tag_statistics`]: accuracy of words, loss in nats a word, and F1
    of spans, by seqeval, or of tags of single words, as a mean over those that are there.
    """
    id2label = {index: name for name, index in label2id.items()}

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predicted, losses = prediction.predictions
        labels = prediction.label_ids
        is_word = labels != NO_LABEL
        metrics = {
            "loss": losses[is_word].mean(dtype=np.float64).item(),
            **compute_metric("accuracy", predicted[is_word], labels[is_word]),
        }
        if are_spans(label2id):
            predictions, references = (
                [[id2label[index] for index in row[words].tolist()] for row, words in zip(rows, is_word, strict=True)]
                for rows in (predicted, labels)
            )
            metrics |= compute_metric("span_f1", predictions, references)
        else:
            metrics["macro_f1"] = sklearn.metrics.f1_score(
                labels[is_word],
                predicted[is_word],
                labels=np.unique(labels[is_word]),
                average="macro",
                zero_division=0,
            )
        return {**metrics, "samples": len(labels)}

    return compute_metrics
