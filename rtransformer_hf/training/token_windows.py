# SPDX-License-Identifier: Apache-2.0
"""A stream of tokens as windows in which every token but the very first is predicted exactly once."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import count

import numpy as np
import torch

from .errors import UsageError
from .token_stream import TokenStream

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def shift(epoch: int, stride: int) -> int:
    """How many tokens later the stream begins in an epoch: fewer than `stride`, and far from those before."""
    return round(epoch * GOLDEN_RATIO * stride) % stride


class TokenWindows(torch.utils.data.Dataset):
    """
    A stream of tokens as windows of `context_length` inputs, one every `stride` tokens. Every token but the very first
    is a label exactly once: what a window shares with the one before it is context, without loss. The last window ends
    with the stream.

    Args:
        tokens: (time,) the stream's token ids, of which slices are taken; at least two.
        num_characters: number of characters that the predicted tokens stand for; end-of-text tokens stand for none.
        context_length: inputs in a window. A window has one token more: the label of its last input.
        stride: inputs from a window's start to the next one's, 1 to `context_length`.
        shifts: whether the stream begins elsewhere every epoch, less than `stride` tokens on, with what lies before
            behind its end: all windows are cut at other places then.
    """

    def __init__(
        self,
        tokens: TokenStream | torch.Tensor,
        num_characters: int,
        context_length: int,
        stride: int,
        shifts: bool = False,
    ):
        self.tokens, self.num_characters, self.window_size = tokens, num_characters, context_length + 1
        self.last_start = max(0, len(tokens) - self.window_size)
        self.stride, self.shifts, self.offset = stride, shifts, 0

    def set_epoch(self, epoch: int):
        if self.shifts:
            self.offset = shift(epoch, self.stride) % len(self.tokens)

    def __len__(self) -> int:
        return math.ceil(self.last_start / self.stride) + 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]  # from the end where it is negative, an IndexError where there is none
        start = min(index * self.stride, self.last_start)
        context = 1 if index == 0 else (index - 1) * self.stride + self.window_size - start
        return window(self.read(start, min(start + self.window_size, len(self.tokens))), context)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens of the stream as it begins in this epoch."""
        start, stop, end = start + self.offset, stop + self.offset, len(self.tokens)
        spans = [(min(start, end), min(stop, end)), (max(start - end, 0), max(stop - end, 0))]
        return np.concatenate([self.tokens[first:last] for first, last in spans if first < last])


class StreamedWindows(torch.utils.data.IterableDataset):
    """
    The windows of [`TokenWindows`] from a stream that is read from its start to its end, again and again: without end.
    Their order is theirs through a buffer, out of which any is drawn when the next one comes. It depends on the seed
    and the epoch alone, so that a training which skips what it has had goes on as if it had not been stopped.

    Args:
        read: starts the stream anew and gives its token ids in parts of any length.
        source: what is read, for messages.
        context_length, stride, shifts: as of [`TokenWindows`].
        buffer_size: windows in the buffer; with 1, they come in their order.
        seed: of the order.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[np.ndarray]],
        source: str,
        context_length: int,
        stride: int,
        shifts: bool = False,
        buffer_size: int = 1,
        seed: int = 0,
    ):
        self.tokens, self.source, self.window_size, self.stride = read, source, context_length + 1, stride
        self.shifts, self.buffer_size, self.seed = shifts, buffer_size, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for epoch in count():
            yield from self.shuffled(self.epoch(epoch), np.random.default_rng((self.seed, epoch)))

    def shuffled(self, windows: Iterable[dict], random: np.random.Generator) -> Iterator[dict[str, torch.Tensor]]:
        buffer = []
        for following in windows:
            buffer.append(following)
            if len(buffer) >= self.buffer_size:
                drawn = random.integers(len(buffer))
                buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
                yield buffer.pop()
        random.shuffle(buffer)
        yield from buffer

    def epoch(self, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        """
        All windows, in order.

        Raises:
            UsageError: there are less than two tokens.
        """
        tokens, position = np.empty(0, np.int64), 0  # those from the last window's start on; the first one's place
        start, predicted = 0, 1  # of the next window; all tokens up to here have been labels
        for part in self.from_shift(shift(epoch, self.stride) if self.shifts else 0):
            tokens = np.concatenate([tokens, part])
            while start + self.window_size < position + len(tokens):
                tokens, position = tokens[start - position :], start
                yield window(tokens[: self.window_size], predicted - start)
                start, predicted = start + self.stride, start + self.window_size
        if position + len(tokens) < 2:
            raise UsageError(f"{self.source} holds {position + len(tokens)} tokens (expected at least 2)")
        last = tokens[-self.window_size :]
        yield window(last, predicted - (position + len(tokens) - len(last)))

    def from_shift(self, offset: int) -> Iterator[np.ndarray]:
        """The stream from its token `offset` on, and then those before it."""
        before = np.empty(0, np.int64)
        for part in self.tokens():
            missing = max(0, offset - len(before))
            before = np.concatenate([before, part[:missing]])
            yield part[missing:]
        rest = offset % max(1, len(before))  # not 0 where the stream is shorter than that
        yield np.concatenate([before[rest:], before[:rest]])


def window(tokens: np.ndarray, context: int) -> dict[str, torch.Tensor]:
    """
    Args:
        tokens: (time,) inputs, and the label of the last one.
        context: tokens at the start that are no labels.
    """
    input_ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))
    labels = input_ids.clone()
    labels[:context] = -100
    return {"input_ids": input_ids, "labels": labels}
