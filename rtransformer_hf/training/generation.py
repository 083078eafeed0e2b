# SPDX-License-Identifier: Apache-2.0
"""Text and music as models write them: what a command prints meanwhile, and each step for who watches it."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TextStreamer,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from .piano_rolls import NUM_KEYS


class TextWriter(TextStreamer):
    """
    Prints prompt and continuation as they are decoded, without the token that ends a text, and without the space that
    word tokenizers put before the first word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str):
        super().__init__(tokenizer)
        self.extra_space = "" if prompt.startswith(" ") else " "

    def put(self, value: torch.Tensor):
        """`value`: (1, tokens) of the prompt, then (1,) for each new token."""
        if value.tolist() != [self.tokenizer.eos_token_id]:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False):
        super().on_finalized_text(text.removeprefix(self.extra_space), stream_end)
        if text:
            self.extra_space = ""


class FrameProgress(BaseStreamer):
    """A progress bar that counts the frames that a music model's `sample` makes."""

    def __init__(self, num_frames: int):
        self.bar = tqdm(total=num_frames, unit="frame")

    def put(self, frames: torch.Tensor):
        """`frames`: (batch, time, keys) of the prompt, then (batch, keys) for each new frame."""
        if frames.ndim == 2:
            self.bar.update()

    def end(self):
        self.bar.close()


@torch.no_grad()
def generate_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    num_tokens: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """
    Continues (1, tokens) ids until the text ends or has `num_tokens` more.

    Yields:
        After each new token: the text so far, the (vocabulary,) distribution that the token was drawn from, its id.
    """
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    tokens = input_ids = input_ids.to(model.device)
    cache = DynamicCache(config=model.config)
    for _ in range(num_tokens):
        logits = model(tokens, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        probabilities = warpers(input_ids, logits).softmax(dim=-1)
        tokens = torch.multinomial(probabilities, 1, generator=generator)
        input_ids = torch.cat([input_ids, tokens], dim=-1)
        has_ended = int(tokens) == tokenizer.eos_token_id
        text = input_ids[0, :-1] if has_ended else input_ids[0]
        yield tokenizer.decode(text), probabilities[0], int(tokens)
        if has_ended:
            return


def generate_frames(
    model: PreTrainedModel, tune: np.ndarray, num_frames: int, temperature: float, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """Continues a tune, (frames, 88), by `num_frames` frames, (88,) each. After an empty tune it starts a new one."""
    given = tune if len(tune) else np.zeros((1, NUM_KEYS), dtype=np.uint8)
    frames = torch.from_numpy(given)[None].to(model.device, model.dtype)
    for frame in islice(model.sample_frames(frames, None, temperature, generator), num_frames):
        yield frame[0, 0].to("cpu", torch.uint8).numpy()
