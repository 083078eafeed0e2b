# SPDX-License-Identifier: Apache-2.0
"""
R-Transformer (Wang et al., "R-Transformer: Recurrent Neural Network Enhanced Transformer", arXiv 1907.05572).

A block is a LocalRNN, causal self-attention and a feed-forward layer, each behind a norm and within a residual. The
LocalRNN tells what is near and in which order, so there are no position embeddings.
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
from transformers.masking_utils import create_causal_mask
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
from .cpu_linear import attend_in_float32, is_faster_in_float32, is_plain_linear, linear_for_decoding
from .generation_rtransformer import RTransformerGenerationMixin
from .key_head import (
    FrameSamplingMixin,
    RTransformerAutoregressiveKeyHead,
    RTransformerMaskedLinear,
    check_frames,
    next_frame_loss,
)
from .local_rnn import State, advance_windows, local_rnn, num_gates, shared_projection_local_rnn
from .masking_rtransformer import (
    PaddingOrder,
    create_token_mask,
    last_real_positions,
    positions_in_packed_sequences,
    positions_of_inputs,
)
from .time_series_head import (
    ForecastMixin,
    RTransformerTimeSeriesHead,
    RTransformerTimeSeriesOutput,
    instance_scale,
    mean_squared_error,
    observed_values,
)


class RTransformerLocalRNN(nn.Module):
    """The LocalRNN (section 3.1): at each position, an RNN runs over the window of inputs that ends there."""

    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.cell_type = config.local_rnn_type
        self.window_size = config.local_window_size
        self.implementation = config.local_rnn_implementation
        gates_size = num_gates(self.cell_type) * config.hidden_size
        self.input_proj = nn.Linear(config.hidden_size, gates_size)
        self.recurrent_proj = nn.Linear(config.hidden_size, gates_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        previous_inputs: torch.Tensor | None = None,
        sequence_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        arguments = {
            "cell_type": self.cell_type,
            "window_size": self.window_size,
            "previous_inputs": previous_inputs,
            "sequence_positions": sequence_positions,
        }
        if is_plain_linear(self.input_proj) and is_plain_linear(self.recurrent_proj):
            return local_rnn(
                hidden_states,
                input_weight=self.input_proj.weight,
                recurrent_weight=self.recurrent_proj.weight,
                input_bias=self.input_proj.bias,
                recurrent_bias=self.recurrent_proj.bias,
                implementation=self.implementation,
                **arguments,
            )
        return shared_projection_local_rnn(hidden_states, self.input_proj, self.recurrent_proj, **arguments)

    def advance(self, hidden_states: torch.Tensor, states: State | None) -> tuple[torch.Tensor, State]:
        """One step of every unfinished window, for one position. Arguments as in `advance_windows`."""
        return advance_windows(
            hidden_states,
            states,
            partial(linear_for_decoding, self.input_proj),
            partial(linear_for_decoding, self.recurrent_proj),
            cell_type=self.cell_type,
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
    """A LocalRNN sub-layer: norm and LocalRNN. Padded positions are zeroed, like positions before the start."""

    def __init__(self, config: RTransformerConfig, layer_idx: int, state_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.state_idx = state_idx
        self.norm = make_layer_norm(config)
        self.cell = RTransformerLocalRNN(config)
        self.update_inputs = partial(
            update_inputs, layer_idx=layer_idx, state_idx=state_idx, window_size=config.local_window_size
        )

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

        is_single = hidden_states.shape[1] == 1 and padding_order is None
        if is_single and cache is not None and not torch.is_grad_enabled() and not is_tracing(hidden_states):
            return self.decode(hidden_states, cache)
        previous_inputs = None
        if cache is not None:
            previous_inputs, hidden_states = self.update_inputs(cache, hidden_states, padding_order=padding_order)
        elif padding_order is not None:
            hidden_states = padding_order.apply(hidden_states)
        outputs = self.cell(hidden_states, previous_inputs, sequence_positions)
        return outputs if padding_order is None else padding_order.undo(outputs)

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
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
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

        for name, value in kwargs.items():  # an unknown argument is ignored, but a cache must not be
            if isinstance(value, Cache):
                raise ValueError(f"`{name}` holds a cache; expected it as `cache`.")
        given_cache = cache
        if cache is None and use_cache:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            adopt_cache(cache, self.config)

        sequence_positions = None
        if position_ids is not None and attention_mask is None and given_cache is None:
            position_ids = position_ids.expand(inputs_embeds.shape[:2])
            sequence_positions = positions_in_packed_sequences(position_ids)

        if isinstance(attention_mask, dict):  # made by `generate`
            masks = attention_mask
        else:
            # Transformers detects packed sequences from position_ids only when no cache is passed.
            causal_mask = create_causal_mask(
                self.config, inputs_embeds, attention_mask, given_cache, position_ids=position_ids
            )
            masks = {
                "full_attention": causal_mask,
                "linear_attention": create_token_mask(inputs_embeds, attention_mask),
            }
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
        positions = last_real_positions(
            hidden_states, input_ids, attention_mask, self.config.pad_token_id, is_continued=cache is not None
        )
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
        if labels is not None and self.config.is_regression:
            loss = mean_squared_error(logits, labels, attention_mask)
        elif labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class RTransformerForPolyphonicMusic(RTransformerPreTrainedModel, FrameSamplingMixin):
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
        self.num_keys = config.input_size or 88  # the keys of a piano, A0 to C8
        self.key_head = nn.Linear(config.hidden_size, self.num_keys)
        if config.key_head_type == "autoregressive":
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
        hidden_states = outputs.last_hidden_state[:, kept]
        logits = self.key_head(hidden_states)
        if self.config.key_head_type == "autoregressive":
            next_frames = torch.zeros_like(logits) if labels is None else F.pad(labels[:, 1:], (0, 0, 0, 1))
            logits = logits + self.chord_head(hidden_states, next_frames.clamp(min=0).to(logits))

        return CausalLMOutputWithPast(
            loss=None if labels is None else next_frame_loss(logits, labels, attention_mask, num_items_in_batch),
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


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
