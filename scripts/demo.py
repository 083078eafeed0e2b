# SPDX-License-Identifier: Apache-2.0
"""
Shows six models at work in a browser: text and music as they are written, a digit as it is read, a series of
measurements as it may go on, a text with its words tagged, and another with its label.

    python scripts/demo.py
    python scripts/demo.py --text_model outputs/quickstart --port 8000
    python scripts/demo.py --make_space outputs/space   # the demo as a Space for the Hub: a folder to push there
"""

import argparse
import importlib.metadata
import shutil
import sys
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

import rtransformer_hf
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_folder
from rtransformer_hf.training.flags import CommandParser, number

TABS = ("text", "music", "digit", "forecast", "tags", "label")


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    models = {name: getattr(args, f"{name}_model") for name in TABS}
    if args.make_space is not None:
        make_space(Path(args.make_space), models)
        return
    from rtransformer_hf.training.demo_drawing import CSS
    from rtransformer_hf.training.demo_page import make_page

    try:
        make_page(models).launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            ssr_mode=False,
            max_file_size="1mb",
            css=CSS,
            footer_links=["gradio", "settings"],
        )
    except OSError as error:
        raise UsageError(f"--host {args.host}, --port {args.port}: can't be served at: {error}") from error


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--text_model",
        default="model_cards/ptb_char_medium",
        help="Folder or Hub id of a causal language model with its tokenizer. (default: %(default)s)",
    )
    parser.add_argument(
        "--music_model",
        default="model_cards/nottingham_joint",
        help="Folder or Hub id of a model of piano rolls. (default: %(default)s)",
    )
    parser.add_argument(
        "--digit_model",
        default="model_cards/smnist_small",
        help="Folder or Hub id of a classifier of digits that reads their pixels. (default: %(default)s)",
    )
    parser.add_argument(
        "--forecast_model",
        default="model_cards/air_passengers",
        help="Folder or Hub id of a model that forecasts time series without other covariates than the season. "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--tags_model",
        default="model_cards/japanese_ner",
        help="Folder or Hub id of a tagger of words. (default: %(default)s)",
    )
    parser.add_argument(
        "--label_model",
        default="model_cards/sst2_seed3",
        help="Folder or Hub id of a classifier of texts, or of a model that predicts a number from them. "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--host", help="Address to serve at; 0.0.0.0 serves the whole network. (default: this computer)"
    )
    parser.add_argument(
        "--port",
        type=number(int, at_least=1, at_most=65535),
        help="Port to serve at. (default: the first free one from 7860 on)",
    )
    parser.add_argument("--share", action="store_true", help="Make a public link through Gradio's server.")
    parser.add_argument(
        "--make_space",
        metavar="FOLDER",
        help="Serve nothing, but write the demo as a Space for the Hub, with copies of the models that are folders "
        "here, as push_to_hub.py would push them. `hf upload USER/NAME FOLDER --repo-type space` pushes it.",
    )
    return parser.parse_args(argv)


SPACE_APP = '''"""The demo of R-Transformer with the models of this Space."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "scripts"))

import demo

MODELS = {models}
FLAGS = [
    (f"--{{name}}_model", str(HERE / model) if (HERE / model).is_dir() else model) for name, model in MODELS.items()
]

if __name__ == "__main__":
    demo.main([word for flag in FLAGS for word in flag])
'''
SPACE_CARD = """---
title: R-Transformer
emoji: 🎼
colorFrom: yellow
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
short_description: Text, music, digits, series, tags and labels
---

# R-Transformer

Text and music as they are written, a digit as it is read, a series as it may go on, tagged words and labeled texts:
small models of [R-Transformer](https://arxiv.org/abs/1907.05572) at work. Elsewhere, `pip install -r requirements.txt
gradio` and `python app.py` start it.
"""
SPACE_REQUIREMENTS = (
    "torch",
    "transformers",
    "datasets",
    "matplotlib",
    "pillow",
    "pretty-midi",
    "scipy",
    "seqeval",
)


def make_space(target: Path, models: dict[str, str]):
    """
    Writes a Space: app, card, requirements, the package, this command and the models that are folders here.

    Raises:
        UsageError: the folder is not empty, or one of a model has no weights.
    """
    from rtransformer_hf.training.hub import check_model_files, copy_model

    with atomic_folder(target, "--make_space") as space:
        models = dict(models)
        for name, checkpoint in models.items():
            if Path(checkpoint).is_dir():
                check_model_files(Path(checkpoint), f"--{name}_model")
                models[name] = f"models/{name}"
                copy_model(Path(checkpoint), space / models[name])
            else:
                print(f"--{name}_model {checkpoint}: no such folder; the Space will look for it on the Hub.")
        package = Path(rtransformer_hf.__file__).parent
        shutil.copytree(package, space / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        (space / "scripts").mkdir()
        shutil.copy(__file__, space / "scripts")
        # A local version such as +cpu is on no index.
        versions = {name: importlib.metadata.version(name).split("+")[0] for name in (*SPACE_REQUIREMENTS, "gradio")}
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        requirements = "".join(f"{name}=={versions[name]}\n" for name in SPACE_REQUIREMENTS)
        for name, content in (
            ("app.py", SPACE_APP.format(models=models)),
            ("README.md", SPACE_CARD.format(gradio=versions["gradio"], python=python)),
            ("requirements.txt", requirements),
        ):
            (space / name).write_text(content, encoding="utf-8")
    print(target)


if __name__ == "__main__":
    run_command(main)
