# SPDX-License-Identifier: Apache-2.0
"""Which inputs are real, where padding must be moved, where each stands in its sequence; what checks may look at."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.utils.import_utils import is_tracing


def check_mask(
    attention_mask: torch.Tensor | dict | None, inputs_embeds: torch.Tensor, cache: Cache | None, has_local_rnn: bool
):
    """
    Raises a ValueError for a mask that attention and LocalRNN would read differently: one of 4 dimensions, of which a
    LocalRNN can make nothing, or one without a column for each input, cached ones included.
    """
    if not isinstance(attention_mask, torch.Tensor) or is_tracing(attention_mask):
        return
    if attention_mask.ndim == 4 and not has_local_rnn:
        return
    num_cached = 0 if cache is None else cache.get_seq_length()
    expected = num_cached + inputs_embeds.shape[1]
    if attention_mask.ndim != 2 or (isinstance(num_cached, int) and attention_mask.shape[1] != expected):
        raise ValueError(
            "`attention_mask` must have the shape (batch, cached + time), 0 at padding, here "
            f"({len(inputs_embeds)}, {expected}); got {tuple(attention_mask.shape)}. Sequences are packed into a row "
            "by `position_ids`."
        )


def create_token_mask(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """
    (batch, time), 1 at real inputs and 0 at padding; None if no input is padded. Transformers' own version takes
    every single step for a generated token, but a padded prompt may be fed step by step.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    token_mask = attention_mask[:, -inputs_embeds.shape[1] :].contiguous()
    return token_mask if is_tracing(token_mask) or not token_mask.all() else None


class PaddingOrder(NamedTuple):
    """
    An order of new inputs (batch, time) that puts each row's padding first and keeps its real inputs in order. With
    the cached inputs of the row between the two, no LocalRNN window has padding between real inputs.
    """

    sources: torch.Tensor  # (batch, time), for each place the position of its input
    places: torch.Tensor  # (batch, time), for each input its place: the inverse of `sources`
    num_padded: torch.Tensor  # (batch, 1)

    @classmethod
    def from_mask(cls, token_mask: torch.Tensor) -> "PaddingOrder":
        """`token_mask` is (batch, time), 0 at padding."""
        is_padding = token_mask == 0
        num_padded = is_padding.sum(dim=1, keepdim=True)
        places = torch.where(is_padding, is_padding.cumsum(dim=1), num_padded + (~is_padding).cumsum(dim=1)) - 1
        positions = torch.arange(places.shape[1], device=places.device).expand_as(places)
        return cls(torch.zeros_like(places).scatter(1, places, positions), places, num_padded)

    @classmethod
    def if_needed(cls, token_mask: torch.Tensor | None, cache: Cache | None) -> "PaddingOrder | None":
        """
        The order, or None if padding may stay where it is because it does not separate real inputs, including cached
        and future ones. A traced graph cannot depend on the mask's values, so it always gets an order.
        """
        if token_mask is None:
            return None
        if not is_tracing(token_mask):
            is_real = token_mask != 0
            if cache is None:
                num_starts = (is_real[:, 1:] & ~is_real[:, :-1]).sum(dim=1) + is_real[:, 0]
                is_needed = (num_starts > 1).any()
            else:
                is_left_padded = (is_real[:, 1:] >= is_real[:, :-1]).all()
                is_needed = cache.has_previous_state(layer_idx=0) or not is_left_padded
            if not is_needed:
                return None
        return cls.from_mask(token_mask)

    def apply(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, time, hidden), reordered."""
        return take(hidden_states.transpose(1, 2), self.sources).transpose(1, 2)

    def undo(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, time, hidden), back in the original order."""
        return take(hidden_states.transpose(1, 2), self.places).transpose(1, 2)

    def apply_with_cached(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, channels, cached + time), cached and new inputs -> padding, cached inputs, real new inputs."""
        num_cached = states.shape[-1] - self.sources.shape[1]
        places = torch.arange(states.shape[-1], device=states.device)
        sources = self.sources + num_cached
        from_cached = places - self.num_padded
        real = torch.where(from_cached < num_cached, from_cached, F.pad(sources, (num_cached, 0)))
        return take(states, torch.where(from_cached < 0, F.pad(sources, (0, num_cached)), real))


def take(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(batch, channels, time), (batch, new time) -> (batch, channels, new time): each row's columns by index."""
    return states.gather(-1, columns[:, None].expand(-1, states.shape[1], -1))


def has_packed_rows(position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> bool:
    """Whether rows hold several sequences. A traced graph cannot depend on it, so it is never so there."""
    if position_ids is None or attention_mask is not None or is_tracing(position_ids):
        return False
    return find_packed_sequence_indices(position_ids) is not None


def positions_in_sequences(sequences: torch.Tensor) -> torch.Tensor:
    """(batch, time), the number of the sequence that each input belongs to -> each input's index in its sequence."""
    indices = torch.arange(sequences.shape[1], device=sequences.device).expand_as(sequences)
    is_start = sequences != F.pad(sequences, (1, 0), value=-1)[:, :-1]
    return indices - torch.where(is_start, indices, 0).cummax(dim=1).values


def positions_of_inputs(
    inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor:
    """(batch or 1, time), each input's position, counted from the first real input of its row."""
    length = inputs_embeds.shape[1]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return ((attention_mask != 0).cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
    cached_length = 0 if cache is None else cache.get_seq_length()
    return torch.arange(length, device=inputs_embeds.device)[None] + cached_length


def real_positions(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, time), True where `hidden_states` (batch, time, hidden) are no padding."""
    batch_size, length, _ = hidden_states.shape
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return attention_mask[:, -length:].to(hidden_states.device, torch.bool)
    return torch.ones(batch_size, length, dtype=torch.bool, device=hidden_states.device)


def can_read(values: torch.Tensor) -> bool:
    """Whether a check may look at values: on an accelerator that would stall it, and while tracing there are none."""
    return values.device.type == "cpu" and not is_tracing(values)


def is_any(condition: torch.Tensor) -> bool:
    """Whether a condition holds anywhere; False under torch.vmap, where it has no single value."""
    try:
        return bool(condition.any())
    except RuntimeError:
        return False


def last_real_state(hidden_states: torch.Tensor, is_real: torch.Tensor, is_continued: bool) -> torch.Tensor:
    """
    (batch, hidden), each row's state at its last real position.

    Args:
        hidden_states: (batch, time, hidden).
        is_real: (batch, time), False at padding.
        is_continued: whether earlier inputs are cached.

    Raises:
        ValueError: a row that continues cached inputs has no real position among the new ones.
    """
    if is_continued and not is_tracing(is_real) and not is_real.any(dim=1).all():
        rows = (~is_real.any(dim=1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"`attention_mask` has nothing but padding in rows {rows} of the new inputs; a row is classified at "
            "its last real position, which must be among them."
        )
    positions = (torch.arange(is_real.shape[1], device=is_real.device) * is_real).argmax(dim=-1)
    return hidden_states[torch.arange(len(is_real), device=is_real.device), positions]


def mean_real_state(hidden_states: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """(batch, hidden), the mean of each row's states at its real positions; zero where there is none."""
    total = hidden_states.masked_fill(~is_real[..., None], 0).sum(dim=1)
    return total / is_real.sum(dim=1, keepdim=True).clamp(min=1).to(total.dtype)
