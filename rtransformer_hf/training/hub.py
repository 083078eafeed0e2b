# SPDX-License-Identifier: Apache-2.0
"""What goes to the Hub, and what its errors mean."""

import shutil
from pathlib import Path

from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from .errors import UsageError
from .model_arguments import EVALUATION_FILE
from .model_card import CURVE_POINTS_FILE, FACTS_FILE

# What from_pretrained reads beside configuration and weights, the card, and its pictures. Pushing adds the code.
SHARED_FILES = (
    EVALUATION_FILE,
    FACTS_FILE,
    "README.md",
    "*.png",
    CURVE_POINTS_FILE,
    GENERATION_CONFIG_NAME,
    "tokenizer*.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)
WEIGHTS = "model*.safetensors"


def check_model_files(folder: Path, argument: str, *more: str):
    """
    Args:
        folder: that of a model.
        argument: what names it, for messages.
        more: files that it needs beside configuration and weights.

    Raises:
        UsageError: a file is missing.
    """
    for name in (CONFIG_NAME, *more):
        if not (folder / name).exists():
            raise UsageError(
                f"{argument}: no {name} in {str(folder)!r} (expected a folder of model_cards or a training's "
                "--output_dir)"
            )
    if not any(folder.glob(WEIGHTS)):
        raise UsageError(
            f"{argument}: no {WEIGHTS} in {str(folder)!r} (expected this format, which `save_pretrained` writes: "
            "others can run code when they are opened)"
        )


def copy_model(folder: Path, target: Path):
    """Copies what others need of a model to a new folder. Checkpoints, optimizer, logs and pickles stay behind."""
    target.mkdir(parents=True)
    patterns = (*SHARED_FILES, CONFIG_NAME, WEIGHTS, SAFE_WEIGHTS_INDEX_NAME, "*.py")
    for file in {path for pattern in patterns for path in folder.glob(pattern)}:
        shutil.copy(file, target)


def explain_hub_error(error: Exception) -> str:
    """What went wrong at the Hub and what helps, in a sentence without its full stop."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload in a thread of its own
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return (
            "the Hub asks for a token that it knows: `hf auth login` keeps one, HF_TOKEN names one, of the role write"
        )
    if status == 403:
        return (
            "the token may not write there (expected a token of the role write, and a repository of yours or of an "
            "organisation that lets you write)"
        )
    text = str(error).strip().partition("\n")[0].rstrip(".")
    server_message = getattr(error, "server_message", None)
    return f"{type(error).__name__}: {text}" + (f" ({server_message})" if server_message else "")
