# SPDX-License-Identifier: Apache-2.0
"""Muon for the blocks' matrices and AdamW for everything else, as one optimizer; and an average of the weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Two optimizers in one, for Trainer, schedulers and checkpoints.

    Args:
        matrices: two-dimensional weights, for `torch.optim.Muon`. Its steps are scaled so that AdamW's learning rates
            and weight decays suit it ("match_rms_adamw", arXiv 2502.16982).
        others: groups of the other weights, for `torch.optim.AdamW`.
        lr: learning rate of both.
        muon_lr: learning rate of the matrices alone; `lr` when None.
        weight_decay: that of the matrices.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: list[dict],
        lr: float,
        muon_lr: float | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        muon = torch.optim.Muon(
            matrices, lr=lr if muon_lr is None else muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.parts = (muon, torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps))
        super().__init__([group for part in self.parts for group in part.param_groups], defaults={})
        self.share_state()

    def share_state(self):
        """Makes both optimizers share this one's groups and state, which schedulers and checkpoints use."""
        muon, adamw = self.parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = adamw.state = self.state

    def __setstate__(self, state: dict):
        super().__setstate__(state)
        self.share_state()

    @torch.no_grad()
    def step(self, closure=None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def block_matrices(model: nn.Module) -> list[str]:
    """
    Names of the weights for Muon: dense layers inside the blocks, without embeddings and output layers. Structured
    weights are not among them: they hold many small matrices, which Muon does not take, or a product of them.
    """
    return [
        f"{name}.weight" for name, module in model.named_modules() if ".layers." in name and type(module) is nn.Linear
    ]


class WeightAverage:
    """
    An exponential moving average of a model's weights.

    Args:
        model: the model in training.
        decay: share of the average that a step keeps, less than 1. Step n keeps at most (1 + n) / (10 + n), so the
            initial weights are soon forgotten.
        num_steps: number of earlier steps, if the model's weights are an average already.
    """

    def __init__(self, model: nn.Module, decay: float, num_steps: int = 0):
        def update(averages: list[torch.Tensor], weights: list[torch.Tensor], num_averaged: torch.Tensor):
            num_averaged = int(num_averaged)
            torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + num_averaged) / (10 + num_averaged)))

        self.model = model
        self.averaged = AveragedModel(model, multi_avg_fn=update)
        self.averaged.n_averaged.fill_(1 + num_steps)  # at 0, the weights would be copied

    def update(self):
        self.averaged.update_parameters(self.model)

    @torch.no_grad()
    def swap(self):
        """Swaps the model's weights with their average."""
        for weight, average in zip(self.model.parameters(), self.averaged.module.parameters(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the model until the context ends; `averaged.module` holds the weights meanwhile."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
