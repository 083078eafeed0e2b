# SPDX-License-Identifier: Apache-2.0
"""Trains models that Transformers shards as it loads them, by `DistributedConfig`, each in a plain loop."""

from pathlib import Path

import torch
import torch.distributed
from accelerate import PartialState
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from rtransformer_hf import RTransformerForCausalLM, RTransformerForSequenceClassification

MODEL_CLASSES = {
    "causal_lm": RTransformerForCausalLM,
    "untied_causal_lm": RTransformerForCausalLM,
    "classifier": RTransformerForSequenceClassification,
    "butterfly": RTransformerForCausalLM,
    "monarch": RTransformerForSequenceClassification,
    "monarch_local_rnn": RTransformerForCausalLM,
}
SETTINGS = {
    "causal_lm": {"local_rnn_implementation": "blocked"},
    "untied_causal_lm": {"local_rnn_implementation": "blocked", "tie_word_embeddings": False},
    "classifier": {"local_rnn_implementation": "shared_projection"},
    "butterfly": {"projection_type": "butterfly", "local_rnn_type": "lstm", "tie_word_embeddings": False},
    "monarch": {"projection_type": "monarch", "local_rnn_num_heads": 2, "local_rnn_gate_activation": "hard_sigmoid"},
    "monarch_local_rnn": {"local_rnn_projection_type": "monarch", "local_rnn_num_heads": 2},
}
SPLIT_LOCAL_RNN = {
    f"model.layers.*.local_rnns.*.cell.{projection}": "colwise_gather_output"
    for projection in ("input_proj", "recurrent_proj")
}
LAYOUTS = {
    "tensor_parallel": {"tp_plan": "auto"},
    "tensor_parallel_local_rnn": {"tp_plan": SPLIT_LOCAL_RNN},
    "fsdp": {"fsdp_size": 2},
}
# Transformers' own FSDP2 of tied embeddings goes wrong from the second step on, with its Llama as well (5.23.0).
TRAINED = [
    ("causal_lm", "tensor_parallel"),
    ("causal_lm", "tensor_parallel_local_rnn"),
    ("untied_causal_lm", "fsdp"),
    ("classifier", "tensor_parallel"),
    ("classifier", "fsdp"),
    ("butterfly", "fsdp"),
    ("monarch", "fsdp"),
    ("monarch_local_rnn", "tensor_parallel"),
]


def make_batches(name: str, num_steps: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    is_classifier = MODEL_CLASSES[name] is RTransformerForSequenceClassification
    batches = []
    for _ in range(num_steps):
        input_ids = torch.randint(23, (4, 12), generator=generator)
        classes = torch.randint(3, (4,), generator=generator)
        batches.append({"input_ids": input_ids, "labels": classes if is_classifier else input_ids})
    return batches


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """With an epsilon that keeps what rounding leaves of a gradient of 0 from becoming a step of full size."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)


def train(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batches: list[dict[str, torch.Tensor]]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of all steps and the gradients of the first, as they stand on this rank."""
    losses, gradients = [], None
    for batch in batches:
        loss = model.train()(**batch).loss
        loss.backward()
        if gradients is None:
            gradients = {name: whole(parameter.grad).clone() for name, parameter in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of all ranks."""
    tensors = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(tensors, tensor.contiguous())
    return tensors


def main(flags: list[str]):
    """Trains the models in FOLDER for 10 steps; leaves a folder for each layout of each there."""
    (folder,) = map(Path, flags)
    rank = PartialState(cpu=True).process_index
    for name, layout in TRAINED:
        output_dir = folder / f"{name}_{layout}"
        config = DistributedConfig(**LAYOUTS[layout])
        model = MODEL_CLASSES[name].from_pretrained(folder / name, distributed_config=config)
        optimizer = make_optimizer(model)
        batches = make_batches(name, 10)
        if layout == "fsdp":  # each rank has rows of its own
            batches = [{key: value.chunk(2)[rank] for key, value in batch.items()} for batch in batches]
        losses, gradients = train(model, optimizer, batches)
        losses = torch.stack(gather(torch.tensor(losses)))
        gradients = {key: torch.stack(gather(gradient)) for key, gradient in gradients.items()}
        model.save_pretrained(output_dir)
        full = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizer_state = get_optimizer_state_dict(model, optimizer, options=full)
        if rank == 0:
            torch.save((losses, gradients, optimizer_state), output_dir / "training.pt")
