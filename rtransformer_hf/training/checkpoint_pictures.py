# SPDX-License-Identifier: Apache-2.0
"""The pictures of scripts/plot_checkpoint.py, each with its numbers. `args` are the command's arguments."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, default_data_collator

from .causal_lm import TokenWindows
from .errors import UsageError
from .evaluation import language_model, load_settings
from .model_arguments import default_device
from .output_folder import GREATER_IS_BETTER

BINS_PER_TRAINING_LENGTH = 8
PUBLISHED = {  # R-Transformer and Transformer: arXiv 1907.05572; TCN: arXiv 1803.01271
    ("JSB chorales", "nll_per_frame"): {"TCN": 8.10},
    ("Nottingham", "nll_per_frame"): {"R-Transformer, paper": 2.37, "Transformer, paper": 3.34, "TCN": 3.07},
    ("Penn Treebank, characters", "bits_per_character"): {"R-Transformer, paper": 1.24, "Transformer, paper": 1.45},
    ("Penn Treebank, words", "perplexity"): {"R-Transformer, paper": 84.38, "Transformer, paper": 122.37},
    ("Sequential MNIST", "accuracy"): {"R-Transformer, paper": 0.991, "Transformer, paper": 0.982},
}


# The loss against the position


def draw_context(args: argparse.Namespace) -> tuple[Figure, dict]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, numbers, context_lengths = figure.subplots(), {}, set()
    for checkpoint in args.checkpoints:
        model, windows, context_length = load_windows(args, checkpoint, args.factor)
        nats = nats_by_position(model, windows, args)
        bin_size = max(1, context_length // BINS_PER_TRAINING_LENGTH)
        bins = nats[: len(nats) // bin_size * bin_size].view(-1, bin_size).mean(dim=-1)
        positions = (torch.arange(len(bins)) + 0.5) * bin_size
        axes.plot(positions, bins, marker=".", label=Path(checkpoint).name)
        numbers[Path(checkpoint).name] = {"positions": positions.tolist(), "nats_per_token": bins.tolist()}
        context_lengths.add(context_length)
    for context_length in context_lengths:
        axes.axvline(context_length, color="grey", linestyle="--", label=f"trained on {context_length}")
    axes.set(xlabel="position in the context", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure, numbers


def load_windows(args: argparse.Namespace, checkpoint: str, factor: int) -> tuple[PreTrainedModel, Subset, int]:
    """The model, disjoint windows of `factor` times its training length, and that length."""
    _, settings = load_settings(checkpoint, args.architecture)
    context_length = settings["context_length"]
    settings |= {"context_length": factor * context_length, "eval_stride": factor * context_length}
    source = argparse.Namespace(**{**vars(args), "checkpoint": checkpoint, "quantization": None})
    evaluation = language_model(source, settings)
    windows: TokenWindows = evaluation.dataset
    if len(windows.tokens) <= factor * context_length:
        raise UsageError(
            f"the data holds {len(windows.tokens)} tokens (expected more than {factor * context_length}, "
            f"{factor} times the context length in the training of {checkpoint})"
        )
    kept = min(len(windows), max(1, args.max_tokens // (factor * context_length)))
    return evaluation.model, Subset(windows, range(kept)), context_length


@torch.no_grad()
def nats_by_position(model: PreTrainedModel, windows: Subset, args: argparse.Namespace) -> torch.Tensor:
    """The mean loss of the labels at each position of the windows, (time,)."""
    device = default_device()
    model = model.to(device).eval()
    sums, counts = 0, 0
    for batch in tqdm(DataLoader(windows, batch_size=args.batch_size, collate_fn=default_data_collator)):
        labels = batch["labels"][:, 1:].to(device)
        logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")  # (windows, time)
        sums, counts = sums + losses.sum(dim=0), counts + (labels != -100).sum(dim=0)
    return (sums / counts).cpu()


# Attention, and what a sub-layer adds


def draw_layers(args: argparse.Namespace) -> tuple[Figure, dict]:
    model, windows, _ = load_windows(args, args.checkpoint, factor=1)
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    whole = nats_by_position(model, windows, args).mean().item()
    losses = {}
    for index, layer in enumerate(model.model.layers):
        sublayers = {f"LocalRNN {j + 1}": local_rnn for j, local_rnn in enumerate(layer.local_rnns)}
        sublayers |= {"attention": layer.self_attn.o_proj, "feed-forward": layer.mlp}
        for name, module in sublayers.items():
            hook = module.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
            losses[f"block {index + 1}, {name}"] = nats_by_position(model, windows, args).mean().item() - whole
            hook.remove()

    text = windows[0]["input_ids"][: args.tokens]
    labels = [tokenizer.decode([token]) for token in text.tolist()]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(input_ids=text[None].to(model.device), output_attentions=True, use_cache=False).attentions
    figure = Figure(figsize=(4 * len(attentions), 7.5), layout="constrained")
    maps, bars = figure.subfigures(2, 1, height_ratios=[1.3, 1])
    map_axes = maps.subplots(1, len(attentions), squeeze=False)[0]
    for index, (axes, weights) in enumerate(zip(map_axes, attentions, strict=True)):
        axes.imshow(weights[0].mean(dim=0).cpu(), cmap="Blues", vmin=0)
        axes.set_title(f"block {index + 1}: attention, mean of the heads", fontsize=9)
        axes.set_xticks(range(len(labels)), labels, fontsize=5, rotation=90)
        axes.set_yticks(range(len(labels)), labels, fontsize=5)
    axes = bars.subplots()
    axes.barh(list(losses), list(losses.values()), color=["tab:orange" if "RNN" in n else "tab:blue" for n in losses])
    axes.invert_yaxis()
    axes.set(xlabel=f"rise of the loss without the sub-layer (nats per token; whole model: {whole:.3f})")
    axes.grid(alpha=0.3, axis="x")
    return figure, {"loss": whole, "rise_without": losses}


# What cards say


def draw_results(args: argparse.Namespace) -> tuple[Figure, dict]:
    """Bars for each data set, of its published metric, or of the first one in its cards."""
    bars: dict[tuple[str, str], dict[str, float]] = {}
    own_names = set()
    for card in args.cards:
        results = ModelCard.load(Path(card)).data.eval_results or []
        tested = {
            (result.dataset_name, result.metric_type): result.metric_value
            for result in results
            if result.dataset_split == "test"
        }
        if not tested:
            raise UsageError(f"{card} gives no test figure (expected the card of a run with test data)")
        kind = next((kind for kind in tested if kind in PUBLISHED), next(iter(tested)))
        name = Path(card).resolve().parent.name
        bars.setdefault(kind, {})[name] = tested[kind]
        own_names.add(name)
    bars = {kind: bars[kind] | PUBLISHED.get(kind, {}) for kind in sorted(bars)}

    figure = Figure(figsize=(7, 0.5 * len(bars) + 0.28 * sum(map(len, bars.values()))), layout="constrained")
    panels = figure.subplots(len(bars), squeeze=False, height_ratios=[1.5 + len(values) for values in bars.values()])
    for ((data, metric), values), axes in zip(bars.items(), panels[:, 0], strict=True):
        colours = ["tab:blue" if name in own_names else "tab:grey" for name in values]
        drawn = axes.barh(list(values), list(values.values()), color=colours)
        axes.bar_label(drawn, fmt="{:.4g}", padding=3, fontsize=8)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        better = "higher" if metric in GREATER_IS_BETTER else "lower"
        axes.set_title(f"{data}: {metric.replace('_', ' ')} on test, {better} is better", fontsize=9, loc="left")
    return figure, {f"{data}: {metric}": values for (data, metric), values in bars.items()}
