# SPDX-License-Identifier: Apache-2.0
"""
Text for causal language models: a data set becomes rows of text, these one stream of tokens, and the stream windows in
which every token but the very first is predicted exactly once. Also the metrics over these predictions.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_pt_utils import LabelSmoother

from .. import RTransformerForCausalLM
from .architectures import check_causal_lm, check_context
from .arguments import Defaults
from .data_files import DataFileArguments, as_text, joined, load_split, texts_of
from .errors import UsageError
from .flags import positive_integer
from .metric_modules import compute_metric
from .model_arguments import CAUSAL_LM_ARCHITECTURES, NEW_MODEL, ArchitectureArguments, make_model, unset_sizes
from .new_tokenizers import VOCAB_SIZE, load_tokenizer
from .token_stream import Tokenization, TokenStream, tokenize, with_line_endings
from .token_windows import StreamedWindows, TokenWindows

logger = logging.getLogger(__name__)

LONGEST_TOKEN = 10_000  # characters
STREAMED_TOKENIZER_TEXT = 100_000_000  # characters

TRAINING = {"learning_rate": 3e-3, "adam_beta2": 0.99}
DEFAULTS = Defaults(
    new={**NEW_MODEL, "embedding_initializer_range": 0.1, **TRAINING},
    fine_tuning={**TRAINING, "learning_rate": 3e-4},
    architecture=TRAINING,
    shown=unset_sizes(ArchitectureArguments),
)


@dataclass
class DataArguments(DataFileArguments):
    file_kinds = "text, CSV, TSV, JSON or Parquet"

    text_column: str = field(
        default="text",
        metadata={
            "help": "Column that holds the text; of text files: text. Missing and empty texts are empty lines, "
            "integers are their digits."
        },
    )
    line_ending: str = field(
        default="\n",
        metadata={"help": "What stands after each line of a text file, or row of another format. May be empty."},
    )
    end_of_text: Literal["row", "file", "none"] | None = field(
        default=None,
        metadata={
            "help": "What a text is, for the tokenizer's end-of-text token (eos) to follow it, on which generation "
            "stops: a row (a line of a text file), a whole file (of a data set: a split), or none, for no such token. "
            "Unset: a file where the training data is bare text, a row where it is of another format."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "char, word or bpe, trained on the training text; or a folder or an id on the Hub. Unset: that of "
            "--model_name_or_path, or else char."
        },
    )
    vocab_size: int | None = field(default=None, metadata=VOCAB_SIZE)
    context_length: int = field(
        default=256,
        metadata={
            "help": "Tokens that the model reads at once in training.",
            "type": positive_integer,
            "aliases": "--block_size",
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training data while training on it, for what is larger than the disk. With --max_steps "
            "and validation data of its own; a new tokenizer is trained on the first "
            f"{STREAMED_TOKENIZER_TEXT // 10**6} million characters."
        },
    )
    shuffle_buffer_size: int = field(
        default=10_000,
        metadata={
            "help": "Windows of a stream from which the next one is drawn. 1: in their order.",
            "type": positive_integer,
        },
    )
    preprocessing_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that tokenize the text. Unset: one.", "type": positive_integer},
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Distance between the starts of consecutive windows, at most --context_length. Shared tokens are "
            "context and carry no loss. Unset: --context_length, so nothing is shared.",
            "type": positive_integer,
        },
    )
    eval_stride: int | None = field(
        default=None,
        metadata={
            "help": "Stride of the validation and test windows. A smaller one gives predictions more context, and "
            "takes longer. Unset: --stride.",
            "type": positive_integer,
        },
    )
    shift_windows: bool = field(
        default=False,
        metadata={
            "help": "Cut the training text elsewhere every epoch, so that a token is not always seen after the same "
            "context."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.streaming and self.validation_fraction is not None:
            raise UsageError(
                f"--validation_fraction: {self.validation_fraction}: nothing can be held out of a stream (expected "
                "--validation_file or --validation_split)"
            )
        if self.streaming and self.preprocessing_num_workers is not None:
            raise UsageError("--preprocessing_num_workers: not with --streaming, which tokenizes while it trains")
        if self.streaming and self.train_file and not self.validation_file:
            raise UsageError("--validation_file: missing (--streaming: nothing can be held out of a stream)")
        self.stride = self.context_length if self.stride is None else self.stride
        self.eval_stride = self.stride if self.eval_stride is None else self.eval_stride
        for name in ("stride", "eval_stride"):
            if getattr(self, name) > self.context_length:
                raise UsageError(
                    f"--{name}: {getattr(self, name)} (expected at most --context_length {self.context_length})"
                )


def model_and_windows(
    model_args: ArchitectureArguments, data_args: DataArguments, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, TokenWindows | StreamedWindows]]:
    """
    Model, tokenizer, and the windows of every split.

    Args:
        seed: determines the order of a stream's windows.
    """
    texts = load_texts(data_args)
    tokenizer_name = data_args.tokenizer or model_args.model_name_or_path or "char"
    tokenizer = load_tokenizer(tokenizer_name, lines(texts["train"], data_args.line_ending), data_args.vocab_size)
    tokenizer.padding_side = "left"  # text is generated on the right
    special_tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = make_model(
        model_args,
        RTransformerForCausalLM,
        AutoModelForCausalLM,
        architectures=CAUSAL_LM_ARCHITECTURES,
        vocab_size=len(tokenizer),
        **special_tokens,
    )
    if not isinstance(model, RTransformerForCausalLM):
        is_new = model_args.model_name_or_path is None
        name = f"type {model_args.model_type}" if is_new else f"name_or_path {model_args.model_name_or_path!r}"
        check_context(
            model,
            data_args.context_length + 1,
            f"--context_length {data_args.context_length}, with the token to predict",
        )
        check_causal_lm(model, f"--model_{name}", is_new)
    return model, tokenizer, make_windows(texts, tokenizer, model.config.vocab_size, data_args, seed)


def run_identity(
    model_args: ArchitectureArguments,
    data_args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    windows: TokenWindows | StreamedWindows,
) -> dict:
    """
    What a run can't change on its way: the model and its training text. The rest may change, the number of epochs for
    one. A stream is known by its tokenizer, its name and the sizes of its files alone.
    """
    digest = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    if isinstance(windows, StreamedWindows):
        sizes = [Path(file).stat().st_size for file in data_args.train_file or []]
        digest.update(json.dumps([data_args.data_name, data_args.train_split or "train", sizes]).encode())
        text = {"streamed training text (sha256)": digest.hexdigest()}
    else:
        for start in range(0, len(windows.tokens), 1 << 20):
            digest.update(windows.tokens[start : start + (1 << 20)].astype(np.int32).tobytes())
        text = {"tokenized training text (sha256)": digest.hexdigest()}
    return {
        **asdict(model_args),
        "context_length": data_args.context_length,
        "stride": data_args.stride,
        "shift_windows": data_args.shift_windows,
        **text,
    }


def evaluation_settings(args: DataArguments) -> dict:
    """The settings with which scripts/evaluate_checkpoint.py reads text as this training does."""
    names = ("text_column", "line_ending", "end_of_text", "context_length", "eval_stride")
    return {name: getattr(args, name) for name in names}


def describe(windows: dict[str, TokenWindows | StreamedWindows]) -> str:
    """Describes the training and evaluation data, for the log."""
    sizes = [
        f"{split} streamed" if isinstance(part, StreamedWindows) else f"{split} {len(part.tokens):,} tokens"
        for split, part in windows.items()
    ]
    return f"{', '.join(sizes)}, in windows of {windows['train'].window_size - 1:,}"


# From a data set to rows of text


def load_texts(args: DataArguments) -> dict[str, "datasets.Dataset | TextStream"]:
    """
    The splits "train", "validation" and, where one is given, "test", as of [`load_rows`] or [`load_streamed_rows`].

    Raises:
        UsageError: beside a stream, there is no validation data.
    """
    load = load_streamed_rows if args.streaming else load_rows
    texts = {split: load(args, split) for split in ("train", "validation", "test")}
    if texts["validation"] is None and args.streaming:
        raise UsageError(
            f"--validation_split: missing, and {args.location} has no split 'validation' (--streaming: nothing can be "
            "held out of a stream)"
        )
    if texts["validation"] is None:
        texts["train"], texts["validation"] = hold_out(texts["train"], args.held_out_fraction)
    return {split: rows for split, rows in texts.items() if rows is not None}


def load_rows(args: DataArguments, split: str) -> datasets.Dataset | None:
    """
    One split with the columns "text" and "ends" (whether a text ends with the row); None if not asked for.
    The first that is loaded, the training split, decides on `args.end_of_text` where that is unset.
    """
    parts = load_split(args, split, {"--text_column": args.text_column})
    if parts is None:
        return None
    texts = []
    for where, rows in parts:
        rows = as_text(rows, args.text_column, where)
        if missing := rows.with_format("arrow")[:][args.text_column].null_count:
            logger.warning(f"{where}: {missing:,} of {len(rows):,} rows have no text and are read as empty lines.")
        rows = rows if args.text_column == "text" else rows.rename_column(args.text_column, "text")
        args.end_of_text = args.end_of_text or default_end_of_text(rows)
        ends = np.full(len(rows), args.end_of_text == "row")
        ends[-1] |= args.end_of_text == "file"
        texts.append(rows.add_column("ends", ends))
    return joined(texts)


def load_streamed_rows(args: DataArguments, split: str) -> "datasets.Dataset | TextStream | None":
    """
    The training split as a stream. Others are read whole, but those of a data set without what lies beside them there,
    and into memory.
    """
    if split != "train" and not args.dataset_name:
        return load_rows(args, split)
    parts = load_split(args, split, {"--text_column": args.text_column}, streaming=True)
    if parts is None:
        return None
    args.end_of_text = args.end_of_text or default_end_of_text(parts[0][1])
    stream = TextStream(parts, args.text_column, args.end_of_text)
    return stream if split == "train" else datasets.Dataset(pa.concat_tables(stream))


def default_end_of_text(rows: datasets.Dataset | datasets.IterableDataset) -> str:
    return "file" if rows.info.builder_name == "text" else "row"


class TextStream:
    """
    Iterates over the rows of a split in tables with the columns of [`load_rows`], read anew each time.

    Args:
        parts: the streams of rows, one after the other, as of `load_split`.
        text_column: that of the text.
        end_of_text: "row", "file" or "none".
    """

    def __init__(self, parts: list[tuple[str, datasets.IterableDataset]], text_column: str, end_of_text: str):
        self.parts, self.text_column, self.end_of_text = parts, text_column, end_of_text
        self.has_warned = False

    def __iter__(self) -> Iterator[pa.Table]:
        for where, rows in self.parts:
            tables = self.read(where, rows)
            texts = next(tables)
            for following in chain(tables, [None]):
                ends = np.full(len(texts), self.end_of_text == "row")
                ends[-1] |= self.end_of_text == "file" and following is None
                yield pa.table({"text": pa.array(texts, pa.large_string()), "ends": pa.array(ends)})
                texts = following

    def read(self, where: str, rows: datasets.IterableDataset) -> Iterator[list[str | None]]:
        """
        The texts of some rows at a time.

        Raises:
            UsageError: they can't be read, or are no texts.
        """
        try:
            for table in rows.with_format("arrow").iter(batch_size=1000):
                column = table[self.text_column]
                if column.null_count and not self.has_warned:
                    self.has_warned = True
                    logger.warning(f"{where}: rows without text are read as empty lines.")
                yield texts_of(column, self.text_column, where)
        except UsageError:
            raise
        except Exception as error:  # the formats' readers and the network raise many kinds
            raise UsageError(f"{where} can't be read on: {error.__cause__ or error}") from error


def hold_out(rows: datasets.Dataset, fraction: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Splits off the last rows, or the last characters if all text is in one row."""
    if len(rows) == 1:
        text = rows[0]["text"] or ""
        cut = round(len(text) * (1 - fraction))
        ends = [False, rows[0]["ends"]]
        return tuple(
            datasets.Dataset.from_dict({"text": [part], "ends": [end]})
            for part, end in zip((text[:cut], text[cut:]), ends, strict=True)
        )
    cut = min(max(1, round(len(rows) * (1 - fraction))), len(rows) - 1)
    return rows.select(range(cut)), rows.select(range(cut, len(rows)))


def lines(rows: datasets.Dataset | TextStream, line_ending: str) -> Iterator[str]:
    """The text that a model sees, row by row; of a stream, the first `STREAMED_TOKENIZER_TEXT` characters."""
    if isinstance(rows, TextStream):
        num_characters = 0
        for table in rows:
            texts = with_line_endings(table["text"].to_pylist(), line_ending)
            yield from texts
            num_characters += sum(map(len, texts))
            if num_characters >= STREAMED_TOKENIZER_TEXT:
                return
    else:
        for table in rows.with_format("arrow").iter(batch_size=1000):
            yield from with_line_endings(table["text"].to_pylist(), line_ending)


# From text to tokens


def characters_of_first_token(
    tokens: TokenStream, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, line_ending: str
) -> int:
    """Number of characters of the stream's first token; 0 if it is the end of an empty text."""
    if not tokenizer.is_fast:
        return len(tokenizer.decode(tokens[:1].tolist()))
    for text, ends in zip(lines(rows, line_ending), rows["ends"], strict=True):
        start = tokenizer(text[:LONGEST_TOKEN], add_special_tokens=False, return_offsets_mapping=True)
        if start["input_ids"]:
            first, last = start["offset_mapping"][0]
            return last - first
        if ends and tokenizer.eos_token_id is not None:
            break
    return 0


# From tokens to windows


def make_windows(
    texts: dict[str, datasets.Dataset | TextStream],
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    args: DataArguments,
    seed: int = 0,
) -> dict[str, TokenWindows | StreamedWindows]:
    """The windows of every split, for a model with `vocab_size` token ids."""
    if tokenizer.eos_token_id is None and args.end_of_text != "none":
        logger.warning(
            f"--tokenizer {args.tokenizer} has no end-of-text token (eos_token), so --end_of_text {args.end_of_text} "
            "does nothing: the model won't know where texts end."
        )
    windows = {}
    for split, rows in texts.items():
        stride = args.stride if split == "train" else args.eval_stride
        shifts = args.shift_windows and split == "train"
        if isinstance(rows, TextStream):
            read = partial(stream_tokens, rows, tokenizer, vocab_size, args, split)
            windows[split] = StreamedWindows(
                read, args.source(split), args.context_length, stride, shifts, args.shuffle_buffer_size, seed
            )
            continue
        tokenized = tokenize(rows, tokenizer, args.line_ending, args.preprocessing_num_workers)
        counts = tokenized.remove_columns("input_ids").with_format("numpy")[:]
        tokens = TokenStream(tokenized)
        if len(tokens) < 2:
            raise UsageError(f"{args.source(split)} holds {len(tokens)} tokens (expected at least 2)")
        check_token_ids(counts["largest"].max(), vocab_size, args, split)
        if unknown := counts["unknown"].sum():
            share = f"{unknown:,} of {len(tokens):,} tokens are unknown ({100 * unknown / len(tokens):.1f} %)"
            logger.warning(f"{args.source(split)}: {share}.")
        num_characters = int(counts["num_characters"].sum())
        num_characters -= characters_of_first_token(tokens, rows, tokenizer, args.line_ending)
        windows[split] = TokenWindows(tokens, num_characters, args.context_length, stride, shifts)
    return windows


def stream_tokens(
    rows: TextStream, tokenizer: PreTrainedTokenizerBase, vocab_size: int, args: DataArguments, split: str
) -> Iterator[np.ndarray]:
    """The token ids of a stream of rows, in parts, as they are read."""
    tokenization = Tokenization(tokenizer, args.line_ending)
    has_warned = False
    for table in rows:
        tokenized = tokenization(table)
        counts = tokenized.drop_columns("input_ids").to_pylist()[0]
        check_token_ids(counts["largest"], vocab_size, args, split)
        if counts["unknown"] and not has_warned:
            has_warned = True
            logger.warning(f"{args.source(split)}: there are tokens that --tokenizer {args.tokenizer} does not know.")
        yield tokenized["input_ids"].combine_chunks().flatten().to_numpy()


def check_token_ids(largest: int, vocab_size: int, args: DataArguments, split: str):
    """
    Raises:
        UsageError: the tokenizer gives ids that the model does not have.
    """
    if largest >= vocab_size:
        raise UsageError(
            f"--tokenizer {args.tokenizer} gives token id {largest} for {args.source(split)}; the model's vocab_size "
            f"{vocab_size} accepts 0 to {vocab_size - 1}."
        )


# Metrics


def window_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    (windows, 2): a window's loss in nats, summed over its predicted tokens, and their number. Trainer keeps this of a
    batch (`preprocess_logits_for_metrics`) in place of its logits.
    """
    if isinstance(logits, tuple):  # some models also return their state
        logits = logits[0]
    labels = labels[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels.flatten(), reduction="none")
    return torch.stack([losses.view_as(labels).sum(-1), (labels != -100).sum(-1)], dim=-1)


def smoothed_loss(factor: float) -> Callable | None:
    """
    Trainer's `compute_loss_func` for label smoothing, or None without. Trainer itself tells by the name of the model's
    class whether to shift the labels, and doesn't where `torch_compile` has put a class of its own around the model.
    """
    return partial(LabelSmoother(factor), shift_labels=True) if factor > 0 else None


METRIC_NAMES = ("loss", "perplexity", "bits_per_character")


def make_compute_metrics(windows: TokenWindows) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics` for these windows: loss, perplexity and bits per character over all their tokens."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nats, num_tokens = prediction.predictions.astype(np.float64).T
        return {
            # Replaces Trainer's own loss, a mean over batches, by the mean over tokens.
            "loss": nats.sum() / num_tokens.sum(),
            **compute_metric("perplexity", nats, num_tokens.astype(np.int64)),
            **compute_metric("bits_per_character", [nats.sum()], [windows.num_characters]),
            "predicted_tokens": int(num_tokens.sum()),
        }

    return compute_metrics
