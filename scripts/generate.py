# SPDX-License-Identifier: Apache-2.0
"""
Writes text with a causal language model, as it is made.

    python scripts/generate.py outputs/quickstart "The following"
    echo "The following" | python scripts/generate.py outputs/quickstart --temperature 0.7
"""

import argparse
import sys

from rtransformer_hf.training.command_line import CommandParser, run_command

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
    set_seed,
)

import rtransformer_hf  # noqa: F401  (makes the model known to the Auto classes)
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import CAUSAL_LM_ARCHITECTURES, check_architecture, default_device
from rtransformer_hf.training.new_tokenizers import unknown_token_id


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    try:
        model, tokenizer = load_causal_lm(args.checkpoint)
    except UsageError as error:
        sys.exit(f"generate.py: error: {error}")
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    prompt_ids = inputs["input_ids"]
    if prompt_ids.numel() == 0:
        sys.exit(f"generate.py: error: prompt {prompt!r} holds no token; a text of at least one is accepted.")
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


class TextWriter(TextStreamer):
    """
    Prints prompt and continuation as they are decoded, without the token that ends the text, and without the space
    that word tokenizers put before the first word too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str):
        super().__init__(tokenizer)
        self.extra_space = "" if prompt.startswith(" ") else " "

    def put(self, value: torch.Tensor):
        if value.tolist() != [self.tokenizer.eos_token_id]:  # as is told of the prompt by its shape, (1, tokens)
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False):
        super().on_finalized_text(text.removeprefix(self.extra_space), stream_end)
        if text:
            self.extra_space = ""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Flags are those of `transformers.GenerationConfig`."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", help="Folder or Hub id of a causal language model with its tokenizer.")
    parser.add_argument("prompt", nargs="?", help="Text to continue; read from standard input where it is left out.")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="Tokens to write. (default: %(default)s)")
    parser.add_argument(
        "--do_sample",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Draw tokens by their probability; with --no-do_sample always take the likeliest. (default: draw)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="Below 1, likely tokens become likelier. (default: %(default)s)"
    )
    parser.add_argument(
        "--top_k", type=int, default=0, help="Draw from so many likeliest tokens; 0: all. (default: 0)"
    )
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="Draw from the likeliest with so much probability. (default: 1)"
    )
    parser.add_argument(
        "--repetition_penalty", type=float, default=1.0, help="Above 1, repeats become rarer. (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same text. (default: 0)")
    args = parser.parse_args(argv)
    for name, is_accepted, accepted in (
        ("max_new_tokens", args.max_new_tokens > 0, "more than 0"),
        ("temperature", args.temperature > 0, "more than 0"),
        ("top_k", args.top_k >= 0, "0 or more"),
        ("top_p", 0 < args.top_p <= 1, "more than 0 and at most 1"),
        ("repetition_penalty", args.repetition_penalty > 0, "more than 0"),
        ("seed", 0 <= args.seed < 2**32, "0 or more and less than 2**32"),
    ):
        if not is_accepted:
            parser.error(f"--{name} {getattr(args, name)} is not accepted; it must be {accepted}.")
    return args


def load_causal_lm(checkpoint: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    The model and its tokenizer.

    Raises:
        UsageError: there is no such checkpoint, or it is none of a causal language model. The Auto class alone would
            open other models with a new, untrained output layer.
    """
    accepted = "a folder or Hub id of a causal language model with its tokenizer is accepted"
    try:
        check_architecture(checkpoint, *CAUSAL_LM_ARCHITECTURES)
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        return model.to(default_device()), AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UsageError(f"checkpoint {checkpoint!r} can't be used; {accepted}: {error}") from error


if __name__ == "__main__":
    run_command(main)
