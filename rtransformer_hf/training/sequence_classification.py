# SPDX-License-Identifier: Apache-2.0
"""
Data of sequence classification: reads texts or images with a label each, checks them, and encodes them as token ids or
pixel sequences with class indices.
"""

import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tokenizers import processors
from transformers import (
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.image_utils import PILImageResampling

from .. import RTransformerImageProcessor
from .data_files import BYTE_ORDER_MARK, DataFileArguments, as_text, joined, kind_of, load_split
from .errors import UsageError, listed
from .flags import number, positive_integer
from .labels import LABEL_KINDS, in_order, names_of, without_fractions
from .loading import has_processor
from .model_arguments import open_config
from .new_tokenizers import VOCAB_SIZE, load_tokenizer, train_natural_word_tokenizer, unknown_token_id

logger = logging.getLogger(__name__)

ARCHITECTURE = "ForSequenceClassification"
IMAGE_FLAGS = ("image_size", "image_mean", "image_std", "permutation_seed")
TEXT_FLAGS = ("tokenizer", "vocab_size", "max_length")
VALIDATION_SEED = 0  # no flag: runs with different seeds are compared on the same rows


@dataclass
class ClassificationArguments(DataFileArguments):
    text_column: str = field(default="text", metadata={"help": "Column of the text. Integers are read as digits."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of images, which are read as sequences of pixels, in place of text."}
    )
    label_column: str = field(
        default="label",
        metadata={
            "help": "Column of the label: a class of the data set, a name, or an integer. White space around names is "
            "removed."
        },
    )
    text_pair_column: str | None = field(
        default=None,
        metadata={"help": "Column that holds a second text, read after the first with a token between the two."},
    )
    label_separator: str | None = field(
        default=None,
        metadata={
            "help": "What stands between the labels of a row that may have several, or none: ',' for 'fast, cheap'. "
            "A column of lists has several without it."
        },
    )
    regression: bool = field(
        default=False, metadata={"help": "Predict the number in --label_column, by its squared error."}
    )
    class_weights: Literal["balanced"] | None = field(
        default=None,
        metadata={
            "help": "balanced: rare labels weigh more in the training loss, in inverse proportion to their number of "
            "rows. The loss of evaluations stays unweighted."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "char, word or bpe, trained on the training text; or a folder or an id on the Hub. Unset: that of "
            "--model_name_or_path, or else word: words and punctuation marks in lower case."
        },
    )
    vocab_size: int | None = field(default=None, metadata=VOCAB_SIZE)
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest text, in tokens; the rest is cut off. Unset: nothing is cut.",
            "type": positive_integer,
        },
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean of the pixels, from 0 to 1: one value for grey images, three for RGB. Unset: that of "
            "--model_name_or_path, or else MNIST's."
        },
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of the pixels, as --image_mean."}
    )
    permutation_seed: int | None = field(
        default=None, metadata={"help": "Permute the pixels of all images by this seed."}
    )

    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Height and width in pixels to which images are resized. Unset: that of --model_name_or_path, or "
            "else no resizing.",
            "type": positive_integer,
        },
    )
    augment_shift: float = field(
        default=0.0,
        metadata={
            "help": "Shift training images by up to this many pixels, at random each epoch.",
            "type": number(float, at_least=0),
        },
    )
    augment_rotation: float = field(
        default=0.0,
        metadata={
            "help": "Rotate training images by up to this many degrees, at random each epoch.",
            "type": number(float, at_least=0, less_than=360),
        },
    )
    augment_scale: float = field(
        default=0.0,
        metadata={
            "help": "Scale training images by up to this fraction, at random each epoch; 0.1: by 0.9 to 1.1.",
            "type": number(float, at_least=0, less_than=1),
        },
    )
    augment_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of the training images that are shifted, rotated and scaled, others each epoch. The rest "
            "stay as they are: these changes smooth an image, and images to classify are not smoothed. Unset: 0.5.",
            "type": number(float, more_than=0, at_most=1),
        },
    )
    augment_interpolation: Literal["bilinear", "bicubic"] | None = field(
        default=None,
        metadata={
            "help": "How the pixels of changed images are interpolated: bilinear, or bicubic, which smooths less. "
            "Unset: bilinear."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.augments and self.image_column is None:
            raise UsageError(
                "--augment_shift, --augment_rotation and --augment_scale are for images (expected with --image_column)"
            )
        for name in ("augment_share", "augment_interpolation"):
            if (value := getattr(self, name)) is not None and not self.augments:
                raise UsageError(f"--{name}: {value} goes with --augment_shift, --augment_rotation or --augment_scale")
        if self.image_column is None:
            names, expected = IMAGE_FLAGS, "images (expected with --image_column)"
        else:
            names, expected = TEXT_FLAGS, f"texts (expected without --image_column {self.image_column!r})"
        for name in names:
            if (value := getattr(self, name)) is not None:
                raise UsageError(f"--{name}: {value!r} is for {expected}")
        if self.text_pair_column is not None and self.image_column is not None:
            raise UsageError(
                f"--text_pair_column: {self.text_pair_column!r} goes without --image_column {self.image_column!r}"
            )
        if self.label_separator == "":
            raise UsageError("--label_separator: '' (expected at least one character)")
        for name in ("label_separator", "class_weights"):
            if self.regression and getattr(self, name) is not None:
                raise UsageError(f"--{name}: {getattr(self, name)!r} goes with classes, not with --regression")

    @property
    def augments(self) -> bool:
        return max(self.augment_shift, self.augment_rotation, self.augment_scale) > 0

    @property
    def augmentation(self) -> dict:
        """Arguments of `AugmentedImages`."""
        return {
            "shift": self.augment_shift,
            "rotation": self.augment_rotation,
            "scale": self.augment_scale,
            "share": self.augment_share or 0.5,
            "interpolation": self.augment_interpolation or "bilinear",
        }

    @property
    def input_columns(self) -> dict[str, str]:
        """What is read, by the flags that name it."""
        if self.image_column is not None:
            return {"--image_column": self.image_column}
        pair = {} if self.text_pair_column is None else {"--text_pair_column": self.text_pair_column}
        return {"--text_column": self.text_column, **pair}


# From a data set to rows of an input and a label, both of them checked


def load_splits(args: ClassificationArguments) -> dict[str, datasets.Dataset]:
    """The rows of "train" and, where given, "validation" and "test"; see [`load_rows`]."""
    splits = {split: load_rows(args, split) for split in ("train", "validation", "test")}
    return {split: rows for split, rows in splits.items() if rows is not None}


def hold_out(splits: dict[str, datasets.Dataset], args: DataFileArguments) -> dict[str, datasets.Dataset]:
    """
    The splits with a part of the training rows, drawn at random, as "validation" where there is none.

    Raises:
        UsageError: too few rows are left.
    """
    if "validation" in splits:
        return splits
    try:
        parts = splits["train"].train_test_split(test_size=args.held_out_fraction, seed=VALIDATION_SEED)
    except ValueError as error:
        raise UsageError(
            f"--validation_fraction {args.held_out_fraction} of the {len(splits['train'])} rows of "
            f"{args.source('train')} leaves none to train on (expected more rows, a --validation_file or a "
            "--validation_split)"
        ) from error
    return {**splits, "train": parts["train"], "validation": parts["test"]}


def load_rows(args: ClassificationArguments, split: str) -> datasets.Dataset | None:
    """
    The rows of a split, with the columns `args.input_columns` and `args.label_column`; None where none is asked for.
    Labels are classes (ClassLabel) where the data set has them, or else names, as of [`label_names`]; of rows that may
    have several, lists of those; of --regression, numbers.

    Raises:
        UsageError: files, split or columns do not exist or hold something else, or a row has no input or no label.
    """
    parts = load_split(args, split, {**args.input_columns, "--label_column": args.label_column})
    if parts is None:
        return None
    parts = [(where, check_rows(rows, where, args)) for where, rows in parts]
    features = [rows.features[args.label_column] for _, rows in parts]
    classes = getattr(features[0], "feature", features[0])
    if isinstance(classes, datasets.ClassLabel) and all(feature == features[0] for feature in features):
        for where, rows in parts:
            if is_list(features[0]):
                check_label_lists(rows[args.label_column][:], f"--label_column {args.label_column!r} of {where}")
        return joined([rows for _, rows in parts])
    if args.regression:
        labels = [numbers_of(rows, where, args.label_column) for where, rows in parts]
    elif args.label_separator is not None or is_list(features[0]):
        labels = [label_lists(rows, where, args) for where, rows in parts]
    else:
        labels = label_names(parts, args.label_column)
    return joined(
        [
            rows.select_columns(list(args.input_columns.values())).add_column(args.label_column, values)
            for (_, rows), values in zip(parts, labels, strict=True)
        ]
    )


def is_list(feature) -> bool:
    return isinstance(feature, datasets.List | datasets.LargeList)


def check_rows(rows: datasets.Dataset, where: str, args: ClassificationArguments) -> datasets.Dataset:
    """
    Checks that each row has an input and a label, and returns the rows.

    Args:
        rows: with the columns of inputs and labels.
        where: name of the rows, for messages.
        args: name the columns.

    Raises:
        UsageError: a column holds something else, or a row has nothing in it, or white space alone.
    """
    label_column = args.label_column
    columns = {**args.input_columns, "--label_column": label_column}
    table = rows.with_format("arrow")[:]
    for flag, column in columns.items():
        missing = table[column].is_null().to_numpy()
        kind = kind_of(rows.features[column])
        if kind == "ClassLabel":
            missing |= table[column].to_numpy() == -1  # as data sets of the Hub have it
        elif kind.startswith("float"):
            missing |= np.isnan(table[column].to_numpy())
        elif kind in ("string", "large_string") and not (column == label_column and args.label_separator):
            text = pc.replace_substring(table[column], BYTE_ORDER_MARK, " ")
            missing |= pc.equal(pc.utf8_trim_whitespace(text), "").fill_null(True).to_numpy()
        if missing.any():
            raise UsageError(
                f"{flag} {column!r} of {where} is missing in row {missing.argmax()} (from 0), and in {missing.sum()} "
                "rows in all (expected a value in every row, more than white space)"
            )
    for flag, column in args.input_columns.items():
        if flag != "--image_column":
            rows = as_text(rows, column, where)
        elif kind_of(rows.features[column]) != "Image":
            raise UsageError(
                f"--image_column {column!r} of {where} holds {kind_of(rows.features[column])} (expected images, "
                "the feature Image of datasets)"
            )
    feature = rows.features[label_column]
    kind = kind_of(feature)
    if args.regression or args.label_separator is not None:
        expected = ("string", "large_string", *(("int", "uint", "float") if args.regression else ()))
        if not kind.startswith(expected):
            flag = "--regression" if args.regression else "--label_separator"
            what = "numbers" if args.regression else "text"
            raise UsageError(f"--label_column {label_column!r} of {where} holds {kind} (expected {what}, with {flag})")
        return rows
    if is_list(feature):
        inner = kind_of(feature.feature)
        if inner not in ("ClassLabel", "string", "large_string", "null") and not inner.startswith(("int", "uint")):
            raise UsageError(
                f"--label_column {label_column!r} of {where} holds lists of {inner} (expected lists of classes, names "
                "or integers)"
            )
        return rows
    if not kind.startswith(LABEL_KINDS):
        raise UsageError(
            f"--label_column {label_column!r} of {where} holds {kind} (expected classes (ClassLabel), strings or "
            "integers)"
        )
    return rows


# Labels


def label_names(parts: list[tuple[str, datasets.Dataset]], column: str) -> list[list[str]]:
    """
    Labels by name, as of [`names_of`] and [`without_fractions`].

    Args:
        parts: the rows of a split, each with its name for messages.
        column: that of the labels.

    Raises:
        UsageError: all labels are numbers, and one of them a fraction.
    """
    return without_fractions(
        [names_of(rows[column][:], rows.features[column]) for _, rows in parts],
        lambda part, row: f"--label_column {column!r} of {parts[part][0]}, row {row} (from 0)",
    )


def numbers_of(rows: datasets.Dataset, where: str, column: str) -> list[float]:
    """
    Labels of a regression; of CSV, they are text.

    Raises:
        UsageError: a label is no finite number.
    """
    numbers = []
    for row, label in enumerate(rows[column][:]):
        try:
            number = float(label)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(
                f"--label_column {column!r} of {where}: {label!r} in row {row}, from 0 (expected a finite number, "
                "with --regression)"
            )
        numbers.append(number)
    return numbers


def label_lists(rows: datasets.Dataset, where: str, args: ClassificationArguments) -> list[list[str]]:
    """
    The labels of rows that may have several, or none, by the names of [`label_names`].

    Raises:
        UsageError: a label is missing, or stands in a row twice, as zeros and ones for all classes do.
    """
    lists = rows[args.label_column][:]
    if args.label_separator is not None:
        parts = (text.replace(BYTE_ORDER_MARK, "").split(args.label_separator) for text in lists)
        lists = [[name for part in row if (name := part.strip())] for row in parts]
    check_label_lists(lists, f"--label_column {args.label_column!r} of {where}")
    feature = rows.features[args.label_column]
    return [names_of(row, feature.feature) for row in lists] if args.label_separator is None else lists


def check_label_lists(lists: Iterable[list], what: str):
    for row, labels in enumerate(lists):
        if any(label is None or label == -1 or str(label).strip() == "" for label in labels):
            raise UsageError(f"{what}: row {row}, from 0, has a label that is missing: {labels!r}")
        if len(set(labels)) < len(labels):
            raise UsageError(
                f"{what}: row {row}, from 0, has a label twice: {labels!r} (expected the labels that a row has, not "
                "zeros and ones for all of them)"
            )


def problem_type_of(rows: datasets.Dataset, args: ClassificationArguments) -> str:
    """The `problem_type` of a model for the labels of [`load_rows`]."""
    if args.regression:
        return "regression"
    several = is_list(rows.features[args.label_column])
    return "multi_label_classification" if several else "single_label_classification"


def make_label2id(rows: datasets.Dataset, args: ClassificationArguments) -> dict[str, int]:
    """
    Class indices of the training rows' labels, by name: those of the data set's classes, or else counted from 0,
    integers by size and other names in alphabetical order. A regression has one output, named as its column.

    Raises:
        UsageError: there is a single class, or none.
    """
    if args.regression:
        return {args.label_column: 0}
    feature = rows.features[args.label_column]
    classes = getattr(feature, "feature", feature)
    if isinstance(classes, datasets.ClassLabel):
        names = classes.names
    else:
        labels = rows[args.label_column][:]
        names = in_order(set(itertools.chain.from_iterable(labels) if is_list(feature) else labels))
        if not names:
            raise UsageError(f"--label_column {args.label_column!r} of {args.source('train')} holds no label at all")
    if len(names) < 2:
        raise UsageError(
            f"--label_column {args.label_column!r} of {args.source('train')} holds a single label, {names[0]!r} "
            "(expected at least two)"
        )
    return {name: index for index, name in enumerate(names)}


# From rows to what the model reads


def load_config(checkpoint: str, args: ClassificationArguments) -> PreTrainedConfig:
    """
    The configuration of a model to train further.

    Args:
        checkpoint: a folder or an id on the Hub.
        args: say whether it is to read text or images.

    Raises:
        UsageError: there is no such model, or it reads the other kind.
    """
    config = open_config(checkpoint)
    input_size = getattr(config, "input_size", None)
    if args.image_column is not None and input_size is None:
        raise UsageError(
            f"--model_name_or_path {checkpoint!r} reads tokens (expected, with --image_column "
            f"{args.image_column!r}, a model whose input_size is the channels of an image)"
        )
    if args.image_column is None and input_size is not None:
        raise UsageError(
            f"--model_name_or_path {checkpoint!r} reads vectors of {input_size} values, its input_size (expected, "
            f"with --text_column {args.text_column!r}, a model of tokens)"
        )
    return config


def make_tokenizer(
    args: ClassificationArguments, rows: datasets.Dataset, checkpoint: str | None
) -> PreTrainedTokenizerBase:
    """
    A tokenizer that pads.

    Args:
        args: says which tokenizer, and how long a text may be.
        rows: the training rows, for a new one.
        checkpoint: the model to train further, if it is one.

    Raises:
        UsageError: there is no such tokenizer.
    """
    name = args.tokenizer or checkpoint or "word"
    columns = args.input_columns.values()
    texts = (text for batch in rows.iter(batch_size=1000) for column in columns for text in batch[column])
    make = train_natural_word_tokenizer if name == "word" else partial(load_tokenizer, name)
    tokenizer = make(texts, args.vocab_size)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if args.max_length is not None:
        tokenizer.model_max_length = args.max_length
    if args.text_pair_column is not None:
        separate_pairs(tokenizer)
    return tokenizer


def separate_pairs(tokenizer: PreTrainedTokenizerBase):
    """
    Makes a tokenizer separate two texts by a token, if it does not: its own separator or end token, or a new <sep>.

    Raises:
        UsageError: a tokenizer that is not fast puts none.
    """
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        return
    if not tokenizer.is_fast:
        raise UsageError(f"--text_pair_column: {type(tokenizer).__name__} puts no token between two texts")
    if tokenizer.sep_token is None:
        tokenizer.add_special_tokens({"sep_token": tokenizer.eos_token or "<sep>"})
    separator = (tokenizer.sep_token, tokenizer.sep_token_id)
    backend = tokenizer.backend_tokenizer
    template = processors.TemplateProcessing(single="$A", pair=f"$A {separator[0]} $B", special_tokens=[separator])
    backend.post_processor = (
        template if backend.post_processor is None else processors.Sequence([backend.post_processor, template])
    )


def make_image_processor(
    args: ClassificationArguments, rows: datasets.Dataset, checkpoint: str | None
) -> RTransformerImageProcessor:
    """
    An image processor that accepts images of the size of the first one alone, or resizes all to --image_size.

    Args:
        args: flags of the processor, which win over those of a checkpoint.
        rows: the training rows.
        checkpoint: the model to train further, if it is one; where it has no processor, there is a new one.

    Raises:
        UsageError: a flag is out of range, or the checkpoint's processor can't be read.
    """
    flags = {name: getattr(args, name) for name in ("image_mean", "image_std", "permutation_seed")}
    flags = {name: value for name, value in flags.items() if value is not None}
    if args.image_size is not None:
        size = {"height": args.image_size, "width": args.image_size}
        flags |= {"size": size, "do_resize": True, "resample": PILImageResampling.BOX}
    source = f"the first image of {args.source('train')}"
    try:
        if checkpoint is not None and has_processor(checkpoint):
            source = f"that of --model_name_or_path {checkpoint!r}"
            return RTransformerImageProcessor.from_pretrained(checkpoint, **flags)
        first = rows[0][args.image_column]
        return RTransformerImageProcessor(**{"size": {"height": first.height, "width": first.width}, **flags})
    except (OSError, ValueError) as error:
        given = "".join(f", --{name} {value}" for name, value in flags.items())
        raise UsageError(f"no image processor can be made of {source}{given}: {error}") from error


def encode(
    rows: datasets.Dataset,
    processing_class: PreTrainedTokenizerBase | RTransformerImageProcessor,
    args: ClassificationArguments,
    split: str,
    label2id: dict[str, int],
) -> datasets.Dataset:
    """
    What [`make_collator`] makes batches of: class indices as `labels`, and `input_ids`, or `input_values`. Images are
    read and normalised once, here, and kept as float32 on disk, each flat: an epoch over them costs little more than
    reading them.

    Args:
        rows: as of [`load_rows`].
        processing_class: the tokenizer, or the image processor.
        args: names of the columns, and `max_length`.
        split: that of the rows, for messages.
        label2id: the model's classes, by name.

    Raises:
        UsageError: a label that the model has not, a text without tokens, or an image that the processor refuses.
    """
    problem_type = problem_type_of(rows, args)
    labels = targets(rows, args)
    several = problem_type == "multi_label_classification"
    found = set(itertools.chain.from_iterable(labels)) if several else set(labels)
    classes = sorted(label2id, key=label2id.get)  # a loaded config.json has them in alphabetical order
    if problem_type != "regression" and (unknown := sorted(found - label2id.keys())):
        row = next(
            row for row, names in enumerate(labels) if not label2id.keys() >= set(names if several else [names])
        )
        where, row = args.place(split, rows, row)
        raise UsageError(
            f"--label_column {args.label_column!r} of {where} holds {listed(map(repr, unknown))}, first "
            f"in row {row} (from 0; expected the labels of the training rows, or of the trained model: "
            f"{listed(classes)})"
        )

    def with_labels(indices: list[int], name: str, values: Sequence) -> dict:
        batch = [labels[index] for index in indices]
        if several:
            batch = [[float(name in names) for name in classes] for names in batch]
        elif problem_type != "regression":
            batch = [label2id[name] for name in batch]
        return {name: values, "labels": batch}

    def encode_texts(batch: dict, indices: list[int]) -> dict:
        texts, is_cut = batch[args.text_column], args.max_length is not None
        pairs = {} if args.text_pair_column is None else {"text_pair": batch[args.text_pair_column]}
        options = {"truncation": is_cut, "max_length": args.max_length, "verbose": False}
        input_ids = processing_class(texts, **pairs, **options)["input_ids"]
        return with_labels(indices, "input_ids", input_ids)

    def encode_images(batch: dict, indices: list[int]) -> dict:
        try:
            input_values = processing_class(batch[args.image_column], return_tensors="np")["input_values"]
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--image_column {args.image_column!r} of {args.source(split)} holds an image that can't be used: "
                f"{error}"
            ) from error
        return with_labels(indices, "input_values", input_values.reshape(len(input_values), -1))

    encoded = rows.map(
        encode_texts if args.image_column is None else encode_images,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        desc=f"Encoding {split}",
    )
    if args.image_column is not None:
        return encoded.with_format("torch")
    if 0 in (lengths := pc.list_value_length(encoded.with_format("arrow")[:]["input_ids"]).to_pylist()):
        index = lengths.index(0)
        where, row = args.place(split, rows, index)
        raise UsageError(
            f"--text_column {args.text_column!r} of {where} holds the text {rows[index][args.text_column]!r} in row "
            f"{row} (from 0), of which the tokenizer makes no token (expected at least one per text)"
        )
    return encoded


def targets(rows: datasets.Dataset, args: ClassificationArguments) -> list[str] | list[list[str]] | list[float]:
    """The labels of rows as of [`load_rows`]: names, lists of names, or numbers."""
    feature, labels = rows.features[args.label_column], rows[args.label_column][:]
    if args.regression:
        return labels
    return [names_of(row, feature.feature) for row in labels] if is_list(feature) else names_of(labels, feature)


def log_unknown_words(encoded: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, where: str):
    """Logs how many tokens of encoded rows are unknown, if the tokenizer has a token for unknown words."""
    unknown_id = unknown_token_id(tokenizer)
    if unknown_id is None:
        return
    tokens = pc.list_flatten(encoded.with_format("arrow")[:]["input_ids"])
    unknown = pc.sum(pc.equal(tokens, unknown_id)).as_py()
    logger.info(f"{where}: {unknown:,} of {len(tokens):,} tokens are unknown ({100 * unknown / len(tokens):.1f} %).")


def make_collator(
    processing_class: PreTrainedTokenizerBase | RTransformerImageProcessor,
) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """
    What makes a batch of rows of [`encode`]: `labels` (batch,) with `input_ids` and `attention_mask` (batch, time),
    padded, or with `input_values` (batch, pixels, channels).
    """
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return DataCollatorWithPadding(processing_class)
    num_channels = len(processing_class.image_mean)

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = default_data_collator(examples)
        batch["input_values"] = batch["input_values"].unflatten(-1, (-1, num_channels))
        return batch

    return collate


def sample_batch(
    splits: dict[str, datasets.Dataset], collate: Callable[[list[dict]], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The first training row and the longest row of all splits, as `collate` makes a batch of them."""
    longest = None
    for rows in splits.values():
        lengths = pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_numpy()
        if longest is None or lengths.max() > len(longest["input_ids"]):
            longest = rows[int(lengths.argmax())]
    return dict(collate([splits["train"][0], longest]))


def sha256_of(rows: datasets.Dataset) -> str:
    """A digest of all values in encoded rows."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        for column in batch.columns:
            for chunk in column.chunks:
                values = chunk.flatten() if pa.types.is_nested(column.type) else chunk
                digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()
