# SPDX-License-Identifier: Apache-2.0
"""
Rows of text, or of images, with a label each, for sequence classification: from a data set to checked rows, from those
to token ids or pixel sequences with class indices; and the metrics over them.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.image_utils import PILImageResampling

from .. import RTransformerImageProcessor
from .command_line import number, positive_integer
from .data_files import BYTE_ORDER_MARK, DataFileArguments, as_text, joined, kind_of, load_split
from .errors import UsageError
from .metric_modules import compute_metric
from .new_tokenizers import load_tokenizer, train_natural_word_tokenizer, unknown_token_id

logger = logging.getLogger(__name__)

ARCHITECTURE = "ForSequenceClassification"
INTEGER = re.compile(r"0|-?[1-9]\d*")
DECIMAL = re.compile(r"[+-]?\d+(\.\d+)?")
VALIDATION_SEED = 0  # no flag: runs with different seeds are compared on the same rows


@dataclass
class ClassificationArguments(DataFileArguments):
    text_column: str = field(
        default="text", metadata={"help": "Column that holds the text. Integers are read as their digits."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column that holds images, read as sequences of pixels in place of text."}
    )
    label_column: str = field(
        default="label",
        metadata={
            "help": "Column that holds the label: a class of the data set, a name, or an integer. Names are taken as "
            "written, but for white space around them."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "char, word or bpe, trained on the training text; or a folder or an id on the Hub. Unset: that of "
            "--model_name_or_path, or else word: words and punctuation marks in lower case."
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Largest vocabulary of a new word (unset: all words) or bpe (8192) tokenizer.",
            "type": number(int, at_least=2),
        },
    )
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
        default=None, metadata={"help": "Put the pixels of all images into one random order, that of this seed."}
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
            "help": "Shift training images by up to so many pixels, anew every epoch.",
            "type": number(float, at_least=0),
        },
    )
    augment_rotation: float = field(
        default=0.0,
        metadata={
            "help": "Rotate training images by up to so many degrees, anew every epoch.",
            "type": number(float, at_least=0, less_than=360),
        },
    )
    augment_scale: float = field(
        default=0.0,
        metadata={
            "help": "Scale training images by up to this fraction, anew every epoch; 0.1: 0.9 to 1.1 times.",
            "type": number(float, at_least=0, less_than=1),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.augments and self.image_column is None:
            raise UsageError(
                "--augment_shift, --augment_rotation and --augment_scale are for images (expected with --image_column)"
            )

    @property
    def augments(self) -> bool:
        return max(self.augment_shift, self.augment_rotation, self.augment_scale) > 0

    @property
    def input_column(self) -> str:
        return self.image_column or self.text_column


# From a data set to rows of two columns, an input and a label, both of them checked


def load_splits(args: ClassificationArguments) -> dict[str, datasets.Dataset]:
    """The rows of "train", and of "validation" and "test" where they are given, as of [`load_rows`]."""
    splits = {split: load_rows(args, split) for split in ("train", "validation", "test")}
    return {split: rows for split, rows in splits.items() if rows is not None}


def hold_out(splits: dict[str, datasets.Dataset], args: DataFileArguments) -> dict[str, datasets.Dataset]:
    """
    The splits with a part of the training rows, drawn at random, as "validation" where there is none.

    Raises:
        UsageError: there are too few rows.
    """
    if "validation" in splits:
        return splits
    try:
        parts = splits["train"].train_test_split(test_size=args.validation_fraction, seed=VALIDATION_SEED)
    except ValueError as error:
        raise UsageError(
            f"--validation_fraction {args.validation_fraction} of the {len(splits['train'])} rows of "
            f"{args.source('train')} leaves none to train on; a --validation_file, a --validation_split or more rows "
            "are accepted."
        ) from error
    return {**splits, "train": parts["train"], "validation": parts["test"]}


def load_rows(args: ClassificationArguments, split: str) -> datasets.Dataset | None:
    """
    The rows of a split, with the columns `args.input_column` and `args.label_column`; None where none is asked for.
    Labels are classes (ClassLabel) where the data set has them, or else names, as of [`label_names`].

    Raises:
        UsageError: files, split or columns do not exist or hold something else, or a row has no input or no label.
    """
    input_flag = "--image_column" if args.image_column else "--text_column"
    columns = {input_flag: args.input_column, "--label_column": args.label_column}
    parts = load_split(args, split, columns)
    if parts is None:
        return None
    parts = [(where, check_rows(rows, where, columns)) for where, rows in parts]
    features = [rows.features[args.label_column] for _, rows in parts]
    if isinstance(features[0], datasets.ClassLabel) and all(feature == features[0] for feature in features):
        return joined([rows for _, rows in parts])
    named = zip(parts, label_names(parts, args.label_column), strict=True)
    return joined(
        [rows.select_columns([args.input_column]).add_column(args.label_column, names) for (_, rows), names in named]
    )


def check_rows(rows: datasets.Dataset, where: str, columns: dict[str, str]) -> datasets.Dataset:
    """
    Rows with an input and a label each.

    Args:
        rows: with these two columns.
        where: name of the rows, for messages.
        columns: that of the input and that of the label, by their flags.

    Raises:
        UsageError: a column holds something else, or a row has nothing in it, or white space alone.
    """
    (input_flag, input_column), (_, label_column) = columns.items()
    table = rows.with_format("arrow")[:]
    for flag, column in columns.items():
        missing = table[column].is_null().to_numpy()
        kind = kind_of(rows.features[column])
        if kind == "ClassLabel":
            missing |= table[column].to_numpy() == -1  # as data sets of the Hub have it
        elif kind.startswith("float"):
            missing |= np.isnan(table[column].to_numpy())
        elif kind in ("string", "large_string"):
            text = pc.replace_substring(table[column], BYTE_ORDER_MARK, " ")
            missing |= pc.equal(pc.utf8_trim_whitespace(text), "").fill_null(True).to_numpy()
        if missing.any():
            raise UsageError(
                f"{flag} {column!r} of {where} is missing in row {missing.argmax()} (from 0), and in {missing.sum()} "
                "rows in all; a value in every row, not white space alone, is accepted."
            )
    if input_flag == "--text_column":
        rows = as_text(rows, input_column, where)
    elif kind_of(rows.features[input_column]) != "Image":
        raise UsageError(
            f"--image_column {input_column!r} of {where} holds {kind_of(rows.features[input_column])}; images (the "
            "feature Image of datasets) are accepted."
        )
    kind = kind_of(rows.features[label_column])
    if kind not in ("ClassLabel", "string", "large_string", "bool") and not kind.startswith(("int", "uint", "float")):
        raise UsageError(
            f"--label_column {label_column!r} of {where} holds {kind}; classes (ClassLabel), strings and integers are "
            "accepted."
        )
    return rows


# Labels


def label_names(parts: list[tuple[str, datasets.Dataset]], column: str) -> list[list[str]]:
    """
    Labels by the names that the model's configuration gets: strings without white space around them, integers by their
    digits, truth values as True and False. Where all labels are numbers, 1.0 is the integer 1.

    Args:
        parts: the rows of a split, each with its name for messages.
        column: that of the labels.

    Raises:
        UsageError: all labels are numbers, and one of them a fraction.
    """
    names = [names_of(rows[column][:], rows.features[column]) for _, rows in parts]
    found = set().union(*names)
    if not any("." in name for name in found) or not all(map(DECIMAL.fullmatch, found)):
        return names
    fractions = {name for name in found if not float(name).is_integer()}
    for (where, _), part in zip(parts, names, strict=True):
        for row, name in enumerate(part):
            if name in fractions:
                raise UsageError(
                    f"--label_column {column!r} of {where} holds the fraction {name} in row {row} (from 0); names and "
                    "integers are accepted."
                )
    return [[str(int(float(name))) for name in part] for part in names]


def names_of(labels: Sequence, feature: datasets.ClassLabel | datasets.Value) -> list[str]:
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(labels)
    if feature.dtype.startswith("float"):
        return [np.format_float_positional(label, trim="0") for label in labels]
    return [str(label).replace(BYTE_ORDER_MARK, "").strip() for label in labels]


def make_label2id(rows: datasets.Dataset, args: ClassificationArguments) -> dict[str, int]:
    """
    Class indices of the training rows' labels, by name: those of the data set's classes, or else counted from 0,
    integers by size and other names in alphabetical order.

    Raises:
        UsageError: there is a single class.
    """
    feature = rows.features[args.label_column]
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    else:
        names = sorted(set(rows[args.label_column][:]))
        if all(map(INTEGER.fullmatch, names)):
            names.sort(key=int)
    if len(names) < 2:
        raise UsageError(
            f"--label_column {args.label_column!r} of {args.source('train')} holds a single label, {names[0]!r}; at "
            "least two are accepted."
        )
    return {name: index for index, name in enumerate(names)}


def trained_label2id(config: PreTrainedConfig, architecture: str = ARCHITECTURE) -> dict[str, int] | None:
    """The labels of a classifier, by name; None for a model of another task than how `architecture` ends."""
    if not (config.architectures or [""])[0].endswith(architecture):
        return None
    return {name: index for index, name in config.id2label.items()}


def fit_label2id(label2id: dict[str, int], trained: dict[str, int], where: str) -> dict[str, int]:
    """
    The class indices of a classifier that has been trained, for labels of data.

    Args:
        label2id: those of the data, as of [`make_label2id`].
        trained: those of the classifier. Where it has none but the names that the library gives, LABEL_0 and so on,
            its classes go by the indices of the data's.
        where: the data, for the message.

    Raises:
        UsageError: the data has labels that the classifier has not.
    """
    if all(name == f"LABEL_{index}" for name, index in trained.items()):
        if len(label2id) == len(trained):
            return label2id
    elif label2id.keys() <= trained.keys():
        return trained
    raise UsageError(
        f"{where} has {len(label2id)} labels ({listed(label2id)}), those of --model_name_or_path are {len(trained)} "
        f"({listed(trained)}); accepted: labels of the model, or a model of another task, which gets a new head."
    )


def listed(values: Sequence, most: int = 10) -> str:
    values = list(values)
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")


# From rows to what the model reads


def open_config(checkpoint: str) -> PreTrainedConfig:
    """
    Raises:
        UsageError: --model_name_or_path is no folder and no id of a model.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--model_name_or_path {checkpoint!r} can't be opened; the folder of a model and an id on the Hub are "
            f"accepted: {error}"
        ) from error


def load_config(checkpoint: str, args: ClassificationArguments) -> PreTrainedConfig:
    """
    The configuration of a model to train further.

    Args:
        checkpoint: a folder or an id on the Hub.
        args: say whether it is to read text or images.

    Raises:
        UsageError: there is no such model, or it reads the other.
    """
    config = open_config(checkpoint)
    input_size = getattr(config, "input_size", None)
    if args.image_column is not None and input_size is None:
        raise UsageError(
            f"--model_name_or_path {checkpoint!r} reads tokens; with --image_column {args.image_column!r} a model "
            "with an input_size, the channels of an image, is accepted."
        )
    if args.image_column is None and input_size is not None:
        raise UsageError(
            f"--model_name_or_path {checkpoint!r} reads vectors of {input_size} values (input_size); with "
            f"--text_column {args.text_column!r} a model of tokens is accepted."
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
    texts = (text for batch in rows.iter(batch_size=1000) for text in batch[args.text_column])
    make = train_natural_word_tokenizer if name == "word" else partial(load_tokenizer, name)
    tokenizer = make(texts, args.vocab_size)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if args.max_length is not None:
        tokenizer.model_max_length = args.max_length
    return tokenizer


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
        UsageError: the flags are out of their range.
    """
    flags = {name: getattr(args, name) for name in ("image_mean", "image_std", "permutation_seed")}
    flags = {name: value for name, value in flags.items() if value is not None}
    if args.image_size is not None:
        size = {"height": args.image_size, "width": args.image_size}
        flags |= {"size": size, "do_resize": True, "resample": PILImageResampling.BOX}
    try:
        if checkpoint is not None:
            try:
                return RTransformerImageProcessor.from_pretrained(checkpoint, **flags)
            except OSError:  # it has none
                pass
        first = rows[0][args.image_column]
        return RTransformerImageProcessor(**{"size": {"height": first.height, "width": first.width}, **flags})
    except (OSError, ValueError) as error:
        given = "".join(f", --{name} {value}" for name, value in flags.items())
        raise UsageError(
            f"no image processor can be made of the first image of {args.source('train')}{given}: {error}"
        ) from error


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
    feature = rows.features[args.label_column]
    names = names_of(rows[args.label_column][:], feature)
    if unknown := sorted(set(names) - label2id.keys()):
        row = next(row for row, name in enumerate(names) if name not in label2id)
        raise UsageError(
            f"--label_column {args.label_column!r} of {args.source(split)} holds {listed(map(repr, unknown))}, first "
            f"in row {row} (from 0); accepted: the labels of the training rows, or of the trained model, "
            f"{listed(label2id)}."
        )

    def with_labels(batch: dict, name: str, values: Sequence) -> dict:
        names = names_of(batch[args.label_column], feature)
        return {name: values, "labels": [label2id[name] for name in names]}

    def encode_texts(batch: dict) -> dict:
        texts, is_cut = batch[args.text_column], args.max_length is not None
        input_ids = processing_class(texts, truncation=is_cut, max_length=args.max_length, verbose=False)["input_ids"]
        if not all(input_ids):
            raise UsageError(
                f"--text_column {args.text_column!r} of {args.source(split)} holds the text "
                f"{texts[input_ids.index([])]!r}, of which the tokenizer makes no token; texts with at least one are "
                "accepted."
            )
        return with_labels(batch, "input_ids", input_ids)

    def encode_images(batch: dict) -> dict:
        try:
            input_values = processing_class(batch[args.image_column], return_tensors="np")["input_values"]
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--image_column {args.image_column!r} of {args.source(split)} holds an image that can't be used: "
                f"{error}"
            ) from error
        return with_labels(batch, "input_values", input_values.reshape(len(input_values), -1))

    return rows.map(
        encode_texts if args.image_column is None else encode_images,
        batched=True,
        remove_columns=rows.column_names,
        desc=f"Encoding {split}",
    ).with_format("torch" if args.image_column else None)


def log_unknown_words(encoded: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, where: str):
    """Says how many tokens of the rows of [`encode`] are unknown to the tokenizer, if any could be."""
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


def sha256_of(rows: datasets.Dataset) -> str:
    """A digest of the values in rows of [`encode`]."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        for column in batch.columns:
            for chunk in column.chunks:
                values = chunk if column.type == "int64" else chunk.flatten()
                digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


# Metrics


METRIC_NAMES = ("loss", "accuracy")


def make_compute_metrics(rows: datasets.Dataset | None = None) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics`: accuracy, and loss in nats, over all rows of a split."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
        return {
            # Trainer's own loss is a mean over batches, which is not one over rows. This one takes its place.
            "loss": F.cross_entropy(logits.double(), labels).item(),
            **compute_metric("accuracy", logits.argmax(dim=-1), labels),
            "samples": len(labels),
        }

    return compute_metrics
