# SPDX-License-Identifier: Apache-2.0
"""The model that a training script trains: a new one, with sizes as flags, or a checkpoint."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .. import RTransformerConfig
from .architectures import new_config
from .errors import UsageError
from .loading import open_model, read_config

# Small enough to learn from a megabyte within minutes on two CPU cores.
NEW_MODEL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "local_window_size": 4,
    "final_layer_norm": True,
}
EVALUATION_FILE = "evaluation.json"  # beside a model: how scripts/evaluate_checkpoint.py reads the data
CAUSAL_LM_ARCHITECTURES = ("ForCausalLM", "LMHeadModel")
# Models whose layers can get a new head, to label texts.
PRETRAINED_ARCHITECTURES = (*CAUSAL_LM_ARCHITECTURES, "ForMaskedLM", "ForPreTraining", "Model")


@dataclass
class ModelArguments:
    """Unset fields keep the default of RTransformerConfig, or the value of --model_name_or_path."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model to train further: a folder or a Hub id. Unset: a new R-Transformer."},
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the model."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width inside the feed-forward layers."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of blocks."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Number of attention heads."})
    hidden_act: str | None = field(default=None, metadata={"help": "Activation of the feed-forward layers."})
    mlp_type: str | None = field(
        default=None, metadata={"help": "Feed-forward layers: plain, or gated (with --hidden_act silu: SwiGLU)."}
    )
    local_rnn_type: str | None = field(default=None, metadata={"help": "Cell of the LocalRNN: rnn, gru or lstm."})
    local_window_size: int | None = field(default=None, metadata={"help": "Inputs that a LocalRNN state sees."})
    num_local_rnn_layers: int | None = field(default=None, metadata={"help": "LocalRNN layers a block."})
    local_rnn_num_heads: int | None = field(
        default=None, metadata={"help": "Heads of the LocalRNN, with a block-diagonal recurrent weight: faster."}
    )
    local_rnn_gate_activation: str | None = field(
        default=None, metadata={"help": "Gates of GRU and LSTM: sigmoid, or hard_sigmoid."}
    )
    projection_type: str | None = field(
        default=None, metadata={"help": "Attention and feed-forward weights: dense, butterfly or monarch."}
    )
    local_rnn_projection_type: str | None = field(
        default=None, metadata={"help": "Weights of the LocalRNN, likewise. Unset: as projection_type."}
    )
    num_butterfly_blocks: int | None = field(default=None, metadata={"help": "Blocks of each butterfly."})
    num_monarch_blocks: int | None = field(
        default=None, metadata={"help": "Blocks in each factor of a Monarch matrix: the more, the smaller."}
    )
    projection_bias: bool | None = field(default=None, metadata={"help": "Biases of the attention projections."})
    mlp_bias: bool | None = field(default=None, metadata={"help": "Biases of the feed-forward layers."})
    local_rnn_bias: bool | None = field(default=None, metadata={"help": "Biases of the LocalRNN."})
    position_embedding_type: str | None = field(
        default=None,
        metadata={"help": "none, or sinusoidal: with num_local_rnn_layers 0, the Transformer of the paper."},
    )
    final_layer_norm: bool | None = field(default=None, metadata={"help": "Whether a norm follows the last block."})
    hidden_dropout: float | None = field(default=None, metadata={"help": "Dropout of the sub-layers."})
    attention_dropout: float | None = field(default=None, metadata={"help": "Dropout on the attention weights."})
    embedding_dropout: float | None = field(default=None, metadata={"help": "Dropout on the embedded inputs."})
    initializer_range: float | None = field(
        default=None, metadata={"help": "Standard deviation of new linear weights. Unset: PyTorch's initialisation."}
    )
    embedding_initializer_range: float | None = field(
        default=None, metadata={"help": "Standard deviation of new token embeddings."}
    )
    tie_word_embeddings: bool | None = field(
        default=None, metadata={"help": "Whether the output layer shares the embedding's weight."}
    )


@dataclass
class ArchitectureArguments(ModelArguments):
    """A new R-Transformer by its flags, or a new model of any architecture by --config_overrides."""

    model_type: str | None = field(
        default=None,
        metadata={
            "help": "A new model of this architecture of Transformers, for the same data and training: gpt2, llama, "
            "lfm2, ... or rtransformer, with the sizes of --config_overrides. Unset: an R-Transformer by its flags."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Fields of the configuration, with --model_type: hidden_size=256,num_hidden_layers=4,... or a "
            "JSON object. What is unset has the library's default, which may be large."
        },
    )

    def __post_init__(self):
        if self.model_type is None:
            if self.config_overrides is not None:
                raise UsageError(f"--config_overrides {self.config_overrides!r} goes with --model_type alone.")
            return
        if self.model_name_or_path is not None:
            raise UsageError(
                f"--model_type {self.model_type} makes a new model, --model_name_or_path {self.model_name_or_path!r} "
                "trains one further (expected one of the two)"
            )
        if getattr(self, "bidirectional", None) is not None:
            raise UsageError(
                f"--bidirectional: not with --model_type {self.model_type}, which has directions of its own (expected "
                f"no --model_type; with {RTransformerConfig.model_type}, --config_overrides is_causal=false)"
            )
        own = {"model_type", "config_overrides"}
        given = [flag.name for flag in fields(self) if flag.init and flag.name not in own]
        if given := [name for name in given if getattr(self, name) is not None]:
            raise UsageError(
                f"--{', --'.join(given)}: not with --model_type {self.model_type} (expected in --config_overrides, by "
                "the names of its configuration)"
            )

    @property
    def source(self) -> str:
        """The flag that a model of another architecture comes from, for messages."""
        if self.model_type is None:
            return f"--model_name_or_path {self.model_name_or_path!r}"
        return f"--model_type {self.model_type} --config_overrides {self.config_overrides!r}"


@dataclass
class ClassifierModelArguments(ModelArguments):
    """Flags of the models that classify, beside those of all models."""

    classifier_dropout: float | None = field(default=None, metadata={"help": "Dropout ahead of the classifier."})
    bidirectional: bool | None = field(
        default=None,
        metadata={
            "nargs": "?",  # without a value: true
            "const": True,
            "help": "Each position sees the whole sequence, not just itself and what comes before it: attention in "
            "both directions, and for each LocalRNN a second one that reads the window after a position, backwards; "
            "more parameters and time. A sequence is classified by the mean of its positions, not by the "
            "last. With --num_local_rnn_layers 0 --position_embedding_type sinusoidal: a Transformer encoder. Unset: "
            "no; with --model_name_or_path, as it was trained.",
        },
    )


def unset_sizes(arguments: type[ModelArguments]) -> dict[str, Any]:
    """The sizes of a new model whose flags are unset: the defaults of RTransformerConfig."""
    names = {flag.name for flag in fields(arguments) if flag.init and hasattr(RTransformerConfig, flag.name)}
    sizes = {name: getattr(RTransformerConfig, name) for name in names}
    return {**{name: size for name, size in sizes.items() if size is not None}, "intermediate_size": "4 * hidden_size"}


def make_model(
    args: ModelArguments,
    new_model_class: type[PreTrainedModel],
    auto_class: type,
    architectures: tuple[str, ...],
    head: dict[str, Any] | None = None,
    **settings,
) -> PreTrainedModel:
    """
    Args:
        args: sizes of the model, or its architecture, or the checkpoint to open.
        new_model_class: class of a new model without --model_type.
        auto_class: what opens --model_name_or_path, and makes a new model with --model_type.
        architectures: the accepted classes of --model_name_or_path, as of `check_architecture`.
        head: fields of the configuration for a new head, whether the model below it is new or not.
        settings: fields of a new model's configuration that follow from the data.

    Raises:
        UsageError: there is no such model, its weights are not those of its configuration with the flags, or it does
            not read in the direction that is asked for.
    """
    fields_of_model = {**asdict(args), **(head or {})}
    chosen = {name: value for name, value in fields_of_model.items() if value is not None}
    path = chosen.pop("model_name_or_path", None)
    bidirectional = chosen.pop("bidirectional", None)
    model_type, overrides = chosen.pop("model_type", None), chosen.pop("config_overrides", None)
    if model_type is not None:
        config = new_config(auto_class, model_type, overrides, {**settings, **chosen})
        try:
            return auto_class.from_config(config)
        except Exception as error:  # of some two hundred architectures
            raise UsageError(
                f"--model_type {model_type} --config_overrides {overrides!r} make no model: {error}"
            ) from error
    if path is None:
        try:
            return new_model_class(RTransformerConfig(**settings, **chosen, is_causal=not bidirectional))
        except ValueError as error:
            raise UsageError(f"these sizes make no model: {error}") from error
    what = f"--model_name_or_path {path!r} can't be used"
    try:
        check_architecture(path, *architectures)
        config = read_config(path)
        direction = {} if bidirectional is None else direction_fields(path, bidirectional)
        if unknown := [name for name in chosen if not hasattr(config, name)]:
            raise UsageError(
                f"--{', --'.join(unknown)}: not with --model_name_or_path {path!r}, a {config.model_type} (expected "
                f"flags that {type(config).__name__} has)"
            )
        changed = [name for name in chosen if name not in (head or {}) and chosen[name] != getattr(config, name)]
        if changed:
            flags = (f"--{name} {chosen[name]} (trained with {getattr(config, name)})" for name in changed)
            what += f" with {', '.join(flags)}"
        return open_model(auto_class, path, **chosen, **direction)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: {error}") from error


def direction_fields(path: str, bidirectional: bool) -> dict[str, bool]:
    """
    The configuration's fields that make a checkpoint read in both directions, or in one.

    Raises:
        UsageError: its weights are for the other kind, or it is no R-Transformer.
        OSError: there is no such checkpoint.
    """
    config = read_config(path)
    if not isinstance(config, RTransformerConfig):
        raise UsageError(
            f"--bidirectional: {path!r} is a {config.model_type}, which has directions of its own (expected an "
            "R-Transformer as --model_name_or_path)"
        )
    if config.is_causal == bidirectional and config.num_local_rnn_layers > 0:
        reads, expected = ("one direction", "both") if config.is_causal else ("both directions", "one")
        raise UsageError(
            f"--bidirectional: {bidirectional}, but the LocalRNN layers of --model_name_or_path {path!r} have the "
            f"weights for {reads} (expected a model that was trained for {expected}, or a new one)"
        )
    return {"is_causal": not bidirectional, "use_cache": not bidirectional}


def vocabulary_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """The fields of a new model's configuration that follow from its tokenizer."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None, path: str | None):
    """
    Gives a model of another task the padding of a tokenizer that pads, with an embedding where it is new.

    Args:
        name: --tokenizer, for the message.
        path: --model_name_or_path, for the message.

    Raises:
        UsageError: the tokenizer has more tokens than the model.
    """
    vocab_size, known = len(tokenizer), model.config.vocab_size
    # The last token may be one for padding that is new to the model.
    if vocab_size > known + (tokenizer.pad_token_id == vocab_size - 1):
        raise UsageError(
            f"--tokenizer {name} gives token ids up to {vocab_size - 1}; the vocab_size {known} of "
            f"--model_name_or_path {path!r} accepts 0 to {known - 1}."
        )
    if vocab_size > known:
        model.resize_token_embeddings(vocab_size)
    model.config.pad_token_id = tokenizer.pad_token_id


def label_head(label2id: dict[str, int], problem_type: str | None = None) -> dict[str, Any]:
    """The configuration's fields for a head that gives a logit to each label."""
    id2label = {str(index): name for name, index in label2id.items()}
    return {"id2label": id2label, "label2id": label2id, "problem_type": problem_type}


def open_config(checkpoint: str) -> PreTrainedConfig:
    """
    Raises:
        UsageError: --model_name_or_path is neither a folder nor a Hub id of a model.
    """
    try:
        return read_config(checkpoint)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--model_name_or_path {checkpoint!r} can't be opened (expected the folder of a model or an id on "
            f"the Hub): {error}"
        ) from error


def check_architecture(checkpoint: str, *accepted: str) -> str:
    """
    The name of a checkpoint's model class.

    Args:
        checkpoint: a folder or an id on the Hub.
        accepted: names of model classes, or how they may end.

    Raises:
        ValueError: it is of another task, so the Auto classes would give it a new, untrained head.
        OSError: there is no such checkpoint.
    """
    architectures = read_config(checkpoint).architectures or ["a model of no named architecture"]
    if not architectures[0].endswith(accepted):
        raise ValueError(f"it holds {architectures[0]} (expected a class that ends with {' or '.join(accepted)})")
    return architectures[0]


def trained_frames_per_beat(checkpoint: str) -> int | None:
    """
    Frames for each quarter note in the music that a model was trained on: its configuration says it, or for older
    checkpoints the settings for their evaluation.

    Args:
        checkpoint: a folder or an id on the Hub.

    Returns:
        None where the checkpoint does not say.

    Raises:
        OSError, ValueError: there is no such checkpoint.
    """
    known = getattr(read_config(checkpoint), "frames_per_beat", None)
    if known is None:
        settings = trained_settings(checkpoint, _raise_exceptions_for_connection_errors=False)
        known = settings.get("frames_per_beat")
    return known


def trained_settings(checkpoint: str, **options) -> dict:
    """
    How the training data of a checkpoint was read: its evaluation.json, or nothing where it has none.

    Args:
        checkpoint: a folder or an id on the Hub.
        options: of `transformers.utils.cached_file`.

    Raises:
        OSError, ValueError: there is no such checkpoint.
    """
    file = cached_file(checkpoint, EVALUATION_FILE, _raise_exceptions_for_missing_entries=False, **options)
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def default_device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def input_name(model: PreTrainedModel) -> str:
    """What a model calls its inputs: input_ids of tokens; input_values of vectors, past_values of a time series."""
    if getattr(model.config, "input_size", None) is None:
        return "input_ids"
    return "input_values" if model.main_input_name == "input_ids" else model.main_input_name
