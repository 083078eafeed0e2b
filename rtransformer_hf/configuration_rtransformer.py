# SPDX-License-Identifier: Apache-2.0
"""R-Transformer configuration."""

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .local_rnn import CELLS, GATE_ACTIVATIONS, IMPLEMENTATIONS

POSITION_EMBEDDING_TYPES = ("none", "sinusoidal")
MLP_TYPES = ("plain", "gated")
DISTRIBUTION_OUTPUTS = ("student_t", "normal", "quantiles")
SCALINGS = ("std", "mean", "none")
KEY_HEAD_TYPES = ("independent", "autoregressive")
PROJECTION_TYPES = ("dense", "butterfly", "monarch")
LAYER_NORM_TYPES = ("standard", "unbiased")


@strict
class RTransformerConfig(PreTrainedConfig):
    r"""
    Configuration of an R-Transformer (Wang et al., arXiv 1907.05572). The defaults are the sizes of the paper's
    character-level language model.

    The model embeds token ids or, if `input_size` is set, projects input vectors.

    Args:
        vocab_size (`int`, defaults to 10000):
            Number of tokens in the vocabulary. With `input_size`, only the causal language model uses it.
        hidden_size (`int`, defaults to 512):
            Width of the model.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layers; four times `hidden_size` if unset.
        num_hidden_layers (`int`, defaults to 3):
            Number of blocks.
        num_attention_heads (`int`, defaults to 8):
            Number of attention heads; must divide `hidden_size`.
        hidden_act (`str`, defaults to `"relu"`):
            Activation of the feed-forward layers.
        mlp_type (`str`, defaults to `"plain"`):
            Kind of the feed-forward layers: `"plain"` is two projections with the activation in between (the paper);
            `"gated"` multiplies the activation by a third projection (arXiv 2002.05202; SwiGLU with
            `hidden_act="silu"`), which costs 50 % more parameters at the same `intermediate_size`.
        local_rnn_type (`str`, defaults to `"gru"`):
            Cell type of the LocalRNN layers: `"rnn"` (tanh), `"gru"` or `"lstm"` (section 3.1 of the paper).
        local_window_size (`int`, defaults to 7):
            Number of inputs in a LocalRNN window, the current one included; at least 1.
        num_local_rnn_layers (`int`, defaults to 1):
            Number of LocalRNN layers at the start of each block; 0 gives a Transformer without position information.
        local_rnn_implementation (`str`, *optional*):
            Implementation of the LocalRNN operator: `"reference"`, `"shared_projection"`, `"blocked"` (CPU) or
            `"triton"` (GPU); chosen by device if unset. Second derivatives and `torch.func` need one of the first two.
        local_rnn_gate_activation (`str`, defaults to `"sigmoid"`):
            Activation of GRU and LSTM gates: `"sigmoid"` or `"hard_sigmoid"`, clip(0.2 x + 0.5, 0, 1).
        local_rnn_num_heads (`int`, defaults to 1):
            Number of heads of the LocalRNN. With more than one, the recurrent weight is block-diagonal: each head sees
            only its own state (arXiv 2405.04517), which divides the cost of the recurrent products by this number. It
            must divide `hidden_size`, and be 1 for butterflies.
        projection_type (`str`, defaults to `"dense"`):
            Structure of the attention and feed-forward weights: `"dense"`, `"butterfly"` (arXiv 2012.14966) or
            `"monarch"` (arXiv 2204.00595).
        local_rnn_projection_type (`str`, *optional*):
            Structure of the LocalRNN's weights; `projection_type` if unset. `"butterfly"` is a single matrix over
            [input, state], with LSTM gates in the published order (input, forget, output, candidate). With heads,
            `"monarch"` is the structure of the input weight alone.
        num_butterfly_blocks (`int`, defaults to 2):
            Number of blocks in a butterfly, alternating between increasing and decreasing stride.
        num_monarch_blocks (`int`, defaults to 4):
            Number of diagonal blocks in each of the two factors of a Monarch matrix; at most `hidden_size`. Each of
            the matrix's `num_monarch_blocks`**2 blocks has the rank of its smaller side divided by
            `num_monarch_blocks`.
        projection_bias (`bool`, defaults to `True`):
            Whether the attention projections have biases.
        mlp_bias (`bool`, defaults to `True`):
            Whether the feed-forward layers have biases.
        local_rnn_bias (`bool`, defaults to `True`):
            Whether the LocalRNN's projections have biases.
        input_size (`int`, *optional*):
            If set, the model reads `input_values` (batch, time, `input_size`) instead of `input_ids`.
        position_embedding_type (`str`, defaults to `"none"`):
            `"sinusoidal"` scales the inputs by the square root of `hidden_size` and adds the position embeddings of
            Vaswani et al. (arXiv 1706.03762, section 3.5). With `num_local_rnn_layers=0` this is the Transformer that
            the paper compares with.
        key_head_type (`str`, defaults to `"independent"`):
            How the music model predicts the keys of a frame, given the frames before: `"independent"` of each other
            (the paper), or `"autoregressive"`, each key also given the lower keys of its frame.
        key_head_size (`int`, defaults to 16):
            Hidden units per key in the autoregressive key head.
        frames_per_beat (`int`, *optional*):
            Frames per quarter note in the music that a music model was trained on. The model ignores it; the scripts
            read and write MIDI with it.
        num_dynamic_real_features (`int`, defaults to 0):
            Number of covariates of a time series model: the last of its `input_size` channels, known ahead and not
            predicted.
        distribution_output (`str`, defaults to `"student_t"`):
            What a time series model predicts for each next value: the parameters of a `"student_t"` or `"normal"`
            distribution, or `"quantiles"`.
        quantile_levels (`list[float]`, *optional*):
            Levels of the quantiles, ascending; 0.1, 0.2, ..., 0.9 if unset.
        scaling (`str`, defaults to `"std"`):
            How a time series model normalises each series, computed from its past: `"std"` by mean and standard
            deviation, `"mean"` by the mean absolute value, `"none"` not at all.
        context_length, prediction_length (`int`, *optional*):
            Number of steps that a time series model was trained to read and to forecast.
        num_parallel_samples (`int`, defaults to 100):
            Number of samples that a forecast draws per series.
        final_layer_norm (`bool`, defaults to `False`):
            Whether a layer norm follows the last block. The published model has none.
        layer_norm_type (`str`, defaults to `"standard"`):
            Formula of the layer norms: `"standard"` is `torch.nn.LayerNorm`; `"unbiased"` divides by the unbiased
            standard deviation plus epsilon, as the published code does, and converted checkpoints with it.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the layer norms.
        hidden_dropout (`float`, defaults to 0.0):
            Dropout on the output of every sub-layer and inside the feed-forward layers.
        attention_dropout (`float`, defaults to 0.0):
            Dropout on the attention weights.
        embedding_dropout (`float`, defaults to 0.0):
            Dropout on the embedded or projected inputs.
        classifier_dropout (`float`, defaults to 0.0):
            Dropout before the classification heads.
        initializer_range (`float`, *optional*):
            If set, the weights of linear layers are drawn from a normal distribution with this standard deviation,
            and their biases are zero. If unset, PyTorch's default initialisation is kept, as in the published code.
        embedding_initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial token embeddings, drawn from a normal distribution.
        tie_word_embeddings (`bool`, defaults to `True`):
            Whether the output layer of the causal language model shares its weight with the token embedding. Always
            off with `input_size`, which leaves no embedding to share.
        is_causal (`bool`, defaults to `True`):
            Whether a position sees only itself and the positions before it. `False` makes a model that reads in both
            directions, for classification of sequences or positions: attention is not masked, and to the output of
            each LocalRNN is added that of a second one, which reads the window after a position, backwards. There is
            no cache then, and nothing that needs one (generation).
        use_cache (`bool`, *optional*):
            Whether the model returns a cache for generation; as `is_causal` if unset.
        pad_token_id, bos_token_id, eos_token_id (`int`, *optional*):
            Ids of special tokens.

    Raises:
        `ValueError`: an argument is out of range; the message gives its name, its value and what was expected.

    Example:

    ```python
    >>> from rtransformer_hf import RTransformerConfig, RTransformerForCausalLM

    >>> config = RTransformerConfig(vocab_size=50, hidden_size=128, local_rnn_type="lstm", local_window_size=9)
    >>> model = RTransformerForCausalLM(config)
    ```
    """

    model_type = "rtransformer"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    # LocalRNN layers are replicated: each step needs the whole state, so splitting them would synchronise K times.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 10000
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    hidden_act: str = "relu"
    mlp_type: str = "plain"
    local_rnn_type: str = "gru"
    local_window_size: int = 7
    num_local_rnn_layers: int = 1
    local_rnn_implementation: str | None = None
    local_rnn_gate_activation: str = "sigmoid"
    local_rnn_num_heads: int = 1
    projection_type: str = "dense"
    local_rnn_projection_type: str | None = None
    num_butterfly_blocks: int = 2
    num_monarch_blocks: int = 4
    projection_bias: bool = True
    mlp_bias: bool = True
    local_rnn_bias: bool = True
    input_size: int | None = None
    position_embedding_type: str = "none"
    key_head_type: str = "independent"
    key_head_size: int = 16
    frames_per_beat: int | None = None
    num_dynamic_real_features: int = 0
    distribution_output: str = "student_t"
    quantile_levels: list[float] | None = None
    scaling: str = "std"
    context_length: int | None = None
    prediction_length: int | None = None
    num_parallel_samples: int = 100
    final_layer_norm: bool = False
    layer_norm_type: str = "standard"
    layer_norm_eps: float = 1e-6
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    initializer_range: float | None = None
    embedding_initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    is_causal: bool = True
    use_cache: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.local_rnn_projection_type is None:
            self.local_rnn_projection_type = self.projection_type
        if self.input_size is not None:
            self.tie_word_embeddings = False
        if self.use_cache is None:
            self.use_cache = self.is_causal
        if self.quantile_levels is None:
            self.quantile_levels = [level / 10 for level in range(1, 10)]
        self.validate_architecture()
        if self.mlp_type == "gated":  # added only here: Transformers warns about rules that match no layer
            self.base_model_tp_plan = {**self.base_model_tp_plan, "layers.*.mlp.gate_proj": "colwise"}
        super().__post_init__(**kwargs)

    @property
    def layer_types(self) -> list[str]:
        """Kind of cache layer of each block, in Transformers' terms. It follows from the LocalRNN's sizes."""
        has_local_state = self.num_local_rnn_layers > 0 and self.local_window_size > 1
        return ["hybrid" if has_local_state else "full_attention"] * self.num_hidden_layers

    @layer_types.setter
    def layer_types(self, value: list[str]):
        if list(value) != self.layer_types:
            raise ValueError(
                "`layer_types` follows from `num_hidden_layers`, `num_local_rnn_layers` and `local_window_size` and "
                f"cannot be set: expected {self.layer_types}, got {value}."
            )

    @property
    def auto_map(self) -> dict[str, str]:
        """Class of the checkpoint's code for each Auto class; empty without code. TRL reads it from any config."""
        return vars(self).setdefault("auto_map", {})

    @auto_map.setter
    def auto_map(self, value: dict[str, str]):
        vars(self)["auto_map"] = value

    @property
    def num_target_channels(self) -> int:
        """Number of channels that a time series model predicts: all but the covariates."""
        return (self.input_size or 0) - self.num_dynamic_real_features

    @property
    def is_regression(self) -> bool:
        """Whether the classification models predict numbers: set by `problem_type`, and the default for one label."""
        return (self.problem_type or ("regression" if self.num_labels == 1 else None)) == "regression"

    @property
    def number_of_conv_states(self) -> int:
        """Number of LocalRNN windows in a block's cache layer, one for each LocalRNN layer."""
        return self.num_local_rnn_layers

    def validate_architecture(self):
        """Checks ranges and combinations. Called when a config is made or saved, and when a model is made from it."""
        at_least = {
            "vocab_size": 1,
            "hidden_size": 1,
            "intermediate_size": 1,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "local_window_size": 1,
            "local_rnn_num_heads": 1,
            "num_butterfly_blocks": 1,
            "num_monarch_blocks": 1,
            "num_local_rnn_layers": 0,
            "input_size": 1,
            "key_head_size": 1,
            "frames_per_beat": 1,
            "num_dynamic_real_features": 0,
            "context_length": 1,
            "prediction_length": 1,
            "num_parallel_samples": 1,
        }
        for name, minimum in at_least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value}.")
        accepted_values = {
            "local_rnn_implementation": (None, *IMPLEMENTATIONS),
            "hidden_act": tuple(ACT2FN),
            "mlp_type": MLP_TYPES,
            "local_rnn_type": tuple(CELLS),
            "local_rnn_gate_activation": tuple(GATE_ACTIVATIONS),
            "projection_type": PROJECTION_TYPES,
            "local_rnn_projection_type": PROJECTION_TYPES,
            "position_embedding_type": POSITION_EMBEDDING_TYPES,
            "key_head_type": KEY_HEAD_TYPES,
            "layer_norm_type": LAYER_NORM_TYPES,
            "distribution_output": DISTRIBUTION_OUTPUTS,
            "scaling": SCALINGS,
        }
        for name, accepted in accepted_values.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"`{name}` must be one of {accepted}, got {getattr(self, name)!r}.")
        for name in ("hidden_dropout", "attention_dropout", "embedding_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and less than 1, got {getattr(self, name)}.")
        levels = self.quantile_levels
        if len(levels) < 2 or sorted(set(levels)) != list(levels) or not 0 < levels[0] <= levels[-1] < 1:
            raise ValueError(
                f"`quantile_levels` must be at least two ascending numbers between 0 and 1, got {levels}."
            )
        is_butterfly = "butterfly" in (self.projection_type, self.local_rnn_projection_type)
        if is_butterfly and min(self.hidden_size, self.intermediate_size) < 2:
            raise ValueError(
                "`hidden_size` and `intermediate_size` must be at least 2 for butterfly projections, got "
                f"{self.hidden_size} and {self.intermediate_size}."
            )
        is_monarch = "monarch" in (self.projection_type, self.local_rnn_projection_type)
        if is_monarch and self.num_monarch_blocks > min(self.hidden_size, self.intermediate_size):
            raise ValueError(
                "`num_monarch_blocks` must be at most `hidden_size` and `intermediate_size`, "
                f"{self.hidden_size} and {self.intermediate_size} here, got {self.num_monarch_blocks}."
            )
        if not self.is_causal and self.use_cache:
            raise ValueError(
                "`use_cache` must be False (or unset) with `is_causal=False`: a model that reads in both directions "
                "has no cache."
            )
        if self.hidden_size % self.local_rnn_num_heads != 0:
            raise ValueError(
                "`local_rnn_num_heads` must divide `hidden_size`, got "
                f"`local_rnn_num_heads={self.local_rnn_num_heads}` and `hidden_size={self.hidden_size}`."
            )
        if self.local_rnn_num_heads > 1 and self.local_rnn_projection_type == "butterfly":
            raise ValueError(
                "`local_rnn_num_heads` must be 1 for `local_rnn_projection_type='butterfly'`, a single matrix that "
                f"includes the recurrent weight, got {self.local_rnn_num_heads}."
            )
        if self.layer_norm_type == "unbiased" and self.hidden_size < 2:
            raise ValueError(f"`hidden_size` must be at least 2 for unbiased layer norms, got {self.hidden_size}.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                "`num_attention_heads` must divide `hidden_size`, got "
                f"`num_attention_heads={self.num_attention_heads}` and `hidden_size={self.hidden_size}`."
            )
        is_dense = "dense" in (self.projection_type, self.num_local_rnn_layers and self.local_rnn_projection_type)
        if not is_dense and getattr(self, "quantization_config", None) is not None:
            raise ValueError(
                f"`quantization_config` must be None for `config.projection_type={self.projection_type!r}` and "
                f"`config.local_rnn_projection_type={self.local_rnn_projection_type!r}`: quantisation changes dense "
                "layers alone, and the blocks have none."
            )
        tp_size = getattr(getattr(self, "distributed_config", None), "tp_size", 1)  # set by `from_pretrained`
        if tp_size > 1 and self.projection_type != "dense":
            raise ValueError(
                f"`tp_size` must be 1 for `config.projection_type={self.projection_type!r}`, whose factors cannot be "
                f"split between ranks, got {tp_size}."
            )
        if self.num_attention_heads % tp_size != 0:
            raise ValueError(
                f"`tp_size` must divide `config.num_attention_heads`, {self.num_attention_heads} here, got {tp_size}."
            )


__all__ = ["RTransformerConfig"]
