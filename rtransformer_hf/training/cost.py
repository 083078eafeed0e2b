# SPDX-License-Identifier: Apache-2.0
"""What a training costs: time, without that of evaluations; inputs a second; and memory."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback, TrainerState

try:
    import resource
except ImportError:  # Windows
    resource = None

SECONDS = "training_seconds"  # in a log entry: from the start of the training to there, without evaluations
MEMORY = "train_peak_memory_bytes"


class TrainingClock(TrainerCallback):
    """
    Runs while a training does, but for its evaluations. A resumed training goes on from its last log entry's time.

    Attributes:
        num_positions: tokens, pixels or frames that this process has trained on since it started.
    """

    def __init__(self):
        self.seconds_before = self.seconds_here = 0.0
        self.since: float | None = None
        self.num_positions = 0

    @property
    def seconds(self) -> float:
        """Of the whole training up to now."""
        running = 0.0 if self.since is None else time.perf_counter() - self.since
        return self.seconds_before + self.seconds_here + running

    def on_train_begin(self, args, state: TrainerState, control, **kwargs):
        logged = [entry[SECONDS] for entry in state.log_history if SECONDS in entry]
        self.seconds_before, self.seconds_here, self.num_positions = max(logged, default=0.0), 0.0, 0
        self.since = time.perf_counter()

    def on_train_end(self, args, state: TrainerState, control, **kwargs):
        self.pause()

    def pause(self):
        if self.since is not None:
            self.seconds_here += time.perf_counter() - self.since
            self.since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stands still until the context ends, if it runs."""
        was_running = self.since is not None
        self.pause()
        yield
        if was_running:
            self.since = time.perf_counter()

    def metrics(self, unit: str, num_processes: int, device: torch.device) -> dict[str, float]:
        """
        Args:
            unit: what a position is: "tokens".
            num_processes: that train, each on about as much as this one.
            device: that of this process.
        """
        seconds = max(self.seconds_here, 1e-9)
        return {
            SECONDS: self.seconds,
            f"train_{unit}_per_second": self.num_positions * num_processes / seconds,
            **({} if (peak := peak_memory(device)) is None else {MEMORY: peak}),
        }


def num_positions(inputs: dict[str, torch.Tensor]) -> int:
    """Tokens, pixels or frames in a batch, padding included."""
    vectors = [inputs[name] for name in ("input_values", "past_values", "future_values") if name in inputs]
    return sum(values.shape[:2].numel() for values in vectors) if vectors else inputs["input_ids"].numel()


def peak_memory(device: torch.device) -> int | None:
    """
    The most bytes that this process has had at a time: of tensors on an accelerator, or on a CPU of all its resident
    memory, libraries and data included. None where the system does not tell.
    """
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
