# SPDX-License-Identifier: Apache-2.0
"""
Writes text with a causal language model that `scripts/export_onnx.py --with_cache` has exported. It needs neither
PyTorch nor Transformers: onnxruntime, numpy and tokenizers are enough.

    python scripts/generate_onnx.py outputs/quickstart_onnx "The following"
    python scripts/generate_onnx.py outputs/quickstart_onnx "The following" --temperature 0   # always the likeliest
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rtransformer_hf.training.command_line import CommandParser, run_command

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer


def generate(
    session: InferenceSession,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    max_new_tokens: int = 500,
    temperature: float = 0.0,
    seed: int = 0,
    eos_token_id: int | None = None,
) -> Iterator[np.ndarray]:
    """
    Continues sequences token by token, with the cache.

    Args:
        session: an exported model with a cache.
        input_ids: (batch, time) token ids, at least one.
        attention_mask: (batch, time), 0 at padding, which must be on the left.
        max_new_tokens: number of tokens to add.
        temperature: divides the logits; 0 takes the likeliest token.
        seed: the same one gives the same tokens.
        eos_token_id: ends a sequence, and is repeated behind its end while others go on.

    Yields:
        (batch, 1), the next token of each sequence.
    """
    random = np.random.default_rng(seed)
    batch_size = len(input_ids)
    if attention_mask is None:
        attention_mask = np.ones_like(input_ids)
    has_ended = np.zeros(batch_size, dtype=bool)
    sizes = {"batch": batch_size, "past": 0}
    past = {
        node.name: np.zeros([sizes.get(size, size) for size in node.shape], dtype=np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past.")
    }
    for _ in range(max_new_tokens):
        logits, *present = session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask, **past})
        logits = logits[:, -1]
        if temperature > 0:
            logits = logits / temperature + random.gumbel(size=logits.shape)  # its maximum is a draw of the softmax
        input_ids = logits.argmax(axis=-1)[:, None]
        if eos_token_id is not None:
            input_ids[has_ended] = eos_token_id
            has_ended |= input_ids[:, 0] == eos_token_id
        attention_mask = np.concatenate([attention_mask, np.ones_like(input_ids)], axis=1)
        past = dict(zip(past, present, strict=True))
        yield input_ids
        if has_ended.all():
            return


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    session, tokenizer, eos_token_id = load(args.folder)
    token_ids = tokenizer.encode(args.prompt, add_special_tokens=False).ids
    if not token_ids:
        sys.exit(f"generate_onnx.py: error: prompt {args.prompt!r} holds no token; at least one is accepted.")
    prompt = np.array([token_ids], dtype=np.int64)
    for token in generate(session, prompt, None, args.max_new_tokens, args.temperature, args.seed, eos_token_id):
        if token.item() != eos_token_id:
            token_ids.append(token.item())
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    # Word tokenizers put a space before the first word too.
    print(text if args.prompt.startswith(" ") else text.removeprefix(" "))


def load(folder: str) -> tuple[InferenceSession, Tokenizer, int | None]:
    """The model, its tokenizer, and the id of the token that ends a text, if the model has one."""
    accepted = "a folder that export_onnx.py has made of a causal language model, with --with_cache, is accepted"
    for name in ("model.onnx", "config.json", "tokenizer.json"):
        if not Path(folder, name).is_file():
            sys.exit(f"generate_onnx.py: error: folder {folder!r} has no {name}; {accepted}.")
    session = InferenceSession(Path(folder, "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}
    if not inputs >= {"input_ids", "past.0.key"}:
        sys.exit(f"generate_onnx.py: error: the model of folder {folder!r} takes {sorted(inputs)}; {accepted}.")
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    return session, Tokenizer.from_file(str(Path(folder, "tokenizer.json"))), config.get("eos_token_id")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", help="What export_onnx.py has made, with --with_cache.")
    parser.add_argument("prompt", help="Text to continue.")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="Tokens to write. (default: %(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        help="Below 1, likely tokens become likelier; 0: always the likeliest. (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same text. (default: 0)")
    args = parser.parse_args(argv)
    for name, is_accepted, accepted in (
        ("max_new_tokens", args.max_new_tokens > 0, "more than 0"),
        ("temperature", args.temperature >= 0, "0 or more"),
        ("seed", args.seed >= 0, "0 or more"),
    ):
        if not is_accepted:
            parser.error(f"--{name} {getattr(args, name)} is not accepted; it must be {accepted}.")
    return args


if __name__ == "__main__":
    run_command(main)
