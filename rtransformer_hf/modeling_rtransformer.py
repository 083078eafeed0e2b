# SPDX-License-Identifier: Apache-2.0
"""
R-Transformer (Wang et al., "R-Transformer: Recurrent Neural Network Enhanced Transformer", arXiv 1907.05572).

A block is a LocalRNN, causal self-attention and a feed-forward layer, each behind a norm and within a residual. The
LocalRNN tells what is near and in which order, so there are no position embeddings.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.masking_utils import (
    create_causal_mask,
    create_masks_for_generate,
    find_packed_sequence_indices,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .cache_rtransformer import PaddingOrder, adopt_cache, take
from .configuration_rtransformer import RTransformerConfig
from .cpu_linear import MAX_FP32_ATTENTION_LENGTH, attend_in_float32, is_plain_linear, linear_for_decoding
from .local_rnn import State, advance_windows, local_rnn, num_gates, shared_projection_local_rnn
from .time_series_head import (
    ForecastMixin,
    QuantileDistribution,
    RTransformerTimeSeriesHead,
    RTransformerTimeSeriesOutput,
    instance_scale,
    observed_values,
)

# What Transformers calls the cache, in calls and in outputs: "past_key_values" before 5.24, "cache" since.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# A forward with the argument `cache` takes it by the older name too; like the models of Transformers, it warns of that
# from 5.24 on. An older `generate(cache=...)` makes a cache of its own and passes both: one would be ignored.
takes_past_key_values = deprecate_kwarg(
    "past_key_values",
    new_name="cache",
    version="5.40.0" if CACHE_NAME == "cache" else "5.0.0",
    raise_if_both_names=True,
)


class RTransformerLocalRNN(nn.Module):
    """The LocalRNN (section 3.1): the weights of an RNN cell, run over the window that ends at each position."""

    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.cell = config.local_rnn_type
        self.window_size = config.local_window_size
        self.implementation = config.local_rnn_implementation
        gates_size = num_gates(self.cell) * config.hidden_size
        self.input_proj = nn.Linear(config.hidden_size, gates_size)
        self.recurrent_proj = nn.Linear(config.hidden_size, gates_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past: torch.Tensor | None = None,
        sequence_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        window = {
            "cell": self.cell,
            "window_size": self.window_size,
            "past": past,
            "sequence_positions": sequence_positions,
        }
        if is_plain_linear(self.input_proj) and is_plain_linear(self.recurrent_proj):
            return local_rnn(
                hidden_states,
                self.input_proj.weight,
                self.recurrent_proj.weight,
                self.input_proj.bias,
                self.recurrent_proj.bias,
                implementation=self.implementation,
                **window,
            )
        return shared_projection_local_rnn(hidden_states, self.input_proj, self.recurrent_proj, **window)

    def advance(self, hidden_states: torch.Tensor, windows: State | None) -> tuple[torch.Tensor, State]:
        """One position alone: advances all windows in flight. Arguments as in `advance_windows`."""
        return advance_windows(
            hidden_states,
            windows,
            partial(linear_for_decoding, self.input_proj),
            partial(linear_for_decoding, self.recurrent_proj),
            cell=self.cell,
            window_size=self.window_size,
        )


class RTransformerUnbiasedLayerNorm(nn.LayerNorm):
    """The published layer norm: weight * (x - mean) / (std + eps) + bias, with the unbiased standard deviation."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        std, mean = torch.std_mean(values, dim=-1, keepdim=True)
        return (self.weight * ((values - mean) / (std + self.eps)) + self.bias).to(hidden_states.dtype)


def make_layer_norm(config: RTransformerConfig) -> nn.LayerNorm:
    norm_class = RTransformerUnbiasedLayerNorm if config.layer_norm_type == "unbiased" else nn.LayerNorm
    return norm_class(config.hidden_size, eps=config.layer_norm_eps)


class RTransformerLocalRNNLayer(nn.Module):
    """A LocalRNN sub-layer: norm and cell. Masked positions count as zero vectors, as those before the start do."""

    def __init__(self, config: RTransformerConfig, layer_idx: int, state_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.state_idx = state_idx
        self.norm = make_layer_norm(config)
        self.cell = RTransformerLocalRNN(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_mask: torch.Tensor | None = None,
        padding_order: PaddingOrder | None = None,
        sequence_positions: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        hidden_states = self.norm(hidden_states)
        if token_mask is not None:
            hidden_states = hidden_states * token_mask[..., None].to(hidden_states.dtype)
        if self.cell.window_size == 1:
            return self.cell(hidden_states, sequence_positions=sequence_positions)
        if padding_order is not None:
            return self.forward_reordered(hidden_states, padding_order, cache)
        if cache is None:
            return self.cell(hidden_states, sequence_positions=sequence_positions)
        if hidden_states.shape[1] == 1 and not torch.is_grad_enabled() and not is_tracing(hidden_states):
            return self.decode(hidden_states, cache)
        past, hidden_states = self.update_cache(hidden_states, cache)
        return self.cell(hidden_states, past, sequence_positions)

    def forward_reordered(
        self, hidden_states: torch.Tensor, padding_order: PaddingOrder, cache: Cache | None
    ) -> torch.Tensor:
        """Moves each row's padding to the front, ahead of the kept inputs, and the outputs back to their positions."""
        past = None
        if cache is None:
            hidden_states = take(hidden_states.transpose(1, 2), padding_order.sources).transpose(1, 2)
        else:
            past, hidden_states = self.update_cache(hidden_states, cache, padding_order)
        outputs = self.cell(hidden_states, past)
        return take(outputs.transpose(1, 2), padding_order.places).transpose(1, 2)

    def update_cache(
        self, hidden_states: torch.Tensor, cache: Cache, padding_order: PaddingOrder | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Stores the inputs in the cache. Returns the last `window - 1 + time` inputs as (batch, window - 1, hidden),
        with zeros where there were none, and (batch, time, hidden), which are the new ones unless padding was moved.
        """
        window_size, length = self.cell.window_size, hidden_states.shape[1]
        if length > 1 or padding_order is not None:
            cache.layers[self.layer_idx].__dict__.pop("partial_window_states", None)
        states = cache.update_conv_state(
            hidden_states.transpose(1, 2),
            self.layer_idx,
            state_idx=self.state_idx,
            conv_kernel_size=window_size,
            padding_order=padding_order,
        )
        # The cache returns what it kept and the new inputs. Of the former, window - 1 count: pad or crop in front.
        states = F.pad(states, (window_size - 1 + length - states.shape[-1], 0)).transpose(1, 2)
        past, moved = states.split([window_size - 1, length], dim=1)
        return past, hidden_states if padding_order is None else moved

    def decode(self, hidden_states: torch.Tensor, cache: Cache) -> torch.Tensor:
        """
        One position: a single recurrent product advances all windows in flight. They stay with the cache beside the
        inputs, which remain what counts: where these changed otherwise (a rollback, new beams), windows open anew.
        """
        cache_layer = cache.layers[self.layer_idx]
        kept = cache_layer.__dict__.setdefault("partial_window_states", {})
        windows, inputs, version = kept.get(self.state_idx, (None, None, None))
        is_current = inputs is cache_layer.conv_states[self.state_idx] and version == self.version_of(cache_layer)

        past, _ = self.update_cache(hidden_states, cache)
        if not is_current:
            windows = None
            for position in past.split(1, dim=1):
                _, windows = self.cell.advance(position, windows)
        output, windows = self.cell.advance(hidden_states, windows)
        kept[self.state_idx] = (windows, cache_layer.conv_states[self.state_idx], self.version_of(cache_layer))
        return output

    def version_of(self, cache_layer) -> tuple:
        """Changes when the inputs that the cache keeps are changed in place, as far as PyTorch tells."""
        inputs = cache_layer.conv_states[self.state_idx]
        is_counted = inputs is not None and not inputs.is_inference()
        return inputs._version if is_counted else None, cache_layer.has_previous_state[self.state_idx]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    attention_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = F.softmax(attention_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_weights = F.dropout(attention_weights, p=dropout, training=module.training)
    attention_output = torch.matmul(attention_weights, value).transpose(1, 2).contiguous()
    return attention_output, attention_weights


class RTransformerAttention(nn.Module):
    """Causal multi-head self-attention (section 3.2), without position information of its own."""

    def __init__(self, config: RTransformerConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        heads_shape = (*input_shape, -1, self.head_dim)
        # (batch, heads, time, head size)
        query = linear_for_decoding(self.q_proj, hidden_states).view(heads_shape).transpose(1, 2)
        key = linear_for_decoding(self.k_proj, hidden_states).view(heads_shape).transpose(1, 2)
        value = linear_for_decoding(self.v_proj, hidden_states).view(heads_shape).transpose(1, 2)

        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        is_sdpa_on_cpu = query.device.type == "cpu" and self.config._attn_implementation == "sdpa"
        if is_sdpa_on_cpu and query.requires_grad and query.shape[2] <= MAX_FP32_ATTENTION_LENGTH:
            attention_interface = attend_in_float32(attention_interface)
        attention_output, attention_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attention_output = attention_output.reshape(*input_shape, -1).contiguous()
        return linear_for_decoding(self.o_proj, attention_output), attention_weights


class RTransformerMLP(nn.Module):
    """The position-wise feed-forward layer (section 3.3)."""

    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(linear_for_decoding(self.up_proj, hidden_states)))
        return linear_for_decoding(self.down_proj, hidden_states)


class RTransformerDecoderLayer(GradientCheckpointingLayer):
    """A block (section 3.4): LocalRNN layers, attention, feed-forward, each as `x + dropout(f(norm(x)))`."""

    def __init__(self, config: RTransformerConfig, layer_idx: int):
        super().__init__()
        self.local_rnns = nn.ModuleList(
            RTransformerLocalRNNLayer(config, layer_idx, state_idx) for state_idx in range(config.num_local_rnn_layers)
        )
        self.self_attn_norm = make_layer_norm(config)
        self.self_attn = RTransformerAttention(config, layer_idx)
        self.mlp_norm = make_layer_norm(config)
        self.mlp = RTransformerMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    @takes_past_key_values
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
        padding_order: PaddingOrder | None = None,
        sequence_positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        for local_rnn_layer in self.local_rnns:
            local_states = local_rnn_layer(hidden_states, token_mask, padding_order, sequence_positions, cache)
            hidden_states = hidden_states + self.dropout(local_states)
        attention_output, _ = self.self_attn(
            self.self_attn_norm(hidden_states),
            attention_mask=attention_mask,
            cache=cache,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class RTransformerPreTrainedModel(PreTrainedModel):
    config: RTransformerConfig
    config_class = RTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RTransformerDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": RTransformerDecoderLayer, "attentions": RTransformerAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        is_linear = isinstance(module, (nn.Linear, RTransformerMaskedLinear))
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.embedding_initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif is_linear and std is not None:
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif is_linear:  # PyTorch's default, which is that of its RNN cells as well
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, use_safetensors: bool | None = True, **kwargs
    ):
        """
        Loads the model as every Transformers model does, but from safetensors alone: weights that are pickled, which
        could run code, take `use_safetensors=False`.
        """
        return super().from_pretrained(
            pretrained_model_name_or_path, *model_args, use_safetensors=use_safetensors is not False, **kwargs
        )

    def _get_name(self) -> str:
        # FSDP puts a class of another name in place, and Trainer looks this one up.
        return super()._get_name().removeprefix("FSDP")

    def save_pretrained(self, save_directory, **kwargs):
        """
        Saves the model as every Transformers model does, with its code beside the weights. The configuration names the
        class of every task, so that the checkpoint opens with any of the Auto classes where this package is missing.
        """
        self.config.auto_map = {
            auto_class: f"{class_name.__module__.split('.')[-1]}.{class_name.__name__}"
            for auto_class, class_name in AUTO_CLASSES.items()
        }
        sharded_class = type(self)
        if sharded_class.__name__.startswith("FSDP"):  # made by PyTorch, which can't tell where the model's code is
            model_class = sharded_class.__bases__[-1]
            sharded_class.__module__, sharded_class.__name__ = model_class.__module__, model_class.__name__
        super().save_pretrained(save_directory, **kwargs)


class RTransformerModel(RTransformerPreTrainedModel):
    """
    The stack of blocks behind a token embedding or, where `config.input_size` is set, a linear projection of vectors.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model.
    """

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        config.validate_architecture()
        self.check_tensor_parallelism()
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.input_projection = nn.Linear(config.input_size, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            RTransformerDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = make_layer_norm(config) if config.final_layer_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @takes_past_key_values
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: (batch, time) token ids, for a model without `input_size`.
            attention_mask: (batch, past + time), 0 at padding. A padded row gives what it gives alone.
            position_ids: (batch, time). Where these restart within a row, and neither mask nor cache is given, a new
                sequence begins, which sees nothing of the one before. The model itself has no positions, the
                sinusoidal ones of the baseline aside.
            cache: a cache made from the model's config, `DynamicCache(config=model.config)` for example. It can be
                given as `past_key_values` as well, its name before Transformers 5.24.
            inputs_embeds: (batch, time, hidden_size), in place of the embedded or projected inputs.
            input_values: (batch, time, input_size) vectors, for a model with `input_size`.
            use_cache: whether to return a cache; `config.use_cache` when None.

        Returns:
            `BaseModelOutputWithPast` with `last_hidden_state` (batch, time, hidden_size).

        Raises:
            ValueError: not exactly one input is given, it does not fit the model, or a cache comes by a wrong name.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds, input_values)

        for name, value in kwargs.items():  # what nothing reads is ignored, which a cache must not be
            if isinstance(value, Cache):
                raise ValueError(f"`{name}` holds a cache; this model accepts one as `cache`.")

        # Packed rows are told by their position ids, but Transformers looks for them only where there is no past.
        mask_cache = cache
        if cache is not None:
            self.check_cache(cache)
        elif use_cache:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            adopt_cache(cache)

        sequence_positions = None
        if position_ids is not None and attention_mask is None and mask_cache is None:
            position_ids = position_ids.expand(inputs_embeds.shape[:2])
            sequence_positions = positions_in_packed_sequences(position_ids)

        if not isinstance(masks := attention_mask, dict):
            masks = {
                "full_attention": create_causal_mask(
                    self.config, inputs_embeds, attention_mask, mask_cache, position_ids=position_ids
                ),
                "linear_attention": create_token_mask(inputs_embeds, attention_mask),
            }

        if self.config.position_embedding_type == "sinusoidal":
            positions = position_ids
            if positions is None:
                positions = positions_of_inputs(inputs_embeds, attention_mask, mask_cache)
            position_vectors = sinusoidal_positions(positions, self.config.hidden_size).to(inputs_embeds.dtype)
            inputs_embeds = inputs_embeds * math.sqrt(self.config.hidden_size) + position_vectors

        token_mask, padding_order = masks.get("linear_attention"), None
        has_local_state = "hybrid" in self.config.layer_types
        if has_local_state and token_mask is not None and needs_padding_order(token_mask, cache):
            padding_order = PaddingOrder.from_mask(token_mask)

        hidden_states = self.embedding_dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=masks["full_attention"],
                token_mask=token_mask,
                padding_order=padding_order,
                sequence_positions=sequence_positions,
                position_ids=position_ids,  # flash attention finds packed sequences by them
                **{CACHE_NAME: cache},  # by this name, gradient checkpointing takes it away
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE_NAME: cache})

    def embed(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        input_values: torch.Tensor | None,
    ) -> torch.Tensor:
        """The one input that is given, as (batch, time, hidden_size)."""
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "input_values": input_values}
        given = [name for name, value in inputs.items() if value is not None]
        accepted = ["input_ids" if self.config.input_size is None else "input_values", "inputs_embeds"]
        if len(given) != 1 or given[0] not in accepted:
            raise ValueError(
                f"Exactly one of `{accepted[0]}` and `{accepted[1]}` must be given to this model "
                f"(`config.input_size` is {self.config.input_size}), got {' and '.join(given) or 'neither'}."
            )
        if inputs_embeds is not None:
            return inputs_embeds
        if input_ids is not None:
            return self.embed_tokens(input_ids)
        if input_values.ndim != 3 or input_values.shape[-1] != self.config.input_size:
            raise ValueError(
                f"`input_values` must have the shape (batch, time, {self.config.input_size}), its last size being "
                f"`config.input_size`, got {tuple(input_values.shape)}."
            )
        return self.input_projection(input_values.to(self.dtype))

    def check_tensor_parallelism(self):
        """Raises a ValueError for a number of ranks that can't have as many heads each."""
        tp_size = getattr(getattr(self.config, "distributed_config", None), "tp_size", 1)
        if self.config.num_attention_heads % tp_size != 0:
            raise ValueError(
                f"`tp_size` must divide `config.num_attention_heads`, {self.config.num_attention_heads} here, got "
                f"{tp_size}."
            )

    def check_cache(self, cache: Cache):
        """Raises a ValueError for a cache that has no place for the LocalRNN's inputs."""
        has_local_state = "hybrid" in self.config.layer_types
        layers = getattr(cache, "layers", None) or [None]  # an EncoderDecoderCache has none of its own
        if has_local_state and not all(hasattr(layer, "update_conv_state") for layer in layers):
            raise ValueError(
                "`cache` must be made from the model's config, so that it keeps the inputs of the LocalRNN "
                f"layers: `DynamicCache(config=model.config)`, for example; got {cache}."
            )

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens if self.config.input_size is None else self.input_projection

    def set_input_embeddings(self, value: nn.Module):
        setattr(self, "embed_tokens" if self.config.input_size is None else "input_projection", value)


def positions_of_inputs(
    inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor:
    """(batch or 1, time) positions in each row, which are counted from its first real input."""
    length = inputs_embeds.shape[1]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
    past_length = 0 if cache is None else cache.get_seq_length()
    return torch.arange(length, device=inputs_embeds.device)[None] + past_length


def sinusoidal_positions(position_ids: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """(batch, time) positions -> (batch, time, hidden_size) sines and cosines."""
    channels = torch.arange(0, hidden_size, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[..., None] * torch.exp(channels * (-math.log(10000) / hidden_size))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :hidden_size]


def positions_in_packed_sequences(position_ids: torch.Tensor) -> torch.Tensor | None:
    """(batch, time) position ids -> the index of each position in its sequence; None if each row is one sequence."""
    sequences = find_packed_sequence_indices(position_ids)
    if sequences is None:
        return None
    indices = torch.arange(sequences.shape[1], device=sequences.device).expand_as(sequences)
    is_start = sequences != F.pad(sequences, (1, 0), value=-1)[:, :-1]
    return indices - torch.where(is_start, indices, 0).cummax(dim=1).values


def create_token_mask(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """
    (batch, time), 0 at padding, or None where none of the inputs is known to be padded. That of Transformers takes a
    single step for a generated token, but a prompt may be fed step by step.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    token_mask = attention_mask[:, -inputs_embeds.shape[1] :].contiguous()
    return token_mask if is_tracing(token_mask) or not token_mask.all() else None


def needs_padding_order(token_mask: torch.Tensor, cache: Cache | None) -> bool:
    """
    Whether padding that is left in place would come between real inputs, or before those still to come. A graph can't
    depend on values of the mask: while one is traced, the answer is yes.
    """
    if is_tracing(token_mask):
        return True
    is_real = token_mask != 0
    if cache is None:  # padding on either side is out of the way
        num_starts = (is_real[:, 1:] & ~is_real[:, :-1]).sum(dim=1) + is_real[:, 0]
        return bool((num_starts > 1).any())
    is_left_padded = (is_real[:, 1:] >= is_real[:, :-1]).all()
    return cache.has_previous_state(layer_idx=0) or not bool(is_left_padded)


class RTransformerForCausalLM(RTransformerPreTrainedModel, GenerationMixin):
    """
    The model with a language modeling head.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        self.model = RTransformerModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    @takes_past_key_values
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Args:
            labels: (batch, time) token ids, shifted inside the model: the output at t is compared with the label at
                t + 1. Labels of -100 carry no loss.
            logits_to_keep: how many of the last positions to compute logits for, 0 meaning all; or their indices.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `CausalLMOutputWithPast` with `logits` (batch, time, vocab_size) of the next token.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            input_values=input_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = linear_for_decoding(self.lm_head, outputs.last_hidden_state[:, kept])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict, *args, **kwargs
    ) -> None:
        """
        Makes the cache of `generate`. Transformers makes a static one as long as the text, but tokens that are looked
        up in the prompt may reach beyond its end before they are rejected.

        Raises:
            ValueError: a row of the prompt ends with padding.
        """
        attention_mask = model_kwargs.get("attention_mask")
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 and not attention_mask[:, -1].all():
            raise ValueError(
                "`attention_mask`, given or inferred from `pad_token_id`, has rows that end with 0, so generation "
                'would continue from padding; padding must be on the left: tokenize with `padding_side="left"`.'
            )
        if num_tokens := generation_config.prompt_lookup_num_tokens:
            max_cache_len = getattr(generation_config, "max_cache_len", None) or 0
            generation_config.max_cache_len = max(max_cache_len, generation_config.max_length + num_tokens)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    @staticmethod
    def create_masks_for_generate(
        config: RTransformerConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> dict | torch.Tensor | None:
        """The masks that `generate` prepares for a static cache; Transformers' own leave out padding of one step."""
        masks = create_masks_for_generate(config, inputs_embeds, attention_mask, **kwargs)
        if isinstance(masks, dict) and "linear_attention" in masks:
            masks["linear_attention"] = create_token_mask(inputs_embeds, attention_mask)
        return masks


class RTransformerForSequenceClassification(RTransformerPreTrainedModel):
    """
    The model with a classification head on the last real position of each row.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `num_labels` and `problem_type` say what is predicted.
    """

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = RTransformerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """
        Whether Trainer may count the labels of a whole batch. It takes -100 for no label, which a regression may have.
        """
        problem_type = self.config.problem_type or ("regression" if self.num_labels == 1 else None)
        return problem_type != "regression"

    @can_return_tuple
    @takes_past_key_values
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """
        Args:
            attention_mask: (batch, time), 0 at padding, on either side. Without it, `config.pad_token_id` tells the
                padding of `input_ids`; without that, rows are taken as unpadded.
            labels: (batch,) class indices; (batch, num_labels) zeros and ones for `"multi_label_classification"`;
                (batch,) or (batch, num_labels) numbers for `"regression"`.
            num_items_in_batch: how many values the labels of the whole batch have, of which this is a part: the loss
                is the part's share of the batch's mean. Unset: the mean over this part. Not for `"regression"`.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `SequenceClassifierOutputWithPast` with `logits` (batch, num_labels).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            input_values=input_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        positions = self.last_real_positions(hidden_states, input_ids, attention_mask, is_continued=cache is not None)
        pooled = hidden_states[rows, positions]
        logits = self.score(self.dropout(pooled))

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                pooled_logits=logits,
                config=self.config,
                num_items_in_batch=num_items_in_batch,
            )
            if num_items_in_batch is not None and self.config.problem_type == "multi_label_classification":
                loss = loss * (labels.numel() / num_items_in_batch)  # Transformers has the mean over this part alone
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def last_real_positions(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        is_continued: bool,
    ) -> torch.Tensor:
        """(batch,) indices of the last position of each row that is no padding."""
        batch_size, length, _ = hidden_states.shape
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            is_real = attention_mask[:, -length:].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            is_real = input_ids != self.config.pad_token_id
        else:
            is_real = torch.ones(batch_size, length, dtype=torch.bool, device=hidden_states.device)
        is_real = is_real.to(hidden_states.device)
        if is_continued and not is_tracing(is_real) and not is_real.any(dim=1).all():
            rows = (~is_real.any(dim=1)).nonzero()[:, 0].tolist()
            raise ValueError(
                f"`attention_mask` has nothing but padding in rows {rows} of the new inputs; a row is classified at "
                "its last real position, which must be among them."
            )
        return (torch.arange(length, device=hidden_states.device) * is_real).argmax(dim=-1)


class RTransformerForTokenClassification(RTransformerPreTrainedModel):
    """
    The model with a classification head on every position, which sees the positions before it alone.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `num_labels` is the number of classes, or with
            `problem_type` "regression", as where there is one label, that of numbers to predict.
    """

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = RTransformerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @takes_past_key_values
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """
        Args:
            labels: (batch, time) class indices; -100 carries no loss. For `"regression"`, (batch, time) or (batch,
                time, num_labels) numbers; NaN and what is masked carry no loss.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `TokenClassifierOutput` with `logits` (batch, time, num_labels).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            input_values=input_values,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))

        loss = None
        if labels is not None and self.is_regression:
            loss = mean_squared_error(logits, labels, attention_mask)
        elif labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    @property
    def is_regression(self) -> bool:
        return (self.config.problem_type or ("regression" if self.num_labels == 1 else None)) == "regression"

    @property
    def accepts_loss_kwargs(self) -> bool:
        """As of `RTransformerForSequenceClassification`."""
        return not self.is_regression


def mean_squared_error(
    predictions: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    The mean over the labels that are numbers and not masked; (batch, time, num_labels) each, or (batch, time) labels.

    Raises:
        ValueError: the labels have another shape.
    """
    labels = labels.to(predictions.device, torch.float32)
    if labels.ndim == 2 and predictions.shape[-1] == 1:
        labels = labels[..., None]
    if labels.shape != predictions.shape:
        raise ValueError(
            f"`labels` must have the shape {tuple(predictions.shape)} of the predictions, got {tuple(labels.shape)}."
        )
    counts = ~labels.isnan()
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        counts = counts & attention_mask[:, -labels.shape[1] :, None].bool().to(labels.device)
    errors = torch.where(counts, predictions.float() - labels, 0)
    return errors.square().sum() / counts.sum().clamp(min=1)


class RTransformerMaskedLinear(nn.Module):
    """
    A linear layer whose weights are masked. It is no `nn.Linear`: quantisation and adapters look for those, and put
    something in their place that has no weights to mask.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features = in_features  # its initial weights depend on it
        linear = nn.Linear(in_features, out_features)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight * mask, self.bias)


class RTransformerChordHead(nn.Module):
    """
    What the keys below a key tell of it, given the past: a layer whose weights are masked so that each key sees the
    lower ones alone (MADE, arXiv 1502.03509). Keys of a chord are not independent.
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

    def forward(self, hidden_states: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """
        Args:
            hidden_states: (batch, time, hidden_size), what is known of the past.
            frames: (batch, time, keys), the frames to predict; a key's output depends on those below it alone.

        Returns:
            (batch, time, keys), to be added to the logits of independent keys.
        """
        frame_mask, out_mask = self.masks()
        units = self.state_proj(hidden_states) + self.frame_proj(frames, frame_mask)
        return self.out_proj(self.dropout(self.activation(units)), out_mask)

    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(units, keys): a key's units see the keys below it; (keys, units): they serve this key and those above."""
        num_keys, num_units = self.out_proj.weight.shape
        keys = torch.arange(num_keys, device=self.out_proj.weight.device)
        unit_keys = keys.repeat_interleave(self.units_per_key, output_size=num_units)
        return keys < unit_keys[:, None], unit_keys <= keys[:, None]


def check_frames(name: str, frames: torch.Tensor, attention_mask: torch.Tensor | None):
    """
    Raises a ValueError for (batch, time, keys) frames that are none: `input_values` from 0 to 1, or `labels` of zeros
    and ones, and -100 for whole frames. What is masked may hold anything. Nothing is checked where that would make
    the host wait for an accelerator, or where there are no values yet, as in compiled code.
    """
    if frames.device.type != "cpu" or is_tracing(frames):
        return
    if name == "labels":
        accepted = "zeros and ones, or -100 in all keys of a frame"
        is_unlabeled = (frames == -100).all(dim=-1, keepdim=True)
        is_accepted = (frames == 0) | (frames == 1) | is_unlabeled
    else:
        accepted = "values from 0 to 1"
        is_accepted = (frames >= 0) & (frames <= 1)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 and frames.ndim == 3:
        is_accepted = is_accepted | (attention_mask[:, -frames.shape[1] :, None].to(frames.device) == 0)
    try:
        if is_accepted.all():
            return
    except RuntimeError:  # of torch.vmap, where there is no one answer
        return
    raise ValueError(f"`{name}` must hold {accepted}, got {frames[~is_accepted][0].item()}.")


class RTransformerForPolyphonicMusic(RTransformerPreTrainedModel):
    """
    The model over piano rolls: frames of keys that sound or not, predicted from the frames before (section 4.2). Given
    the past, the keys of a frame are Bernoulli variables: independent ones, or with `config.key_head_type` set to
    `"autoregressive"` each given the keys below it as well, which is a joint distribution of the whole frame.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `input_size` is the number of keys.
    """

    main_input_name = "input_values"

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        self.model = RTransformerModel(config)
        self.num_keys = config.input_size or PIANO_KEYS
        self.key_head = nn.Linear(config.hidden_size, self.num_keys)
        if config.key_head_type == "autoregressive":
            self.chord_head = RTransformerChordHead(config, self.num_keys)
        self.post_init()

    @can_return_tuple
    @takes_past_key_values
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Args:
            input_values: (batch, time, keys) frames, 1 where a key sounds; values between 0 and 1 are accepted.
            labels: (batch, time, keys) frames of zeros and ones, mostly `input_values` themselves: shifted inside the
                model, the output at t is compared with the frame at t + 1. Frames that are -100 or masked carry no
                loss.
            logits_to_keep: how many of the last frames to compute logits for, 0 meaning all; or their indices.
            num_items_in_batch: how many values of `labels` carry loss in the whole batch, of which this is a part:
                predicted frames times keys. The loss is the part's share of the batch's mean. `Trainer` counts all
                values that are not -100, so that labels should be -100 at padding and in each tune's first frame,
                which nothing predicts. Unset: the mean over the real frames of this part.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `CausalLMOutputWithPast` with `logits` (batch, time, keys) of the next frame, and as `loss` its negative
            log-likelihood in nats, summed over the keys and averaged over the real frames. With autoregressive keys,
            the logits of a key are given the keys below it in the next frame of `labels`; those are taken as silent
            where there is none.

        Raises:
            ValueError: frames hold something else. This is found on a CPU alone, outside of compiled code: elsewhere
                a look at the values would stall the device.
        """
        if input_values is not None:
            check_frames("input_values", input_values, attention_mask)
        if labels is not None:
            check_frames("labels", labels, attention_mask)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            input_values=input_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        next_frames = None if labels is None else F.pad(labels[:, 1:], (0, 0, 0, 1))
        logits = self.key_logits(outputs.last_hidden_state[:, kept], next_frames)

        return CausalLMOutputWithPast(
            loss=None if labels is None else self.next_frame_loss(logits, labels, attention_mask, num_items_in_batch),
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def key_logits(self, hidden_states: torch.Tensor, next_frames: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, time, keys) logits; autoregressive keys are given those below them in `next_frames`, or silence."""
        logits = self.key_head(hidden_states)
        if self.config.key_head_type == "independent":
            return logits
        if next_frames is None:
            next_frames = torch.zeros_like(logits)
        return logits + self.chord_head(hidden_states, next_frames.clamp(min=0).to(logits))

    @classmethod
    def next_frame_loss(
        cls,
        logits: torch.Tensor,
        labels: torch.Tensor,
        attention_mask: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Negative log-likelihood of a next frame in nats, averaged over the frames that are real, or over those of the
        whole batch. Arguments as in `forward`.
        """
        if attention_mask is not None:
            labels = labels.masked_fill(attention_mask[:, -labels.shape[1] :, None].to(labels.device) == 0, -100)
        if num_items_in_batch is None:
            num_frames = (labels[:, 1:] != -100).all(dim=-1).sum().to(logits.device).clamp(min=1)
        else:
            num_items = torch.as_tensor(num_items_in_batch, device=logits.device).clamp(min=1)
            num_frames = num_items / labels.shape[-1]
        return cls.next_frame_nats(logits, labels).sum() / num_frames

    @staticmethod
    def next_frame_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(batch, time - 1) negative log-likelihood of each next frame, summed over its keys; 0 where it is -100."""
        logits, labels = logits[:, :-1].float(), labels[:, 1:].to(logits.device)
        is_real = (labels != -100).all(dim=-1)
        targets = torch.where(is_real[..., None], labels, 0).to(logits.dtype)
        nats = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=-1)
        return nats * is_real

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
            input_values: (batch, time, keys), the frames to continue, at least one. A silent frame starts a new tune.
            max_new_frames: number of frames to add.
            attention_mask: (batch, time), 0 at padding, which must be on the left.
            temperature: divides the logits; below 1 the likelier keys become likelier yet.
            generator: source of randomness, on the model's device: the same seed gives the same music.
            streamer: its `put` receives the given frames, then every new frame (batch, keys) as it is made; then comes
                `end`.

        Returns:
            (batch, time + max_new_frames, keys): the given frames and the new ones, of zeros and ones.

        Raises:
            ValueError: an argument is out of its range; the message names it, its value and what is accepted.
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
            raise ValueError("`attention_mask` must have its padding on the left: its last column has zeros here.")
        check_frames("input_values", input_values, attention_mask)

        frames = input_values.to(self.device, self.dtype)
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
        """The frames that follow, (batch, 1, keys) each, without end. Arguments as in `sample`, and not checked."""
        cache = DynamicCache(config=self.config)
        while True:
            outputs = self.model(input_values=frames, attention_mask=attention_mask, cache=cache, use_cache=True)
            frames = self.sample_frame(outputs.last_hidden_state[:, -1:], temperature, generator)
            yield frames
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1), value=1)

    def sample_frame(
        self, hidden_states: torch.Tensor, temperature: float, generator: torch.Generator | None
    ) -> torch.Tensor:
        """(batch, 1, hidden_size), what is known of the past -> (batch, 1, keys), a frame drawn given it."""
        if self.config.key_head_type == "independent":
            probabilities = torch.sigmoid(self.key_logits(hidden_states).float() / temperature)
            return torch.bernoulli(probabilities, generator=generator).to(self.dtype)
        # A key that sounds adds to the units of those above it, so that each key costs a product of its own alone.
        head = self.chord_head
        frame_mask, out_mask = head.masks()
        frame_weight, out_weight = head.frame_proj.weight * frame_mask, head.out_proj.weight * out_mask
        units = head.state_proj(hidden_states) + head.frame_proj.bias
        logits = self.key_head(hidden_states) + head.out_proj.bias
        frame = torch.empty_like(logits)
        for key in range(self.num_keys):
            logit = logits[..., key] + head.activation(units) @ out_weight[key]
            frame[..., key] = torch.bernoulli(torch.sigmoid(logit.float() / temperature), generator=generator)
            units = units + frame[..., key, None] * frame_weight[:, key]
        return frame.to(self.dtype)


class RTransformerForTimeSeriesPrediction(RTransformerPreTrainedModel, ForecastMixin):
    """
    The model over real numbers: the distribution of each channel's next value, given all values before. Each series is
    scaled by its past. The first channels are predicted; covariates, the last `config.num_dynamic_real_features`
    channels, are known ahead: those of a step are read where the step is predicted.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `input_size` is the number of channels.
    """

    main_input_name = "past_values"
    accepts_loss_kwargs = False  # Trainer counts labels, of which there are none

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        if config.num_target_channels < 1:
            raise ValueError(
                "`input_size` must be greater than `num_dynamic_real_features`, got "
                f"`input_size={config.input_size}` and `num_dynamic_real_features={config.num_dynamic_real_features}`."
            )
        self.model = RTransformerModel(config)
        self.missing_projection = nn.Linear(config.input_size, config.hidden_size, bias=False)
        self.distribution_head = RTransformerTimeSeriesHead(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        Loads the model as every Transformers model does. A music model, which had this Auto class before, is opened as
        what it is, with a warning.
        """
        if (getattr(kwargs.get("config"), "architectures", None) or [""])[
            0
        ] == RTransformerForPolyphonicMusic.__name__:
            warnings.warn(
                f"{pretrained_model_name_or_path} holds a music model, which AutoModelForAudioFrameClassification "
                "opens now. AutoModelForTimeSeriesPrediction is for series of real numbers, and will not open it in a "
                "later version.",
                FutureWarning,
                stacklevel=3,
            )
            return RTransformerForPolyphonicMusic.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @can_return_tuple
    @takes_past_key_values
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        next_covariates: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        loc: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RTransformerTimeSeriesOutput:
        """
        Args:
            past_values: (batch, time, input_size), in the units of the data: channels to predict, then covariates.
                NaN is a missing value.
            past_observed_mask: (batch, time, input_size) or (batch, time), 0 at missing values, which may then hold
                anything.
            future_values: (batch, horizon, input_size), the values that follow, to train on: they are read behind
                `past_values`, scale nothing, and carry the loss.
            future_observed_mask: as `past_observed_mask`; missing values carry no loss.
            next_covariates: (batch, num_dynamic_real_features), those of the step after the last one; 0 when None.
            attention_mask: (batch, past + time), or with the horizon as well, 0 at padding on the left.
            cache: as of [`RTransformerModel`]. Values that go on from one need its `loc` and `scale`.
            loc, scale: (batch, 1, channels), by which the series are scaled; found in `past_values` when None.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `RTransformerTimeSeriesOutput` with the parameters for each step's next values, and with `loc` and `scale`.
            `output_distribution` makes distributions of them.

        Raises:
            ValueError: a size does not fit, or a cache comes without `loc` and `scale`.
        """
        values, observed = past_values, observed_values(past_values, past_observed_mask, attention_mask)
        self.check_channels("past_values", past_values)
        num_targets = self.config.num_target_channels
        if loc is None or scale is None:
            if cache is not None and cache.get_seq_length() > 0:
                raise ValueError(
                    "`loc` and `scale` must be given with a `cache`: those of the outputs that it comes from."
                )
            targets = past_values[..., :num_targets].float()
            loc, scale = instance_scale(targets, observed[..., :num_targets], self.config.scaling)
        if future_values is not None:
            self.check_channels("future_values", future_values)
            values = torch.cat([values, future_values.to(values)], dim=1)
            observed = torch.cat([observed, observed_values(future_values, future_observed_mask)], dim=1)
            if attention_mask is not None and attention_mask.shape[1] == past_values.shape[1]:
                attention_mask = F.pad(attention_mask, (0, future_values.shape[1]), value=1)

        targets = (values[..., :num_targets].float() - loc) / scale
        outputs = self.model(
            inputs_embeds=self.embed(targets, values[..., num_targets:], observed, next_covariates),
            attention_mask=attention_mask,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        params = self.distribution_head(outputs.last_hidden_state)

        loss = None
        if future_values is not None:
            start, end = past_values.shape[1], values.shape[1]
            counts = observed[:, start:, :num_targets]
            predicted = tuple(param[:, start - 1 : end - 1] for param in params)
            losses = self.distribution_head.losses(predicted, torch.where(counts, targets[:, start:], 0))
            loss = torch.where(counts, losses, 0).sum() / counts.sum().clamp(min=1)
        return RTransformerTimeSeriesOutput(
            loss=loss,
            params=params,
            loc=loc,
            scale=scale,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def embed(
        self,
        targets: torch.Tensor,
        covariates: torch.Tensor,
        observed: torch.Tensor,
        next_covariates: torch.Tensor | None,
    ) -> torch.Tensor:
        """
        Scaled values, covariates and (batch, time, input_size) what of both is observed -> (batch, time, hidden_size).
        A step's covariates go with the values before it, from which it is predicted.
        """
        if next_covariates is None:
            next_covariates = torch.zeros_like(covariates[:, 0])
        num_targets = targets.shape[-1]
        covariates = torch.cat([covariates[:, 1:], next_covariates[:, None].to(covariates)], dim=1)
        covariates_observed = torch.cat([observed[:, 1:, num_targets:], ~next_covariates[:, None].isnan()], dim=1)
        observed = torch.cat([observed[..., :num_targets], covariates_observed], dim=-1)
        inputs = torch.where(observed, torch.cat([targets, covariates.to(targets)], dim=-1), 0)
        missing = self.missing_projection((~observed).to(self.dtype))
        return self.model.input_projection(inputs.to(self.dtype)) + missing

    def check_channels(self, name: str, values: torch.Tensor):
        if values.ndim != 3 or values.shape[-1] != self.config.input_size or values.shape[1] < 1:
            raise ValueError(
                f"`{name}` must have the shape (batch, time, {self.config.input_size}) with at least one step, its "
                f"last size being `config.input_size`, got {tuple(values.shape)}."
            )

    def output_distribution(
        self, params: tuple[torch.Tensor, ...], loc: torch.Tensor, scale: torch.Tensor
    ) -> torch.distributions.Distribution | QuantileDistribution:
        """The distributions that `params`, `loc` and `scale` of an output stand for, in the units of the data."""
        return self.distribution_head.distribution(params, loc, scale)


PIANO_KEYS = 88  # A0 to C8

AUTO_CLASSES = {
    "AutoConfig": RTransformerConfig,
    "AutoModel": RTransformerModel,
    "AutoModelForCausalLM": RTransformerForCausalLM,
    "AutoModelForSequenceClassification": RTransformerForSequenceClassification,
    "AutoModelForTokenClassification": RTransformerForTokenClassification,
    "AutoModelForTimeSeriesPrediction": RTransformerForTimeSeriesPrediction,
    # A probability for each key of each frame is what this class has for labels of the frames of a sound.
    "AutoModelForAudioFrameClassification": RTransformerForPolyphonicMusic,
}

# Makes `save_pretrained` copy this file and those that it imports into the checkpoint, for `trust_remote_code=True`.
for auto_class, class_to_register in AUTO_CLASSES.items():
    class_to_register.register_for_auto_class(auto_class)

# Trainer shifts labels when it smooths them, and pipelines and servers tell tasks apart, by the names in these tables.
for names, named_class in (
    (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, RTransformerForCausalLM),
    (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, RTransformerForSequenceClassification),
    (MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING_NAMES, RTransformerForTimeSeriesPrediction),
    (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, RTransformerForTokenClassification),
):
    names[RTransformerConfig.model_type] = named_class.__name__

__all__ = [
    "RTransformerForCausalLM",
    "RTransformerForPolyphonicMusic",
    "RTransformerForSequenceClassification",
    "RTransformerForTimeSeriesPrediction",
    "RTransformerForTokenClassification",
    "RTransformerModel",
    "RTransformerPreTrainedModel",
]
