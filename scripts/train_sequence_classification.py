# SPDX-License-Identifier: Apache-2.0
"""
Trains a classifier of texts, or of images read pixel by pixel, evaluates it, and saves it with tokenizer or image
processor, metrics, card and learning curves.

    python scripts/train_sequence_classification.py scripts/recipes/trec.yaml --train_file trec.csv --output_dir out
    python scripts/train_sequence_classification.py scripts/recipes/smnist.yaml --dataset_name mnist --output_dir out

A recipe holds flags, one per line (`hidden_size: 128`); flags on the command line override it. The same command again
resumes from the last checkpoint. On several devices: `accelerate launch scripts/train_sequence_classification.py ...`.
"""

import sys
from dataclasses import asdict, dataclass
from typing import Any

from rtransformer_hf.training.command_line import run_command

import datasets
from PIL import Image
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rtransformer_hf import RTransformerConfig, RTransformerForSequenceClassification, RTransformerImageProcessor
from rtransformer_hf.training.architectures import check_context, check_labels_of_text
from rtransformer_hf.training.arguments import Defaults, parse_arguments
from rtransformer_hf.training.classification_metrics import (
    METRIC_NAMES,
    ClassifierTrainer,
    check_best_metric,
    logits_alone,
    make_compute_metrics,
    make_weighted_loss,
)
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.image_augmentation import AugmentedImages
from rtransformer_hf.training.labels import fit_label2id, log_repeats, trained_label2id
from rtransformer_hf.training.model_arguments import (
    NEW_MODEL,
    PRETRAINED_ARCHITECTURES,
    ArchitectureArguments,
    ClassifierModelArguments,
    fit_vocabulary,
    label_head,
    make_model,
    unset_sizes,
    vocabulary_settings,
)
from rtransformer_hf.training.model_card import CardArguments
from rtransformer_hf.training.new_tokenizers import sha256_of_vocabulary
from rtransformer_hf.training.output_folder import ResumableTrainingArguments, check_metric, prepare_output_dir
from rtransformer_hf.training.report import TEXT, TaskReport
from rtransformer_hf.training.run import (
    EpochCallback,
    evaluation_command,
    start_training,
    train_and_evaluate,
)
from rtransformer_hf.training.sequence_classification import (
    ARCHITECTURE,
    ClassificationArguments,
    encode,
    hold_out,
    load_config,
    load_splits,
    log_unknown_words,
    make_collator,
    make_image_processor,
    make_label2id,
    make_tokenizer,
    problem_type_of,
    sample_batch,
    sha256_of,
)


@dataclass
class ClassifierArguments(ClassifierModelArguments, ArchitectureArguments):
    """The flags of a classifier."""


TRAINING = {"per_device_train_batch_size": 32, "num_train_epochs": 5, "metric_for_best_model": "accuracy"}
CARD_TASKS = {  # with "text" or "image"
    "single_label_classification": "{}-classification",
    "multi_label_classification": "multi-label-{}-classification",
    "regression": "{}-regression",
}
DEFAULTS = Defaults(
    new={**NEW_MODEL, **TRAINING, "hidden_dropout": 0.1, "learning_rate": 1e-3},
    fine_tuning={**TRAINING, "learning_rate": 3e-4},
    architecture={**TRAINING, "learning_rate": 1e-3},
    shown=unset_sizes(ClassifierArguments),
)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, card_args, training_args = parse_arguments(
        (ClassifierArguments, ClassificationArguments, CardArguments, ResumableTrainingArguments),
        argv,
        __doc__,
        DEFAULTS,
    )
    if data_args.augments and training_args.dataloader_persistent_workers:
        raise UsageError("--dataloader_persistent_workers does not go with --augment_...: workers keep old images.")
    if data_args.image_column is not None and model_args.model_type not in (None, RTransformerConfig.model_type):
        raise UsageError(
            f"--model_type {model_args.model_type} reads tokens, --image_column {data_args.image_column!r} are pixels "
            f"(expected --model_type {RTransformerConfig.model_type}, or none)"
        )
    if data_args.class_weights is not None and training_args.label_smoothing_factor > 0:
        raise UsageError("--label_smoothing_factor: not with --class_weights, whose loss has none")
    if data_args.regression and training_args.metric_for_best_model == "accuracy":  # the default of classes
        training_args.metric_for_best_model, training_args.greater_is_better = "loss", False
    start_training(training_args, sorted(set().union(*METRIC_NAMES.values())))

    with training_args.main_process_first(desc="data"):
        splits = load_splits(data_args)
        # Before rows are held out, so that no class is missed.
        problem_type = problem_type_of(splits["train"], data_args)
        check_metric(training_args, METRIC_NAMES[problem_type])
        label2id = labels_of(splits["train"], data_args, model_args.model_name_or_path)
        splits = hold_out(splits, data_args)
        make_processing_class = make_tokenizer if data_args.image_column is None else make_image_processor
        processing_class = make_processing_class(data_args, splits["train"], model_args.model_name_or_path)
        head = label_head(label2id, problem_type)
        model = make_classifier(model_args, data_args, processing_class, head)
        encoded = {split: encode(rows, processing_class, data_args, split, label2id) for split, rows in splits.items()}
    if training_args.eval_strategy != "no":
        best = training_args.metric_for_best_model
        check_best_metric(best, encoded["validation"], problem_type, data_args.source("validation"))
    if data_args.image_column is None:
        longest = max(len(ids) for rows in encoded.values() for ids in rows["input_ids"])
        check_context(model, longest, f"--max_length {data_args.max_length}")
        if not isinstance(model, RTransformerForSequenceClassification):
            check_labels_of_text(model, sample_batch(encoded, make_collator(processing_class)), model_args.source)
    if training_args.should_log and data_args.image_column is None:
        for split, rows in encoded.items():
            log_unknown_words(rows, processing_class, data_args.source(split))
        log_repeats({split: map(tuple, rows["input_ids"]) for split, rows in encoded.items()}, data_args.source)
    loss = None
    if data_args.class_weights is not None:
        loss = make_weighted_loss(encoded["train"], problem_type, label2id)
    identity = run_identity({**asdict(model_args), **head}, processing_class, encoded["train"])
    checkpoint = prepare_output_dir(training_args, identity)

    compute_metrics = make_compute_metrics(problem_type)
    train_dataset = encoded["train"]
    if data_args.augments:
        train_dataset = AugmentedImages(
            train_dataset, processing_class, **data_args.augmentation, seed=training_args.seed
        )
    kind, example = "text", TEXT
    if data_args.text_pair_column is not None:
        example = {"text": TEXT, "text_pair": TEXT}
    if data_args.image_column is not None:
        kind = "image"
        example = blank_image(processing_class, splits["train"][0][data_args.image_column])
    trainer = ClassifierTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=encoded["validation"],
        processing_class=processing_class,
        data_collator=make_collator(processing_class),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=logits_alone,
        compute_loss_func=loss,
        report=TaskReport(
            task=CARD_TASKS[problem_type].format(kind),
            command=["scripts/train_sequence_classification.py", *argv],
            card=card_args,
            data_name=data_args.data_name,
            dataset_id=data_args.dataset_id,
            base_model=model_args.model_name_or_path,
            example=example,
        ),
        callbacks=[EpochCallback(train_dataset)] if data_args.augments else [],
    )
    names = ("text_column", "text_pair_column", "image_column", "label_column", "label_separator", "regression")
    evaluation = {name: getattr(data_args, name) for name in (*names, "max_length")}
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in encoded.items())
    train_and_evaluate(
        trainer,
        encoded,
        lambda rows: compute_metrics,
        checkpoint,
        evaluation,
        data=f"{sizes} {kind}s with " + ("a number" if data_args.regression else f"{len(label2id):,} labels"),
        commands=[evaluation_command(training_args, data_args.evaluation_data)],
    )


def labels_of(rows: datasets.Dataset, args: ClassificationArguments, checkpoint: str | None) -> dict[str, int]:
    """
    The labels of the training rows with their indices: those of the checkpoint, if it is a classifier.

    Raises:
        UsageError: there are too few labels, the classifier doesn't know them or was trained for another kind of
            them, or there is no such checkpoint.
    """
    label2id = make_label2id(rows, args)
    if checkpoint is None:
        return label2id
    config = load_config(checkpoint, args)
    trained, problem_type = trained_label2id(config, ARCHITECTURE), problem_type_of(rows, args)
    if trained is not None and config.problem_type not in (None, problem_type):
        raise UsageError(
            f"--model_name_or_path: {checkpoint!r} was trained for {config.problem_type}, the data is for "
            f"{problem_type} (expected data of the same kind, or a model of another task)"
        )
    if args.regression and trained is not None and len(trained) == 1:
        return trained
    return label2id if trained is None else fit_label2id(label2id, trained, f"--label_column {args.label_column!r}")


def make_classifier(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    processing_class: PreTrainedTokenizerBase | RTransformerImageProcessor,
    head: dict[str, Any],
) -> PreTrainedModel:
    """
    A new classifier, or that of --model_name_or_path, or one with a new head on its layers.

    Args:
        head: the labels, as of `label_head`.

    Raises:
        UsageError: there is no such model, or it can't read what the tokenizer or image processor gives.
    """
    is_text = isinstance(processing_class, PreTrainedTokenizerBase)
    settings = vocabulary_settings(processing_class) if is_text else {"input_size": len(processing_class.image_mean)}
    model = make_model(
        model_args,
        RTransformerForSequenceClassification,
        AutoModelForSequenceClassification,
        architectures=(ARCHITECTURE, *PRETRAINED_ARCHITECTURES),
        head=head,
        **settings,
    )
    path = model_args.model_name_or_path
    if not is_text:
        if model.config.input_size != settings["input_size"]:
            raise UsageError(
                f"--image_mean {list(processing_class.image_mean)} is that of images of {settings['input_size']} "
                f"channels (expected as many values as the input_size {model.config.input_size} of "
                f"--model_name_or_path {path!r})"
            )
        return model

    fit_vocabulary(model, processing_class, data_args.tokenizer, path)
    return model


def blank_image(processor: RTransformerImageProcessor, image: Image.Image) -> list[str | int]:
    """Mode, width and height of an image that a processor accepts, as it does `image`."""
    size = {"height": image.height, "width": image.width} if processor.size is None else processor.size
    return ["L" if len(processor.image_mean) == 1 else "RGB", size["width"], size["height"]]


def run_identity(
    model_fields: dict[str, Any],
    processing_class: PreTrainedTokenizerBase | RTransformerImageProcessor,
    rows: datasets.Dataset,
) -> dict:
    """What a run can't change on its way: the model and its training rows. The rest may change."""
    identity = {**model_fields, "encoded training rows (sha256)": sha256_of(rows)}
    if isinstance(processing_class, PreTrainedTokenizerBase):
        identity["vocabulary (sha256)"] = sha256_of_vocabulary(processing_class)
    return identity


if __name__ == "__main__":
    run_command(main)
