# SPDX-License-Identifier: Apache-2.0
"""What scripts/benchmark.py can measure. Nothing here imports PyTorch, so that the command knows its flags at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .. import RTransformerConfig

PEERS = ("gpt2", "llama", "mamba")
IMPLEMENTATIONS = ("reference", "shared_projection", "blocked", "triton")  # those of local_rnn
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
DTYPES = ("float32", "bfloat16", "float16")
TRAIN_PHASES, GENERATE_PHASES = ("forward", "step"), ("prefill", "token")
STRUCTURES = {
    "butterfly": {"projection_type": "butterfly"},
    "monarch": {"projection_type": "monarch", "local_rnn_projection_type": "dense"},
    "heads_2": {"local_rnn_num_heads": 2},
    "heads_4": {"local_rnn_num_heads": 4},
    "heads_8": {"local_rnn_num_heads": 8},
}
PROJECTION_TYPES = ("dense", "butterfly", "monarch")
PHASES = {
    "linear": (*TRAIN_PHASES, "row"),
    "operator": TRAIN_PHASES,
    "train": TRAIN_PHASES,
    "generate": GENERATE_PHASES,
    "scaling": TRAIN_PHASES,
}


class Sizes(NamedTuple):
    hidden_size: int
    num_hidden_layers: int
    num_local_rnn_layers: int
    num_attention_heads: int
    local_rnn_type: str
    local_window_size: int
    dropout: float
    embedding_dropout: float = 0.0


@dataclass(frozen=True)
class Setting:
    """
    What is computed.

    Args:
        architecture: the name of this package's model class.
        batch_size, length: of the batch.
        inputs_and_outputs: fields of the configuration that follow from the task.
        sizes: of the model.
    """

    architecture: str
    batch_size: int
    length: int
    inputs_and_outputs: dict[str, int]
    sizes: Sizes

    @property
    def model_class(self) -> "type[PreTrainedModel]":
        import rtransformer_hf

        return getattr(rtransformer_hf, self.architecture)

    @property
    def config(self) -> "RTransformerConfig":
        from .. import RTransformerConfig

        sizes = self.sizes._asdict()
        dropout = sizes.pop("dropout")
        return RTransformerConfig(
            **sizes, **self.inputs_and_outputs, hidden_dropout=dropout, attention_dropout=dropout, use_cache=False
        )


SETTINGS = {
    "smnist": Setting(
        "RTransformerForSequenceClassification",
        32,
        784,
        {"input_size": 1, "num_labels": 10},
        Sizes(32, 8, 2, 2, "gru", 7, 0.05),
    ),
    "nottingham": Setting(
        "RTransformerForPolyphonicMusic", 1, 250, {"input_size": 88}, Sizes(160, 3, 1, 4, "gru", 6, 0.1)
    ),
    "ptb_word": Setting(
        "RTransformerForCausalLM", 16, 80, {"vocab_size": 10000}, Sizes(128, 3, 1, 8, "lstm", 9, 0.35, 0.15)
    ),
    "ptb_char": Setting(
        "RTransformerForCausalLM", 16, 400, {"vocab_size": 49}, Sizes(512, 3, 1, 8, "gru", 7, 0.15, 0.15)
    ),
    # not from the paper: 99 million parameters
    "large": Setting(
        "RTransformerForCausalLM", 8, 512, {"vocab_size": 16000}, Sizes(640, 12, 1, 10, "gru", 7, 0.1, 0.1)
    ),
}
