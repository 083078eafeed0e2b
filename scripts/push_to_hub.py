# SPDX-License-Identifier: Apache-2.0
"""
Uploads a model to the Hub: a folder of model_cards, or the --output_dir of a training.

    hf auth login
    python scripts/push_to_hub.py model_cards/nottingham_joint someone/nottingham_joint

What goes up is what others need: weights, configuration, tokenizer or image processor, card, pictures, and the code of
the model, which is added where the folder has none. Checkpoints, optimizer, logs and pickles stay behind. First the
model is opened by the code that goes with it and run on a sample, and the Hub checks the metadata of the card.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from rtransformer_hf.training.command_line import CommandParser, run_command

import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from make_hub_folder import SHARED_FILES
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from rtransformer_hf import RTransformerImageProcessor
from rtransformer_hf.modeling_rtransformer import AUTO_CLASSES
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.hub import reason
from rtransformer_hf.training.model_card import add_card_arguments, check_license, rewrite_card

WEIGHTS = "model*.safetensors"
PUSHED_FILES = (*SHARED_FILES, CONFIG_NAME, WEIGHTS, SAFE_WEIGHTS_INDEX_NAME, "*.py")


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    try:
        check_license(args.license, args.license_name, args.license_link)
        check_names(args.folder, args.repository)
        with tempfile.TemporaryDirectory() as temporary:
            upload = Path(temporary, Path(args.repository).name)
            for note in prepare(upload, args):
                print(note)
            push(upload, args)
    except UsageError as error:
        sys.exit(f"push_to_hub.py: error: {error}")


def check_names(folder: str, repository: str):
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"repository {repository!r} is no name that the Hub accepts: {error}") from error
    if "/" not in repository:
        raise UsageError(f"repository {repository!r} lacks whose it is; user/name is accepted.")
    if not Path(folder).is_dir():
        raise UsageError(f"folder {folder!r} does not exist; a folder with a trained model is accepted.")
    for name in (CONFIG_NAME, "README.md"):
        if not Path(folder, name).exists():
            raise UsageError(
                f"folder {folder!r} has no {name}; accepted: a folder of model_cards or a training's --output_dir."
            )
    if not any(Path(folder).glob(WEIGHTS)):
        raise UsageError(
            f"folder {folder!r} has no {WEIGHTS}, the only weights accepted: other formats can run code as they open. "
            "`save_pretrained` writes it."
        )


def prepare(upload: Path, args: argparse.Namespace) -> list[str]:
    """Collects and checks what goes up; returns what is to be known of its card."""
    try:
        notes = collect(upload, args)
        check_model(upload)
    except UsageError:
        raise
    except Exception as error:  # whatever is in the files, code among them
        raise UsageError(f"folder {args.folder!r} can't be used: {type(error).__name__}: {error}") from error
    return notes


def collect(upload: Path, args: argparse.Namespace) -> list[str]:
    """What goes up, in a folder of its own, with a card that calls the model by its name on the Hub."""
    upload.mkdir()
    for file in {path for pattern in PUSHED_FILES for path in Path(args.folder).glob(pattern)}:
        shutil.copy(file, upload)
    config = json.loads((upload / CONFIG_NAME).read_text(encoding="utf-8"))
    code = {f"{reference.split('.')[0]}.py" for reference in config.get("auto_map", {}).values()}
    if not code or not all((upload / file).exists() for file in code):
        add_code(upload, config)
    facts = {"checkpoint": args.repository, "has_code": True, "revision": args.revision}
    if args.license is not None:
        facts |= {name: getattr(args, name) for name in ("license", "license_name", "license_link")}
    return rewrite_card(upload, old_checkpoint=args.folder, **facts)


def add_code(upload: Path, config: dict):
    """Adds what `save_pretrained` writes beside the weights, which stay as they are, in half precision for one."""
    [architecture] = config.get("architectures") or ["a model of no named class"]
    model_class = {model_class.__name__: model_class for model_class in AUTO_CLASSES.values()}.get(architecture)
    if model_class is None:
        raise UsageError(
            f"the folder holds {architecture} without its code, which this package lacks too; accepted: a model of "
            "this package, or one whose code lies beside it, as `auto_map` of its config.json says."
        )
    with tempfile.TemporaryDirectory() as saved:
        model_class.from_pretrained(upload).save_pretrained(saved)
        if (upload / "preprocessor_config.json").exists():
            RTransformerImageProcessor.from_pretrained(upload).save_pretrained(saved)
        for file in Path(saved).iterdir():
            if not file.match(WEIGHTS):
                shutil.copy(file, upload)


def check_model(upload: Path):
    """Opens the model as others will, by the code that goes up with it, and runs it on a sample."""
    config = json.loads((upload / CONFIG_NAME).read_text(encoding="utf-8"))
    [architecture] = config["architectures"]
    [reference] = [name for name in config["auto_map"].values() if name.endswith(f".{architecture}")]
    model_class = get_class_from_dynamic_module(reference, upload)
    model, loading = model_class.from_pretrained(upload, output_loading_info=True)
    if wrong := {key: sorted(names) for key, names in loading.items() if names}:
        raise UsageError(f"the weights are not those of config.json: {wrong}")
    if model.config.input_size is None:
        sample = {"input_ids": torch.arange(8)[None] % model.config.vocab_size}
    else:
        sample = {"input_values": torch.zeros(1, 8, model.config.input_size)}
    with torch.no_grad():
        output = model(**sample)[0]
    if not output.isfinite().all():
        raise UsageError(
            "the model gives numbers that are not finite; one whose training has not diverged is accepted."
        )


def push(upload: Path, args: argparse.Namespace):
    files = sorted(upload.iterdir())
    for file in files:
        print(f"{file.stat().st_size / 1e6:10.3f} MB  {file.name}")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:10.3f} MB  to {args.repository}")
    if args.dry_run:
        print(
            "Dry run: nothing was uploaded. Checked: the files, the model with its code on a sample, and that the "
            f"metadata of the card can be read. Not checked: the network, the token and whether it may write to "
            f"{args.repository}, whether that name is taken, and what the Hub says of the metadata."
        )
        return
    api = HfApi()
    try:
        ModelCard.load(upload / "README.md").validate()
        api.create_repo(args.repository, private=args.private or None, exist_ok=True)
        api.auth_check(args.repository, write=True)
        if args.private and not api.model_info(args.repository).private:
            raise UsageError(f"repository {args.repository!r} is public already; without --private it is accepted.")
        if args.revision is not None:
            api.create_branch(args.repository, branch=args.revision, exist_ok=True)
        api.upload_folder(
            repo_id=args.repository,
            folder_path=upload,
            revision=args.revision,
            commit_message=f"Upload {args.repository}",
        )
    except UsageError:
        raise
    except Exception as error:  # of the network and of the Hub, in every layer below
        raise UsageError(f"pushing to {args.repository} failed: {reason(error)}.") from error
    print(f"{api.endpoint}/{args.repository}" + (f"/tree/{args.revision}" if args.revision else ""))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", help="A folder of model_cards, or the --output_dir of a training.")
    parser.add_argument("repository", help="Where to: user/name; it is made where it does not exist.")
    parser.add_argument("--private", action="store_true", help="For you alone to see, where it is made.")
    parser.add_argument("--revision", help="Branch to upload to, made where it does not exist. (default: main)")
    parser.add_argument("--dry_run", action="store_true", help="Check and list the files without uploading them.")
    add_card_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
