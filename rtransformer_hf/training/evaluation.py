# SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint of any task from its folder."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioFrameClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedModel,
    TorchAoConfig,
    Trainer,
    default_data_collator,
)
from transformers.utils import cached_file, is_torchao_available

from .. import RTransformerFeatureExtractor, RTransformerImageProcessor
from . import causal_lm, classification_metrics, polyphonic_music, sequence_classification, token_classification
from .architectures import check_context
from .card_tasks import TASKS as CARD_TASKS
from .checkpoints import open_checkpoint
from .data_files import DataFileArguments, check_files
from .errors import UsageError
from .forecasting import (
    ForecastSetting,
    ForecastWindows,
    add_time_features,
    baseline_forecasts,
    has_time_features,
    known_parts,
    make_windows,
    normalised_series,
    plot_forecasts,
)
from .loading import open_model
from .model_arguments import trained_frames_per_beat
from .model_card import CONFUSION_FILE, FACTS_FILE, FORECASTS_FILE, CardFacts, read_facts, rewrite_card
from .new_tokenizers import load_tokenizer
from .output_folder import RENAMED
from .piano_rolls import PianoRollArguments, check_tunes, faults, read_split, usable_rolls
from .run import EVALUATION_FILE
from .series_labels import (
    DataCollatorForInputValues,
    LabeledSeries,
    hold_out,
    make_label_metrics,
)
from .series_trainers import ForecastingTrainer, LabelingTrainer, make_forecast_metrics
from .time_series import TASKS as SERIES_TASKS
from .time_series import Series, TimeSeriesArguments, load_series, match_channels


@dataclass
class Evaluation:
    """What Trainer needs to evaluate a model on a split; and `labels`, their names where a row has one of them."""

    model: PreTrainedModel
    dataset: Dataset
    data_collator: Callable
    compute_metrics: Callable
    preprocess_logits_for_metrics: Callable | None = None
    trainer_class: type[Trainer] = Trainer
    labels: list[str] | None = None


@dataclass
class EvaluatedData:
    """The data to evaluate on, in the form of a training script's arguments for its training data."""

    flag: str = "--data"  # the one that was given, for messages

    @property
    def location(self) -> str:
        config = f" (--dataset_config_name {self.dataset_config_name})" if self.dataset_config_name else ""
        return f"{self.flag} {self.dataset_name}{config}"

    def source(self, split: str, files: list[str] | None = None) -> str:
        if self.train_file:
            return f"{self.flag} {' '.join(files or self.train_file)}"
        return f"--split {self.train_split} of {self.location}"


@dataclass
class TextData(EvaluatedData, causal_lm.DataArguments):
    pass


@dataclass
class LabeledData(EvaluatedData, sequence_classification.ClassificationArguments):
    pass


@dataclass
class TaggedData(EvaluatedData, token_classification.TaggingArguments):
    pass


@dataclass
class SeriesData(EvaluatedData, TimeSeriesArguments):
    # Those of the training series, which older checkpoints do not state.
    step_columns: list[str] | None = None
    spacing: dict | None = None


QUANTIZATIONS = {
    "int8_weight_only": "Int8WeightOnlyConfig",
    "int8_dynamic": "Int8DynamicActivationInt8WeightConfig",
}  # in torchao.quantization


def load_model(args: argparse.Namespace, auto_class: type) -> PreTrainedModel:
    settings = {"dtype": torch.float32}
    if args.quantization is not None:
        if not is_torchao_available():
            raise UsageError(
                f"--quantization {args.quantization}: torchao is not installed (expected: pip install torchao)"
            )
        quantization = getattr(importlib.import_module("torchao.quantization"), QUANTIZATIONS[args.quantization])
        settings["quantization_config"] = TorchAoConfig(quantization())
    try:
        return open_model(auto_class, args.checkpoint, **settings)
    except ValueError as error:
        raise UsageError(f"checkpoint {args.checkpoint!r} can't be used: {error}") from error


def place(args: argparse.Namespace, settings: dict) -> dict:
    """
    The settings of evaluation.json, with the data's place as arguments of a training script.

    Raises:
        UsageError: a file is missing, or a split or configuration is given for files, which have neither.
    """
    files = args.test_file or ([args.data] if args.data is not None and Path(args.data).is_file() else None)
    flag = "--test_file" if args.test_file else "--data" if args.data is not None else "--dataset_name"
    if files is None:
        names = {"dataset_name": data_set(args), "dataset_config_name": args.dataset_config_name}
        return {**settings, **names, "train_split": name_split(args), "flag": flag}
    check_files(flag, files, "text or rows, as in the training")
    for name in ("split", "dataset_config_name"):
        if (value := getattr(args, name)) is not None:
            raise UsageError(f"--{name}: {value!r} goes with a data set, and {flag} {' '.join(files)} is read whole")
    print(f"Data: all of {' '.join(files)}.", file=sys.stderr)
    return {**settings, "train_file": files, "flag": flag}


def data_set(args: argparse.Namespace) -> str:
    return args.dataset_name if args.data is None else args.data


def name_split(args: argparse.Namespace) -> str:
    """
    The split to read, which is also printed: that of --split, else that of the training data, where rows are held out
    of it, else the one that --update_card names, else "test".
    """
    holds_out = getattr(args, "validation_fraction", None) is not None
    split = args.split or ("train" if holds_out else getattr(args, "update_card", None)) or "test"
    print(f"Data: split {split!r} of {data_set(args)}.", file=sys.stderr)
    return split


def override(settings: dict, args: argparse.Namespace, *accepted: str) -> dict:
    """
    The settings of evaluation.json, with the columns that flags name.

    Raises:
        UsageError: a flag names a column that this task does not read.
    """
    given = getattr(args, "columns", {})
    for name, value in given.items():
        if name not in accepted:
            flags = " or ".join(f"--{flag}" for flag in accepted)
            raise UsageError(f"--{name}: {value!r}, which {args.checkpoint} does not read (expected {flags})")
    return {**settings, **given}


def held_out(rows: Dataset, data_args: DataFileArguments, args: argparse.Namespace) -> Dataset:
    """The rows that a training with the same --validation_fraction holds out; all of them without it."""
    if getattr(args, "validation_fraction", None) is None:
        return rows
    data_args.validation_fraction = args.validation_fraction
    return sequence_classification.hold_out({"train": rows}, data_args)["validation"]


def language_model(args: argparse.Namespace, settings: dict) -> Evaluation:
    stride = settings.pop("eval_stride")
    length = getattr(args, "context_length", None)
    if length is not None:
        stride = max(1, round(stride * length / settings["context_length"]))
        settings["context_length"] = length
    settings = {"end_of_text": "none", **settings}  # older checkpoints, which do not state it, were trained without
    settings = place(args, override(settings, args, "text_column"))
    data_args = TextData(stride=stride, tokenizer=args.checkpoint, **settings)
    rows = causal_lm.load_rows(data_args, "train")
    model = load_model(args, AutoModelForCausalLM)
    if length is not None:
        check_context(model, length + 1, f"--context_length {length}, with the token to predict")
    tokenizer = load_tokenizer(args.checkpoint, [])
    windows = causal_lm.make_windows({"train": rows}, tokenizer, model.config.vocab_size, data_args)["train"]
    return Evaluation(
        model,
        windows,
        default_data_collator,
        causal_lm.make_compute_metrics(windows),
        causal_lm.window_losses,
    )


def classifier(args: argparse.Namespace, settings: dict) -> Evaluation:
    input_column = "text_column" if settings.get("image_column") is None else "image_column"
    inputs = [input_column, *(["text_pair_column"] if settings.get("text_pair_column") else [])]
    data_args = LabeledData(**place(args, override(settings, args, *inputs, "label_column")))
    rows = held_out(sequence_classification.load_rows(data_args, "train"), data_args, args)
    model = load_model(args, AutoModelForSequenceClassification)
    if data_args.image_column is None:
        processing_class = AutoTokenizer.from_pretrained(args.checkpoint)
    else:
        processing_class = RTransformerImageProcessor.from_pretrained(args.checkpoint)
    encoded = sequence_classification.encode(rows, processing_class, data_args, "train", model.config.label2id)
    if data_args.image_column is None:
        sequence_classification.log_unknown_words(encoded, processing_class, data_args.source("train"))
    problem_type = sequence_classification.problem_type_of(rows, data_args)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    return Evaluation(
        model,
        encoded,
        sequence_classification.make_collator(processing_class),
        classification_metrics.make_compute_metrics(problem_type),
        classification_metrics.logits_alone,
        labels=names if problem_type == "single_label_classification" else None,
    )


def tagger(args: argparse.Namespace, settings: dict) -> Evaluation:
    data_args = TaggedData(**place(args, override(settings, args, "tokens_column", "tags_column")))
    rows = held_out(token_classification.load_rows(data_args, "train"), data_args, args)
    model = load_model(args, AutoModelForTokenClassification)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    encoded = token_classification.encode(rows, tokenizer, data_args, "train", model.config.label2id)
    sequence_classification.log_unknown_words(encoded, tokenizer, data_args.source("train"))
    return Evaluation(
        model,
        encoded,
        DataCollatorForTokenClassification(tokenizer),
        token_classification.make_compute_metrics(model.config.label2id),
        token_classification.tag_statistics,
    )


def forecaster(args: argparse.Namespace, settings: dict) -> Evaluation:
    """
    Forecasts the last steps of each series, as many as the training has tested on; the ones before, those that it has
    validated on, where --update_card asks for these or there are no others.
    """
    data_args = SeriesData(**place(args, override(settings, args)))
    series = known_parts(data_args, load_series(data_args))
    setting = ForecastSetting.of(data_args, series)
    if has_time_features(data_args, series, setting):
        add_time_features(series, setting)
    model = load_model(args, AutoModelForTimeSeriesPrediction)
    extractor = extractor_of(args, data_args, series)
    if setting.num_targets != model.config.num_target_channels:
        raise UsageError(
            f"{data_args.source('train')}: {setting.num_targets} channels to forecast (expected "
            f"{model.config.num_target_channels}, as {args.checkpoint} has)"
        )
    windows = make_windows(data_args, normalised_series(series, extractor), setting)
    split = getattr(args, "update_card", None) or ("test" if "test" in windows else "validation")
    if split not in windows:
        raise UsageError(
            f"--update_card {split}: {args.checkpoint} was trained without test steps, --test_length 0 (expected "
            "validation)"
        )
    windows = windows[split]
    return Evaluation(
        model,
        windows,
        default_data_collator,
        make_forecast_metrics(windows),
        trainer_class=ForecastingTrainer,
    )


def series_labeler(args: argparse.Namespace, settings: dict) -> Evaluation:
    data_args = SeriesData(**place(args, override(settings, args, "label_column")))
    series = load_series(data_args)
    if getattr(args, "validation_fraction", None) is not None:
        data_args.validation_fraction = args.validation_fraction
        series = hold_out(data_args, {"train": series})["validation"]
    is_whole = data_args.task == "classify"
    model = load_model(args, AutoModelForSequenceClassification if is_whole else AutoModelForTokenClassification)
    extractor = extractor_of(args, data_args, series)
    label2id = None if data_args.regression else model.config.label2id
    labeled = LabeledSeries(series, extractor, label2id, data_args.label_column)
    return Evaluation(
        model,
        labeled,
        DataCollatorForInputValues(extractor),
        make_label_metrics(labeled, None if label2id is None else len(label2id)),
        trainer_class=LabelingTrainer,
    )


def extractor_of(
    args: argparse.Namespace, data_args: SeriesData, series: list[Series]
) -> RTransformerFeatureExtractor:
    """The feature extractor of the checkpoint; the channels of the series are put in its order."""
    extractor = AutoFeatureExtractor.from_pretrained(args.checkpoint)
    match_channels(data_args, series, extractor.channel_names, args.checkpoint)
    return extractor


def music_model(args: argparse.Namespace, settings: dict) -> Evaluation:
    settings = override(settings, args, "piano_roll_column")
    settings["frames_per_beat"] = trained_frames_per_beat(args.checkpoint)
    if args.test_file:
        raise UsageError(f"--test_file: {' '.join(args.test_file)!r} is for rows (expected music as --data)")
    data_args = PianoRollArguments(
        data=data_set(args),
        dataset_config_name=args.dataset_config_name,
        skip_unreadable=args.skip_unreadable,
        **settings,
    )
    split = name_split(args)
    read = read_split(data_args, split)
    check_tunes(data_args, read)
    if skipped := [tune for tune in read if tune.roll is None]:
        print(f"--skip_unreadable: {len(skipped)} of {len(read)} tunes are left out:", file=sys.stderr)
        print(faults(skipped), file=sys.stderr)
    tunes = polyphonic_music.Tunes(usable_rolls(data_args, split, read))
    return Evaluation(
        load_model(args, AutoModelForAudioFrameClassification),
        tunes,
        polyphonic_music.pad_tunes,
        polyphonic_music.make_compute_metrics(tunes),
        polyphonic_music.tune_losses,
    )


TASKS = {
    "ForCausalLM": language_model,
    "LMHeadModel": language_model,
    "ForPolyphonicMusic": music_model,
    "ForSequenceClassification": classifier,
    "ForTimeSeriesPrediction": forecaster,
    "ForTokenClassification": tagger,
}


def num_bytes(tensor: torch.Tensor) -> int:
    """The size of a tensor; of a quantised one, that of the tensors that it consists of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(num_bytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def load_evaluation(args: argparse.Namespace) -> Evaluation:
    """
    Opens a checkpoint and the data for it.

    Args:
        args: `checkpoint`, `quantization` and `skip_unreadable` as of the command, what `add_data_arguments` adds, and
            where they are given `columns` and `context_length`.

    Raises:
        UsageError, OSError, ValueError: there is no such checkpoint or data, or they don't go together.
    """
    architecture, settings = load_settings(args.checkpoint, *TASKS)
    load = next(load for ending, load in TASKS.items() if architecture.endswith(ending))
    if settings.get("task") in SERIES_TASKS:
        load = forecaster if settings["task"] == "forecast" else series_labeler
    if getattr(args, "context_length", None) is not None and load is not language_model:
        given = f"--context_length {args.context_length}"
        raise UsageError(f"{given}: {args.checkpoint} holds {architecture} (expected a language model)")
    if getattr(args, "validation_fraction", None) is not None and load not in (classifier, tagger, series_labeler):
        raise UsageError(
            f"--validation_fraction {args.validation_fraction}: {args.checkpoint} holds {architecture} (expected a "
            "classifier of texts, images or series, or a tagger)"
        )
    if args.skip_unreadable and load is not music_model:
        raise UsageError(f"--skip_unreadable: {args.checkpoint} holds {architecture} (expected a music model)")
    return load(args, settings)


def load_settings(checkpoint: str, *accepted: str) -> tuple[str, dict]:
    """
    The name of a checkpoint's model class, and its evaluation.json.

    Args:
        checkpoint: a folder or an id on the Hub.
        accepted: as of `check_architecture`.

    Raises:
        UsageError: there is no such checkpoint, or it is of another task.
    """
    with open_checkpoint(checkpoint, f"a trained model with {EVALUATION_FILE}", *accepted) as architecture:
        settings = json.loads(Path(cached_file(checkpoint, EVALUATION_FILE)).read_text(encoding="utf-8"))
    return architecture, {RENAMED.get(name, name): value for name, value in settings.items()}


# From figures to the card


def card_to_update(folder: str) -> CardFacts:
    """
    The facts of a checkpoint's card.

    Raises:
        UsageError: there is no such folder, or no card with its facts in it.
    """
    facts = read_facts(folder) if Path(folder).is_dir() else None
    if facts is None or not Path(folder, "README.md").exists():
        raise UsageError(f"--update_card: {folder!r} has no card (expected a folder with README.md and {FACTS_FILE})")
    return facts


def write_to_card(
    folder: Path, split: str, metrics: dict[str, float], prediction: EvalPrediction, evaluation: Evaluation
) -> list[str]:
    """
    Puts figures into a checkpoint's card, in place of those of the same split, with the baselines of the same rows;
    and the picture of the confusion matrix or of forecasts, of the test data if the card has figures of it. Returns
    what the owner should know of, in sentences.

    Args:
        folder: as of [`card_to_update`].
        split: "validation" or "test".
        metrics: of the evaluation.
        prediction: that they come from.
        evaluation: whose model and data they are of.

    Raises:
        UsageError: none of the metrics is one of the card's task.
    """
    facts = card_to_update(str(folder))
    names = CARD_TASKS[facts.task].metrics
    new = [(split, name, metrics[name]) for name in names if name in metrics]
    if not new:
        raise UsageError(
            f"--update_card: {str(folder)!r} is of the task {facts.task}, with {', '.join(names)} (expected one of "
            f"them among {', '.join(metrics)})"
        )
    results = in_place_of(facts.results, split, new)
    baselines, notes = baselines_of(facts, split, evaluation.dataset)
    changed = {"results": results, **baselines}
    if split == "test" or not any(found == "test" for found, _, _ in facts.results):
        if evaluation.labels is not None:
            counts = classification_metrics.count_confusion(prediction)
            changed["has_confusion_matrix"] = classification_metrics.plot_confusion(
                folder / CONFUSION_FILE, split, counts, evaluation.labels
            )
        elif isinstance(evaluation.dataset, ForecastWindows):
            quantiles, _ = prediction.predictions
            changed["has_forecasts"] = plot_forecasts(folder / FORECASTS_FILE, evaluation.dataset, quantiles)
    return [*rewrite_card(folder, old_checkpoint=facts.checkpoint, **changed), *notes]


def in_place_of(rows: list[tuple], split: str, new: list[tuple]) -> list[tuple]:
    """Rows that begin with the name of their split, with new ones of one split; those of validation come first."""
    others = [row for row in rows if row[0] != split]
    return [*new, *others] if split == "validation" else [*others, *new]


def baselines_of(facts: CardFacts, split: str, rows: Dataset) -> tuple[dict, list[str]]:
    """
    The facts on baselines of a card whose figures of a split are now those of `rows`, and notes for its owner.
    Baselines of forecasts need these rows alone. Those of labels need the training data, which the checkpoint does not
    keep, so they stay only where the rows are known to be the same.
    """
    old = [row for row in facts.baselines if row[0] == split]
    if isinstance(rows, ForecastWindows):
        found = baseline_forecasts(rows)
        new = [(split, name, metric, value) for name, metrics in found.items() for metric, value in metrics.items()]
    elif not old or facts.baseline_rows.get(split) == rows.sha256():
        return {}, []
    else:
        new = []
    digests = {name: digest for name, digest in facts.baseline_rows.items() if name != split}
    names = " and ".join(dict.fromkeys(name for _, name, *_ in old))
    left_out = f"README.md: {names} of the {split} data left out: not known to be of these rows."
    changed = {"baselines": in_place_of(facts.baselines, split, new), "baseline_rows": digests}
    return changed, [] if new else [left_out]
