# SPDX-License-Identifier: Apache-2.0
"""
Trains a causal language model on text, evaluates it, and saves it with tokenizer, metrics, card and learning curves.

    python scripts/train_causal_lm.py [RECIPE.yaml] --train_file book.txt --output_dir outputs/book

A recipe holds flags, one per line (`hidden_size: 256`); flags on the command line override it. The same command again
resumes from the last checkpoint. On several devices: `accelerate launch scripts/train_causal_lm.py ...`.
"""

import sys

from rtransformer_hf.training.command_line import run_command

from transformers import default_data_collator

from rtransformer_hf.training.arguments import parse_arguments
from rtransformer_hf.training.causal_lm import (
    DEFAULTS,
    METRIC_NAMES,
    DataArguments,
    describe,
    evaluation_settings,
    make_compute_metrics,
    model_and_windows,
    run_identity,
    smoothed_loss,
    window_losses,
)
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import ArchitectureArguments
from rtransformer_hf.training.model_card import CardArguments
from rtransformer_hf.training.output_folder import ResumableTrainingArguments, prepare_output_dir
from rtransformer_hf.training.report import TaskReport, prompt_for
from rtransformer_hf.training.run import (
    EpochCallback,
    ReportingTrainer,
    command,
    evaluation_command,
    start_training,
    train_and_evaluate,
)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, card_args, training_args = parse_arguments(
        (ArchitectureArguments, DataArguments, CardArguments, ResumableTrainingArguments), argv, __doc__, DEFAULTS
    )
    if data_args.shift_windows and training_args.dataloader_persistent_workers:
        raise UsageError("--dataloader_persistent_workers does not go with --shift_windows: workers keep old windows.")
    if data_args.streaming and training_args.max_steps < 1:
        raise UsageError("--max_steps: missing (--streaming: a stream does not say how long an epoch is)")
    if data_args.streaming and training_args.dataloader_num_workers > 0:
        raise UsageError(
            f"--dataloader_num_workers: {training_args.dataloader_num_workers} (expected 0 with --streaming: each "
            "would read the whole stream)"
        )
    start_training(training_args, METRIC_NAMES)

    data_seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    with training_args.main_process_first(desc="data"):
        model, tokenizer, windows = model_and_windows(model_args, data_args, data_seed)
    checkpoint = prepare_output_dir(training_args, run_identity(model_args, data_args, tokenizer, windows["train"]))

    trainer = ReportingTrainer(
        model=model,
        args=training_args,
        train_dataset=windows["train"],
        eval_dataset=windows["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_loss_func=smoothed_loss(training_args.label_smoothing_factor),
        compute_metrics=make_compute_metrics(windows["validation"]),
        preprocess_logits_for_metrics=window_losses,
        report=TaskReport(
            task="language-modeling",
            command=["scripts/train_causal_lm.py", *argv],
            card=card_args,
            data_name=data_args.data_name,
            dataset_id=data_args.dataset_id,
            base_model=model_args.model_name_or_path,
            example=prompt_for(tokenizer),
        ),
        callbacks=[] if data_args.streaming else [EpochCallback(windows["train"])],  # a stream counts them itself
    )
    commands = [
        command("generate.py", training_args.output_dir, prompt_for(tokenizer)),
        evaluation_command(training_args, data_args.evaluation_data),
    ]
    train_and_evaluate(
        trainer,
        windows,
        make_compute_metrics,
        checkpoint,
        evaluation_settings(data_args),
        data=describe(windows),
        commands=commands,
    )


if __name__ == "__main__":
    run_command(main)
