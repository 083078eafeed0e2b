# SPDX-License-Identifier: Apache-2.0
"""
Computes the metrics of a checkpoint from one of the training scripts, and prints them as JSON.

    python scripts/evaluate_checkpoint.py model_cards/ptb_word --data ptb.test.txt
    python scripts/evaluate_checkpoint.py model_cards/nottingham --data Nottingham.mat --split test
    python scripts/evaluate_checkpoint.py model_cards/nottingham --data Nottingham.mat --quantization int8_dynamic
    python scripts/evaluate_checkpoint.py model_cards/ptb_word --data ptb.test.txt --context_length 1024
    python scripts/evaluate_checkpoint.py model_cards/trec_seed3 --data train.csv --validation_fraction 0.1
    python scripts/evaluate_checkpoint.py outputs/trec --data test.csv --update_card test

The checkpoint's folder states the task and how to read the data: config.json, evaluation.json, and the tokenizer,
image processor or feature extractor. Weights in half precision are converted to float32. `model_bytes` is the size of
the weights in memory. `--update_card` brings the card of an older checkpoint up to date, without training.
"""

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, add_data_arguments, fraction, output_file, positive_integer

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

    from rtransformer_hf.training.evaluation import card_to_update, load_evaluation, num_bytes, write_to_card
    from rtransformer_hf.training.files import atomic_write

    logging.basicConfig(format="%(message)s")
    for name in ("sequence_classification", "token_classification"):
        logging.getLogger(f"rtransformer_hf.training.{name}").setLevel(logging.INFO)
    if args.update_card is not None:
        card_to_update(args.checkpoint)  # before any work
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
    prediction = EvalPrediction(output.predictions, output.label_ids)
    metrics = evaluation.compute_metrics(prediction)
    metrics["model_bytes"] = sum(map(num_bytes, evaluation.model.parameters()))
    if args.context_length is not None:
        metrics["context_length"] = args.context_length
    text = json.dumps(metrics, indent=2)
    if args.output is not None:
        atomic_write(args.output, f"{text}\n".encode())
    print(text)
    if args.update_card is not None:
        notes = write_to_card(Path(args.checkpoint), args.update_card, metrics, prediction, evaluation)
        print(
            f"{args.checkpoint}/README.md: the figures of the {args.update_card} data.",
            *notes,
            sep="\n",
            file=sys.stderr,
        )


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
    parser.add_argument(
        "--validation_fraction",
        type=fraction,
        help="Evaluate on the rows that a training with this flag holds out of this data (of a data set: of its split "
        "train, if there is no --split) for validation. For classifiers of texts and images, and taggers. (default: "
        "all rows)",
    )
    parser.add_argument(
        "--update_card",
        choices=("validation", "test"),
        help="Write the metrics into the card in the checkpoint's folder, as those of this data (of forecasts: of its "
        "validation or its test steps); the picture of the confusion matrix or of forecasts, too. Simple answers to "
        "compare with are computed anew or, where that takes the training data and these rows are not the training's, "
        "left out. Of a data set or of music, the split of this name is read if there is no --split. (default: the "
        "card stays as it is)",
    )
    parser.add_argument(
        "--output", type=output_file(".json"), help="Also write the metrics to this file, a .json file."
    )
    parser.add_argument("--batch_size", type=positive_integer, default=16, help="Examples at a time. (default: 16)")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="Compute linear layers in 8-bit integers with torchao: the weights only, or the inputs, too.",
    )
    args = parser.parse_args(argv)
    for name in ("quantization", "context_length"):
        if args.update_card is not None and (value := getattr(args, name)) is not None:
            parser.error(f"--{name}: {value!r} goes without --update_card (a card's figures are those of the folder)")
    args.columns = {name: column for name in COLUMNS if (column := getattr(args, name)) is not None}
    return args


if __name__ == "__main__":
    run_command(main)
