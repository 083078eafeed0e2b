# SPDX-License-Identifier: Apache-2.0
"""
The LocalRNN's part of a Transformers cache: its last inputs, and the states of its unfinished windows.

`DynamicCache(config=...)` and `StaticCache(config=...)` make Transformers' hybrid layers, which hold keys, values and
the last inputs of each LocalRNN layer. Those layers reorder and repeat only the keys and values, and a static one
rolls back only the inputs. The layers here do both; `adopt_cache` puts them in place.
"""

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
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

from .configuration_rtransformer import RTransformerConfig
from .local_rnn import State
from .masking_rtransformer import PaddingOrder, take

# Transformers' name for the cache in arguments and outputs: "past_key_values" before 5.24, "cache" since.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# Decorator: `forward(cache=...)` also takes `past_key_values`, with the library's deprecation warning from 5.24 on.
# Both together are an error: `generate(cache=...)` before 5.24 makes a cache of its own and would pass the two.
takes_past_key_values = deprecate_kwarg(
    "past_key_values",
    new_name="cache",
    version="5.40.0" if CACHE_NAME == "cache" else "5.0.0",
    raise_if_both_names=True,
)


class LocalRNNStates(LinearAttentionLayer):
    """
    The LocalRNN's part of a cache layer: the last `local_window_size` real inputs, or all inputs since recording for a
    rollback began.
    """

    # (batch, columns), 1 at padding, for the columns that can be rolled back; None if there was no padding.
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
            padding_order: the order of the new inputs; None if padding may stay where it is.

        Returns:
            (batch, channels, cached + time), the cached inputs and the new ones, padding first.
        """
        kept = self.conv_states[state_idx]
        if kept is not None and not self.record_past and kept.shape[-1] != self.conv_kernel_size[state_idx]:
            # A rollback or the end of a recording changed its size. Negative padding crops.
            self.conv_states[state_idx] = F.pad(kept, (self.conv_kernel_size[state_idx] - kept.shape[-1], 0))
        states = super().update_conv_state(conv_states, state_idx, conv_kernel_size=conv_kernel_size, **kwargs)
        if self.record_past and state_idx == 0:
            self.record_padding(conv_states, padding_order)
        if padding_order is not None:
            states = padding_order.apply_with_cached(states)
            if self.record_past:
                self.conv_states[state_idx] = states
            else:  # in place: compiled graphs rely on the tensor's address
                self.conv_states[state_idx].copy_(states[..., -self.conv_kernel_size[state_idx] :])
        return states

    def record_padding(self, conv_states: torch.Tensor, padding_order: PaddingOrder | None):
        """Records which new columns are padding, so that a rollback knows how many inputs to remove."""
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
        """Rolls the inputs back. A column that was padding in a row added no input there, so it removes none."""
        if not self.record_past or tokens_to_remove > 0:
            LinearAttentionLayer.crop(self, tokens_to_remove)  # raises the library's error
        num_columns = abs(tokens_to_remove)
        num_left = int(self.get_seq_length()) - num_columns
        for state_idx, states in self.conv_states.items():
            if states is None:
                continue
            window_size = self.conv_kernel_size[state_idx]
            num_kept = states.shape[-1] - num_columns
            if num_kept < min(window_size - 1, num_left):
                raise RuntimeError(
                    f"`crop({tokens_to_remove})` goes back further than this cache has recorded: expected at most "
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
        """Selects rows of the batch by index in all tensors of the layer."""

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

    # Only keys and values are offloaded. The LocalRNN's few inputs stay on the model's device.
    def offload(self):
        DynamicLayer.offload(self)

    def prefetch(self):
        DynamicLayer.prefetch(self)


class RTransformerStaticLayer(LocalRNNStates, LinearAttentionAndStaticFullAttentionLayer):
    """A layer of a `StaticCache`. Keys and values beyond the end after a rollback are masked."""

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


def adopt_cache(cache: Cache, config: RTransformerConfig):
    """
    Replaces Transformers' hybrid layers of a cache, empty or not, by those of this file.

    Raises:
        ValueError: the cache was not made from the model's config, so it cannot hold the LocalRNN's inputs.
    """
    layers = getattr(cache, "layers", None) or [None]  # an EncoderDecoderCache has no layers itself
    if "hybrid" in config.layer_types and not all(hasattr(layer, "update_conv_state") for layer in layers):
        raise ValueError(
            "`cache` must be made from the model's config, so that it keeps the inputs of the LocalRNN layers: "
            f"`DynamicCache(config=model.config)`, for example; got {cache}."
        )
    for layer_idx, layer in enumerate(cache.layers):
        if type(layer) in ADOPTED_LAYERS:
            adopted_class = ADOPTED_LAYERS[type(layer)]
            cache.layers[layer_idx] = adopted = adopted_class.__new__(adopted_class)
            adopted.__dict__.update(vars(layer))  # a compiler can trace this, but not a change of `__class__`


def update_inputs(
    cache: Cache,
    hidden_states: torch.Tensor,
    *,
    layer_idx: int,
    state_idx: int,
    window_size: int,
    padding_order: PaddingOrder | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Stores a LocalRNN's new inputs (batch, time, hidden) in the cache.

    Returns:
        The `window_size - 1` inputs before them, (batch, window_size - 1, hidden), zeros where there were none; and
        the new inputs, in the padding order if one is given. Padding comes before the cached inputs then.
    """
    length = hidden_states.shape[1]
    if length > 1 or padding_order is not None:
        cache.layers[layer_idx].__dict__.pop("partial_window_states", None)
    states = cache.update_conv_state(
        hidden_states.transpose(1, 2),
        layer_idx,
        state_idx=state_idx,
        conv_kernel_size=window_size,
        padding_order=padding_order,
    )
    # The cache returns all inputs that it held, then the new ones: pad or crop in front to window_size - 1.
    states = F.pad(states, (window_size - 1 + length - states.shape[-1], 0)).transpose(1, 2)
    previous_inputs, ordered = states.split([window_size - 1, length], dim=1)
    return previous_inputs, hidden_states if padding_order is None else ordered


# Decoding keeps the states of the windows that are not yet complete on the cache layer, beside the inputs. They are
# derived data: if the inputs have changed in another way than by decoding (crop, beam reorder), they are recomputed.


def load_partial_window_states(cache_layer: LinearAttentionLayer, state_idx: int) -> State | None:
    """The states that `store_partial_window_states` stored, or None if the cached inputs have changed since."""
    stored = cache_layer.__dict__.get("partial_window_states", {})
    states, inputs, version = stored.get(state_idx, (None, None, None))
    is_current = inputs is cache_layer.conv_states[state_idx] and version == inputs_version(cache_layer, state_idx)
    return states if is_current else None


def store_partial_window_states(cache_layer: LinearAttentionLayer, state_idx: int, states: State):
    stored = cache_layer.__dict__.setdefault("partial_window_states", {})
    stored[state_idx] = (states, cache_layer.conv_states[state_idx], inputs_version(cache_layer, state_idx))


def inputs_version(cache_layer: LinearAttentionLayer, state_idx: int) -> tuple[int | None, bool]:
    """Changes when the cached inputs are modified in place, except in inference mode, which does not count that."""
    inputs = cache_layer.conv_states[state_idx]
    is_counted = inputs is not None and not inputs.is_inference()
    return inputs._version if is_counted else None, cache_layer.has_previous_state[state_idx]
