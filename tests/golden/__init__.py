# SPDX-License-Identifier: Apache-2.0
"""Reference values of the published model: see README.md."""

import json
import tarfile
from pathlib import Path

import safetensors.torch
import torch

FILES = {}
for archive_name in ("golden.tar.xz", "butterfly.tar.xz"):
    with tarfile.open(Path(__file__).with_name(archive_name)) as archive:
        FILES.update((member.name, archive.extractfile(member).read()) for member in archive)

MODELS = sorted(name.removesuffix(".safetensors") for name in FILES if name.endswith(".safetensors"))
CHECKPOINTS = sorted(name for name in FILES if name.endswith(".pt"))


class Golden:
    """A published model's parameters and their gradients, by its names; its inputs, outputs, constructor arguments."""

    def __init__(self, name: str):
        data = FILES[f"{name}.safetensors"]
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        self.task = name.removeprefix("butterfly_").split("_")[0]
        self.arguments = json.loads(metadata["arguments"])
        self.state_dict = select(tensors, "state.")
        self.gradients = select(tensors, "grad.")
        self.inputs, self.outputs = (
            [tensor for _, tensor in sorted(select(tensors, prefix).items())] for prefix in ("input.", "output.")
        )

    @property
    def sizes(self) -> dict[str, int]:
        """What a state dict does not tell."""
        return {"local_window_size": self.arguments["ksize"], "num_attention_heads": self.arguments["h"]}

    def run(self, model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """What the published model returns for `inputs`, computed by `model`."""
        if self.task == "image":
            return model(input_values=inputs.transpose(1, 2)).logits.log_softmax(dim=-1)
        if self.task == "music":
            return model(input_values=inputs).logits.double().sigmoid()
        return model(input_ids=inputs).logits


def select(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
