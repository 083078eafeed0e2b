# SPDX-License-Identifier: Apache-2.0
"""
Computes the metrics of a checkpoint from one of the training scripts, and prints them as JSON.

    python scripts/evaluate_checkpoint.py model_cards/ptb_word --data ptb.test.txt
    python scripts/evaluate_checkpoint.py model_cards/nottingham --data Nottingham.mat --split test
    python scripts/evaluate_checkpoint.py model_cards/nottingham --data Nottingham.mat --quantization int8_dynamic
    python scripts/evaluate_checkpoint.py model_cards/ptb_word --data ptb.test.txt --context_length 1024

The checkpoint's folder states the task and how to read the data: config.json, evaluation.json, and the tokenizer,
image processor or feature extractor. Weights in half precision are converted to float32. `model_bytes` is the size of
the weights in memory.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, add_data_arguments, positive_integer

COLUMNS = {
    "text_column": "the text",
    "text_pair_column": "the second text",
    "image_column": "the images",
    "label_column": "the labels",
    "tokens_column": "the words",
    "tags_column": "the tags",
    "piano_roll_column": "the tunes",
}
QUANTIZATIONS = ("int8_weight_only", "int8_dynamic")


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    from transformers import EvalPrediction, TrainingArguments

    from rtransformer_hf.training.evaluation import load_evaluation, num_bytes
    from rtransformer_hf.training.files import atomic_write

    logging.basicConfig(format="%(message)s")
    for name in ("sequence_classification", "token_classification"):
        logging.getLogger(f"rtransformer_hf.training.{name}").setLevel(logging.INFO)
    try:
        evaluation = load_evaluation(args)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    evaluation.model.is_quantized = False  # otherwise Trainer refuses it, since it can't be trained
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"report_to": "none", "dataloader_pin_memory": False}
        trainer = evaluation.trainer_class(
            model=evaluation.model,
            args=TrainingArguments(folder, per_device_eval_batch_size=args.batch_size, **quiet),
            data_collator=evaluation.data_collator,
            preprocess_logits_for_metrics=evaluation.preprocess_logits_for_metrics,
        )
        output = trainer.predict(evaluation.dataset)
    metrics = evaluation.compute_metrics(EvalPrediction(output.predictions, output.label_ids))
    metrics["model_bytes"] = sum(map(num_bytes, evaluation.model.parameters()))
    if args.context_length is not None:
        metrics["context_length"] = args.context_length
    text = json.dumps(metrics, indent=2)
    if args.output is not None:
        atomic_write(Path(args.output), f"{text}\n".encode())
    print(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", help="Folder or Hub id of a model of one of the training scripts.")
    add_data_arguments(parser)
    for name, what in COLUMNS.items():
        parser.add_argument(f"--{name}", help=f"Column with {what}. (default: as in the training)")
    parser.add_argument(
        "--skip_unreadable",
        action="store_true",
        help="Leave out tunes that can't be used, and list them with the reason. For music only.",
    )
    parser.add_argument(
        "--context_length",
        type=positive_integer,
        help="Inputs of a language model in a window, whose stride stays the same share of it. (default: as in the "
        "training)",
    )
    parser.add_argument("--output", help="Also write the metrics to this file, a .json file.")
    parser.add_argument("--batch_size", type=positive_integer, default=16, help="Examples at a time. (default: 16)")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="Compute linear layers in 8-bit integers with torchao: the weights only, or the inputs, too.",
    )
    args = parser.parse_args(argv)
    if args.output is not None and Path(args.output).suffix != ".json":
        parser.error(f"--output: {args.output!r} (expected a name that ends with .json)")
    args.columns = {name: column for name in COLUMNS if (column := getattr(args, name)) is not None}
    return args


if __name__ == "__main__":
    run_command(main)
