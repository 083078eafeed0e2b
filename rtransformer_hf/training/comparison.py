# SPDX-License-Identifier: Apache-2.0
"""Finished trainings side by side: what they reached, and what that took, as a table and a picture of their curves."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from .card_tasks import TASKS
from .checkpoints import load_causal_lm, model_class
from .errors import UsageError
from .model_arguments import EVALUATION_FILE, input_name
from .model_card import CURVE_POINTS_FILE, FACTS_FILE, CardFacts, duration, read_facts
from .output_folder import RENAMED, RUN_FILE, TRAINER_STATE_FILE
from .report import learning_curves
from .timing import Phase, time_interleaved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPECTED = "expected the --output_dir of a finished training, or a folder of model_cards"
LENGTH = 256  # positions in a FLOP count, where a run has no context length
PROMPT_LENGTH = 8  # tokens, of a decoding
STEP_BATCH_SIZE = 8  # sequences, of a training step
MISSING = "-"


@dataclass
class Run:
    """
    A finished training.

    Args:
        name: the last part of its folder, or the whole path where that is not unique.
        settings: how its data is read for evaluations.
        curves: as of `report.learning_curves`; None where the folder has none.
        identity: digests of what was trained on, by name.
        evaluations: metrics of scripts/evaluate_checkpoint.py, by name of their file.
    """

    name: str
    folder: Path
    facts: CardFacts
    settings: dict[str, Any]
    curves: dict[str, dict[str, list[float]]] | None
    identity: dict[str, str]
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def results(self) -> dict[tuple[str, str], float]:
        """Values by split and metric."""
        return {(split, metric): value for split, metric, value in self.facts.results}


def load_runs(folders: list[str], evaluations: list[str], any_data: bool) -> list[Run]:
    """
    Args:
        folders: output folders of trainings with Trainer, or folders of model_cards.
        evaluations: names of files in these folders, as scripts/evaluate_checkpoint.py writes them.
        any_data: compare runs on different data too.

    Raises:
        UsageError: a folder holds no finished run, or the runs are not of one task and one set of data.
    """
    names = [Path(folder).resolve().name for folder in folders]
    names = [name if names.count(name) == 1 else folder for name, folder in zip(names, folders, strict=True)]
    runs = [load_run(name, Path(folder), evaluations) for name, folder in zip(names, folders, strict=True)]
    for file in evaluations:
        if not any(file in run.evaluations for run in runs):
            raise UsageError(
                f"--evaluation: no run has a file {file!r} (expected one of evaluate_checkpoint.py --output)"
            )
    first = runs[0]
    for run in runs[1:]:
        for what, own, others, is_needed in (
            ("tasks", first.facts.task, run.facts.task, True),
            ("data", first.facts.data_name, run.facts.data_name, not any_data),
            ("pixel orders", first.facts.permutation_seed, run.facts.permutation_seed, not any_data),
            *(
                (key, first.identity[key], run.identity.get(key, value), not any_data)
                for key, value in first.identity.items()
            ),
        ):
            if own != others and is_needed:
                hint = "" if what == "tasks" else ", or --any_data"
                raise UsageError(
                    f"RUN: {first.name} and {run.name} have different {what}: {own!r} and {others!r} (expected one "
                    f"task and the same data{hint})"
                )
    return runs


def load_run(name: str, folder: Path, evaluations: list[str]) -> Run:
    """
    Raises:
        UsageError: there is no finished run in the folder.
    """
    if not folder.is_dir():
        raise UsageError(f"RUN: no such folder: {str(folder)!r} ({EXPECTED})")
    facts = read_facts(folder)
    if facts is None:
        raise UsageError(f"RUN: {str(folder)!r} has no {FACTS_FILE} ({EXPECTED})")
    if not facts.results:
        raise UsageError(f"RUN: {str(folder)!r} has no results so far ({EXPECTED})")
    curves = read_json(folder / CURVE_POINTS_FILE)
    if curves is None and (state := read_json(folder / TRAINER_STATE_FILE)) is not None:
        curves = learning_curves(state["log_history"])
    identity = {key: value for key, value in (read_json(folder / RUN_FILE) or {}).items() if "sha256" in key}
    found = {file: metrics for file in evaluations if (metrics := read_json(folder / file)) is not None}
    settings = read_json(folder / EVALUATION_FILE) or {}
    settings = {RENAMED.get(key, key): value for key, value in settings.items()}
    return Run(name, folder, facts, settings, curves, identity, found)


def read_json(path: Path) -> Any:
    """
    None where there is no such file.

    Raises:
        UsageError: it holds something else.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"RUN: {path} can't be read (expected JSON): {error}") from error


def choose_metric(runs: list[Run], name: str | None) -> str:
    """
    The metric to compare by: the one of that name, or else the first of the task's; of language models bits per
    character, which do not depend on their tokens.

    Raises:
        UsageError: not all runs have it, on one split.
    """
    task = TASKS[runs[0].facts.task]
    common = set.intersection(*({metric for _, metric in run.results} for run in runs))
    if name is None:
        metrics = sorted(task.metrics, key=lambda metric: metric != "bits_per_character")
        name = next((metric for metric in metrics if metric in common), None)
    if name not in common:
        had = "; ".join(f"{run.name}: {', '.join(sorted({metric for _, metric in run.results}))}" for run in runs)
        raise UsageError(f"--metric: not in all runs: {name!r} (expected one that all have; they have {had})")
    return name


# What the table says


def make_table(
    runs: list[Run], metric: str, decode_tokens: int | None = None, steps: dict[str, float] | None = None
) -> str:
    """
    Markdown: a row for each run, and what is to be known of them below.

    Args:
        decode_tokens: for a column with `decoding_rate`.
        steps: seconds of a training step of each run, as of `step_seconds`, for a column.
    """
    words, unit = metric.replace("_", " "), TASKS[runs[0].facts.task].unit
    notes, length = [], common_length(runs)
    columns: dict[str, Callable[[Run], str]] = {
        "run": lambda run: run.name,
        "model": lambda run: run.facts.architecture,
        "parameters": lambda run: f"{run.facts.num_parameters:,}",
        f"MFLOPs a {unit[:-1]}": lambda run: megaflops(run, length, notes),
        **{
            f"{words}, {split}": lambda run, split=split: number(run.results.get((split, metric)))
            for split in ("validation", "test")
            if any((split, metric) in run.results for run in runs)
        },
        **{
            evaluation_name(runs, file, words): lambda run, file=file: number(
                run.evaluations.get(file, {}).get(metric)
            )
            for file in dict.fromkeys(file for run in runs for file in run.evaluations)
        },
        "time": training_time,
        f"{unit} a second, training": lambda run: number(run.facts.training.positions_per_second, ",.0f"),
        "memory": lambda run: number(run.facts.training.peak_memory_bytes, ",.2f", 1e-9, " GB"),
    }
    if steps is not None:
        columns["step, ms"] = lambda run: f"{1e3 * steps[run.name]:,.0f}"
        notes.append(f"Steps: forward and backward over {STEP_BATCH_SIZE} contexts, timed now, in turn")
    if decode_tokens is not None:
        columns[f"{unit} a second, decoding"] = lambda run: f"{decoding_rate(run, decode_tokens):,.0f}"
    cells = [[cell(run) for cell in columns.values()] for run in runs]
    lines = [list(columns), ["---"] * len(columns), *cells]
    notes += differences(runs)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return table + "\n" + "".join(f"\n- {note}" for note in notes) + "\n" * bool(notes)


def number(value: float | None, form: str = ".4f", factor: float = 1, unit: str = "") -> str:
    return MISSING if value is None else f"{value * factor:{form}}{unit}"


def evaluation_name(runs: list[Run], file: str, words: str) -> str:
    lengths = {run.evaluations[file].get("context_length") for run in runs if file in run.evaluations}
    return (
        f"{words}, {Path(file).stem}"
        if None in lengths
        else f"{words}, context {', '.join(map(str, sorted(lengths)))}"
    )


def training_time(run: Run) -> str:
    training = run.facts.training
    if training.seconds is None:
        return MISSING
    return duration(training.seconds) + f" from step {training.resumed_at_step:,} on" * bool(training.resumed_at_step)


def differences(runs: list[Run]) -> list[str]:
    """What makes the rows less comparable, in sentences."""
    notes = []
    kinds = {
        "Hardware": lambda run: run.facts.training.hardware,
        "Evaluated with": lambda run: ", ".join(f"{name} {value!r}" for name, value in sorted(run.settings.items())),
        **{
            f"Trained with {name}": lambda run, name=name: run.facts.training.hyperparameters.get(name)
            for name in dict.fromkeys(name for run in runs for name in run.facts.training.hyperparameters)
        },
    }
    for kind, of in kinds.items():
        values = {run.name: of(run) for run in runs}
        if len(set(values.values())) > 1:
            notes.append(f"{kind}: " + "; ".join(f"{name}: {value or 'not stated'}" for name, value in values.items()))
    resumed = [run.name for run in runs if run.facts.training.resumed_at_step]
    if resumed:
        notes.append(f"Time and memory are of the last part of a resumed training: {', '.join(resumed)}")
    return notes


def common_length(runs: list[Run]) -> int:
    """Positions in the FLOP counts of runs without a context length: as many as all of them have."""
    limits = (getattr(AutoConfig.from_pretrained(run.folder), "max_position_embeddings", None) for run in runs)
    return min([LENGTH, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])


def megaflops(run: Run, length: int, notes: list[str]) -> str:
    try:
        return f"{flops_per_position(run, length) / 1e6:.2f}"
    except Exception as error:  # of some two hundred architectures
        notes.append(f"FLOPs of {run.name} can't be counted: {' '.join(str(error).split())[:200]}")
        return MISSING


def flops_per_position(run: Run, length: int = LENGTH) -> float:
    """
    Floating-point operations of the matrix products in a forward pass over one context, or where the run has none over
    `length` positions, divided by the positions. Attention counts in full, as if no later position were masked. A
    training step takes about three times as many.
    """
    config = AutoConfig.from_pretrained(run.folder)
    config.pad_token_id = None  # some models look for padding in the values, which there are none of here
    length = run.settings.get("context_length") or length
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = model_class(run.facts.architecture)._from_config(config, attn_implementation="eager")
        if (name := input_name(model)) == "input_ids":
            model(input_ids=torch.zeros(1, length, dtype=torch.long))
        else:
            model(**{name: torch.zeros(1, length, config.input_size)})
    return counter.get_total_flops() / length


def decoding_rate(run: Run, num_tokens: int) -> float:
    """
    Tokens a second that a language model writes, one sequence at a time, with its cache: the best of three.

    Raises:
        UsageError: it is no language model, or has no positions for so many.
    """
    model, _ = load_causal_lm(str(run.folder))
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and PROMPT_LENGTH + num_tokens > limit:
        raise UsageError(
            f"--decode_tokens: {num_tokens}, and {run.name} has {limit} positions (expected at most "
            f"{limit - PROMPT_LENGTH})"
        )
    prompt = torch.arange(PROMPT_LENGTH, device=model.device)[None] % model.config.vocab_size
    settings = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens, "do_sample": False}
    settings |= {"attention_mask": torch.ones_like(prompt)}
    model.generate(prompt, **{**settings, "min_new_tokens": 2, "max_new_tokens": 2})  # what is made once a process
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.generate(prompt, **settings)[0].tolist()  # which waits for the accelerator
        seconds.append(time.perf_counter() - start)
    return num_tokens / min(seconds)


def step_seconds(runs: list[Run], rounds: int) -> dict[str, float]:
    """
    Seconds of a training step of each language model, without the optimizer's part: STEP_BATCH_SIZE sequences as long
    as the run's contexts, in the precision of its training. Medians of rounds that time all runs in turn.

    Raises:
        UsageError: a run is no language model.
    """
    return time_interleaved({run.name: step_phase(run) for run in runs}, rounds)


def step_phase(run: Run) -> Phase:
    model, _ = load_causal_lm(str(run.folder))
    model.float().train()
    length = run.settings.get("context_length") or LENGTH
    inputs = torch.randint(model.config.vocab_size, (STEP_BATCH_SIZE, length), device=model.device)
    is_bfloat16 = run.facts.training.hyperparameters.get("mixed precision") == "bfloat16"

    def step():
        with torch.autocast(model.device.type, torch.bfloat16, enabled=is_bfloat16):
            loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        model.zero_grad()
        loss.item()  # which waits for the accelerator

    return Phase(step, inputs.numel())


# The picture


def draw_curves(runs: list[Run], metric: str, steps: dict[str, float] | None = None) -> "Figure | None":
    """
    Loss against step and, where it was recorded, against time: validation in full, training faint, a colour for each
    run. With `steps`, as of `step_seconds`, also the metric against the time of a step. None where there is neither.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--output needs matplotlib, which is not installed (expected no --output, or it)") from error
    drawn = [run for run in runs if run.curves is not None]
    panels = [("step", "step", 1)] if drawn else []
    if any("seconds" in points for run in drawn for points in run.curves.values()):
        panels.append(("seconds", "minutes of training", 60))
    num_panels = len(panels) + (steps is not None)
    if num_panels == 0:
        return None
    figure = Figure(figsize=(1 + 6 * num_panels, 5), layout="constrained")
    all_axes = figure.subplots(1, num_panels, squeeze=False)[0]
    for axes, (key, xlabel, scale) in zip(all_axes, panels, strict=False):
        for index, run in enumerate(drawn):
            label = run.name  # of the first line alone
            for split, style in (("validation", {"marker": "."}), ("training", {"alpha": 0.25})):
                points = run.curves.get(split, {})
                if points.get(key):
                    places = [value / scale for value in points[key]]
                    axes.plot(places, points["loss"], color=f"C{index % 10}", label=label, **style)
                    label = None
        axes.set(xlabel=xlabel, ylabel=f"loss ({TASKS[drawn[0].facts.task].loss_unit})")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    if steps is not None:
        draw_costs(all_axes[-1], runs, metric, steps)
    return figure


def draw_costs(axes: "Axes", runs: list[Run], metric: str, steps: dict[str, float]):
    split = "validation" if all(("validation", metric) in run.results for run in runs) else "test"
    for index, run in enumerate(runs):
        if (split, metric) in run.results:
            point = (1e3 * steps[run.name], run.results[split, metric])
            axes.plot(*point, "o", color=f"C{index % 10}")
            axes.annotate(run.name, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.margins(0.15)
    axes.set(xlabel="training step (ms)", ylabel=f"{metric.replace('_', ' ')}, {split}")
    axes.grid(alpha=0.3)
