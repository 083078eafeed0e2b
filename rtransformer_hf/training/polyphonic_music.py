# SPDX-License-Identifier: Apache-2.0
"""
Data and metric of the music model: tunes as training examples, batched by length and optionally transposed, and the
negative log-likelihood over all frames of a split.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..key_head import next_frame_nats
from .metric_modules import compute_metric
from .piano_rolls import checked_roll
from .run import ReportingTrainer


class Tunes(Dataset):
    """
    Whole tunes, each in all transpositions by -`transpose` to `transpose` semitones. A tune is shifted only as far as
    it stays on the keyboard. index = tune * number of shifts + shift.

    Args:
        rolls: tunes of (frames, keys) zeros and ones.
        transpose: largest shift, in semitones; 0 leaves the tunes as they are.

    Raises:
        UsageError: a tune is not such an array.
    """

    def __init__(self, rolls: list[np.ndarray], transpose: int = 0):
        self.rolls = [checked_roll(roll, f"tune {index}") for index, roll in enumerate(rolls)]
        self.transpose = transpose
        self.num_shifts = 2 * transpose + 1

    def __len__(self) -> int:
        return len(self.rolls) * self.num_shifts

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tune, shift = divmod(index, self.num_shifts)
        roll = transposed(self.rolls[tune], shift - self.transpose)
        frames = torch.from_numpy(roll.astype(np.float32))
        return {"input_values": frames, "labels": frames}


def transposed(roll: np.ndarray, semitones: int) -> np.ndarray:
    """A (frames, keys) roll shifted by `semitones`, or by as many as the keyboard has room for."""
    keys = np.flatnonzero(roll.any(axis=0))
    if len(keys) == 0:
        return roll
    return np.roll(roll, np.clip(semitones, -keys[0], roll.shape[1] - 1 - keys[-1]), axis=1)


class TuneSampler(Sampler[int]):
    """
    Draws every tune once per epoch, at a random transposition, with tunes of similar length together as with Trainer's
    `group_by_length`. Seed and epoch determine the order, so a run resumed within an epoch gets the same batches.
    """

    def __init__(self, tunes: Tunes, batch_size: int, seed: int):
        self.tunes, self.batch_size, self.seed, self.epoch = tunes, batch_size, seed, 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tunes.rolls)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        lengths = [len(roll) for roll in self.tunes.rolls]
        if self.batch_size > 1:
            order = get_length_grouped_indices(lengths, self.batch_size, generator=generator)
        else:  # without padding, the longest tunes need not come first
            order = torch.randperm(len(lengths), generator=generator).tolist()
        shifts = torch.randint(self.tunes.num_shifts, (len(order),), generator=generator)
        return iter((torch.tensor(order) * self.tunes.num_shifts + shifts).tolist())


def pad_tunes(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Makes a batch: tunes are padded on the right with silent, masked frames. Labels are -100 there, and in the first
    frame of each tune, which is not predicted, so Trainer counts the labels of predicted frames only.
    """

    def padded(name: str, value: float) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([example[name] for example in examples], True, value)

    lengths = torch.tensor([len(example["input_values"]) for example in examples])
    attention_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    labels = padded("labels", -100)
    labels[:, 0] = -100
    return {
        "input_values": padded("input_values", 0),
        "attention_mask": attention_mask,
        "labels": labels,
    }


class MusicTrainer(ReportingTrainer):
    """
    A Trainer on whole tunes.

    Args:
        sums_loss: whether a step's loss is the sum over the frames of its whole batch, as in the published training
            code, or else their mean.
    """

    def __init__(self, *args, sums_loss: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.sums_loss = sums_loss

    def _get_train_sampler(self, train_dataset: Tunes | None = None) -> TuneSampler:
        args = self.args  # a step's whole batch is grouped by length, however it is split up
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return TuneSampler(train_dataset or self.train_dataset, batch_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not (self.sums_loss and model.training):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # With the labels of one frame as the number of items, the model divides by one.
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch=inputs["labels"].shape[-1])
        if self.args.average_tokens_across_devices:
            return result
        # Processes average their gradients. Trainer corrects for that only if it counts the labels of all of them.
        loss, *outputs = result if return_outputs else (result,)
        return (loss * self.args.world_size, *outputs) if return_outputs else loss * self.args.world_size


def tune_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    (tunes, 2): each tune's negative log-likelihood in nats, summed over its predicted frames, and their number.
    Trainer keeps this instead of the logits (`preprocess_logits_for_metrics`).
    """
    is_real = (labels[:, 1:] != -100).all(dim=-1)
    nats = next_frame_nats(logits, labels)
    return torch.stack([nats.sum(-1), is_real.sum(-1)], dim=-1)


METRIC_NAMES = ("loss", "nll_per_frame")


def make_compute_metrics(tunes: Tunes) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics`: negative log-likelihood in nats per frame, over all predicted frames of a split."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nats, num_frames = prediction.predictions.astype(np.float64).T
        metrics = compute_metric("nll_per_frame", nats, num_frames.astype(np.int64))
        # Replaces Trainer's own loss, a mean over batches, by the mean over frames.
        return {"loss": metrics["nll_per_frame"], **metrics, "predicted_frames": int(num_frames.sum())}

    return compute_metrics
