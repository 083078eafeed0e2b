# SPDX-License-Identifier: Apache-2.0
"""
Measures this package's model beside the algorithm of the published code and beside other models of the same size.

    python scripts/benchmark.py operator                         # the LocalRNN alone, in each of its implementations
    python scripts/benchmark.py train --configs smnist ptb_char  # forward pass and full training step
    python scripts/benchmark.py generate --contexts 64 1024      # prefill, then a token at a time
    python scripts/benchmark.py growth                           # time and memory against the length of the sequence
    python scripts/benchmark.py train --device cuda --dtype bfloat16 --compile

Prints a table and writes it as JSON and as a picture. In every round all contenders take their turn, and so do a
matrix product and a copy, so that whatever else the machine does meets all alike; a time is the median of the rounds.

- ours: this package's model. With a --dtype other than float32 it trains under autocast (without loss scaling), and
  generates with weights of that dtype.
- published: scripts/published_rtransformer.py, always in float32. It has no cache: each token costs the whole prefix.
- gpt2, llama, mamba: Transformers' models of the same width and depth (heads and dropout, where they have them), in
  the dtype of ours. Where ours reads vectors, they read them through a linear layer.

Memory is that of a later call, not the first, above what the model and its batch hold. `saved_bytes` is what autograd
keeps for the backward pass, parameters aside, each storage counted once. `peak_bytes` is the most that PyTorch has
allocated at a time: the resident size would tell less, since the C library keeps what an earlier call has freed.

The share of the limit is the floor work over the time, divided by the rate of the matrix product. Floor work: K
products of (tokens, d) x (d, gates * d) for each LocalRNN with a window of K, the model's other matrix products as
PyTorch counts them, and for the backward pass twice all of that.
"""

import argparse
import gc
import itertools
import json
import math
import platform
import shlex
import signal
import statistics
import sys
import timeit
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from rtransformer_hf.training.command_line import CommandParser, run_command

import torch
import transformers
from matplotlib.figure import Figure
from published_rtransformer import LOSSES, LocalRNN, PublishedRTransformer
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers.utils import ModelOutput
from transformers.utils.import_utils import is_mamba_ssm_available

from rtransformer_hf import (
    RTransformerConfig,
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
)
from rtransformer_hf.cache_rtransformer import CACHE_NAME
from rtransformer_hf.local_rnn import IMPLEMENTATIONS, num_gates
from rtransformer_hf.modeling_rtransformer import RTransformerLocalRNN
from rtransformer_hf.training.files import atomic_write, write_figure

PEERS = ("gpt2", "llama", "mamba")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_SIZE = 2**28  # bytes: more than a cache holds
TOKENS_AFTER_PREFILL = 16
TRAIN_PHASES, GENERATE_PHASES = ("forward", "step"), ("prefill", "token")
PHASES = {"operator": TRAIN_PHASES, "train": TRAIN_PHASES, "generate": GENERATE_PHASES, "growth": TRAIN_PHASES}


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
    """What is computed: a task, its batch, what its model reads and predicts, and the model's sizes."""

    architecture: type[PreTrainedModel]
    batch_size: int
    length: int
    inputs_and_outputs: dict[str, int]
    sizes: Sizes

    @property
    def config(self) -> RTransformerConfig:
        sizes = self.sizes._asdict()
        dropout = sizes.pop("dropout")
        return RTransformerConfig(
            **sizes, **self.inputs_and_outputs, hidden_dropout=dropout, attention_dropout=dropout, use_cache=False
        )


SETTINGS = {
    "smnist": Setting(
        RTransformerForSequenceClassification,
        32,
        784,
        {"input_size": 1, "num_labels": 10},
        Sizes(32, 8, 2, 2, "gru", 7, 0.05),
    ),
    "nottingham": Setting(
        RTransformerForPolyphonicMusic, 1, 250, {"input_size": 88}, Sizes(160, 3, 1, 4, "gru", 6, 0.1)
    ),
    "ptb_word": Setting(
        RTransformerForCausalLM, 16, 80, {"vocab_size": 10000}, Sizes(128, 3, 1, 8, "lstm", 9, 0.35, 0.15)
    ),
    "ptb_char": Setting(
        RTransformerForCausalLM, 16, 400, {"vocab_size": 49}, Sizes(512, 3, 1, 8, "gru", 7, 0.15, 0.15)
    ),
    # not of the paper: 99 million parameters
    "large": Setting(
        RTransformerForCausalLM, 8, 512, {"vocab_size": 16000}, Sizes(640, 12, 1, 10, "gru", 7, 0.1, 0.1)
    ),
}


@dataclass
class Phase:
    """One thing to time: `run`, after `prepare`, which is not timed."""

    run: Callable[[], object]
    tokens: int
    prepare: Callable[[], object] = lambda: None
    graph: Callable[[], torch.Tensor] | None = None  # the part of `run` that builds the graph of the backward pass
    calls: int | None = None  # how often to run after one `prepare`; None: for at least 0.2 seconds


# ---- The contenders and their phases ----


def contender_names(args: argparse.Namespace) -> list[str]:
    if args.command == "operator":
        return [*(name for name in IMPLEMENTATIONS if args.implementation in (name, None)), "published"]
    if args.command == "growth":
        return ["local_rnn", "ours"]
    return ["ours", "published", *args.peers]


def contender_dtype(args: argparse.Namespace, name: str) -> torch.dtype:
    return torch.float32 if name == "published" else DTYPES[args.dtype]


def make_contender(args: argparse.Namespace, setting: Setting, name: str) -> tuple[nn.Module, dict[str, Phase]]:
    """A contender's model, or its operator, and what to time of it."""
    config = setting.config
    config.local_rnn_implementation = name if args.command == "operator" else args.implementation
    if name == "published":
        model = LocalRNN(config) if is_operator(args, name) else PublishedRTransformer(setting.architecture, config)
    elif name in PEERS:
        is_causal_lm = setting.architecture is RTransformerForCausalLM
        peer = peer_config(name, setting)
        model = AutoModelForCausalLM.from_config(peer) if is_causal_lm else VectorPeer(setting, peer)
    else:
        model = RTransformerLocalRNN(config) if is_operator(args, name) else setting.architecture(config)
        if args.compile is not None:
            model.compile(mode=args.compile)
    model.to(args.device)
    return model, (generate_phases if args.command == "generate" else train_phases)(args, setting, name, model)


def is_operator(args: argparse.Namespace, name: str) -> bool:
    """Whether the contender is a LocalRNN alone, rather than a whole model."""
    return args.command == "operator" or name == "local_rnn"


def train_phases(args: argparse.Namespace, setting: Setting, name: str, model: nn.Module) -> dict[str, Phase]:
    """The forward pass, and forward and backward pass; the latter with an optimizer's step, for a whole model."""
    dtype = contender_dtype(args, name)
    autocast = torch.autocast(args.device, dtype, enabled=dtype != torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    shape = (setting.batch_size, setting.length)
    if is_operator(args, name):
        inputs = torch.randn(*shape, setting.config.hidden_size, device=args.device, requires_grad=True)
        optimizer.add_param_group({"params": inputs})  # which clears its gradient as it does theirs
    else:
        batch = make_batch(setting, args.device)

    def graph() -> torch.Tensor:
        with autocast:
            return model(inputs) if is_operator(args, name) else model(**batch).loss

    def step():
        outputs = graph()
        outputs.backward(torch.ones_like(outputs))
        if not is_operator(args, name):
            optimizer.step()
        optimizer.zero_grad()

    tokens = math.prod(shape)
    return {
        "forward": Phase(torch.no_grad()(graph), tokens, prepare=model.eval),
        "step": Phase(step, tokens, prepare=model.train, graph=graph),
    }


def generate_phases(args: argparse.Namespace, setting: Setting, name: str, model: nn.Module) -> dict[str, Phase]:
    """Prefill, and one token after it: with the cache or, where there is none, the whole prefix again."""
    model.to(contender_dtype(args, name)).eval()
    prompt = make_batch(setting, args.device)
    del prompt["labels"]
    last = {name: values[:, -1:] for name, values in prompt.items()}
    kwargs = last_logits_only(setting)
    cache_name = "cache_params" if name == "mamba" and CACHE_NAME != "cache" else CACHE_NAME
    cache = {}

    @torch.no_grad()
    def prefill():
        cache.clear()
        if name == "ours" and args.compile is not None:  # compiled code wants tensors whose shape stays
            cache[cache_name] = StaticCache(model.config, max_cache_len=setting.length + TOKENS_AFTER_PREFILL)
        cache[cache_name] = getattr(model(**prompt, **cache, **kwargs, use_cache=True), cache_name)

    @torch.no_grad()
    def token():
        model(**last, **cache, **kwargs, use_cache=True)

    @torch.no_grad()
    def without_cache(inputs: dict[str, torch.Tensor]):
        model(**inputs, **kwargs)

    if name == "published":
        longer = {name: torch.cat([values, last[name]], dim=1) for name, values in prompt.items()}
        return {
            "prefill": Phase(partial(without_cache, prompt), setting.batch_size * setting.length),
            "token": Phase(partial(without_cache, longer), setting.batch_size),
        }
    return {
        "prefill": Phase(prefill, setting.batch_size * setting.length),
        "token": Phase(token, setting.batch_size, prepare=prefill, calls=TOKENS_AFTER_PREFILL),
    }


def last_logits_only(setting: Setting) -> dict[str, int]:
    """Arguments for the last output alone: generation needs no other, and a classifier has no other."""
    return {} if setting.architecture is RTransformerForSequenceClassification else {"logits_to_keep": 1}


def make_batch(setting: Setting, device: str) -> dict[str, torch.Tensor]:
    config, shape = setting.config, (setting.batch_size, setting.length)
    if setting.architecture is RTransformerForCausalLM:
        inputs = labels = torch.randint(config.vocab_size, shape, device=device)
    elif setting.architecture is RTransformerForPolyphonicMusic:
        inputs = labels = torch.full((*shape, config.input_size), 0.05, device=device).bernoulli()
    else:
        inputs = torch.rand(*shape, config.input_size, device=device)
        labels = torch.randint(config.num_labels, shape[:1], device=device)
    return {"input_ids" if config.input_size is None else "input_values": inputs, "labels": labels}


def peer_config(name: str, setting: Setting) -> PreTrainedConfig:
    ours = setting.config
    attention = {
        "num_attention_heads": ours.num_attention_heads,
        "max_position_embeddings": setting.length + TOKENS_AFTER_PREFILL,
    }
    own = {
        "gpt2": {
            **attention,
            "resid_pdrop": ours.hidden_dropout,
            "attn_pdrop": ours.attention_dropout,
            "embd_pdrop": ours.embedding_dropout,
        },
        "llama": {
            **attention,
            "attention_dropout": ours.attention_dropout,
            "intermediate_size": 8 * ours.hidden_size // 3,  # for three matrices, where the others have two
        },
        "mamba": {},
    }
    return AutoConfig.for_model(
        name,
        vocab_size=ours.vocab_size if ours.input_size is None else 1,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_hidden_layers,
        tie_word_embeddings=ours.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        **own[name],
    )


class VectorPeer(nn.Module):
    """A peer that reads vectors, with the output layer and the loss of ours."""

    def __init__(self, setting: Setting, config: PreTrainedConfig):
        super().__init__()
        self.architecture, ours = setting.architecture, setting.config
        self.is_classifier = self.architecture is RTransformerForSequenceClassification
        self.input_projection = nn.Linear(ours.input_size, ours.hidden_size)
        self.model = AutoModel.from_config(config)
        self.head = nn.Linear(ours.hidden_size, ours.num_labels if self.is_classifier else ours.input_size)

    def forward(
        self, input_values: torch.Tensor, labels: torch.Tensor | None = None, logits_to_keep: int = 0, **kwargs
    ) -> ModelOutput:
        dtype = self.head.weight.dtype
        outputs = self.model(inputs_embeds=self.input_projection(input_values.to(dtype)), **kwargs)
        kept = -1 if self.is_classifier else slice(-logits_to_keep, None)
        outputs.logits = self.head(outputs.last_hidden_state[:, kept].to(dtype))  # Mamba's residuals are float32
        outputs.loss = None if labels is None else LOSSES[self.architecture](outputs.logits, labels)
        return outputs


# ---- Time ----


def time_interleaved(phases: dict[object, Phase], rounds: int) -> dict[object, float]:
    """The median seconds of each phase. In every round all of them take their turn."""
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


def machine_phases(args: argparse.Namespace) -> dict[str, Phase]:
    """The machine's own rates: a matrix product in the run's dtype, a copy."""
    size = MATMUL_SIZE[args.device]
    matrix = torch.randn(size, size, device=args.device, dtype=DTYPES[args.dtype])
    source = torch.ones(COPY_SIZE, dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    return {"matmul": Phase(lambda: matrix @ matrix, 0), "copy": Phase(lambda: target.copy_(source), 0)}


def floor_flops(command: str, setting: Setting) -> dict[str, int]:
    """
    The floor work, in floating-point operations, of each phase but the single token, which no product limits, and but
    those of growth, whose contenders differ in it.
    """
    if command == "growth":
        return {}
    config, tokens = setting.config, setting.batch_size * setting.length
    product = 2 * tokens * config.hidden_size * num_gates(config.local_rnn_type) * config.hidden_size
    flops = config.local_window_size * product
    if command != "operator":
        flops *= config.num_hidden_layers * config.num_local_rnn_layers
        config.num_local_rnn_layers = 0
        inputs = {name: values for name, values in make_batch(setting, "meta").items() if name != "labels"}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            setting.architecture(config)(**inputs, **(last_logits_only(setting) if command == "generate" else {}))
        flops += counter.get_total_flops()
    return {"prefill": flops} if command == "generate" else {"forward": flops, "step": 3 * flops}


# ---- Memory ----


def measure_memory(args: argparse.Namespace, setting: Setting, name: str) -> dict[str, dict[str, int | None]]:
    """`saved_bytes` and `peak_bytes` of each phase of a contender, which is made anew."""
    model, phases = make_contender(args, setting, name)
    memory = {}
    for phase_name, phase in phases.items():
        phase.prepare()
        saved = None if phase.graph is None else saved_bytes(phase.graph, model.parameters())
        phase.run()
        phase.prepare()
        memory[phase_name] = {"saved_bytes": saved, "peak_bytes": peak_bytes(phase.run, args.device)}
    return memory


def saved_bytes(graph: Callable[[], torch.Tensor], parameters: Iterable[nn.Parameter]) -> int:
    """Size of what autograd keeps for the backward pass: the storages, each counted once, parameters aside."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        root = graph()  # while the graph lives, so do its storages, and no address comes twice
    for parameter in parameters:
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    del root
    return sum(storages.values())


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most memory that PyTorch has allocated during `run`, above that before it."""
    if device == "cuda":
        gc.collect()  # what an earlier contender left must not go meanwhile
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"), default=0)


def in_fresh_process(function: Callable, *arguments, seconds: int):
    """What the function returns in a process of its own, which is killed after so many seconds, if they are not 0."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=signal.alarm, initargs=(seconds,)) as executor:
        return executor.submit(function, *arguments).result()


# ---- The measurement of one setting ----


def measure(args: argparse.Namespace, config_name: str, setting: Setting) -> list[dict]:
    """A row for every contender and phase of one setting."""
    memory, notes = {}, {}
    for name in contender_names(args):
        progress(f"{config_name}, length {setting.length}: memory of {name}")
        try:
            if args.device == "cpu":  # what takes all memory or too long there can only be killed
                has_budget = name in PEERS or (args.command == "generate" and name == "published")
                seconds = args.time_budget if has_budget else 0
                memory[name] = in_fresh_process(measure_memory, args, setting, name, seconds=seconds)
            else:
                memory[name] = measure_memory(args, setting, name)
        except BrokenProcessPool:
            notes[name] = "left out: its process was killed, for want of memory or past the time budget"
        except (RuntimeError, ValueError) as error:  # out of memory, or an implementation that is not for this device
            notes[name] = f"left out: {' '.join(str(error).split())}"
    if "mamba" in memory and not is_mamba_ssm_available():
        notes["mamba"] = "loops over positions in Python: no mamba_ssm kernels here"

    progress(f"{config_name}, length {setting.length}: time of {', '.join(memory)}")
    contenders = {name: make_contender(args, setting, name) for name in memory}
    phases = {(name, phase_name): phase for name in memory for phase_name, phase in contenders[name][1].items()}
    seconds = time_interleaved({**machine_phases(args), **phases}, args.rounds)
    matmul_rate = 2 * MATMUL_SIZE[args.device] ** 3 / seconds["matmul"]
    floor = floor_flops(args.command, setting)

    rows = []
    for phase_name, name in itertools.product(PHASES[args.command], contender_names(args)):
        time = seconds.get((name, phase_name))
        own_memory = memory.get(name, {}).get(phase_name, {"saved_bytes": None, "peak_bytes": None})
        published_memory = memory.get("published", {}).get(phase_name, {})
        row = {
            "config": config_name,
            "batch_size": setting.batch_size,
            "length": setting.length,
            "phase": phase_name,
            "contender": name,
            "dtype": str(contender_dtype(args, name)).removeprefix("torch."),
            "parameters": None,
            "seconds": time,
            "tokens_per_second": None,
            "share_of_limit": None,
            **own_memory,
            "matmul_flops_per_second": matmul_rate,
            "copy_bytes_per_second": 2 * COPY_SIZE / seconds["copy"],
            "note": notes.get(name),
        }
        if name in contenders:
            row["parameters"] = sum(parameter.numel() for parameter in contenders[name][0].parameters())
            row["tokens_per_second"] = phases[name, phase_name].tokens / time
        if name not in PEERS:
            row["share_of_limit"] = ratio(ratio(floor.get(phase_name), time), matmul_rate)
        for other in ("published", *getattr(args, "peers", ())):
            row[f"speed_ratio_to_{other}"] = ratio(seconds.get((other, phase_name)), time)
        for kind in own_memory:
            row[f"{kind}_ratio_to_published"] = ratio(own_memory[kind], published_memory.get(kind))
        rows.append(row)
    return rows


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def progress(message: str):
    print(message, file=sys.stderr, flush=True)


def format_table(rows: list[dict]) -> str:
    """Markdown. Ratios of speed: how many times as fast; of memory: how many times as much."""
    ratios = {name: f"x {name.removeprefix('speed_ratio_to_')}" for name in rows[0] if name.startswith("speed_ratio")}
    columns = {
        **{name: (name.replace("_size", ""), str) for name in ("config", "batch_size", "length")},
        **{name: (name, str) for name in ("phase", "contender", "dtype")},
        "seconds": ("ms", lambda seconds: f"{seconds * 1e3:.3f}"),
        "tokens_per_second": ("tokens/s", "{:,.0f}".format),
        **{name: (header, "{:.2f}".format) for name, header in ratios.items()},
        "saved_bytes": ("saved MB", lambda size: f"{size / 1e6:,.1f}"),
        "saved_bytes_ratio_to_published": ("of published", "{:.2f}".format),
        "peak_bytes": ("peak MB", lambda size: f"{size / 1e6:,.1f}"),
        "peak_bytes_ratio_to_published": ("of published", "{:.2f}".format),
        "share_of_limit": ("of limit", "{:.1%}".format),
        "note": ("note", str),
    }
    columns = {name: column for name, column in columns.items() if any(row[name] is not None for row in rows)}
    lines = [[header for header, _ in columns.values()], ["---"] * len(columns)]
    for row in rows:
        lines.append(["" if row[name] is None else form(row[name]) for name, (_, form) in columns.items()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: list[dict]) -> Figure:
    """A picture: speed on the left, peak memory on the right, a line of panels for each phase."""
    phases, contenders = (list(dict.fromkeys(row[column] for row in rows)) for column in ("phase", "contender"))
    settings = list(dict.fromkeys((row["config"], row["length"]) for row in rows))
    cells = {(row["phase"], row["contender"], row["config"], row["length"]): row for row in rows}
    figure = Figure(figsize=(14, 4 * len(phases)), layout="constrained")
    panels = figure.subplots(len(phases), 2)
    width = 0.8 / len(contenders)
    for (i, phase), (j, column) in itertools.product(
        enumerate(phases), enumerate(("tokens_per_second", "peak_bytes"))
    ):
        axes = panels[i, j]
        for k, contender in enumerate(contenders):
            values = [cells[(phase, contender, *setting)][column] or 0 for setting in settings]
            axes.bar([x + (k + 0.5) * width - 0.4 for x in range(len(settings))], values, width, label=contender)
        axes.set(title=phase, ylabel=column.replace("_", " "), yscale="log")
        axes.set_xticks(range(len(settings)), [f"{config}\n{length}" for config, length in settings])
        axes.grid(alpha=0.3, axis="y")
        axes.legend()
    return figure


def plot_growth(rows: list[dict]) -> Figure:
    """A picture: time and memory of a training step against the length, both axes logarithmic."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    lines = list(dict.fromkeys((row["config"], row["contender"]) for row in rows))
    columns = {"seconds": "seconds a step", "saved_bytes": "bytes kept for the backward pass", "peak_bytes": "peak"}
    for axes, (column, label) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        for config, contender in lines:
            points = [
                (row["length"], row[column])
                for row in rows
                if (row["config"], row["contender"], row["phase"]) == (config, contender, "step") and row[column]
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{config}, {contender}")
        axes.set(title=label, xlabel="length", xscale="log", yscale="log")
        axes.set_xticks(*[sorted({row["length"] for row in rows})] * 2, rotation=45)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def environment(device: str) -> dict:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
    }


# ---- The command line ----


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    flag = common.add_argument
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    flag(
        "--dtype", choices=DTYPES, default="float32", help="of all but the published algorithm (default: %(default)s)"
    )
    flag("--implementation", choices=IMPLEMENTATIONS, help="of the operator (default: the operator chooses)")
    flag("--compile", nargs="?", const="default", choices=COMPILE_MODES, help="compile ours, in this mode")
    flag("--rounds", type=int, default=7, help="a time is the median of so many (default: %(default)s)")
    flag("--output_dir", default="outputs/benchmark", help="(default: %(default)s)")

    configs = argparse.ArgumentParser(add_help=False)
    configs.add_argument("--configs", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="(default: all)")

    peers = argparse.ArgumentParser(add_help=False)
    flag = peers.add_argument
    flag("--peers", nargs="*", choices=PEERS, default=PEERS, help="(default: all)")
    flag("--no-peers", dest="peers", action="store_const", const=(), help="measure ours and published alone")
    flag(
        "--time_budget",
        type=int,
        default=60,
        metavar="SECONDS",
        help="on a CPU, leave out a peer that takes longer for three calls of each phase, and so for the published "
        "algorithm in generation (default: %(default)s)",
    )

    parser = CommandParser(description=__doc__)
    add_command = parser.add_subparsers(dest="command", required=True).add_parser
    add_command("operator", parents=[configs, common], help="the LocalRNN alone")
    train = add_command("train", parents=[configs, common, peers], help="forward pass and full training step")
    train.add_argument("--no-dropout", dest="dropout", action="store_false", help="train all without dropout")
    generate = add_command("generate", parents=[configs, common, peers], help="prefill, and a token after it")
    generate.add_argument(
        "--contexts",
        type=int,
        nargs="+",
        default=(64, 256, 1024),
        help="lengths of the prefill (default: %(default)s)",
    )
    generate.add_argument("--batch_size", type=int, default=1, help="(default: %(default)s)")
    growth = add_command(
        "growth", parents=[common], help="the LocalRNN and a model of 3 blocks against the sequence length"
    )
    growth.add_argument("--hidden_sizes", type=int, nargs="+", default=(128, 512), help="(default: %(default)s)")
    growth.add_argument(
        "--lengths", type=int, nargs="+", default=[2**i for i in range(8, 15)], help="(default: %(default)s)"
    )
    args = parser.parse_args(argv)

    for name, is_accepted, accepted in (
        ("device", args.device == "cpu" or torch.cuda.is_available(), "cpu, since PyTorch finds no CUDA device"),
        ("rounds", args.rounds > 0, "more than 0"),
        ("time_budget", getattr(args, "time_budget", 1) > 0, "more than 0"),
        ("contexts", min(getattr(args, "contexts", [1])) > 0, "more than 0, all of them"),
        ("batch_size", getattr(args, "batch_size", 1) > 0, "more than 0"),
        ("lengths", min(getattr(args, "lengths", [1])) > 0, "more than 0, all of them"),
        (
            "hidden_sizes",
            all(size > 0 and size % 8 == 0 for size in getattr(args, "hidden_sizes", [])),
            "positive multiples of 8",
        ),
        ("output_dir", not Path(args.output_dir).is_file(), "a folder, new or not"),
    ):
        if not is_accepted:
            parser.error(f"--{name} {getattr(args, name)} is not accepted; it must be {accepted}.")
    return args


def settings_of(args: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    """The settings that a command measures, with the names of their configurations."""
    if args.command == "growth":
        for size, length in itertools.product(args.hidden_sizes, args.lengths):
            sizes = Sizes(size, 3, 1, 8, "gru", 7, dropout=0.0)
            yield f"d {size}", Setting(RTransformerForCausalLM, 1, length, {"vocab_size": 49}, sizes)
        return
    for name in args.configs:
        setting = SETTINGS[name]
        if args.command == "generate":
            for length in args.contexts:
                yield name, replace(setting, batch_size=args.batch_size, length=length)
        elif args.command == "train" and not args.dropout:
            yield name, replace(setting, sizes=setting.sizes._replace(dropout=0.0, embedding_dropout=0.0))
        else:
            yield name, setting


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    torch.manual_seed(0)
    output = Path(args.output_dir, f"{args.command}_{args.device}_{args.dtype}.json")
    report = {
        "command": shlex.join(["python", "scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)]),
        "environment": environment(args.device),
        "rows": [],
    }
    for config_name, setting in settings_of(args):
        report["rows"] += measure(args, config_name, setting)
        atomic_write(output, json.dumps(report, indent=2).encode())
    figure = (plot_growth if args.command == "growth" else plot)(report["rows"])
    write_figure(output.with_suffix(".png"), figure, dpi=120)
    print(format_table(report["rows"]))
    progress(f"Written to {output} and {output.with_suffix('.png')}")


if __name__ == "__main__":
    run_command(main)
