# SPDX-License-Identifier: Apache-2.0
"""
Pictures of trained language models, with their numbers as JSON beside them.

    python scripts/plot_checkpoint.py context CHECKPOINT [CHECKPOINT ...] --data ptb.test.txt --output context.png
    python scripts/plot_checkpoint.py layers CHECKPOINT --data ptb.test.txt --output layers.png

`context`: the loss against the position, in contexts up to `--factor` times as long as in training: whether a model
makes use of a longer context than it was trained on, or fails there.
`layers`: what a model attends to in a piece of text, and how much the loss rises without each sub-layer: what the
LocalRNN adds, and where.
`results`: the test figures of cards, beside published ones.

    python scripts/plot_checkpoint.py results model_cards/*/README.md --output results.png
"""

import argparse
import json

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_write, write_figure
from rtransformer_hf.training.flags import CommandParser, add_data_arguments, output_file, positive_integer


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    from rtransformer_hf.training import checkpoint_pictures

    try:
        figure, numbers = getattr(checkpoint_pictures, f"draw_{args.picture}")(args)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    write_figure(args.output, figure, dpi=150)
    atomic_write(args.output.with_suffix(".json"), (json.dumps(numbers, indent=2) + "\n").encode())
    print(f"{args.output} and {args.output.with_suffix('.json')}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="picture", metavar="PICTURE")
    context = commands.add_parser("context", help="The loss against the position in a long context.")
    context.add_argument("checkpoints", nargs="+", help="Folders or Hub ids of language models.")
    context.add_argument(
        "--factor", type=positive_integer, default=8, help="Length, in training lengths. (default: 8)"
    )
    context.set_defaults(architecture="ForCausalLM")
    layers = commands.add_parser("layers", help="Attention, and what each sub-layer adds.")
    layers.add_argument("checkpoint", help="Folder or Hub id of an R-Transformer language model.")
    layers.add_argument(
        "--tokens", type=positive_integer, default=48, help="Length of the text in the picture. (default: 48)"
    )
    layers.set_defaults(architecture="RTransformerForCausalLM")
    results = commands.add_parser("results", help="Test figures of cards, beside published ones.")
    results.add_argument("cards", nargs="+", help="Files README.md in folders of make_hub_folder.py.")
    for command in (context, layers):
        add_data_arguments(command)
        command.add_argument(
            "--max_tokens", type=positive_integer, default=100_000, help="How much of it. (default: 100000)"
        )
        command.add_argument("--batch_size", type=positive_integer, default=4, help="Contexts at a time. (default: 4)")
    for command in (context, layers, results):
        command.add_argument(
            "--output",
            required=True,
            type=output_file(".png"),
            help="The picture, a .png file; a .json file with its numbers gets the same name.",
        )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
