# SPDX-License-Identifier: Apache-2.0
"""
Makes of a training's output folder what is worth sharing: card, curves, configuration, tokenizer or image processor,
and the weights, in half precision if wanted. Checkpoints, optimizer and logs stay behind.

    python scripts/make_hub_folder.py outputs/nottingham model_cards/nottingham --dtype float16

`scripts/evaluate_checkpoint.py` on the new folder tells whether its metric has held.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from rtransformer_hf.training.command_line import CommandParser, UsageError, run_command

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from rtransformer_hf.training.model_card import FACTS_FILE, add_card_arguments, check_license, rewrite_card
from rtransformer_hf.training.output_folder import RUN_FILE
from rtransformer_hf.training.run import EVALUATION_FILE

# What from_pretrained reads beside the model, the card, and what it shows. The model's code comes with the push.
SHARED_FILES = (
    EVALUATION_FILE,
    FACTS_FILE,
    "README.md",
    "*.png",
    GENERATION_CONFIG_NAME,
    "tokenizer*.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    source, target = Path(args.output_dir), Path(args.hub_folder)
    if not all((source / name).exists() for name in (RUN_FILE, EVALUATION_FILE, SAFE_WEIGHTS_NAME, "README.md")):
        sys.exit(
            f"make_hub_folder.py: error: output_dir {args.output_dir!r} holds no finished run; the --output_dir of a "
            "training script is accepted."
        )
    if target.exists() and any(target.iterdir()):
        sys.exit(
            f"make_hub_folder.py: error: hub_folder {args.hub_folder!r} is not empty; a new or empty one is accepted."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder, "unfinished")
        unfinished.mkdir()
        for file in sorted({path for pattern in SHARED_FILES for path in source.glob(pattern)}):
            shutil.copy(file, unfinished / file.name)
        copy_weights(source, unfinished, args.dtype)
        facts = {"checkpoint": args.hub_folder, "has_code": False, "revision": None, **card_facts(args)}
        try:
            notes = rewrite_card(unfinished, old_checkpoint=args.output_dir, **facts)
        except ValueError as error:
            sys.exit(f"make_hub_folder.py: error: output_dir {args.output_dir!r} can't be used: {error}")
        unfinished.replace(target)
    megabytes = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    print(f"{args.hub_folder}: {megabytes:.1f} MB")
    for note in notes:
        print(note)
    print(
        "Nothing was uploaded, and the model was not run. Its metric: scripts/evaluate_checkpoint.py; to the Hub: "
        "scripts/push_to_hub.py."
    )


def card_facts(args: argparse.Namespace) -> dict:
    """The facts of the card that the flags give."""
    facts = {}
    if args.license is not None:
        facts |= {name: getattr(args, name) for name in ("license", "license_name", "license_link")}
    for name, value in (("data_name", args.dataset_name), ("dataset_id", args.dataset_id), ("example", args.example)):
        if value is not None:
            facts[name] = value
    return facts


def copy_weights(source: Path, target: Path, dtype: str | None):
    """
    Weights and configuration, the latter without its pointers to the code that it had beside it. Its `dtype` remains,
    in which the weights are loaded and computed with, however they are kept.
    """
    weights = load_file(source / SAFE_WEIGHTS_NAME)
    config = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    if dtype is not None:
        weights = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    save_file(weights, target / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("output_dir", help="The --output_dir of a finished training.")
    parser.add_argument("hub_folder", help="The folder to make.")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="Type of the weights kept. (default: as they are)"
    )
    parser.add_argument(
        "--dataset_name", help="What the card calls the data. (default: as the training did, by its id or files)"
    )
    parser.add_argument("--dataset_id", help="The data's id on the Hub, where the training read local files.")
    parser.add_argument(
        "--example", help="A text that the code of the card gives to the model. (default: as the training did)"
    )
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    try:
        check_license(args.license, args.license_name, args.license_link)
    except UsageError as error:
        parser.error(str(error))
    if args.dataset_id is not None and args.dataset_name is None:
        parser.error("--dataset_id is accepted along with --dataset_name.")
    return args


if __name__ == "__main__":
    run_command(main)
