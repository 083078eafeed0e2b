# SPDX-License-Identifier: Apache-2.0
"""
Converts a checkpoint of the published R-Transformer code (github.com/DSE-MSU/R-transformer), or of its variant with
butterfly matrices (github.com/sfox14/butterfly-r-transformer), to a folder that `from_pretrained` opens.

    python scripts/convert_official_checkpoint.py model.pt converted
    python scripts/convert_official_checkpoint.py state_dict.pt converted --local_window_size 7 --num_attention_heads 8

No code in the checkpoint is executed, so it may come from anyone.
"""

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, positive_integer


def main(arguments: list[str] | None = None):
    description, examples = __doc__.strip().split("\n\n", 1)
    parser = CommandParser(description=description, epilog=examples)
    parser.add_argument(
        "checkpoint", help="State dict or whole module, as written by torch.save, or a .safetensors state dict."
    )
    parser.add_argument("output_dir", help="Folder to make, new or empty.")
    parser.add_argument(
        "--local_window_size",
        type=positive_integer,
        metavar="K",
        help="Window of the LocalRNN; required for a state dict.",
    )
    parser.add_argument(
        "--num_attention_heads",
        type=positive_integer,
        metavar="H",
        help="Number of attention heads; required for a state dict.",
    )
    args = parser.parse_args(arguments)
    from rtransformer_hf.checkpoint_conversion import convert_official_checkpoint

    try:
        model, dropped = convert_official_checkpoint(
            args.checkpoint,
            args.output_dir,
            local_window_size=args.local_window_size,
            num_attention_heads=args.num_attention_heads,
        )
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error

    config, model_class = model.config, type(model).__name__
    print(f"Found      {model_class}, {model.num_parameters():,} parameters, {model.dtype}")
    print(f"           {config.num_hidden_layers} blocks of {config.num_local_rnn_layers} LocalRNN layers")
    print(f"           {config.local_rnn_type} cells, window {config.local_window_size}")
    if config.projection_type != "dense":
        print(f"           {config.projection_type} matrices of {config.num_butterfly_blocks} blocks")
    print(f"           hidden size {config.hidden_size}, {config.num_attention_heads} attention heads")
    print(f"Dropped    {len(dropped)} parameters that the published model does not use")
    for name in dropped:
        print(f"           {name}")
    print(f"Written to {args.output_dir}; load it with")
    print(f"           from rtransformer_hf import {model_class}")
    print(f"           model = {model_class}.from_pretrained({args.output_dir!r})")
    print("           Its outputs were not compared with the published model's, and it has no card (README.md) yet.")


if __name__ == "__main__":
    run_command(main)
