# SPDX-License-Identifier: Apache-2.0
"""
Measures this package's model beside the algorithm of the published code and beside other models of the same size.

    python scripts/benchmark.py operator                         # the LocalRNN alone, in each of its implementations
    python scripts/benchmark.py train --configs smnist ptb_char  # forward pass and full training step
    python scripts/benchmark.py generate --contexts 64 1024      # prefill, then a token at a time
    python scripts/benchmark.py scaling                          # time and memory against the sequence length
    python scripts/benchmark.py linear                           # one linear layer, d to 4 d, of each projection type
    python scripts/benchmark.py train --structures heads_4       # our model with recurrent heads too
    python scripts/benchmark.py train --device cuda --dtype bfloat16 --compile

Prints a table and writes it as JSON and as a picture. Every round runs all models, a matrix product and a copy, so
that noise of the machine meets all alike; a time is the median of the rounds.

- ours: this package's model. With a --dtype other than float32 it trains under autocast (without loss scaling), and
  generates with weights of that dtype.
- published: rtransformer_hf/training/published_rtransformer.py, always in float32. It has no cache: each token costs
  the whole prefix.
- gpt2, llama, mamba: Transformers' models of the same width and depth (and heads and dropout, if they have them), in
  our dtype. Where ours reads vectors, they read them through a linear layer.

Memory is that of a later call, not the first, above what the model and its batch hold. `saved_bytes` is what autograd
keeps for the backward pass, without parameters; each storage counts once. `peak_bytes` is the most that PyTorch has
allocated at a time. (The resident size says less, since the C library keeps freed memory.) `file_bytes` are those of
the weights in a file, in the dtype that the model was measured with.

`mfu`, the model FLOPs utilisation, is the fewest operations that the task needs over the time, divided by the rate of
the matrix product. Those operations: K products of (tokens, d) x (d, gates * d) for each LocalRNN with a window of K,
the model's other matrix products as PyTorch counts them, and twice all of that for the backward pass.
"""

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.benchmark_settings import (
    COMPILE_MODES,
    DTYPES,
    IMPLEMENTATIONS,
    PEERS,
    SETTINGS,
    STRUCTURES,
    Setting,
    Sizes,
)
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_write, write_figure
from rtransformer_hf.training.flags import CommandParser, output_folder, positive_integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALING_HEADS = 8


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    import torch

    from rtransformer_hf.training.benchmarks import environment, measure, progress

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: cuda, but PyTorch finds no CUDA device (expected cpu)")
    torch.manual_seed(0)
    output = args.output_dir / f"{args.command}_{args.device}_{args.dtype}.json"
    report = {
        "command": shlex.join(["python", "scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)]),
        "environment": environment(args.device),
        "rows": [],
    }
    for config_name, setting in settings_of(args):
        report["rows"] += measure(args, config_name, setting)
        atomic_write(output, json.dumps(report, indent=2).encode())
    figure = (plot_scaling if args.command == "scaling" else plot)(report["rows"])
    write_figure(output.with_suffix(".png"), figure, dpi=120)
    print(format_table(report["rows"]))
    progress(f"Written to {output} and {output.with_suffix('.png')}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="Where to measure. (default: %(default)s)")
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="Of every model but the published one. (default: %(default)s)",
    )
    add("--implementation", choices=IMPLEMENTATIONS, help="Of the operator. (default: the operator chooses)")
    add("--compile", nargs="?", const="default", choices=COMPILE_MODES, help="Compile our model, in this mode.")
    add("--rounds", type=positive_integer, default=7, help="A time is the median of these. (default: %(default)s)")
    add(
        "--output_dir",
        type=output_folder,
        default="outputs/benchmark",
        help="For the JSON and PNG files. (default: %(default)s)",
    )

    configs = argparse.ArgumentParser(add_help=False)
    configs.add_argument(
        "--configs", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="Models to measure. (default: all)"
    )

    peers = argparse.ArgumentParser(add_help=False)
    add = peers.add_argument
    add("--peers", nargs="*", choices=PEERS, default=PEERS, help="Other models to measure. (default: all)")
    add("--no-peers", dest="peers", action="store_const", const=(), help="Measure ours and the published one alone.")
    add(
        "--time_budget",
        type=positive_integer,
        default=60,
        metavar="SECONDS",
        help="On a CPU, leave out a peer that takes longer for three calls of each phase, and the published algorithm "
        "in generation likewise. (default: %(default)s)",
    )

    structures = argparse.ArgumentParser(add_help=False)
    structures.add_argument(
        "--structures",
        nargs="*",
        choices=STRUCTURES,
        default=(),
        help="Measure our model with these weights too: butterfly or Monarch projections, recurrent heads. "
        "(default: none)",
    )

    parser = CommandParser(description=__doc__)
    add_command = parser.add_subparsers(dest="command", required=True).add_parser
    add_command("operator", parents=[configs, common], help="The LocalRNN alone.")
    train = add_command(
        "train", parents=[configs, common, peers, structures], help="Forward pass and full training step."
    )
    train.add_argument("--no-dropout", dest="dropout", action="store_false", help="Train all models without dropout.")
    generate = add_command(
        "generate", parents=[configs, common, peers, structures], help="Prefill, and a token after it."
    )
    generate.add_argument(
        "--contexts",
        type=positive_integer,
        nargs="+",
        default=(64, 256, 1024),
        help="Lengths of the prefill. (default: %(default)s)",
    )
    generate.add_argument(
        "--batch_size", type=positive_integer, default=1, help="Sequences at a time. (default: %(default)s)"
    )
    scaling = add_command(
        "scaling",
        aliases=["growth"],
        parents=[common],
        help="The LocalRNN, and a model of 3 blocks, against the sequence length.",
    )
    scaling.set_defaults(command="scaling")
    scaling.add_argument(
        "--hidden_sizes",
        type=multiple_of_heads,
        nargs="+",
        default=(128, 512),
        help=f"Positive multiples of {SCALING_HEADS}. (default: %(default)s)",
    )
    scaling.add_argument(
        "--lengths",
        type=positive_integer,
        nargs="+",
        default=[2**i for i in range(8, 15)],
        help="Sequence lengths. (default: %(default)s)",
    )
    linear = add_command("linear", parents=[common], help="One linear layer, d to 4 d, of each projection type.")
    linear.add_argument(
        "--hidden_sizes",
        type=multiple_of_heads,
        nargs="+",
        default=(128, 512, 1024, 2048),
        help=f"Positive multiples of {SCALING_HEADS}. (default: %(default)s)",
    )
    linear.add_argument(
        "--rows", type=positive_integer, default=1280, help="Vectors in a batch. (default: %(default)s)"
    )
    return parser.parse_args(argv)


def multiple_of_heads(text: str) -> int:
    size = positive_integer(text)
    if size % SCALING_HEADS:
        raise argparse.ArgumentTypeError(f"{text} (expected a multiple of {SCALING_HEADS})")
    return size


def settings_of(args: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    """The settings that a command measures, with the names of their configurations."""
    if args.command == "scaling":
        for size, length in itertools.product(args.hidden_sizes, args.lengths):
            sizes = Sizes(size, 3, 1, SCALING_HEADS, "gru", 7, dropout=0.0)
            yield f"d {size}", Setting("RTransformerForCausalLM", 1, length, {"vocab_size": 49}, sizes)
        return
    if args.command == "linear":
        for size in args.hidden_sizes:
            sizes = Sizes(size, 1, 1, SCALING_HEADS, "gru", 7, dropout=0.0)
            yield f"d {size}", Setting("RTransformerForCausalLM", 1, args.rows, {"vocab_size": 49}, sizes)
        return
    for name in args.configs:
        setting = SETTINGS[name]
        if args.command == "generate":
            for length in args.contexts:
                yield name, replace(setting, batch_size=args.batch_size, length=length)
        elif args.command == "train" and not args.dropout:
            yield name, replace(setting, sizes=setting.sizes._replace(dropout=0.0, embedding_dropout=0.0))
        else:
            yield name, setting


def format_table(rows: list[dict]) -> str:
    """A Markdown table. Ratios of speed say how many times as fast, those of memory how many times as much."""
    ratios = {name: f"x {name.removeprefix('speed_ratio_to_')}" for name in rows[0] if name.startswith("speed_ratio")}
    columns = {
        **{name: (name.replace("_size", ""), str) for name in ("config", "batch_size", "length")},
        **{name: (name, str) for name in ("phase", "model", "dtype")},
        "parameters": ("parameters", "{:,}".format),
        "seconds": ("ms", lambda seconds: f"{seconds * 1e3:.3f}"),
        "tokens_per_second": ("tokens/s", "{:,.0f}".format),
        **{name: (header, "{:.2f}".format) for name, header in ratios.items()},
        **size_columns("saved_bytes", "saved MB", rows[0]),
        **size_columns("peak_bytes", "peak MB", rows[0]),
        **size_columns("file_bytes", "file MB", rows[0]),
        "mfu": ("MFU", "{:.1%}".format),
        "note": ("note", str),
    }
    columns = {name: column for name, column in columns.items() if any(row[name] is not None for row in rows)}
    lines = [[header for header, _ in columns.values()], ["---"] * len(columns)]
    for row in rows:
        lines.append(["" if row[name] is None else form(row[name]) for name, (_, form) in columns.items()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def size_columns(name: str, header: str, row: dict) -> dict[str, tuple]:
    """Columns for a size, and for its ratios to those of other models."""
    ratios = {key: f"of {key.removeprefix(f'{name}_ratio_to_')}" for key in row if key.startswith(f"{name}_ratio")}
    return {
        name: (header, lambda size: f"{size / 1e6:,.3f}" if size < 1e5 else f"{size / 1e6:,.1f}"),
        **{key: (ratio, "{:.2f}".format) for key, ratio in ratios.items()},
    }


def plot(rows: list[dict]) -> "Figure":
    """Speed on the left, peak memory on the right, a row of panels for each phase."""
    from matplotlib.figure import Figure

    phases, models = (list(dict.fromkeys(row[column] for row in rows)) for column in ("phase", "model"))
    settings = list(dict.fromkeys((row["config"], row["length"]) for row in rows))
    cells = {(row["phase"], row["model"], row["config"], row["length"]): row for row in rows}
    figure = Figure(figsize=(14, 4 * len(phases)), layout="constrained")
    panels = figure.subplots(len(phases), 2)
    width = 0.8 / len(models)
    for (i, phase), (j, column) in itertools.product(
        enumerate(phases), enumerate(("tokens_per_second", "peak_bytes"))
    ):
        axes = panels[i, j]
        for k, model in enumerate(models):
            values = [cells[(phase, model, *setting)][column] or 0 for setting in settings]
            axes.bar([x + (k + 0.5) * width - 0.4 for x in range(len(settings))], values, width, label=model)
        axes.set(title=phase, ylabel=column.replace("_", " "), yscale="log")
        axes.set_xticks(range(len(settings)), [f"{config}\n{length}" for config, length in settings])
        axes.grid(alpha=0.3, axis="y")
        axes.legend()
    return figure


def plot_scaling(rows: list[dict]) -> "Figure":
    """Time and memory of a training step against the length, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), layout="constrained")
    lines = list(dict.fromkeys((row["config"], row["model"]) for row in rows))
    columns = {"seconds": "seconds per step", "saved_bytes": "bytes kept for the backward pass", "peak_bytes": "peak"}
    for axes, (column, label) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        for config, model in lines:
            points = [
                (row["length"], row[column])
                for row in rows
                if (row["config"], row["model"], row["phase"]) == (config, model, "step") and row[column]
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{config}, {model}")
        axes.set(title=label, xlabel="length", xscale="log", yscale="log")
        axes.set_xticks(*[sorted({row["length"] for row in rows})] * 2, rotation=45)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


if __name__ == "__main__":
    run_command(main)
