# SPDX-License-Identifier: Apache-2.0
"""
R-Transformer (Wang et al., "R-Transformer: Recurrent Neural Network Enhanced Transformer", arXiv 1907.05572).

A block is a LocalRNN, causal self-attention and a feed-forward layer, each with a norm before it and a residual around
it. The LocalRNN encodes local order, so no position embeddings are needed. For classification there is also a model
that reads in both directions, `RTransformerConfig(is_causal=False)`.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
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
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .cache_rtransformer import (
    CACHE_NAME,
    adopt_cache,
    load_partial_window_states,
    store_partial_window_states,
    takes_past_key_values,
    update_inputs,
)
from .configuration_rtransformer import RTransformerConfig
from .cpu_linear import attend_in_float32, is_faster_in_float32, linear_for_decoding
from .generation_rtransformer import RTransformerGenerationMixin
from .key_head import (
    FrameSamplingMixin,
    RTransformerAutoregressiveKeyHead,
    RTransformerMaskedLinear,
    check_frames,
    fill_padding,
    next_frame_loss,
)
from .local_rnn import State, advance_windows, local_rnn, shared_projection_local_rnn
from .masking_rtransformer import (
    PaddingOrder,
    check_mask,
    create_token_mask,
    has_packed_rows,
    last_real_state,
    mean_real_state,
    positions_in_sequences,
    positions_of_inputs,
    real_positions,
)
from .structured_linear import (
    STRUCTURED_LINEARS,
    CompressionMixin,
    LocalRNNProjections,
    RTransformerButterflyLinear,
    make_linear,
)
from .time_series_head import (
    ForecastMixin,
    RTransformerTimeSeriesHead,
    RTransformerTimeSeriesOutput,
    check_finite,
    instance_scale,
    mean_squared_error,
    num_items,
    observed_values,
)


class RTransformerLocalRNN(LocalRNNProjections):
    """The LocalRNN (section 3.1): at each position, an RNN runs over the window of inputs that ends there."""

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        self.window_size = config.local_window_size
        self.implementation = config.local_rnn_implementation
        self.gate_activation = config.local_rnn_gate_activation

    def forward(
        self,
        hidden_states: torch.Tensor,
        previous_inputs: torch.Tensor | None = None,
        sequence_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        arguments = {
            "cell_type": self.cell_type,
            "window_size": self.window_size,
            "gate_activation": self.gate_activation,
            "previous_inputs": previous_inputs,
            "sequence_positions": sequence_positions,
        }
        weights = self.weights()
        if weights is not None:
            return local_rnn(hidden_states, **weights, implementation=self.implementation, **arguments)
        return shared_projection_local_rnn(hidden_states, **self.projections(), **arguments)

    def advance(self, hidden_states: torch.Tensor, states: State | None) -> tuple[torch.Tensor, State]:
        """One step of every unfinished window, for one position. Arguments as in `advance_windows`."""
        return advance_windows(
            hidden_states,
            states,
            **self.projections(),
            cell_type=self.cell_type,
            window_size=self.window_size,
            gate_activation=self.gate_activation,
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
    """
    A LocalRNN sub-layer: norm and LocalRNN. Padded positions are zeroed, like positions before the start.

    With `is_causal=False` there are two LocalRNNs, whose outputs are summed: one over the window that ends at a
    position, and one, backwards, over the window that begins there. Two of half the width, with their outputs
    concatenated, take about half the time per training step, but found fewer named entities: F1 of 68.8 and 71.0 % on
    validation where these reach 73.8 and 74.9 % (scripts/recipes/japanese_ner.yaml, seeds 1111 and 1112; with a third
    block, 1111: 63.9 %; one thread of an EPYC, 28 November 2026). On TREC the two were alike.
    """

    def __init__(self, config: RTransformerConfig, layer_idx: int, state_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.state_idx = state_idx
        self.norm = make_layer_norm(config)
        self.cell = RTransformerLocalRNN(config)
        self.reverse_cell = None if config.is_causal else RTransformerLocalRNN(config)
        self.update_inputs = partial(
            update_inputs, layer_idx=layer_idx, state_idx=state_idx, window_size=config.local_window_size
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_mask: torch.Tensor | None = None,
        padding_order: PaddingOrder | None = None,
        sequence_positions: torch.Tensor | None = None,
        reverse_positions: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        hidden_states = self.norm(hidden_states)
        if token_mask is not None:
            hidden_states = hidden_states * (token_mask != 0)[..., None].to(hidden_states.dtype)
        if self.cell.window_size == 1:
            return self.run(hidden_states, None, sequence_positions, reverse_positions)

        is_single = hidden_states.shape[1] == 1 and padding_order is None
        if is_single and cache is not None and not torch.is_grad_enabled() and not is_tracing(hidden_states):
            return self.decode(hidden_states, cache)
        previous_inputs = None
        if cache is not None:
            previous_inputs, hidden_states = self.update_inputs(cache, hidden_states, padding_order=padding_order)
        elif padding_order is not None:
            hidden_states = padding_order.apply(hidden_states)
        outputs = self.run(hidden_states, previous_inputs, sequence_positions, reverse_positions)
        return outputs if padding_order is None else padding_order.undo(outputs)

    def run(
        self,
        hidden_states: torch.Tensor,
        previous_inputs: torch.Tensor | None,
        sequence_positions: torch.Tensor | None,
        reverse_positions: torch.Tensor | None,
    ) -> torch.Tensor:
        """
        The LocalRNN, or both. A flipped row has its right padding in front, zeros like the time before a start, and
        its left padding after the last input that counts. `reverse_positions` belong to the flipped rows.
        """
        outputs = self.cell(hidden_states, previous_inputs, sequence_positions)
        if self.reverse_cell is None:
            return outputs
        reverse_outputs = self.reverse_cell(hidden_states.flip(1), sequence_positions=reverse_positions).flip(1)
        return outputs + reverse_outputs

    def decode(self, hidden_states: torch.Tensor, cache: Cache) -> torch.Tensor:
        """
        One position, (batch, 1, hidden). The states of the unfinished windows are kept on the cache layer, so it costs
        one recurrent product instead of K. Where the cached inputs have changed otherwise, they are recomputed.
        """
        cache_layer = cache.layers[self.layer_idx]
        states = load_partial_window_states(cache_layer, self.state_idx)
        previous_inputs, _ = self.update_inputs(cache, hidden_states)
        if states is None:
            for position in previous_inputs.split(1, dim=1):
                _, states = self.cell.advance(position, states)
        output, states = self.cell.advance(hidden_states, states)
        store_partial_window_states(cache_layer, self.state_idx, states)
        return output


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
    """Multi-head self-attention (section 3.2), causal unless `is_causal=False`, without position embeddings."""

    def __init__(self, config: RTransformerConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.is_causal
        make = partial(make_linear, config, config.hidden_size, config.hidden_size, config.projection_bias)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = make(), make(), make(), make()

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
        if self.config._attn_implementation == "sdpa" and is_faster_in_float32(query):
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
    """The position-wise feed-forward layer (section 3.3), or a gated one (arXiv 2002.05202)."""

    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.is_gated = config.mlp_type == "gated"
        if self.is_gated:
            self.gate_proj = make_linear(config, config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = make_linear(config, config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = make_linear(config, config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        up = linear_for_decoding(self.up_proj, hidden_states)
        if self.is_gated:
            up = self.activation(linear_for_decoding(self.gate_proj, hidden_states)) * up
        else:
            up = self.activation(up)
        return linear_for_decoding(self.down_proj, self.dropout(up))


class RTransformerDecoderLayer(GradientCheckpointingLayer):
    """A block (section 3.4): LocalRNN layers, attention and feed-forward layer, each `x + dropout(f(norm(x)))`."""

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
        reverse_positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        for local_rnn_layer in self.local_rnns:
            local_states = local_rnn_layer(
                hidden_states, token_mask, padding_order, sequence_positions, reverse_positions, cache
            )
            hidden_states = hidden_states + self.dropout(local_states)
        attention_output, _ = self.self_attn(
            self.self_attn_norm(hidden_states),
            attention_mask=attention_mask,
            cache=cache,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class RTransformerPreTrainedModel(PreTrainedModel, CompressionMixin):
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
    requires_causal = False  # True for models of what follows, which cannot read it first

    def __init__(self, config: RTransformerConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        if self.requires_causal and not config.is_causal:
            raise ValueError(
                f"`config.is_causal` must be True for {type(self).__name__}, which predicts what follows, got False: "
                "a model that reads in both directions is an RTransformerForSequenceClassification or an "
                "RTransformerForTokenClassification."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        is_linear = isinstance(module, (nn.Linear, RTransformerMaskedLinear))
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.embedding_initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RTransformerButterflyLinear):
            module.reset_parameters()
        elif isinstance(module, STRUCTURED_LINEARS):
            module.reset_parameters(std)
        elif is_linear and std is not None:
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif is_linear:  # PyTorch's default for linear layers and RNN cells
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, use_safetensors: bool | None = True, **kwargs
    ):
        """
        As in any Transformers model, except that only safetensors files are loaded by default. Pickled weights can
        run code, so they need `use_safetensors=False`.
        """
        return super().from_pretrained(
            pretrained_model_name_or_path, *model_args, use_safetensors=use_safetensors is not False, **kwargs
        )

    def _get_name(self) -> str:
        # FSDP puts its prefix on the class name, which Trainer looks up in its tables.
        return super()._get_name().removeprefix("FSDP")

    def save_pretrained(self, save_directory, **kwargs):
        """
        As in any Transformers model, with the model's code beside the weights. The config names the class of every
        task, so without this package installed, any Auto class opens the checkpoint with `trust_remote_code=True`.
        """
        self.config.auto_map = {
            auto_class: f"{class_name.__module__.split('.')[-1]}.{class_name.__name__}"
            for auto_class, class_name in AUTO_CLASSES.items()
        }
        sharded_class = type(self)
        if sharded_class.__name__.startswith("FSDP"):  # made at run time, so it has no source file to copy
            model_class = sharded_class.__bases__[-1]
            sharded_class.__module__, sharded_class.__name__ = model_class.__module__, model_class.__name__
        super().save_pretrained(save_directory, **kwargs)


class RTransformerModel(RTransformerPreTrainedModel):
    """
    The stack of blocks, on a token embedding or, if `config.input_size` is set, a linear projection of vectors.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model.
    """

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        config.validate_architecture()
        if config.input_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.input_projection = nn.Linear(config.input_size, config.hidden_size)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            RTransformerDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = make_layer_norm(config) if config.final_layer_norm else nn.Identity()
        self.is_causal = config.is_causal
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
            attention_mask: (batch, cached + time), 0 at padding. A padded row gives the same outputs as it does alone.
            position_ids: (batch, time), for packed sequences: wherever they restart within a row, a new sequence
                begins that does not see the one before, provided there is neither mask nor cache. Otherwise they are
                only used by sinusoidal position embeddings.
            cache: made from the model's config, for example `DynamicCache(config=model.config)`. Also accepted as
                `past_key_values`, its name before Transformers 5.24.
            inputs_embeds: (batch, time, hidden_size), instead of the embedded or projected inputs.
            input_values: (batch, time, input_size) vectors, for a model with `input_size`.
            use_cache: whether to return a cache; None: `config.use_cache`.

        Returns:
            `BaseModelOutputWithPast` with `last_hidden_state` (batch, time, hidden_size).

        Raises:
            ValueError: there is not exactly one input, it does not fit the config, the mask has another shape, a cache
                has an unknown name, or there is one with `config.is_causal=False`.
        """
        if input_ids is not None and not self.is_causal:  # padding on the right would be read, too
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        inputs_embeds = self.embed(input_ids, inputs_embeds, input_values)

        for name, value in kwargs.items():  # an unknown argument is ignored, but a cache must not be
            if isinstance(value, Cache):
                raise ValueError(f"`{name}` holds a cache; expected it as `cache`.")
        kwargs.pop("is_causal", None)  # Transformers has put it into the config
        if self.config.is_causal != self.is_causal:
            raise ValueError(
                f"`is_causal` must be {self.is_causal}, as in the config that the model was made from, got "
                f"{self.config.is_causal}: its LocalRNN layers have the weights for that alone."
            )
        if not self.is_causal and (use_cache or cache is not None):
            name = "use_cache" if cache is None else CACHE_NAME
            raise ValueError(
                f"`{name}` must be {False if cache is None else None} for a model with `config.is_causal=False`: it "
                "reads whole sequences in both directions. Pass all inputs at once, or train a causal model."
            )
        given_cache = cache
        if cache is None and use_cache:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            adopt_cache(cache, self.config)

        sequences = sequence_positions = reverse_positions = None
        if position_ids is not None and attention_mask is None and given_cache is None:
            position_ids = position_ids.expand(inputs_embeds.shape[:2])
            sequences = find_packed_sequence_indices(position_ids)
        if sequences is not None:
            is_flash = "flash" in self.config._attn_implementation
            if is_flash and len(sequences) > 1 and not is_tracing(sequences):
                raise ValueError(
                    "`position_ids` pack several sequences into a row, which flash attention reads in a batch of 1 "
                    f"alone, got {len(sequences)} rows."
                )
            sequence_positions = positions_in_sequences(sequences)
            reverse_positions = None if self.is_causal else positions_in_sequences(sequences.flip(1))

        check_mask(attention_mask, inputs_embeds, given_cache, has_local_rnn="hybrid" in self.config.layer_types)
        if isinstance(attention_mask, dict):  # made by `generate`
            masks = attention_mask
        else:
            if self.is_causal:
                # Transformers detects packed sequences from position_ids only when no cache is passed.
                mask = create_causal_mask(
                    self.config, inputs_embeds, attention_mask, given_cache, position_ids=position_ids
                )
            else:
                same_sequence = None if sequences is None else packed_sequence_mask_function(sequences)
                mask = create_bidirectional_mask(
                    self.config, inputs_embeds, attention_mask, and_mask_function=same_sequence
                )
            masks = {"full_attention": mask, "linear_attention": create_token_mask(inputs_embeds, attention_mask)}
        token_mask = masks.get("linear_attention")
        padding_order = PaddingOrder.if_needed(token_mask, cache) if "hybrid" in self.config.layer_types else None

        if self.config.position_embedding_type == "sinusoidal":
            positions = position_ids
            if positions is None:
                positions = positions_of_inputs(inputs_embeds, attention_mask, given_cache)
            position_vectors = sinusoidal_positions(positions, self.config.hidden_size).to(inputs_embeds.dtype)
            inputs_embeds = inputs_embeds * math.sqrt(self.config.hidden_size) + position_vectors

        hidden_states = self.embedding_dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=masks["full_attention"],
                token_mask=token_mask,
                padding_order=padding_order,
                sequence_positions=sequence_positions,
                reverse_positions=reverse_positions,
                position_ids=position_ids,  # for flash attention, which detects packed sequences from them
                **{CACHE_NAME: cache},  # gradient checkpointing drops the cache only under this name
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE_NAME: cache})

    def embed(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        input_values: torch.Tensor | None,
    ) -> torch.Tensor:
        """(batch, time, hidden_size), from whichever input is given."""
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "input_values": input_values}
        given = [name for name, value in inputs.items() if value is not None]
        expected = ["input_ids" if self.config.input_size is None else "input_values", "inputs_embeds"]
        if len(given) != 1 or given[0] not in expected:
            raise ValueError(
                f"Exactly one of `{expected[0]}` and `{expected[1]}` is expected, as `config.input_size` is "
                f"{self.config.input_size}; got {' and '.join(given) or 'neither'}."
            )
        if inputs_embeds is not None:
            return inputs_embeds
        if input_ids is not None:
            return self.embed_tokens(input_ids)
        if input_values.ndim != 3 or input_values.shape[-1] != self.config.input_size:
            raise ValueError(
                f"`input_values` must have the shape (batch, time, {self.config.input_size}), with "
                f"`config.input_size` channels, got {tuple(input_values.shape)}."
            )
        return self.input_projection(input_values.to(self.dtype))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens if self.config.input_size is None else self.input_projection

    def set_input_embeddings(self, value: nn.Module):
        setattr(self, "embed_tokens" if self.config.input_size is None else "input_projection", value)


def sinusoidal_positions(position_ids: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """(batch, time) positions -> (batch, time, hidden_size) sines and cosines."""
    channels = torch.arange(0, hidden_size, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[..., None] * torch.exp(channels * (-math.log(10000) / hidden_size))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :hidden_size]


class RTransformerForCausalLM(RTransformerPreTrainedModel, RTransformerGenerationMixin):
    """
    The model with a language modeling head.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model.
    """

    requires_causal = True
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
            labels: (batch, time) token ids, usually `input_ids`. They are shifted inside the model: the output at t
                is compared with the label at t + 1. -100 is ignored.
            logits_to_keep: compute logits only for this many last positions (0: all), or for these indices.

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


class RTransformerForSequenceClassification(RTransformerPreTrainedModel):
    """
    The model with a classification head on the last unpadded position of each row, which has seen them all; with
    `config.is_causal=False`, on the mean of the unpadded positions.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `num_labels` and `problem_type` define the task.
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
        """Whether Trainer may count the labels of a batch. It skips -100, which is a valid label in a regression."""
        return not self.config.is_regression

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
            attention_mask: (batch, time), 0 at padding, on either side. Without it, inputs that are
                `config.pad_token_id` count as padding.
            labels: (batch,) class indices; (batch, num_labels) zeros and ones for `"multi_label_classification"`;
                (batch,) or (batch, num_labels) numbers for `"regression"`.
            num_items_in_batch: number of label values in the whole batch, if this is only a part of it (gradient
                accumulation, several devices): the loss is then this part's share of the mean over the batch. None:
                the mean over this part.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `SequenceClassifierOutputWithPast` with `logits` (batch, num_labels).
        """
        if not self.config.is_causal and has_packed_rows(position_ids, attention_mask):
            raise ValueError(
                "`position_ids` pack several sequences into a row, whose mean is of no single one (expected one "
                "sequence per row with `config.is_causal=False`)."
            )
        padding_mask = attention_mask
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            padding_mask = (input_ids != self.config.pad_token_id).long()
            # A causal model needs no mask for padding on the right, and without one runs faster.
            if not self.config.is_causal or (
                cache is None
                and not has_packed_rows(position_ids, attention_mask)
                and (is_tracing(padding_mask) or not padding_mask[:, 0].all())
            ):
                attention_mask = padding_mask
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
        is_real = real_positions(hidden_states, padding_mask)
        if self.config.is_causal:
            pooled = last_real_state(hidden_states, is_real, is_continued=cache is not None)
        else:
            pooled = mean_real_state(hidden_states, is_real)
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
            if num_items_in_batch is not None and self.config.problem_type != "single_label_classification":
                loss = loss * (labels.numel() / num_items_in_batch)  # Transformers averages over this part only
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class RTransformerForTokenClassification(RTransformerPreTrainedModel):
    """
    The model with a classification head on every position. A position sees itself and the positions before it; with
    `config.is_causal=False`, all positions.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `num_labels` is the number of classes, or for a
            regression (`problem_type="regression"`, or one label) the number of values to predict.
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
        """As in `RTransformerForSequenceClassification`."""
        return not self.config.is_regression

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
    ) -> TokenClassifierOutput:
        """
        Args:
            labels: (batch, time) class indices; -100 is ignored. For a regression, (batch, time) or (batch, time,
                num_labels) numbers; NaN and padded positions are ignored.
            num_items_in_batch: number of labels that are not ignored in the whole batch, if this is only a part of it
                (gradient accumulation, several devices): the loss is then this part's share of the mean. None: the
                mean over this part.

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
        if labels is not None and self.config.is_regression:
            loss = mean_squared_error(logits, labels, attention_mask, num_items_in_batch)
        elif labels is not None:
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class RTransformerForPolyphonicMusic(RTransformerPreTrainedModel, FrameSamplingMixin):
    """
    The model for piano rolls (section 4.2): it predicts which keys sound in each frame from the frames before. Given
    these, the keys are independent Bernoulli variables, or with `config.key_head_type="autoregressive"` each also
    depends on the lower keys of its frame, which gives a joint distribution over frames.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `input_size` is the number of keys.
    """

    main_input_name = "input_values"
    requires_causal = True

    def __init__(self, config: RTransformerConfig):
        super().__init__(config)
        self.model = RTransformerModel(config)
        self.num_keys = config.input_size or 88  # the keys of a piano, A0 to C8
        self.key_head = nn.Linear(config.hidden_size, self.num_keys)
        if config.key_head_type == "autoregressive":
            # Its name in checkpoints.
            self.chord_head = RTransformerAutoregressiveKeyHead(config, self.num_keys)
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
            input_values: (batch, time, keys) frames, 1 where a key sounds. Values between 0 and 1 are allowed.
            labels: (batch, time, keys) frames of zeros and ones, usually `input_values`. They are shifted inside the
                model: the output at t is compared with the frame at t + 1. Padded frames, the first after padding and
                frames of -100 are ignored.
            logits_to_keep: compute logits only for this many last frames (0: all), or for these indices.
            num_items_in_batch: number of label values in the whole batch (predicted frames times keys), if this is
                only a part of it: the loss is then this part's share of the mean over the batch. `Trainer` counts all
                labels that are not -100, so set padded frames and the first frame of each tune, which is never
                predicted, to -100. None: the mean over this part.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `CausalLMOutputWithPast` with `logits` (batch, time, keys) of the next frame, and `loss`, its negative
            log-likelihood in nats, summed over keys and averaged over frames. With autoregressive keys, the logits of
            a key are conditioned on the lower keys of the next frame in `labels`, or on silence without labels.

        Raises:
            ValueError: there are both `labels` and `logits_to_keep`, or a frame holds an invalid value. Values are
                only checked on CPUs and outside compiled code: elsewhere, reading them would stall the device.
        """
        if labels is not None and (not isinstance(logits_to_keep, int) or logits_to_keep != 0):
            raise ValueError(f"`logits_to_keep` must be 0 with `labels`, which need all logits, got {logits_to_keep}.")
        if input_values is not None:
            check_frames("input_values", input_values, attention_mask)
            if not is_tracing(input_values):  # an exported graph would not know that the shapes fit
                input_values = fill_padding(input_values, attention_mask, 0)
        if labels is not None:
            check_frames("labels", labels, attention_mask)
            labels = fill_padding(labels, attention_mask, -100, first_too=True)
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
        hidden_states = outputs.last_hidden_state[:, kept]
        logits = self.key_head(hidden_states)
        if self.config.key_head_type == "autoregressive":
            next_frames = torch.zeros_like(logits) if labels is None else F.pad(labels[:, 1:], (0, 0, 0, 1))
            logits = logits + self.chord_head(hidden_states, next_frames.clamp(min=0).to(logits))

        return CausalLMOutputWithPast(
            loss=None if labels is None else next_frame_loss(logits, labels, num_items_in_batch),
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class RTransformerForTimeSeriesPrediction(RTransformerPreTrainedModel, ForecastMixin):
    """
    The model for series of real numbers: it predicts the distribution of each channel's next value from all values
    before it. Each series is normalised by its own past. The last `config.num_dynamic_real_features` channels are
    covariates: known ahead, not predicted, and read one step early, where their step is predicted.

    Args:
        config ([`RTransformerConfig`]): the sizes of the model; `input_size` is the number of channels.
    """

    main_input_name = "past_values"
    requires_causal = True
    accepts_loss_kwargs = False  # Trainer would count `labels`, and there are none

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
        As in any Transformers model. A music model, which this Auto class used to open, still opens as a music model,
        with a warning.
        """
        architectures = getattr(kwargs.get("config"), "architectures", None) or []
        if RTransformerForPolyphonicMusic.__name__ in architectures[:1]:
            warnings.warn(
                f"{pretrained_model_name_or_path} is a music model: open it with "
                "AutoModelForAudioFrameClassification. AutoModelForTimeSeriesPrediction is for series of real numbers "
                "and will stop opening it in a later version.",
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
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RTransformerTimeSeriesOutput:
        """
        Args:
            past_values: (batch, time, input_size), in the units of the data: channels to predict, then covariates.
                NaN is a missing value.
            past_observed_mask: (batch, time, input_size) or (batch, time), 0 at missing values, which may then hold
                anything.
            future_values: (batch, horizon, input_size), the values that follow, for training. They are appended to
                `past_values` and carry the loss, but do not count in `loc` and `scale`. A channel without an observed
                past value, which has no scale, counts as missing there, too.
            future_observed_mask: as `past_observed_mask`; missing values are left out of the loss.
            next_covariates: (batch, num_dynamic_real_features), covariates of the step after the last one; None: 0.
            attention_mask: (batch, cached + time), with or without the horizon, 0 at padding, on the left.
            cache: as in [`RTransformerModel`]. To continue from a cache, pass the `loc` and `scale` it was made with.
            loc, scale: (batch, 1, channels), the normalisation; None: computed from `past_values`.
            num_items_in_batch: number of observed future values in the whole batch, if this is only a part of it: the
                loss is then this part's share of the mean. None: the mean over this part.

        The other arguments are those of [`RTransformerModel`].

        Returns:
            `RTransformerTimeSeriesOutput` with `params` of the next value's distribution at every step, `loc` and
            `scale`; `output_distribution` turns the three into a distribution.

        Raises:
            ValueError: a shape does not fit the config or the mask the values, padding comes between the past and the
                future, `loc` and `scale` are not given together, or not with a cache, or a value is infinite. Values
                are only checked on CPUs and outside compiled code: elsewhere, reading them would stall the device.
        """
        self.check_channels("past_values", past_values)
        past_values = past_values.to(torch.promote_types(past_values.dtype, torch.float32))
        past_mask = future_mask = None
        if attention_mask is not None:
            past_mask, future_mask = self.split_mask(attention_mask, past_values, future_values, cache)
            attention_mask = past_mask if future_mask is None else torch.cat([past_mask, future_mask], dim=1)
        values, observed = past_values, observed_values(past_values, past_observed_mask, past_mask)
        check_finite("past_values", past_values, observed)
        num_targets = self.config.num_target_channels
        has_scale = True
        if (loc is None) != (scale is None):
            raise ValueError(
                f"`loc` and `scale` must be given together, got {'`scale`' if loc is None else '`loc`'} alone."
            )
        if loc is None:
            if cache is not None and cache.get_seq_length() > 0:
                raise ValueError(
                    "`loc` and `scale` must be given with `cache`: pass those of the output that holds the cache."
                )
            is_target = observed[..., :num_targets]
            loc, scale = instance_scale(past_values[..., :num_targets], is_target, self.config.scaling)
            if self.config.scaling != "none":
                has_scale = is_target.any(dim=1, keepdim=True)
        if future_values is not None:
            self.check_channels("future_values", future_values)
            future_observed = observed_values(future_values, future_observed_mask, future_mask)
            check_finite("future_values", future_values, future_observed)
            values = torch.cat([values, future_values.to(values)], dim=1)
            scaled = future_observed[..., :num_targets] & has_scale
            future_observed = torch.cat([scaled, future_observed[..., num_targets:]], dim=-1)
            observed = torch.cat([observed, future_observed], dim=1)

        targets = ((values[..., :num_targets] - loc) / scale).float()
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
            loss = torch.where(counts, losses, 0).sum() / num_items(counts, num_items_in_batch)
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
        Normalised targets, covariates, and (batch, time, input_size) whether each is observed -> (batch, time,
        hidden_size). Covariates are shifted by one step: they go with the values from which their step is predicted.
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


AUTO_CLASSES = {
    "AutoConfig": RTransformerConfig,
    "AutoModel": RTransformerModel,
    "AutoModelForCausalLM": RTransformerForCausalLM,
    "AutoModelForSequenceClassification": RTransformerForSequenceClassification,
    "AutoModelForTokenClassification": RTransformerForTokenClassification,
    "AutoModelForTimeSeriesPrediction": RTransformerForTimeSeriesPrediction,
    # Closest in kind: independent probabilities for each frame.
    "AutoModelForAudioFrameClassification": RTransformerForPolyphonicMusic,
}

# Makes `save_pretrained` copy this file and the files it imports into the checkpoint, for `trust_remote_code=True`.
for auto_class, class_to_register in AUTO_CLASSES.items():
    class_to_register.register_for_auto_class(auto_class)

# Transformers looks class names up in these tables: Trainer for label smoothing, pipelines and servers for the task.
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
