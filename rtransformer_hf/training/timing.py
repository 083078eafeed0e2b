# SPDX-License-Identifier: Apache-2.0
"""Time and memory of PyTorch code."""

import gc
import itertools
import signal
import statistics
import timeit
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer


@dataclass
class Phase:
    """
    One thing to time.

    Args:
        run: what is timed.
        tokens: how many tokens it computes.
        prepare: is called before `run`, untimed.
        graph: the part of `run` that builds the graph of the backward pass.
        calls: how often to call `run` after one `prepare`; None: for at least 0.2 seconds.
    """

    run: Callable[[], object]
    tokens: int
    prepare: Callable[[], object] = lambda: None
    graph: Callable[[], torch.Tensor] | None = None
    calls: int | None = None


def time_interleaved(phases: dict[object, Phase], rounds: int) -> dict[object, float]:
    """The median seconds of each phase. Every round runs all phases, so that noise of the machine meets all alike."""
    timers = {key: timeit.Timer(phase.run, phase.prepare, timer) for key, phase in phases.items()}
    calls = {}
    for key, phase in phases.items():
        timers[key].timeit(1)  # allocates, chooses kernels, compiles
        calls[key] = phase.calls or timers[key].autorange()[0]
    seconds = {key: [] for key in phases}
    for _ in range(rounds):
        for key in phases:
            seconds[key].append(timers[key].timeit(calls[key]) / calls[key])
    return {key: statistics.median(values) for key, values in seconds.items()}


def saved_bytes(graph: Callable[[], torch.Tensor], parameters: Iterable[nn.Parameter]) -> int:
    """Bytes that autograd keeps for the backward pass, without parameters. Each storage counts once."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        root = graph()  # keeps the storages alive, so that no address is used twice
    for parameter in parameters:
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    del root
    return sum(storages.values())


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most bytes that PyTorch has allocated at a time during `run`, above those before it."""
    if device == "cuda":
        gc.collect()  # so that nothing older is freed meanwhile
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"), default=0)


def in_fresh_process(function: Callable, *arguments, seconds: int):
    """Calls a function in a new process, which is killed after `seconds`; 0 means no limit."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=signal.alarm, initargs=(seconds,)) as executor:
        return executor.submit(function, *arguments).result()
