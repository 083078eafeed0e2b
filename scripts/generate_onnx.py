# SPDX-License-Identifier: Apache-2.0
"""
Continues a text with a causal language model that `scripts/export_onnx.py --with_cache` has exported. It needs
onnxruntime, numpy and tokenizers, but neither PyTorch nor Transformers.

    python scripts/generate_onnx.py outputs/quickstart_onnx "The following"
    python scripts/generate_onnx.py outputs/quickstart_onnx "The following" --temperature 0   # greedy
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, number, positive_integer, seed

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    import numpy as np

    session, tokenizer, eos_token_id = load(args.folder)
    token_ids = tokenizer.encode(args.prompt, add_special_tokens=False).ids
    if not token_ids:
        raise UsageError(f"prompt: {args.prompt!r} (expected a text of at least one token)")
    prompt = np.array([token_ids], dtype=np.int64)
    for token in generate(session, prompt, None, args.max_new_tokens, args.temperature, args.seed, eos_token_id):
        if token.item() != eos_token_id:
            token_ids.append(token.item())
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    # Word tokenizers put a space before the first word too.
    print(text if args.prompt.startswith(" ") else text.removeprefix(" "))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", help="Folder that export_onnx.py --with_cache has written.")
    parser.add_argument("prompt", help="Text to continue.")
    parser.add_argument(
        "--max_new_tokens", type=positive_integer, default=500, help="Tokens to write. (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=number(float, at_least=0),
        default=0.7,
        help="Below 1, likely tokens become likelier; 0 always takes the likeliest. (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="The same seed gives the same text. (default: 0)")
    return parser.parse_args(argv)


def load(folder: str) -> "tuple[InferenceSession, Tokenizer, int | None]":
    """
    The model, its tokenizer, and the id of the token that ends a text, if the model has one.

    Raises:
        UsageError: the folder holds no language model that was exported with a cache.
    """
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    expected = "expected a causal language model, as export_onnx.py --with_cache writes it"
    for name in ("model.onnx", "config.json", "tokenizer.json"):
        if not Path(folder, name).is_file():
            raise UsageError(f"folder: no {name} in {folder!r} ({expected})")
    session = InferenceSession(Path(folder, "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}
    if not inputs >= {"input_ids", "past.0.key"}:
        raise UsageError(f"folder: the model in {folder!r} takes {sorted(inputs)} ({expected})")
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    return session, Tokenizer.from_file(str(Path(folder, "tokenizer.json"))), config.get("eos_token_id")


def generate(
    session: "InferenceSession",
    input_ids: "np.ndarray",
    attention_mask: "np.ndarray | None" = None,
    max_new_tokens: int = 500,
    temperature: float = 0.0,
    seed: int = 0,
    eos_token_id: int | None = None,
) -> "Iterator[np.ndarray]":
    """
    Continues sequences token by token, with the cache.

    Args:
        session: an exported model with a cache.
        input_ids: (batch, time) token ids, at least one.
        attention_mask: (batch, time), 0 at padding. Padding must be on the left.
        max_new_tokens: number of tokens to add.
        temperature: divides the logits; 0 means greedy decoding.
        seed: the same seed gives the same tokens.
        eos_token_id: ends a sequence, and pads it while others go on.

    Yields:
        (batch, 1), the next token of each sequence.
    """
    import numpy as np

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
            logits = logits / temperature + random.gumbel(size=logits.shape)  # the maximum is a draw from the softmax
        input_ids = logits.argmax(axis=-1)[:, None]
        if eos_token_id is not None:
            input_ids[has_ended] = eos_token_id
            has_ended |= input_ids[:, 0] == eos_token_id
        attention_mask = np.concatenate([attention_mask, np.ones_like(input_ids)], axis=1)
        past = dict(zip(past, present, strict=True))
        yield input_ids
        if has_ended.all():
            return


if __name__ == "__main__":
    run_command(main)
