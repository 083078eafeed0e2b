# SPDX-License-Identifier: Apache-2.0
"""
Layers of a Transformers cache for R-Transformer, and the order that keeps padding out of a LocalRNN's windows.

`DynamicCache(config=...)` and `StaticCache(config=...)` make the library's hybrid layers, which hold keys, values and
the last inputs of each LocalRNN layer. Those layers select rows of the keys and values alone, and a static one rolls
back the inputs alone. The classes here add the rest; `adopt_cache` puts them in place.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionLayer,
    StaticLayer,
)


class PaddingOrder(NamedTuple):
    """
    New inputs (batch, time) reordered so that each row's padding comes first and its real inputs stay in order. With
    the kept inputs of the row between the two, every window holds real inputs alone.
    """

    sources: torch.Tensor  # (batch, time), the position of the input that comes at each place
    places: torch.Tensor  # (batch, time), the place of each input: the inverse
    num_padded: torch.Tensor  # (batch, 1)

    @classmethod
    def from_mask(cls, token_mask: torch.Tensor) -> "PaddingOrder":
        """`token_mask` is (batch, time), 0 at padding."""
        is_padding = token_mask == 0
        num_padded = is_padding.sum(dim=1, keepdim=True)
        places = torch.where(is_padding, is_padding.cumsum(dim=1), num_padded + (~is_padding).cumsum(dim=1)) - 1
        positions = torch.arange(places.shape[1], device=places.device).expand_as(places)
        return cls(torch.zeros_like(places).scatter(1, places, positions), places, num_padded)

    def move_padding(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, channels, kept + time), the kept inputs and the new ones -> the padding, the kept, the real ones."""
        num_kept = states.shape[-1] - self.sources.shape[1]
        places = torch.arange(states.shape[-1], device=states.device)
        sources = self.sources + num_kept
        from_kept = places - self.num_padded
        real = torch.where(from_kept < num_kept, from_kept, F.pad(sources, (num_kept, 0)))
        return take(states, torch.where(from_kept < 0, F.pad(sources, (0, num_kept)), real))


def take(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(batch, channels, time), (batch, new time) -> (batch, channels, new time): each row's columns by their index."""
    return states.gather(-1, columns[:, None].expand(-1, states.shape[1], -1))


class LocalRNNStates(LinearAttentionLayer):
    """
    The LocalRNN's part of a cache layer: the last `local_window_size` real inputs, and while the past is recorded for
    a rollback all inputs since.
    """

    # (batch, columns), 1 at padding that was moved, for the last columns that can be rolled back; None: no such.
    recorded_padding: torch.Tensor | None = None

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        padding_order: PaddingOrder | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            conv_states: (batch, channels, time), the new inputs, zero at padding.
            padding_order: that of the new inputs; None where no padding follows a real input.

        Returns:
            (batch, channels, kept + time), the inputs that were kept and the new ones, padding first.
        """
        kept = self.conv_states[state_idx]
        if kept is not None and not self.record_past and kept.shape[-1] != self.conv_kernel_size[state_idx]:
            # Left by a rollback or a recording that has ended; a negative number of zeros takes columns away.
            self.conv_states[state_idx] = F.pad(kept, (self.conv_kernel_size[state_idx] - kept.shape[-1], 0))
        states = super().update_conv_state(conv_states, state_idx, conv_kernel_size=conv_kernel_size, **kwargs)
        if self.record_past and state_idx == 0:
            self.record_padding(conv_states, padding_order)
        if padding_order is not None:
            states = padding_order.move_padding(states)
            if self.record_past:
                self.conv_states[state_idx] = states
            else:  # in place: a compiled graph knows the tensor by its address
                self.conv_states[state_idx].copy_(states[..., -self.conv_kernel_size[state_idx] :])
        return states

    def record_padding(self, conv_states: torch.Tensor, padding_order: PaddingOrder | None):
        """Notes which of the new columns are padding, so that a rollback can tell how many inputs they added."""
        batch_size, _, length = conv_states.shape
        if padding_order is not None:
            is_padding = (padding_order.places < padding_order.num_padded).int()
            if self.recorded_padding is None:
                self.recorded_padding = is_padding.new_zeros(batch_size, 0)
        elif self.recorded_padding is not None:
            is_padding = self.recorded_padding.new_zeros(batch_size, length)
        else:
            return
        self.recorded_padding = torch.cat([self.recorded_padding, is_padding], dim=1)

    def crop_conv_states(self, tokens_to_remove: int):
        """Rolls the inputs back. A column that is padding in a row added no input to it, and takes none away."""
        if not self.record_past or tokens_to_remove > 0:
            LinearAttentionLayer.crop(self, tokens_to_remove)  # raises, and says why
        num_columns = abs(tokens_to_remove)
        num_left = int(self.get_seq_length()) - num_columns
        for state_idx, states in self.conv_states.items():
            if states is None:
                continue
            window_size = self.conv_kernel_size[state_idx]
            num_kept = states.shape[-1] - num_columns
            if num_kept < min(window_size - 1, num_left):
                raise RuntimeError(
                    f"`crop({tokens_to_remove})` goes back further than this cache has recorded: it can take back "
                    f"{states.shape[-1] - window_size + 1} tokens."
                )
            states = F.pad(states, (window_size, 0))
            columns = torch.arange(window_size, device=states.device).expand(len(states), -1) + max(num_kept, 0)
            if self.recorded_padding is not None and num_columns > 0:
                columns = columns + self.recorded_padding[:, -num_columns:].sum(dim=1, keepdim=True)
            states = take(states, columns)
            self.conv_states[state_idx] = states[..., window_size - min(max(num_kept, 0), window_size) :]
        if self.recorded_padding is not None:
            num_recorded = max(self.recorded_padding.shape[1] - num_columns, 0)
            first = max(num_recorded - self.conv_kernel_size[0], 0)
            self.recorded_padding = self.recorded_padding[:, first:num_recorded]

    def select_rows(self, rows: torch.Tensor):
        """Keeps the rows of the batch with these indices, of everything in the layer."""

        def select(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows.to(tensor.device)]  # keys and values may be offloaded

        for state_idx, states in self.conv_states.items():
            if states is not None:
                self.conv_states[state_idx] = select(states)
        if self.recorded_padding is not None:
            self.recorded_padding = select(self.recorded_padding)
        if self.is_initialized:
            self.keys, self.values = select(self.keys), select(self.values)
            self.batch_size = len(self.keys)

    def reorder_cache(self, beam_idx: torch.LongTensor):
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor):
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int):
        tensors = [tensor for tensor in (self.keys, *self.conv_states.values()) if tensor is not None]
        if tensors:
            self.select_rows(torch.arange(len(tensors[0]), device=tensors[0].device).repeat_interleave(repeats))


class RTransformerDynamicLayer(LocalRNNStates, LinearAttentionAndFullAttentionLayer):
    """A layer of a `DynamicCache`."""

    def crop(self, tokens_to_remove: int):
        self.crop_conv_states(tokens_to_remove)
        DynamicLayer.crop(self, tokens_to_remove)

    def reset(self):
        number_of_states, record_past = self.number_of_states, self.record_past
        vars(self).clear()
        self.__init__(number_of_states)
        self.record_past = record_past

    # The inputs of a few positions are not worth moving: they stay where the model is.
    def offload(self):
        DynamicLayer.offload(self)

    def prefetch(self):
        DynamicLayer.prefetch(self)


class RTransformerStaticLayer(LocalRNNStates, LinearAttentionAndStaticFullAttentionLayer):
    """A layer of a `StaticCache`. What a rollback leaves of keys and values behind the end is masked."""

    def crop(self, tokens_to_remove: int):
        self.crop_conv_states(tokens_to_remove)
        self.cumulative_length.sub_(abs(tokens_to_remove)).clamp_(min=0)

    def reset(self):
        super().reset()
        self.recorded_padding = None

    def get_max_length(self) -> int:
        return self.max_cache_len

    def offload(self):
        StaticLayer.offload(self)

    def prefetch(self):
        StaticLayer.prefetch(self)


ADOPTED_LAYERS = {
    LinearAttentionAndFullAttentionLayer: RTransformerDynamicLayer,
    LinearAttentionAndStaticFullAttentionLayer: RTransformerStaticLayer,
}


def adopt_cache(cache: Cache):
    """Replaces the library's hybrid layers of a cache, empty or not, by those of this file."""
    for layer_idx, layer in enumerate(cache.layers):
        if type(layer) in ADOPTED_LAYERS:
            adopted_class = ADOPTED_LAYERS[type(layer)]
            cache.layers[layer_idx] = adopted = adopted_class.__new__(adopted_class)
            adopted.__dict__.update(vars(layer))  # a compiler follows this, but no change of a class
