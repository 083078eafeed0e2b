# SPDX-License-Identifier: Apache-2.0
"""The models that scripts/benchmark.py compares, and their measurement. `args` are the command's arguments."""

import argparse
import itertools
import math
import platform
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, StaticCache
from transformers.utils import ModelOutput
from transformers.utils.import_utils import is_mamba_ssm_available

from ..cache_rtransformer import CACHE_NAME
from ..local_rnn import num_gates
from ..modeling_rtransformer import RTransformerLocalRNN
from ..structured_linear import make_linear
from .benchmark_settings import IMPLEMENTATIONS, PEERS, PHASES, PROJECTION_TYPES, STRUCTURES, Setting
from .published_rtransformer import LOSSES, LocalRNN, PublishedRTransformer
from .timing import Phase, in_fresh_process, peak_bytes, saved_bytes, time_interleaved

MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_SIZE = 2**28  # bytes: more than a cache holds
TOKENS_AFTER_PREFILL = 16


# The models and their phases


def model_names(args: argparse.Namespace) -> list[str]:
    if args.command == "operator":
        return [*(name for name in IMPLEMENTATIONS if args.implementation in (name, None)), "published"]
    if args.command == "scaling":
        return ["local_rnn", "ours"]
    if args.command == "linear":
        return [*PROJECTION_TYPES]
    return ["ours", *args.structures, "published", *args.peers]


def model_dtype(args: argparse.Namespace, name: str) -> torch.dtype:
    return torch.float32 if name == "published" else getattr(torch, args.dtype)


def make_model(args: argparse.Namespace, setting: Setting, name: str) -> tuple[nn.Module, dict[str, Phase]]:
    """A model, or its operator alone, and what to time of it."""
    config = setting.config
    config.local_rnn_implementation = name if args.command == "operator" else args.implementation
    for field, value in STRUCTURES.get(name, {}).items() if args.command != "linear" else ():
        setattr(config, field, value)
    if args.command == "linear":
        model = make_linear(config, config.hidden_size, 4 * config.hidden_size, bias=True, projection_type=name)
        return model.to(args.device), linear_phases(args, setting, model)
    if name == "published":
        model = LocalRNN(config) if is_operator(args, name) else PublishedRTransformer(setting.model_class, config)
    elif name in PEERS:
        is_causal_lm = setting.architecture == "RTransformerForCausalLM"
        peer = peer_config(name, setting)
        model = AutoModelForCausalLM.from_config(peer) if is_causal_lm else VectorPeer(setting, peer)
    else:
        model = RTransformerLocalRNN(config) if is_operator(args, name) else setting.model_class(config)
        if args.compile is not None:
            model.compile(mode=args.compile)
    model.to(args.device)
    return model, (generate_phases if args.command == "generate" else train_phases)(args, setting, name, model)


def is_operator(args: argparse.Namespace, name: str) -> bool:
    """Whether a LocalRNN alone is measured, rather than a whole model."""
    return args.command == "operator" or name == "local_rnn"


def train_phases(args: argparse.Namespace, setting: Setting, name: str, model: nn.Module) -> dict[str, Phase]:
    """The forward pass, and a training step: forward and backward pass and, for a whole model, the optimizer step."""
    dtype = model_dtype(args, name)
    autocast = torch.autocast(args.device, dtype, enabled=dtype != torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    shape = (setting.batch_size, setting.length)
    if is_operator(args, name):
        inputs = torch.randn(*shape, setting.config.hidden_size, device=args.device, requires_grad=True)
        optimizer.add_param_group({"params": inputs})  # so that their gradient is cleared, too
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


def linear_phases(args: argparse.Namespace, setting: Setting, model: nn.Module) -> dict[str, Phase]:
    """One layer, d to 4 d: forward pass and training step over all rows, and a row alone, as in decoding."""
    dtype = getattr(torch, args.dtype)
    inputs = torch.randn(setting.length, setting.config.hidden_size, device=args.device, requires_grad=True)

    def graph(rows: torch.Tensor = inputs) -> torch.Tensor:
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            return model(rows)

    def step():
        outputs = graph()
        outputs.backward(torch.ones_like(outputs))
        model.zero_grad()
        inputs.grad = None

    row = inputs.detach()[:1]
    return {
        "forward": Phase(torch.no_grad()(graph), setting.length, prepare=model.eval),
        "step": Phase(step, setting.length, prepare=model.train, graph=graph),
        "row": Phase(torch.no_grad()(partial(graph, row)), 1, prepare=model.eval, calls=TOKENS_AFTER_PREFILL),
    }


def generate_phases(args: argparse.Namespace, setting: Setting, name: str, model: nn.Module) -> dict[str, Phase]:
    """Prefill, and one token after it: with the cache or, for a model without one, with the whole prefix again."""
    model.to(model_dtype(args, name)).eval()
    prompt = make_batch(setting, args.device)
    del prompt["labels"]
    last = {name: values[:, -1:] for name, values in prompt.items()}
    kwargs = last_logits_only(setting)
    cache_name = "cache_params" if name == "mamba" and CACHE_NAME != "cache" else CACHE_NAME
    cache = {}

    @torch.no_grad()
    def prefill():
        cache.clear()
        if name == "ours" and args.compile is not None:  # compiled code needs tensors of fixed shape
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
    """Arguments for logits of the last position alone, which is all that generation needs and a classifier has."""
    return {} if setting.architecture == "RTransformerForSequenceClassification" else {"logits_to_keep": 1}


def make_batch(setting: Setting, device: str) -> dict[str, torch.Tensor]:
    config, shape = setting.config, (setting.batch_size, setting.length)
    if setting.architecture == "RTransformerForCausalLM":
        inputs = labels = torch.randint(config.vocab_size, shape, device=device)
    elif setting.architecture == "RTransformerForPolyphonicMusic":
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
            "intermediate_size": 8 * ours.hidden_size // 3,  # three matrices here, two in the others
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
    """A peer that reads vectors, with our model's output layer and loss."""

    def __init__(self, setting: Setting, config: PreTrainedConfig):
        super().__init__()
        ours = setting.config
        self.loss = LOSSES[setting.model_class]
        self.is_classifier = setting.architecture == "RTransformerForSequenceClassification"
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
        outputs.loss = None if labels is None else self.loss(outputs.logits, labels)
        return outputs


# Their measurement


def machine_phases(args: argparse.Namespace) -> dict[str, Phase]:
    """What the machine itself can do: a matrix product in the run's dtype, and a copy."""
    size = MATMUL_SIZE[args.device]
    matrix = torch.randn(size, size, device=args.device, dtype=getattr(torch, args.dtype))
    source = torch.ones(COPY_SIZE, dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    return {"matmul": Phase(lambda: matrix @ matrix, 0), "copy": Phase(lambda: target.copy_(source), 0)}


def min_flops(command: str, setting: Setting) -> dict[str, int]:
    """
    The fewest floating-point operations of each phase. None for a single token, which is bound by memory, and for
    `scaling`, whose models differ.
    """
    if command in ("linear", "scaling"):
        return {}
    config, tokens = setting.config, setting.batch_size * setting.length
    product = 2 * tokens * config.hidden_size * num_gates(config.local_rnn_type) * config.hidden_size
    flops = config.local_window_size * product
    if command != "operator":
        flops *= config.num_hidden_layers * config.num_local_rnn_layers
        config.num_local_rnn_layers = 0
        inputs = {name: values for name, values in make_batch(setting, "meta").items() if name != "labels"}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            setting.model_class(config)(**inputs, **(last_logits_only(setting) if command == "generate" else {}))
        flops += counter.get_total_flops()
    return {"prefill": flops} if command == "generate" else {"forward": flops, "step": 3 * flops}


def measure_memory(args: argparse.Namespace, setting: Setting, name: str) -> dict[str, dict[str, int | None]]:
    """`saved_bytes` and `peak_bytes` of each phase of a new model."""
    model, phases = make_model(args, setting, name)
    memory = {}
    for phase_name, phase in phases.items():
        phase.prepare()
        saved = None if phase.graph is None else saved_bytes(phase.graph, model.parameters())
        phase.run()
        phase.prepare()
        memory[phase_name] = {"saved_bytes": saved, "peak_bytes": peak_bytes(phase.run, args.device)}
    return memory


def measure(args: argparse.Namespace, config_name: str, setting: Setting) -> list[dict]:
    """A row for every model and phase of one setting."""
    memory, notes = {}, {}
    for name in model_names(args):
        progress(f"{config_name}, length {setting.length}: memory of {name}")
        try:
            if args.device == "cpu":  # only killing stops what takes all memory or too long there
                has_budget = name in PEERS or (args.command == "generate" and name == "published")
                seconds = args.time_budget if has_budget else 0
                memory[name] = in_fresh_process(measure_memory, args, setting, name, seconds=seconds)
            else:
                memory[name] = measure_memory(args, setting, name)
        except BrokenProcessPool:
            notes[name] = "left out: its process was killed, out of memory or time"
        except (RuntimeError, ValueError) as error:  # out of memory, or an implementation for another device
            notes[name] = f"left out: {' '.join(str(error).split())}"
    if "mamba" in memory and not is_mamba_ssm_available():
        notes["mamba"] = "loops over positions in Python: no mamba_ssm kernels here"

    progress(f"{config_name}, length {setting.length}: time of {', '.join(memory)}")
    models = {name: make_model(args, setting, name) for name in memory}
    phases = {(name, phase_name): phase for name in memory for phase_name, phase in models[name][1].items()}
    seconds = time_interleaved({**machine_phases(args), **phases}, args.rounds)
    matmul_rate = 2 * MATMUL_SIZE[args.device] ** 3 / seconds["matmul"]
    flops = min_flops(args.command, setting)

    def sizes_of(name: str, phase_name: str) -> dict[str, int | None]:
        in_memory = memory.get(name, {}).get(phase_name, {"saved_bytes": None, "peak_bytes": None})
        return {**in_memory, "file_bytes": file_bytes(models[name][0]) if name in models else None}

    references = ["dense"] if args.command == "linear" else ["published"]
    if getattr(args, "structures", ()):
        references.append("ours")

    rows = []
    for phase_name, name in itertools.product(PHASES[args.command], model_names(args)):
        time = seconds.get((name, phase_name))
        sizes = {other: sizes_of(other, phase_name) for other in (name, *references)}
        row = {
            "config": config_name,
            "batch_size": setting.batch_size,
            "length": setting.length,
            "phase": phase_name,
            "model": name,
            "dtype": str(model_dtype(args, name)).removeprefix("torch."),
            "parameters": None,
            "seconds": time,
            "tokens_per_second": None,
            "mfu": None,
            **sizes[name],
            "matmul_flops_per_second": matmul_rate,
            "copy_bytes_per_second": 2 * COPY_SIZE / seconds["copy"],
            "note": notes.get(name),
        }
        if name in models:
            row["parameters"] = sum(parameter.numel() for parameter in models[name][0].parameters())
            row["tokens_per_second"] = phases[name, phase_name].tokens / time
        if name not in PEERS and name not in STRUCTURES:  # these have other operations
            row["mfu"] = ratio(ratio(flops.get(phase_name), time), matmul_rate)
        for other in (*references, *getattr(args, "peers", ())):
            row[f"speed_ratio_to_{other}"] = ratio(seconds.get((other, phase_name)), time)
        for kind, other in itertools.product(sizes[name], references):
            row[f"{kind}_ratio_to_{other}"] = ratio(sizes[name][kind], sizes[other][kind])
        rows.append(row)
    return rows


def file_bytes(model: nn.Module) -> int:
    """Of the weights in a file, where tied ones are stored once."""
    weights = {weight.data_ptr(): weight.nbytes for weight in model.state_dict().values()}
    return sum(weights.values())


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def progress(message: str):
    print(message, file=sys.stderr, flush=True)


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
