# SPDX-License-Identifier: Apache-2.0
"""
Text for causal language models: from a data set to rows of text, from those to one stream of tokens, and from that to
windows in which every token but the very first is predicted exactly once; and the metrics over these predictions.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import datasets
import evaluate
import numpy as np
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
from .data_files import DataFileArguments, as_text, joined, load_split
from .errors import UsageError
from .model_arguments import CAUSAL_LM_ARCHITECTURES, NEW_MODEL, ArchitectureArguments, make_model, unset_sizes
from .new_tokenizers import load_tokenizer
from .token_stream import TokenStream, tokenize, with_line_endings

logger = logging.getLogger(__name__)

METRICS = Path(__file__).parent / "metrics"
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
LONGEST_TOKEN = 10_000  # characters

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
    vocab_size: int | None = field(
        default=None, metadata={"help": "Largest vocabulary of a new word (unset: all words) or bpe (8192) tokenizer."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize the text. Unset: one."}
    )
    block_size: int = field(default=256, metadata={"help": "Inputs in a window."})
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Inputs from a window's start to the next one's. What two windows share is context in the second, "
            "without loss. Unset: block_size, so that windows share nothing."
        },
    )
    eval_stride: int | None = field(
        default=None,
        metadata={
            "help": "The stride of validation and test windows: smaller, predictions have more context. Unset: stride."
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
        if self.vocab_size is not None and self.vocab_size < 2:
            raise UsageError(f"--vocab_size {self.vocab_size} must be at least 2.")
        if self.preprocessing_num_workers is not None and self.preprocessing_num_workers < 1:
            raise UsageError(
                f"--preprocessing_num_workers: {self.preprocessing_num_workers} (expected at least 1, or unset: one)"
            )
        if self.block_size < 1:
            raise UsageError(f"--block_size {self.block_size} must be at least 1.")
        self.stride = self.block_size if self.stride is None else self.stride
        self.eval_stride = self.stride if self.eval_stride is None else self.eval_stride
        for name in ("stride", "eval_stride"):
            if not 1 <= getattr(self, name) <= self.block_size:
                raise UsageError(
                    f"--{name} {getattr(self, name)} must be at least 1 and at most --block_size {self.block_size}."
                )


def model_and_windows(
    model_args: ArchitectureArguments, data_args: DataArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, "TokenWindows"]]:
    """The model and the tokenizer that the arguments ask for, and the windows of every split."""
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
            model, data_args.block_size + 1, f"--block_size {data_args.block_size}, with the token to predict"
        )
        check_causal_lm(model, f"--model_{name}", is_new)
    return model, tokenizer, make_windows(texts, tokenizer, model.config.vocab_size, data_args)


def run_identity(
    model_args: ArchitectureArguments,
    data_args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    windows: "TokenWindows",
) -> dict:
    """
    What a run can't change on its way: the model and its training text. The rest may change, the number of epochs for
    one.
    """
    text = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for start in range(0, len(windows.tokens), 1 << 20):
        text.update(windows.tokens[start : start + (1 << 20)].astype(np.int32).tobytes())
    return {
        **asdict(model_args),
        "block_size": data_args.block_size,
        "stride": data_args.stride,
        "shift_windows": data_args.shift_windows,
        "tokenized training text (sha256)": text.hexdigest(),
    }


def evaluation_settings(args: DataArguments) -> dict:
    """What scripts/evaluate_checkpoint.py needs to know to read a text as these arguments do."""
    names = ("text_column", "line_ending", "end_of_text", "block_size", "eval_stride")
    return {name: getattr(args, name) for name in names}


def describe(windows: dict[str, "TokenWindows"]) -> str:
    """What a model is trained and evaluated on, in words."""
    sizes = ", ".join(f"{split} {len(part.tokens):,}" for split, part in windows.items())
    return f"{sizes} tokens, in windows of {windows['train'].window_size - 1:,}"


# From a data set to rows of text


def load_texts(args: DataArguments) -> dict[str, datasets.Dataset]:
    """The splits "train", "validation" and, where one is given, "test", as of [`load_rows`]."""
    texts = {split: load_rows(args, split) for split in ("train", "validation", "test")}
    if texts["validation"] is None:
        texts["train"], texts["validation"] = hold_out(texts["train"], args.validation_fraction)
    return {split: rows for split, rows in texts.items() if rows is not None}


def load_rows(args: DataArguments, split: str) -> datasets.Dataset | None:
    """
    One split with two columns, "text" and whether a text "ends" with the row; None where the arguments ask for none.
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
        args.end_of_text = args.end_of_text or ("file" if rows.builder_name == "text" else "row")
        ends = np.full(len(rows), args.end_of_text == "row")
        ends[-1] |= args.end_of_text == "file"
        texts.append(rows.add_column("ends", ends))
    return joined(texts)


def hold_out(rows: datasets.Dataset, fraction: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off the last rows, or where all text is in one row its last characters."""
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


def lines(rows: datasets.Dataset, line_ending: str) -> Iterator[str]:
    """The text that a model sees, row by row."""
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        yield from with_line_endings(batch["text"].to_pylist(), line_ending)


# From text to tokens


def characters_of_first_token(
    tokens: TokenStream, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, line_ending: str
) -> int:
    """Of the text that the first token of the stream stands for: none if a text without tokens ends there."""
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


class TokenWindows(torch.utils.data.Dataset):
    """
    A stream of tokens as windows of `block_size` inputs, one every `stride` tokens. Every token but the very first
    is a label exactly once: what a window shares with the one before it is context, without loss. The last window ends
    with the stream.

    Args:
        tokens: (time,) the stream's token ids, of which slices are taken; at least two.
        num_characters: number of characters that the predicted tokens stand for; end-of-text tokens stand for none.
        block_size: inputs in a window. A window has one token more: the label of its last input.
        stride: inputs from a window's start to the next one's, 1 to `block_size`.
        shifts: whether the stream begins elsewhere every epoch, less than `stride` tokens on, with what lies before
            behind its end: all windows are cut at other places then.
    """

    def __init__(
        self,
        tokens: TokenStream | torch.Tensor,
        num_characters: int,
        block_size: int,
        stride: int,
        shifts: bool = False,
    ):
        self.tokens, self.num_characters, self.window_size = tokens, num_characters, block_size + 1
        self.last_start = max(0, len(tokens) - self.window_size)
        self.stride, self.shifts, self.offset = stride, shifts, 0

    def set_epoch(self, epoch: int):
        if self.shifts:
            self.offset = round(epoch * GOLDEN_RATIO * self.stride) % self.stride  # far from those before

    def __len__(self) -> int:
        return math.ceil(self.last_start / self.stride) + 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]  # from the end where it is negative, an IndexError where there is none
        start = min(index * self.stride, self.last_start)
        input_ids = self.read(start, min(start + self.window_size, len(self.tokens)))
        labels = input_ids.clone()
        context = 1 if index == 0 else (index - 1) * self.stride + self.window_size - start
        labels[:context] = -100
        return {"input_ids": input_ids, "labels": labels}

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Tokens of the stream as it begins in this epoch."""
        start, stop, end = start + self.offset, stop + self.offset, len(self.tokens)
        spans = [(min(start, end), min(stop, end)), (max(start - end, 0), max(stop - end, 0))]
        parts = [np.asarray(self.tokens[first:last], dtype=np.int64) for first, last in spans if first < last]
        return torch.from_numpy(np.concatenate(parts))


def make_windows(
    texts: dict[str, datasets.Dataset], tokenizer: PreTrainedTokenizerBase, vocab_size: int, args: DataArguments
) -> dict[str, TokenWindows]:
    """The windows of every split, for a model with `vocab_size` token ids."""
    if tokenizer.eos_token_id is None and args.end_of_text != "none":
        logger.warning(
            f"--tokenizer {args.tokenizer} has no end-of-text token (eos_token), so --end_of_text {args.end_of_text} "
            "does nothing: the model won't know where texts end."
        )
    windows = {}
    for split, rows in texts.items():
        tokenized = tokenize(rows, tokenizer, args.line_ending, args.preprocessing_num_workers)
        counts = tokenized.remove_columns("input_ids").with_format("numpy")[:]
        tokens = TokenStream(tokenized)
        if len(tokens) < 2:
            raise UsageError(f"{args.source(split)} holds {len(tokens)} tokens; at least 2 are accepted.")
        if (largest := counts["largest"].max()) >= vocab_size:
            raise UsageError(
                f"--tokenizer {args.tokenizer} gives token id {largest} for {args.source(split)}; the model's "
                f"vocab_size {vocab_size} accepts 0 to {vocab_size - 1}."
            )
        if unknown := counts["unknown"].sum():
            share = f"{unknown:,} of {len(tokens):,} tokens are unknown ({100 * unknown / len(tokens):.1f} %)"
            logger.warning(f"{args.source(split)}: {share}.")
        num_characters = int(counts["num_characters"].sum())
        num_characters -= characters_of_first_token(tokens, rows, tokenizer, args.line_ending)
        stride = args.stride if split == "train" else args.eval_stride
        shifts = args.shift_windows and split == "train"
        windows[split] = TokenWindows(tokens, num_characters, args.block_size, stride, shifts)
    return windows


# Metrics


def window_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    (windows, 2): a window's loss in nats, summed over its predicted tokens, and their number. Trainer keeps this of a
    batch (`preprocess_logits_for_metrics`) in place of its logits.
    """
    if isinstance(logits, tuple):  # some models return their state as well
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
    perplexity, bits_per_character = (
        evaluate.load(str(METRICS / name), keep_in_memory=True) for name in ("perplexity", "bits_per_character")
    )

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nats, num_tokens = prediction.predictions.astype(np.float64).T
        return {
            # Trainer's own loss is a mean over batches, which is not one over tokens. This one takes its place.
            "loss": nats.sum() / num_tokens.sum(),
            **perplexity.compute(predictions=nats, references=num_tokens.astype(np.int64)),
            **bits_per_character.compute(predictions=[nats.sum()], references=[windows.num_characters]),
            "predicted_tokens": int(num_tokens.sum()),
        }

    return compute_metrics
