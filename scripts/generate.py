# SPDX-License-Identifier: Apache-2.0
"""
Continues a text with a causal language model, and prints it as it is written.

    python scripts/generate.py outputs/quickstart "The following" --max_new_tokens 300
    echo "The following" | python scripts/generate.py outputs/quickstart --no-do_sample
"""

import argparse
import sys

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, number, positive_integer, seed


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    from transformers import set_seed

    from rtransformer_hf.training.checkpoints import load_causal_lm
    from rtransformer_hf.training.generation import TextWriter
    from rtransformer_hf.training.new_tokenizers import unknown_token_id

    model, tokenizer = load_causal_lm(args.checkpoint)
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    prompt_ids = inputs["input_ids"]
    if prompt_ids.numel() == 0:
        raise UsageError(f"prompt: {prompt!r} (expected a text of at least one token)")
    unknown_id = unknown_token_id(tokenizer)
    if unknown_id is not None and (unknown := int((prompt_ids == unknown_id).sum())):
        print(f"{unknown} of the prompt's {prompt_ids.numel()} tokens are unknown to the model.", file=sys.stderr)

    set_seed(args.seed)
    model.generate(
        **inputs,
        max_new_tokens=args.max_new_tokens,
        do_sample=args.do_sample,
        temperature=args.temperature if args.do_sample else None,
        top_k=args.top_k if args.do_sample else None,
        top_p=args.top_p if args.do_sample else None,
        repetition_penalty=args.repetition_penalty,
        streamer=TextWriter(tokenizer, prompt),
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags have the names of `transformers.GenerationConfig`."""
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("checkpoint", help="Folder or Hub id of a causal language model with its tokenizer.")
    add("prompt", nargs="?", help="Text to continue. (default: what standard input gives)")
    add("--max_new_tokens", type=positive_integer, default=500, help="Tokens to write. (default: %(default)s)")
    add(
        "--do_sample",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Draw tokens at random; --no-do_sample always takes the likeliest. (default: draw)",
    )
    add(
        "--temperature",
        type=number(float, more_than=0),
        default=0.7,
        help="Below 1, likely tokens become likelier. (default: %(default)s)",
    )
    add(
        "--top_k",
        type=number(int, at_least=0),
        default=0,
        help="Draw from this many of the likeliest tokens; 0: from all. (default: 0)",
    )
    add(
        "--top_p",
        type=number(float, more_than=0, at_most=1),
        default=1.0,
        help="Draw from the likeliest tokens that together have this probability. (default: 1)",
    )
    add(
        "--repetition_penalty",
        type=number(float, more_than=0),
        default=1.0,
        help="Above 1, repetitions become rarer. (default: 1)",
    )
    add("--seed", type=seed, default=0, help="The same seed gives the same text. (default: 0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
