# SPDX-License-Identifier: Apache-2.0
"""
Copies what is worth sharing from a training's output folder: card, curves, configuration, tokenizer or image
processor, and the weights, in half precision if wanted. Checkpoints, optimizer and logs stay behind.

    python scripts/make_hub_folder.py outputs/nottingham model_cards/nottingham --dtype float16

`scripts/evaluate_checkpoint.py` on the new folder shows whether the metric still holds.
"""

import argparse
import json
import shutil
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_folder
from rtransformer_hf.training.flags import CommandParser
from rtransformer_hf.training.model_card import add_card_arguments, check_license, rewrite_card


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    from transformers.utils import SAFE_WEIGHTS_NAME

    from rtransformer_hf.training.hub import SHARED_FILES
    from rtransformer_hf.training.model_arguments import EVALUATION_FILE
    from rtransformer_hf.training.output_folder import RUN_FILE

    source, target = Path(args.output_dir), Path(args.hub_folder)
    if not all((source / name).exists() for name in (RUN_FILE, EVALUATION_FILE, SAFE_WEIGHTS_NAME, "README.md")):
        raise UsageError(
            f"output_dir: no finished run in {args.output_dir!r} (expected the --output_dir of a training script)"
        )
    with atomic_folder(target, "hub_folder") as folder:
        for file in sorted({path for pattern in SHARED_FILES for path in source.glob(pattern)}):
            shutil.copy(file, folder / file.name)
        copy_weights(source, folder, args.dtype)
        facts = {"checkpoint": args.hub_folder, "has_code": False, "revision": None, **card_facts(args)}
        try:
            facts |= stored_outputs(folder, args.dtype)
            notes = rewrite_card(folder, old_checkpoint=args.output_dir, **facts)
        except ValueError as error:
            raise UsageError(f"output_dir: {args.output_dir!r} can't be used: {error}") from error
    megabytes = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    print(f"{args.hub_folder}: {megabytes:.1f} MB")
    for note in notes:
        print(note)
    print(
        "Nothing was uploaded, and metrics are the training's. scripts/evaluate_checkpoint.py computes them again; "
        "scripts/push_to_hub.py uploads the folder."
    )


def card_facts(args: argparse.Namespace) -> dict:
    """The facts of the card that flags state."""
    facts = {}
    if args.license is not None:
        facts |= {name: getattr(args, name) for name in ("license", "license_name", "license_link")}
    for name, value in (("data_name", args.dataset_name), ("dataset_id", args.dataset_id), ("example", args.example)):
        if value is not None:
            facts[name] = value
    return facts


def copy_weights(source: Path, target: Path, dtype: str | None):
    """
    Copies the weights, in `dtype` if given, and the configuration without its references to code files beside it. The
    configuration's `dtype` stays: in it the weights are loaded and computed with, whatever they are stored in.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

    weights = load_file(source / SAFE_WEIGHTS_NAME)
    config = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    if dtype is not None:
        weights = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    save_file(weights, target / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def stored_outputs(folder: Path, dtype: str | None) -> dict:
    """
    The fact that tells weights stored in another dtype from others; nothing where the training has none.

    Raises:
        ValueError: the weights are not those of the configuration, or not finite.
    """
    import torch

    from rtransformer_hf.training.checkpoints import model_class
    from rtransformer_hf.training.loading import open_model, read_config
    from rtransformer_hf.training.model_card import read_facts
    from rtransformer_hf.training.report import sample_outputs

    [architecture] = read_config(folder).architectures
    model = open_model(model_class(architecture), folder, dtype=torch.float32)
    facts = read_facts(folder)
    if dtype is None or facts is None or facts.sample_outputs is None:
        return {}
    return {"sample_outputs": sample_outputs(model)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("output_dir", help="The --output_dir of a finished training.")
    parser.add_argument("hub_folder", help="The folder to make.")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="Type to store the weights in. (default: as they are)",
    )
    parser.add_argument(
        "--dataset_name", help="The data's name in the card. (default: its id or files, as in the training)"
    )
    parser.add_argument("--dataset_id", help="The data's id on the Hub, if the training read local files.")
    parser.add_argument("--example", help="Input of the model in the card's code. (default: the training's)")
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    try:
        check_license(args.license, args.license_name, args.license_link)
    except UsageError as error:
        parser.error(str(error))
    if args.dataset_id is not None and args.dataset_name is None:
        parser.error(f"--dataset_id {args.dataset_id}: --dataset_name is missing (expected with it)")
    return args


if __name__ == "__main__":
    run_command(main)
