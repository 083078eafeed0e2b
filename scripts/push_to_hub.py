# SPDX-License-Identifier: Apache-2.0
"""
Uploads a model to the Hub: a folder of model_cards, or the --output_dir of a training.

    hf auth login
    python scripts/push_to_hub.py model_cards/nottingham_joint someone/nottingham_joint

Uploads what others need: weights, configuration, tokenizer or image processor, card, pictures, and the model's code,
which is added if the folder has none. Checkpoints, optimizer, logs and pickles stay behind. Before the upload, the
model is opened with the code that goes with it and run on a sample, and the Hub checks the card's metadata.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser
from rtransformer_hf.training.model_card import add_card_arguments, check_license, rewrite_card

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    check_license(args.license, args.license_name, args.license_link)
    check_names(args.folder, args.repository)
    with tempfile.TemporaryDirectory() as temporary:
        upload = Path(temporary, Path(args.repository).name)
        for note in prepare(upload, args):
            print(note)
        push(upload, args)


def check_names(folder: str, repository: str):
    """
    Raises:
        UsageError: the repository's name is malformed, or the folder holds no model.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from rtransformer_hf.training.hub import check_model_files

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"repository: {repository!r} is not a valid name: {error}") from error
    if "/" not in repository:
        raise UsageError(f"repository: no owner in {repository!r} (expected user/name)")
    if not Path(folder).is_dir():
        raise UsageError(f"folder: no such folder: {folder!r} (expected one with a trained model)")
    check_model_files(Path(folder), "folder", "README.md")


def prepare(upload: Path, args: argparse.Namespace) -> list[str]:
    """Collects and checks what goes up, and returns notes on its card."""
    try:
        notes = collect(upload, args)
        check_model(upload)
    except UsageError:
        raise
    except Exception as error:  # the files may hold anything, including code
        raise UsageError(f"folder: {args.folder!r} can't be used: {type(error).__name__}: {error}") from error
    return notes


def collect(upload: Path, args: argparse.Namespace) -> list[str]:
    """Copies what goes up to `upload`, with a card that has the model's name on the Hub, and returns notes on it."""
    from rtransformer_hf.training.hub import copy_model

    copy_model(Path(args.folder), upload)
    config = json.loads((upload / CONFIG).read_text(encoding="utf-8"))
    code = {f"{reference.split('.')[0]}.py" for reference in config.get("auto_map", {}).values()}
    is_known = is_of_transformers(config)
    if not is_known and (not code or not all((upload / file).exists() for file in code)):
        add_code(upload, config)
    facts = {"checkpoint": args.repository, "has_code": not is_known, "revision": args.revision}
    if args.license is not None:
        facts |= {name: getattr(args, name) for name in ("license", "license_name", "license_link")}
    return rewrite_card(upload, old_checkpoint=args.folder, **facts)


def is_of_transformers(config: dict) -> bool:
    """Whether Transformers itself has the model's code, as that of a Llama."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES and not config.get("auto_map")


def add_code(upload: Path, config: dict):
    """Adds the code, and what else `save_pretrained` writes beside the weights. The weights keep their precision."""
    from rtransformer_hf import RTransformerFeatureExtractor, RTransformerImageProcessor
    from rtransformer_hf.modeling_rtransformer import AUTO_CLASSES
    from rtransformer_hf.training.hub import WEIGHTS

    [architecture] = config.get("architectures") or ["a model of no named class"]
    model_class = {model_class.__name__: model_class for model_class in AUTO_CLASSES.values()}.get(architecture)
    if model_class is None:
        raise UsageError(
            f"the folder holds {architecture} without its code (expected a model of this package, or code beside it "
            "as stated by `auto_map` in config.json)"
        )
    with tempfile.TemporaryDirectory() as saved:
        # Weights of another shape are found when the model is checked.
        model_class.from_pretrained(upload, ignore_mismatched_sizes=True).save_pretrained(saved)
        if (upload / PREPROCESSOR).exists():
            is_image = "image_processor_type" in json.loads((upload / PREPROCESSOR).read_text(encoding="utf-8"))
            processor_class = RTransformerImageProcessor if is_image else RTransformerFeatureExtractor
            processor_class.from_pretrained(upload).save_pretrained(saved)
        for file in Path(saved).iterdir():
            if not file.match(WEIGHTS):
                shutil.copy(file, upload)


def check_model(upload: Path):
    """
    Opens the model with the code that goes up with it, as others will, and runs it on a sample.

    Raises:
        UsageError: weights are missing, left over or of another shape, or the outputs are not finite.
    """
    import torch
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from rtransformer_hf.training.model_arguments import input_name

    config = json.loads((upload / CONFIG).read_text(encoding="utf-8"))
    [architecture] = config["architectures"]
    if is_of_transformers(config):
        model_class = getattr(transformers, architecture)
    else:
        [reference] = [name for name in config["auto_map"].values() if name.endswith(f".{architecture}")]
        model_class = get_class_from_dynamic_module(reference, upload)
    model, loading = model_class.from_pretrained(upload, output_loading_info=True, ignore_mismatched_sizes=True)
    if wrong := {key: sorted(names) for key, names in loading.items() if names}:
        raise UsageError(f"the weights do not match config.json: {wrong}")
    if (name := input_name(model)) == "input_ids":
        sample = torch.arange(8)[None] % model.config.vocab_size
    else:
        sample = torch.zeros(1, 8, model.config.input_size)
    with torch.no_grad():
        output = model(**{name: sample})
    values = output["params"] if "params" in output else output[:1]
    if not all(value.isfinite().all() for value in values):
        raise UsageError("the model's outputs are not finite (expected a model whose training has not diverged)")


def push(upload: Path, args: argparse.Namespace):
    """
    Lists the files and, unless --dry_run is given, uploads them in one commit.

    Raises:
        UsageError: the network or the Hub fails, or refuses.
    """
    from huggingface_hub import HfApi, ModelCard

    from rtransformer_hf.training.hub import explain_hub_error

    files = sorted(upload.iterdir())
    for file in files:
        print(f"{file.stat().st_size / 1e6:10.3f} MB  {file.name}")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:10.3f} MB  to {args.repository}")
    if args.dry_run:
        print(
            "Dry run: nothing was uploaded. Checked: the files, the model with its code on a sample, and that the "
            f"card's metadata can be read. Not checked: the network, the token and whether it may write to "
            f"{args.repository}, whether that name is taken, and what the Hub says of the metadata."
        )
        return
    api = HfApi()
    try:
        ModelCard.load(upload / "README.md").validate()
        api.create_repo(args.repository, private=args.private or None, exist_ok=True)
        api.auth_check(args.repository, write=True)
        if args.private and not api.model_info(args.repository).private:
            raise UsageError(f"--private: {args.repository!r} is public already (expected no --private)")
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
    except Exception as error:  # network and Hub raise in every layer
        raise UsageError(f"pushing to {args.repository} failed: {explain_hub_error(error)}.") from error
    print(f"{api.endpoint}/{args.repository}" + (f"/tree/{args.revision}" if args.revision else ""))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", help="A folder of model_cards, or the --output_dir of a training.")
    parser.add_argument("repository", help="Target as user/name; created if it does not exist.")
    parser.add_argument("--private", action="store_true", help="Create the repository private.")
    parser.add_argument("--revision", help="Branch to upload to; created if it does not exist. (default: main)")
    parser.add_argument("--dry_run", action="store_true", help="Check and list the files, and upload nothing.")
    add_card_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
