# SPDX-License-Identifier: Apache-2.0
"""
The algorithm of the published R-Transformer code (arXiv 1907.05572), rewritten: the baseline of scripts/benchmark.py.

It gathers every window and runs `nn.RNN`, `nn.GRU` or `nn.LSTM` over it, materialises the causal mask and the
attention weights, and has its own layer norm and no cache. Parameters have the published names: a published state dict
loads as it is, and `convert_official_state_dict` converts it to this package's model. tests/test_benchmark.py compares
it with values of the published code: outputs to 1e-5 absolute, gradients to 1e-4 relative.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast

from .. import (
    RTransformerConfig,
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
)
from ..key_head import next_frame_loss

RNNS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class LayerNorm(nn.Module):
    """With the unbiased standard deviation, and the epsilon outside of the root."""

    def __init__(self, size: int):
        super().__init__()
        self.a_2 = nn.Parameter(torch.ones(size))
        self.b_2 = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.b_2


class Residual(nn.Module):
    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.norm = LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: torch.Tensor, sublayer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return x + self.dropout(sublayer(self.norm(x)))


class LocalRNN(nn.Module):
    """Every window of inputs is copied out, and an RNN runs over it: the operator as it was published."""

    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.window_size = config.local_window_size
        self.rnn = RNNS[config.local_rnn_type](config.hidden_size, config.hidden_size, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch_size, length, size = x.shape
        positions = torch.arange(length, device=x.device)[:, None] + torch.arange(self.window_size, device=x.device)
        x = F.pad(x, (0, 0, self.window_size - 1, 0))
        windows = x.index_select(1, positions.flatten()).view(batch_size * length, self.window_size, size)
        outputs, _ = self.rnn(windows)
        return outputs[:, -1].view(batch_size, length, size)


class LocalRNNLayer(nn.Module):
    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.local_rnn = LocalRNN(config)
        self.connection = Residual(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.connection(x, self.local_rnn)


class Attention(nn.Module):
    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.linears = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4))
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for linear in self.linears[:3]
        )  # (batch, heads, time, head size)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = self.dropout(scores.masked_fill(mask, torch.finfo(scores.dtype).min).softmax(dim=-1))
        return self.linears[3]((weights @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.w_1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w_2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w_2(self.dropout(F.relu(self.w_1(x))))


class Block(nn.Module):
    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.layers = nn.ModuleList(LocalRNNLayer(config) for _ in range(config.num_local_rnn_layers))
        self.pooling = Attention(config)
        self.feed_forward = FeedForward(config)
        self.connections = nn.ModuleList(Residual(config) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        x = self.connections[0](x, partial(self.pooling, mask=mask))
        return self.connections[1](x, self.feed_forward)


class RTransformer(nn.Module):
    def __init__(self, config: RTransformerConfig):
        super().__init__()
        self.forward_net = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)  # True: out of sight
        for block in self.forward_net:
            x = block(x, mask)
        return x


LOSSES = {
    RTransformerForCausalLM: lambda logits, labels: ForCausalLMLoss(logits, labels, vocab_size=logits.shape[-1]),
    RTransformerForPolyphonicMusic: next_frame_loss,
    RTransformerForSequenceClassification: F.cross_entropy,
}


class PublishedRTransformer(nn.Module):
    """
    The published model of a task, with the inputs, outputs and loss of this package's.

    Args:
        architecture: this package's class for the task: causal language model, music or sequence classification.
        config: the sizes of the model.
    """

    def __init__(self, architecture: type[PreTrainedModel], config: RTransformerConfig):
        super().__init__()
        self.architecture = architecture
        self.rt = RTransformer(config)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        if architecture is RTransformerForCausalLM:
            self.encoder = nn.Embedding(config.vocab_size, config.hidden_size)
            self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
            if config.tie_word_embeddings:
                self.decoder.weight = self.encoder.weight
        else:
            num_outputs = config.input_size if architecture is RTransformerForPolyphonicMusic else config.num_labels
            self.encoder = nn.Linear(config.input_size, config.hidden_size)
            self.linear = nn.Linear(config.hidden_size, num_outputs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        x = self.rt(self.embedding_dropout(self.encoder(input_values if input_ids is None else input_ids)))
        if self.architecture is RTransformerForCausalLM:
            logits = self.decoder(x[:, -logits_to_keep:])
        elif self.architecture is RTransformerForPolyphonicMusic:
            logits = self.linear(x[:, -logits_to_keep:])
        else:
            logits = self.linear(x[:, -1])
        loss = None if labels is None else LOSSES[self.architecture](logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits)
