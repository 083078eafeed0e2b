# SPDX-License-Identifier: Apache-2.0
"""
Puts finished trainings side by side: metric, parameters, FLOPs, time, speed and memory as a table in Markdown, and
their learning curves in one picture.

    python scripts/compare.py outputs/rtransformer outputs/llama --output comparison.md
    python scripts/compare.py model_cards/ptb_char_small model_cards/ptb_char_small_transformer --step_rounds 5

A run is the output folder of a training command, or a folder of make_hub_folder.py. FLOPs are those of matrix products
in a forward pass, a position; a training step takes about three times as many. Memory is the most that a process of
the training had at a time: tensors on an accelerator, or on a CPU all resident memory. `--evaluation` adds a column of
the files that `evaluate_checkpoint.py --output` has written into the folders.
"""

import argparse

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_write, write_figure
from rtransformer_hf.training.flags import CommandParser, output_file, positive_integer


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    from rtransformer_hf.training.comparison import choose_metric, draw_curves, load_runs, make_table, step_seconds

    runs = load_runs(args.runs, args.evaluation, args.any_data)
    for name in ("decode_tokens", "step_rounds"):
        if getattr(args, name) is not None and (task := runs[0].facts.task) != "language-modeling":
            raise UsageError(
                f"--{name}: {getattr(args, name)}, and the runs' task is {task} (expected language models)"
            )
    metric = choose_metric(runs, args.metric)
    steps = None if args.step_rounds is None else step_seconds(runs, args.step_rounds)
    figure = None if args.output is None else draw_curves(runs, metric, steps)
    if figure is None and args.output is not None and args.output.suffix == ".png":
        raise UsageError(f"--output: '{args.output}': no run has curves to draw (expected a name that ends with .md)")
    table = make_table(runs, metric, args.decode_tokens, steps)
    print(table, end="")
    if args.output is None:
        return
    if without := [run.name for run in runs if run.curves is None]:
        print(f"\nNot in the picture, since their folders keep no points of curves: {', '.join(without)}")
    if figure is not None:
        write_figure(args.output.with_suffix(".png"), figure, dpi=150)
    if args.output.suffix == ".md":
        picture = "" if figure is None else f"\n![Learning curves]({args.output.with_suffix('.png').name})\n"
        atomic_write(args.output, (table + picture).encode())


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Folders of finished trainings, of one task and data.")
    parser.add_argument(
        "--metric",
        help="What to compare by. (default: the first of the task's cards; of language models, bits per character)",
    )
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="NAME.json",
        help="A file in the folders with metrics of evaluate_checkpoint.py, for a column; may be given several times.",
    )
    parser.add_argument(
        "--decode_tokens",
        type=positive_integer,
        help="Measure how fast each language model writes so many tokens, one sequence at a time.",
    )
    parser.add_argument(
        "--step_rounds",
        type=positive_integer,
        help="Time a training step of each language model, in turn, this often, and draw the metric against it.",
    )
    parser.add_argument("--any_data", action="store_true", help="Also compare runs whose data have different names.")
    parser.add_argument(
        "--output",
        type=output_file(".png", ".md"),
        help="A .png file for the curves; or a .md file for the table, with the curves in a .png beside it.",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
