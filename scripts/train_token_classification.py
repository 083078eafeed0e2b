# SPDX-License-Identifier: Apache-2.0
"""
Trains a tagger of words: parts of speech, or named entities and other spans. Evaluates it, and saves it with
tokenizer, metrics, card and learning curves.

    python scripts/train_token_classification.py --train_file train.conll --test_file test.conll --output_dir out
    python scripts/train_token_classification.py --train_file train.json --tags_column ner_tags --output_dir out

A recipe holds flags, one per line (`hidden_size: 128`); flags on the command line override it. The same command again
resumes from the last checkpoint. On several devices: `accelerate launch scripts/train_token_classification.py ...`.
"""

import sys
from dataclasses import asdict, dataclass

from rtransformer_hf.training.command_line import run_command

from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from rtransformer_hf import RTransformerForTokenClassification
from rtransformer_hf.training.architectures import check_context, check_labels_of_text
from rtransformer_hf.training.arguments import Defaults, parse_arguments
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.labels import fit_label2id, log_repeats, trained_label2id
from rtransformer_hf.training.model_arguments import (
    NEW_MODEL,
    PRETRAINED_ARCHITECTURES,
    ArchitectureArguments,
    ClassifierModelArguments,
    fit_vocabulary,
    label_head,
    make_model,
    open_config,
    unset_sizes,
    vocabulary_settings,
)
from rtransformer_hf.training.model_card import CardArguments
from rtransformer_hf.training.new_tokenizers import sha256_of_vocabulary
from rtransformer_hf.training.output_folder import ResumableTrainingArguments, check_metric, prepare_output_dir
from rtransformer_hf.training.report import TEXT, TaskReport
from rtransformer_hf.training.run import ReportingTrainer, evaluation_command, start_training, train_and_evaluate
from rtransformer_hf.training.sequence_classification import (
    hold_out,
    log_unknown_words,
    sample_batch,
    sha256_of,
)
from rtransformer_hf.training.token_classification import (
    ARCHITECTURE,
    METRIC_NAMES,
    TaggingArguments,
    encode,
    load_splits,
    log_tags_beside_spans,
    make_compute_metrics,
    make_label2id,
    make_tokenizer,
    metric_names,
    tag_statistics,
)


@dataclass
class TaggerArguments(ClassifierModelArguments, ArchitectureArguments):
    """The flags of a tagger."""


TRAINING = {"per_device_train_batch_size": 32, "num_train_epochs": 10, "metric_for_best_model": "accuracy"}
DEFAULTS = Defaults(
    new={**NEW_MODEL, **TRAINING, "hidden_dropout": 0.1, "learning_rate": 1e-3},
    fine_tuning={**TRAINING, "learning_rate": 3e-4},
    architecture={**TRAINING, "learning_rate": 1e-3},
    shown=unset_sizes(TaggerArguments),
)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, card_args, training_args = parse_arguments(
        (TaggerArguments, TaggingArguments, CardArguments, ResumableTrainingArguments), argv, __doc__, DEFAULTS
    )
    start_training(training_args, METRIC_NAMES)

    with training_args.main_process_first(desc="data"):
        splits = load_splits(data_args)
        label2id = label2id_of(model_args, data_args, splits)
        if training_args.should_log:
            log_tags_beside_spans(splits["train"], label2id, data_args)
        check_metric(training_args, metric_names(label2id))
        splits = hold_out(splits, data_args)
        tokenizer = make_tokenizer(data_args, splits["train"], model_args.model_name_or_path)
        model = make_model(
            model_args,
            RTransformerForTokenClassification,
            AutoModelForTokenClassification,
            architectures=(ARCHITECTURE, *PRETRAINED_ARCHITECTURES),
            head=label_head(label2id),
            **vocabulary_settings(tokenizer),
        )
        fit_vocabulary(model, tokenizer, data_args.tokenizer, model_args.model_name_or_path)
        encoded = {split: encode(rows, tokenizer, data_args, split, label2id) for split, rows in splits.items()}
    longest = max(len(ids) for rows in encoded.values() for ids in rows["input_ids"])
    check_context(model, longest, f"--max_length {data_args.max_length}")
    collate = DataCollatorForTokenClassification(tokenizer)
    if not isinstance(model, RTransformerForTokenClassification):
        check_labels_of_text(model, sample_batch(encoded, collate), model_args.source)
    if training_args.should_log:
        for split, rows in encoded.items():
            log_unknown_words(rows, tokenizer, data_args.source(split))
        log_repeats({split: map(tuple, rows["input_ids"]) for split, rows in encoded.items()}, data_args.source)
    identity = {
        **asdict(model_args),
        **label_head(label2id),
        "vocabulary (sha256)": sha256_of_vocabulary(tokenizer),
        "encoded training rows (sha256)": sha256_of(encoded["train"]),
    }
    checkpoint = prepare_output_dir(training_args, identity)

    compute_metrics = make_compute_metrics(label2id)
    trainer = ReportingTrainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=tag_statistics,
        report=TaskReport(
            task="token-classification",
            command=["scripts/train_token_classification.py", *argv],
            card=card_args,
            data_name=data_args.data_name,
            dataset_id=data_args.dataset_id,
            base_model=model_args.model_name_or_path,
            example=TEXT,
        ),
    )
    columns = ("tokens_column", "tags_column", "conll_columns", "word_separator", "max_length")
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in encoded.items())
    train_and_evaluate(
        trainer,
        encoded,
        lambda rows: compute_metrics,
        checkpoint,
        {name: getattr(data_args, name) for name in columns},
        data=f"{sizes} sentences with {len(label2id):,} tags",
        commands=[evaluation_command(training_args, data_args.evaluation_data)],
    )


def label2id_of(model_args: TaggerArguments, data_args: TaggingArguments, splits: dict) -> dict[str, int]:
    """
    The tags of the training rows, in the order of the tagger to train further, if it is one.

    Raises:
        UsageError: there is a single tag, they are not those of the tagger, or there is no such model.
    """
    label2id, path = make_label2id(splits["train"], data_args), model_args.model_name_or_path
    if path is None:
        return label2id
    config = open_config(path)
    if getattr(config, "input_size", None) is not None:
        raise UsageError(
            f"--model_name_or_path: {path!r} reads vectors of {config.input_size} values (expected a model of tokens)"
        )
    trained = trained_label2id(config, ARCHITECTURE)
    return label2id if trained is None else fit_label2id(label2id, trained, data_args.source("train"))


if __name__ == "__main__":
    run_command(main)
