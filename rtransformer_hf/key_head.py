# SPDX-License-Identifier: Apache-2.0
"""
The output side of the music model: the autoregressive key head, the loss of a frame, and sampling.

A frame is one time step of a piano roll: a vector of keys, 1 where a key sounds.
"""

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from .configuration_rtransformer import RTransformerConfig
from .masking_rtransformer import can_read, is_any, real_positions


class RTransformerMaskedLinear(nn.Module):
    """
    A linear layer with a mask on its weight. Not an `nn.Linear`: quantisation and PEFT would replace it with a module
    whose weight cannot be masked.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features = in_features  # read by the weight initialisation
        linear = nn.Linear(in_features, out_features)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight * mask, self.bias)


class RTransformerAutoregressiveKeyHead(nn.Module):
    """
    Predicts each key from the hidden state and the lower keys of the same frame, which makes a frame's distribution a
    joint one. One hidden layer whose weights are masked so that no key sees itself or a higher one (MADE, arXiv
    1502.03509). Its logits are added to those of the independent keys.
    """

    def __init__(self, config: RTransformerConfig, num_keys: int):
        super().__init__()
        self.units_per_key = config.key_head_size
        num_units = num_keys * self.units_per_key
        self.state_proj = nn.Linear(config.hidden_size, num_units)
        self.frame_proj = RTransformerMaskedLinear(num_keys, num_units)
        self.out_proj = RTransformerMaskedLinear(num_units, num_keys)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, next_frames: torch.Tensor) -> torch.Tensor:
        """
        Args:
            hidden_states: (batch, time, hidden_size), outputs of the model.
            next_frames: (batch, time, keys), the frames to predict.

        Returns:
            (batch, time, keys) logits to add to those of the independent keys.
        """
        frame_mask, out_mask = self.masks()
        units = self.state_proj(hidden_states) + self.frame_proj(next_frames, frame_mask)
        return self.out_proj(self.dropout(self.activation(units)), out_mask)

    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(units, keys): each key's units see the keys below it; (keys, units): they feed this key and those above."""
        num_keys, num_units = self.out_proj.weight.shape
        keys = torch.arange(num_keys, device=self.out_proj.weight.device)
        unit_keys = keys.repeat_interleave(self.units_per_key, output_size=num_units)
        return keys < unit_keys[:, None], unit_keys <= keys[:, None]

    def sample(
        self,
        hidden_states: torch.Tensor,
        independent_logits: torch.Tensor,
        temperature: float,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """
        Draws one frame, from the lowest key to the highest. A key that sounds is added to the units of the keys above
        it, so a key costs one product of its own instead of a pass through the whole head.

        Args:
            hidden_states: (batch, 1, hidden_size).
            independent_logits: (batch, 1, keys), the logits of the independent keys.

        Returns:
            (batch, 1, keys) of zeros and ones.
        """
        frame_mask, out_mask = self.masks()
        frame_weight, out_weight = self.frame_proj.weight * frame_mask, self.out_proj.weight * out_mask
        units = self.state_proj(hidden_states) + self.frame_proj.bias
        logits = independent_logits + self.out_proj.bias
        frame = torch.empty_like(logits)
        for key in range(logits.shape[-1]):
            logit = logits[..., key] + self.activation(units) @ out_weight[key]
            frame[..., key] = torch.bernoulli(torch.sigmoid(logit.float() / temperature), generator=generator)
            units = units + frame[..., key, None] * frame_weight[:, key]
        return frame


def next_frame_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    (batch, time - 1) negative log-likelihood of each next frame, summed over its keys; 0 for frames that are -100.

    Args:
        logits: (batch, time, keys); those at t predict the frame at t + 1.
        labels: (batch, time, keys).
    """
    logits, labels = logits[:, :-1].float(), labels[:, 1:].to(logits.device)
    is_labeled = (labels != -100).all(dim=-1)
    targets = torch.where(is_labeled[..., None], labels, 0).to(logits.dtype)
    nats = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=-1)
    return nats * is_labeled


def next_frame_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    Mean of `next_frame_nats` over the frames that are not -100. With `num_items_in_batch`, the number of label values
    in the whole batch, it is the sum divided by the frames of the whole batch.
    """
    if num_items_in_batch is None:
        num_frames = (labels[:, 1:] != -100).all(dim=-1).sum().to(logits.device).clamp(min=1)
    else:
        num_items = torch.as_tensor(num_items_in_batch, device=logits.device).clamp(min=1)
        num_frames = num_items / labels.shape[-1]
    return next_frame_nats(logits, labels).sum() / num_frames


def fill_padding(
    frames: torch.Tensor, attention_mask: torch.Tensor | None, value: float, first_too: bool = False
) -> torch.Tensor:
    """(batch, time, keys), with `value` in padded frames and, with `first_too`, in the first frame after padding."""
    if attention_mask is None or frames.ndim != 3:
        return frames
    is_padding = ~real_positions(frames, attention_mask)[..., None]
    if first_too:
        is_padding = is_padding | F.pad(is_padding[:, :-1], (0, 0, 1, 0))
    return frames.masked_fill(is_padding, value)


def check_frames(name: str, frames: torch.Tensor, attention_mask: torch.Tensor | None):
    """
    Raises a ValueError if (batch, time, keys) frames hold invalid values: `input_values` must be between 0 and 1,
    `labels` 0 or 1, or -100 in all keys of a frame. Padded frames may hold anything.
    """
    if not can_read(frames):
        return
    if name == "labels":
        expected = "zeros and ones, or -100 in all keys of a frame"
        is_unlabeled = (frames == -100).all(dim=-1, keepdim=True)
        is_valid = (frames == 0) | (frames == 1) | is_unlabeled
    else:
        expected = "values from 0 to 1"
        is_valid = (frames >= 0) & (frames <= 1)
    if frames.ndim == 3:
        is_valid = is_valid | ~real_positions(frames, attention_mask)[..., None]
    if is_any(~is_valid):
        raise ValueError(f"`{name}` must hold {expected}, got {frames[~is_valid][0].item()}.")


class FrameSamplingMixin:
    """Adds `sample` to the music model, as `GenerationMixin` adds `generate` to a language model."""

    @torch.no_grad()
    def sample(
        self,
        input_values: torch.Tensor,
        max_new_frames: int,
        attention_mask: torch.Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        streamer: BaseStreamer | None = None,
    ) -> torch.Tensor:
        """
        Continues tunes frame by frame, with a cache.

        Args:
            input_values: (batch, time, keys), at least one frame to continue from. A silent frame starts a new tune.
            max_new_frames: number of frames to add.
            attention_mask: (batch, time), 0 at padding, which must be on the left.
            temperature: the logits are divided by it; values below 1 favour the likelier keys.
            generator: source of randomness, on the model's device. The same seed gives the same music.
            streamer: its `put` receives the given frames, then each new frame (batch, keys) as soon as it is drawn;
                `end` is called last.

        Returns:
            (batch, time + max_new_frames, keys) of zeros and ones: the given frames and the new ones.

        Raises:
            ValueError: an argument is out of range; the message names it.
        """
        if self.config.input_size is None:
            raise ValueError("`sample` feeds frames back to the model and needs `config.input_size`, which is None.")
        if input_values.ndim != 3 or input_values.shape[1] < 1:
            raise ValueError(
                f"`input_values` must have the shape (batch, time, {self.num_keys}) with at least one frame, got "
                f"{tuple(input_values.shape)}."
            )
        if max_new_frames < 0:
            raise ValueError(f"`max_new_frames` must be an integer of at least 0, got {max_new_frames}.")
        if temperature <= 0:
            raise ValueError(f"`temperature` must be greater than 0, got {temperature}.")
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("`attention_mask` must be padded on the left, but its last column has zeros.")
        check_frames("input_values", input_values, attention_mask)

        frames = fill_padding(input_values, attention_mask, 0).to(self.device, self.dtype)
        if streamer is not None:
            streamer.put(frames)
        pieces = [frames]
        for frame in islice(self.sample_frames(frames, attention_mask, temperature, generator), max_new_frames):
            pieces.append(frame)
            if streamer is not None:
                streamer.put(frame[:, 0])
        if streamer is not None:
            streamer.end()
        return torch.cat(pieces, dim=1)

    @torch.no_grad()
    def sample_frames(
        self,
        frames: torch.Tensor,
        attention_mask: torch.Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Iterator[torch.Tensor]:
        """Yields new frames (batch, 1, keys) without end. Arguments as in `sample`, unchecked."""
        cache = DynamicCache(config=self.config)
        while True:
            outputs = self.model(input_values=frames, attention_mask=attention_mask, cache=cache, use_cache=True)
            hidden_states = outputs.last_hidden_state[:, -1:]
            logits = self.key_head(hidden_states)
            if self.config.key_head_type == "independent":
                frames = torch.bernoulli(torch.sigmoid(logits.float() / temperature), generator=generator)
            else:
                frames = self.chord_head.sample(hidden_states, logits, temperature, generator)
            frames = frames.to(self.dtype)
            yield frames
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1), value=1)
