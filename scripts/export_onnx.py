# SPDX-License-Identifier: Apache-2.0
"""
Exports a checkpoint to ONNX, if onnxruntime's outputs agree with PyTorch's.

    python scripts/export_onnx.py outputs/quickstart outputs/quickstart_onnx --with_cache
    python scripts/generate_onnx.py outputs/quickstart_onnx "The following"

The folder holds model.onnx and the checkpoint's config.json, tokenizer.json and preprocessor_config.json, where it has
them. Batch size and lengths are dynamic:

- input_ids (batch, time) int64, or input_values (batch, time, input_size) float32;
- attention_mask (batch, past + time) int64, 0 at padding;
- past_values (batch, time, input_size) float32, NaN for missing values, for a forecast, with next_covariates (batch,
  num_dynamic_real_features) float32, those of the step to forecast, if the model reads covariates;
- labels (batch, time, keys) float32, for autoregressive keys alone: the frames whose keys the logits depend on;
- with --with_cache, for each block I and its LocalRNN layers J: past.I.key and past.I.value (batch, heads, past, head
  size), past.I.local_rnn.J (batch, hidden_size, local_window_size), the layer's last inputs; for a forecast also
  past.loc and past.scale (batch, 1, channels), the normalisation.

The outputs are the logits, or to forecast params (batch, time, channels, parameters), loc and scale. With a cache,
present.* follow in the same order, the next call's past.*, with loc and scale among them. A new sequence begins with a
past of length 0 and zeros for the rest of it, so one graph serves prompt and single tokens.
"""

import argparse
import json
import shutil
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_folder
from rtransformer_hf.training.flags import CommandParser, positive_integer

ONNX_FILE = "model.onnx"
COPIED_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")
TOLERANCE = 1e-4  # of the outputs


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    with atomic_folder(args.output_folder, "output_folder") as folder:
        report = export_checkpoint(args, folder)
    print(json.dumps(report, indent=2))


def export_checkpoint(args: argparse.Namespace, folder: Path) -> dict:
    """
    Exports the checkpoint to a folder, and returns a report.

    Raises:
        UsageError: the checkpoint can't be exported, or onnxruntime's outputs differ from PyTorch's.
    """
    from transformers.utils import cached_file

    from rtransformer_hf.training.onnx_export import (
        OnnxModel,
        export,
        largest_difference,
        load_model,
        tokens_per_second,
    )

    model = load_model(args.checkpoint, args.with_cache)
    export(model, args.with_cache).save(folder / ONNX_FILE)
    onnx_model = OnnxModel(folder / ONNX_FILE)
    difference = largest_difference(model, onnx_model, args.with_cache)
    if not difference <= TOLERANCE:
        raise UsageError(
            f"checkpoint {args.checkpoint!r}: outputs in onnxruntime differ from PyTorch's by {difference:.1e} "
            f"(expected at most {TOLERANCE:.0e}); nothing was written"
        )
    report = {
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "bytes_of_parameters": sum(parameter.nbytes for parameter in model.parameters()),
        "largest_difference": difference,
    }
    if args.time is not None:
        report["tokens_per_second"] = tokens_per_second(model, onnx_model, args.with_cache, args.time)
    for name in COPIED_FILES:
        if file := cached_file(args.checkpoint, name, _raise_exceptions_for_missing_entries=False):
            shutil.copy(file, folder / name)
    return report


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", help="Folder or Hub id of a trained R-Transformer.")
    parser.add_argument("output_folder", help="Folder to make, new or empty.")
    parser.add_argument("--with_cache", action="store_true", help="Export a graph that takes and returns the cache.")
    parser.add_argument(
        "--time",
        type=positive_integer,
        metavar="LENGTH",
        help="Also measure tokens per second beside PyTorch's: of a sequence of this length and, with a cache, of "
        "single tokens after it.",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
