# SPDX-License-Identifier: Apache-2.0
"""What a training script leaves beside the model: the picture of its learning curves and the facts of its card."""

import datetime
import json
import logging
import os
import platform
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from .. import RTransformerConfig
from .card_tasks import TASKS
from .cost import MEMORY, SECONDS
from .files import atomic_write, write_figure
from .model_arguments import input_name
from .model_card import CURVE_POINTS_FILE, CURVES_FILE, CardArguments, CardFacts, TrainingFacts, read_facts
from .new_tokenizers import unknown_token_id
from .output_folder import ResumableTrainingArguments
from .resuming import metric_values

logger = logging.getLogger(__name__)

PROMPTS = ("The ", "the ")  # of a language model; the first that its tokenizer knows
TEXT = "Your text here."  # for a classifier: rows of its data may be private
SIZES = (
    *("num_hidden_layers", "hidden_size", "position_embedding_type", "is_causal"),
    *("num_local_rnn_layers", "local_rnn_type", "local_window_size"),
    *("projection_type", "local_rnn_projection_type", "local_rnn_num_heads"),
)


@dataclass
class TaskReport:
    """
    What a training script knows about its model and data.

    Args:
        task: a key of `card_tasks.TASKS`.
        command: the script and its arguments.
        card: what the model's owner states.
        data_name: a Hub id, or the name of a local file or folder.
        dataset_id: the Hub id, if it is one.
        base_model: --model_name_or_path.
        example: input of the card's code, see `CardFacts`.
        baselines, baseline_rows: figures of simple baselines, see `CardFacts`.
    """

    task: str
    command: list[str]
    card: CardArguments
    data_name: str
    dataset_id: str | None
    base_model: str | None = None
    example: str | list[str | int] | None = None
    baselines: list[tuple[str, str, str, float]] = field(default_factory=list)
    baseline_rows: dict[str, str] = field(default_factory=dict)

    @property
    def loss_unit(self) -> str:
        return TASKS[self.task].loss_unit

    @property
    def unit(self) -> str:
        return TASKS[self.task].unit


@dataclass
class Outcome:
    """
    What a training script has found so far.

    Args:
        metrics: Trainer's, by split.
        training: those of the training; None where the model was there already.
        has_curves: whether the learning curves were drawn.
        has_forecasts: whether forecasts were.
        sample_outputs: of the finished model, as of `sample_outputs`.
        has_confusion_matrix: whether the confusion matrix was.
        best_step: that of the checkpoint whose weights are saved, where it was chosen as the best.
        has_new_weights: whether the weights are others than those that the output folder held.
    """

    metrics: dict[str, dict[str, float]]
    training: dict[str, float] | None = None
    has_curves: bool = False
    has_forecasts: bool = False
    sample_outputs: list[float] | None = None
    has_confusion_matrix: bool = False
    best_step: int | None = None
    has_new_weights: bool = True


def learning_curves(log_history: list[dict[str, float]]) -> dict[str, dict[str, list[float]]]:
    """Of "training" and "validation" the "step", "loss" and, where all have it, "seconds" of each log entry."""
    curves = {}
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        entries = [entry for entry in log_history if key in entry]
        # The evaluation at the end has the step of the last one, but may be of an earlier, better model.
        steps = [entry["step"] for entry in entries]
        entries = [entry for index, entry in enumerate(entries) if entry["step"] not in steps[:index]]
        curves[label] = {"step": [entry["step"] for entry in entries], "loss": [entry[key] for entry in entries]}
        if entries and all(SECONDS in entry for entry in entries):
            curves[label]["seconds"] = [entry[SECONDS] for entry in entries]
    return curves


def plot_learning_curves(trainer: Trainer, loss_unit: str) -> bool:
    """Writes the curves and their picture. Returns whether there is a picture: matplotlib may be missing."""
    curves = learning_curves(trainer.state.log_history)
    atomic_write(Path(trainer.args.output_dir, CURVE_POINTS_FILE), json.dumps(curves).encode())
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("No picture of the learning curves: matplotlib is not installed.")
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        axes.plot(points["step"], points["loss"], marker=".", label=label)
    axes.set(xlabel="step", ylabel=f"loss ({loss_unit})")
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(Path(trainer.args.output_dir, CURVES_FILE), figure, dpi=150)
    return True


def card_facts(trainer: Trainer, report: TaskReport, num_parameters: int, outcome: Outcome) -> CardFacts:
    """
    Facts about the model in the output folder.

    Args:
        num_parameters: those of the whole model, which a process of FSDP does not have.
        outcome: of this run of the script. Nothing is taken from the files of earlier ones but, where the model was
            trained by one of them, how it was trained.
    """
    config = trainer.model.config
    base_model = report.base_model
    is_local = base_model is not None and Path(base_model).exists()
    return CardFacts(
        task=report.task,
        checkpoint=trainer.hub_model_id or trainer.args.output_dir,
        has_code=config.model_type == RTransformerConfig.model_type,
        model_type=config.model_type,
        revision=trainer.args.hub_revision if trainer.hub_model_id else None,
        architecture=type(trainer.model).__name__.removeprefix("FSDP"),
        num_parameters=num_parameters,
        sizes={name: getattr(config, name) for name in SIZES if hasattr(config, name)},
        data_name=report.data_name,
        dataset_id=report.dataset_id,
        base_model=Path(base_model).resolve().name if is_local else base_model,
        base_model_id=None if is_local else base_model,
        license=report.card.license,
        license_name=report.card.license_name,
        license_link=report.card.license_link,
        example=report.example,
        results=[
            (split, metric, metrics[key])
            for split, metrics in outcome.metrics.items()
            for metric in TASKS[report.task].metrics
            if (key := f"{'eval' if split == 'validation' else split}_{metric}") in metrics
        ],
        training=training_facts(trainer, report, outcome),
        training_loss_has_dropout=any(value for name, value in config.to_dict().items() if name.endswith("_dropout")),
        has_curves=outcome.has_curves,
        has_forecasts=outcome.has_forecasts,
        has_confusion_matrix=outcome.has_confusion_matrix,
        baselines=report.baselines if outcome.metrics else [],
        baseline_rows=report.baseline_rows if outcome.metrics else {},
        sample_outputs=outcome.sample_outputs,
        permutation_seed=getattr(trainer.processing_class, "permutation_seed", None),
    )


@torch.no_grad()
def sample_outputs(model: PreTrainedModel) -> list[float]:
    """
    A few numbers of what a model on the CPU makes of a short, fixed input: another model's differ. They tie figures to
    the weights that gave them.
    """
    numbers = torch.arange(8)
    if (name := input_name(model)) == "input_ids":
        inputs = (7 * numbers % model.config.vocab_size)[None]
    else:
        inputs = (torch.arange(8 * model.config.input_size) % 3 == 0).float().view(1, 8, -1)
    output = model.eval()(**{name: inputs})
    values = (value[0] if isinstance(value, tuple) else value for value in output.values())  # params are a tuple
    first = next(value for value in values if isinstance(value, torch.Tensor)).flatten().float()
    return [round(value, 5) for value in first[(len(first) - 1) * numbers // 7].tolist()]


def training_facts(trainer: Trainer, report: TaskReport, outcome: Outcome) -> TrainingFacts:
    args, metrics = trainer.args, outcome.training
    facts = TrainingFacts(command=command_line(report.command, args), hyperparameters=hyperparameters(trainer.args))
    if outcome.metrics and metrics is None:  # evaluated alone
        earlier = read_facts(args.output_dir)
        if earlier is not None and earlier.training.finished is not None:
            facts = earlier.training
        if outcome.has_new_weights:
            facts.best = best_in_words(trainer, outcome.best_step)
        return facts
    facts.hardware = hardware(args)
    if metrics is not None:
        facts.seconds = metrics["train_runtime"]
        facts.positions_per_second = metrics[f"train_{report.unit}_per_second"]
        facts.peak_memory_bytes = metrics.get(MEMORY)
        facts.resumed_at_step = metrics["resumed_at_step"]
        facts.finished = datetime.date.today().isoformat()
        if trainer.state.global_step < trainer.state.max_steps:
            facts.hyperparameters["stopped early"] = f"at step {trainer.state.global_step:,}"
        facts.best = best_in_words(trainer, outcome.best_step)
    return facts


def best_in_words(trainer: Trainer, step: int | None) -> str | None:
    """What the checkpoint of this step is the best of, if one was chosen."""
    if step is None:
        return None
    metric = trainer.args.metric_for_best_model
    values = metric_values(trainer.state, metric)
    best = (max if trainer.args.greater_is_better else min)(values.values())
    # A better one may have been evaluated but not saved, or not be there any more.
    among = "" if values.get(step) == best else " of the checkpoints that were kept"
    return f"step {step:,}, the best on validation by {metric.removeprefix('eval_').replace('_', ' ')}{among}"


def hyperparameters(args: ResumableTrainingArguments) -> dict[str, str]:
    """A training's settings, in words."""
    length = ("steps", f"{args.max_steps:,}") if args.max_steps > 0 else ("epochs", f"{args.num_train_epochs:g}")
    batch = [f"{args.train_batch_size}"]
    if args.world_size > 1:
        batch += [f"{args.world_size} processes"]
    if args.gradient_accumulation_steps > 1:
        batch += [f"{args.gradient_accumulation_steps} accumulated"]
    total = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    words = {
        length[0]: length[1],
        "batch size": f"{total}" + (f" ({' x '.join(batch)})" if len(batch) > 1 else ""),
        "optimizer": optimizer(args),
        "learning rate": f"{args.learning_rate:g}, {schedule(args)}",
    }
    if args.weight_decay:
        words["weight decay"] = f"{args.weight_decay:g}"
    if args.max_grad_norm:
        words["gradient norm"] = f"clipped at {args.max_grad_norm:g}"
    if args.label_smoothing_factor:
        words["label smoothing"] = f"{args.label_smoothing_factor:g}"
    if args.average_decay is not None:
        words["weights"] = f"exponential moving average with decay {args.average_decay:g}"
    if args.bf16 or args.fp16:
        words["mixed precision"] = "bfloat16" if args.bf16 else "float16"
    return {**words, "seed": f"{args.seed}"}


def optimizer(args: ResumableTrainingArguments) -> str:
    name = str(getattr(args.optim, "value", args.optim))
    adam = f"betas {args.adam_beta1:g} and {args.adam_beta2:g}, epsilon {args.adam_epsilon:g}"
    if args.muon:
        learning_rate = args.learning_rate if args.muon_learning_rate is None else args.muon_learning_rate
        return f"Muon (learning rate {learning_rate:g}) for the matrices of the blocks, else AdamW ({adam})"
    words = [name, adam] if "adam" in name else [name]
    return ", ".join([*words, args.optim_args] if args.optim_args else words)


def schedule(args: ResumableTrainingArguments) -> str:
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    words = [f"schedule {name}"]
    if args.lr_scheduler_kwargs:
        words += [json.dumps(args.lr_scheduler_kwargs)]
    if args.warmup_steps:
        warmup = f"{args.warmup_steps:.0%} of the" if args.warmup_steps < 1 else f"{args.warmup_steps:,.0f}"
        words += [f"warmup over {warmup} steps"]
    return ", ".join(words)


def prompt_for(tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt that the tokenizer knows: English if possible, else the first word of its vocabulary."""
    for prompt in PROMPTS:
        if is_known(prompt, tokenizer):
            # A space at the end is a token of its own to a character tokenizer; to others it begins the next word.
            return prompt if len(tokenizer.tokenize(prompt)) == len(prompt) else prompt.strip()
    words = (tokenizer.decode([token_id], skip_special_tokens=True).strip() for token_id in range(len(tokenizer)))
    return next((word for word in words if word and is_known(word, tokenizer)), PROMPTS[0])


def is_known(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return unknown_token_id(tokenizer) not in ids and tokenizer.decode(ids).strip() == text.strip()


def command_line(command: list[str], args: ResumableTrainingArguments) -> str:
    """A script's command, with the names alone of files that it gives by their whole path, and no token."""
    launcher = ["python"]
    if args.world_size > 1:
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
        num_nodes = args.world_size // num_local
        launcher = ["torchrun", *(("--nnodes", f"{num_nodes}") if num_nodes > 1 else ())]
        launcher += ["--nproc_per_node", f"{num_local}"]
    line = shlex.join([*launcher, *map(without_folder, command)])
    return line.replace(args.hub_token, "$HF_TOKEN") if args.hub_token else line


def without_folder(word: str) -> str:
    """A word of a command line; of a whole path, after a flag or alone, its last part."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() or value.startswith("~"):
            return flag + equals + path.name
    return word


def hardware(args: ResumableTrainingArguments) -> str:
    device = args.device
    if device.type == "cpu":
        threads = args.world_size * torch.get_num_threads()
        capability = torch.backends.cpu.get_cpu_capability()
        features = [platform.machine()] + ([capability] if capability != "DEFAULT" else [])
        return f"{threads} CPU thread{'s' if threads > 1 else ''} ({', '.join(features)})"
    get_name = getattr(torch.get_device_module(device), "get_device_name", None)
    return f"{args.world_size * max(1, args.n_gpu)} x {get_name(device) if get_name else device.type}"
