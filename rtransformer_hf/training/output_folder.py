# SPDX-License-Identifier: Apache-2.0
"""The output folder of a training script. It holds one run, which resumes where it stopped."""

import json
import logging
import math
import os
import shutil
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import (
    get_available_reporting_integrations,
    is_deepspeed_available,
    is_flytekit_available,
    is_tensorboard_available,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import is_liger_kernel_available

from .. import RTransformerConfig
from .errors import UsageError, one_line
from .files import atomic_write
from .flags import fraction, number, positive_integer, seed, suggestion
from .resuming import has_optimizer
from .stopping import on_stop

logger = logging.getLogger(__name__)

RUN_FILE = "training_run.json"  # says what the folder's model is
TRAINER_STATE_FILE = "trainer_state.json"
RENAMED = {"block_size": "context_length"}  # arguments in the files of earlier versions
GREATER_IS_BETTER = (
    "accuracy",
    "macro_f1",
    "r2",
    "span_f1",
    "span_precision",
    "span_recall",
    "micro_f1",
    "auroc",
    "spearman",
)
REPORTER_PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}  # where names differ
LOG_EXTRA = ("tensorboard", "wandb")  # what the extra [log] of pyproject.toml installs


def number_of_steps(**bounds: float) -> Callable[[str], float]:
    """The `type` of a flag that holds a number of steps or, below 1, a share of all steps; bounds as of `number`."""
    parse_number = number(float, **bounds)

    def parse(text: str) -> float:
        value = parse_number(text)
        if value > 1 and not value.is_integer():
            raise ArgumentTypeError(f"{text} (expected an integer, or less than 1: a share of all steps)")
        return value

    return parse


def max_steps(text: str) -> int:
    if text == "-1":
        return -1
    try:
        return positive_integer(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"{text} (expected at least 1, or -1: by --num_train_epochs)") from None


not_negative = number(float, at_least=0)
beta = number(float, at_least=0, less_than=1)
# Trainer takes any number for these. Narrower types of the flags below stand with them.
TRAINER_TYPES = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "eval_delay"), not_negative),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), beta),
    **dict.fromkeys(("num_train_epochs", "adam_epsilon"), number(float, more_than=0)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), positive_integer),
    "gradient_accumulation_steps": positive_integer,
    **dict.fromkeys(("save_total_limit", "dataloader_num_workers"), number(int, at_least=0)),
    **dict.fromkeys(("warmup_steps", "eval_steps"), number_of_steps(at_least=0)),
    **dict.fromkeys(("logging_steps", "save_steps"), number_of_steps(more_than=0)),
    "max_steps": max_steps,
    **dict.fromkeys(("seed", "data_seed"), seed),
}


@dataclass
class ResumableTrainingArguments(TrainingArguments):
    flag_types: ClassVar = TRAINER_TYPES
    state_file: ClassVar = TRAINER_STATE_FILE

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start from scratch, even if --output_dir holds a run."}
    )
    report_to: list[str] | None = field(
        default=None,
        metadata={
            "help": "What to log to: tensorboard, wandb, trackio, all, none, or another integration of Transformers. "
            "Unset: tensorboard, if it is installed."
        },
    )

    muon: bool = field(
        default=False,
        metadata={
            "help": "Train the blocks' dense matrices with Muon, everything else (structured weights too) with AdamW."
        },
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of Muon, on AdamW's scale. Unset: --learning_rate.",
            "type": number(float, more_than=0),
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations in a row without a better --metric_for_best_model. Needs "
            "--load_best_model_at_end.",
            "type": positive_integer,
        },
    )
    average_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights with this decay, such as 0.999.",
            "type": fraction,
        },
    )

    def __post_init__(self):
        check_json(self)
        if self.muon_learning_rate is not None and not self.muon:
            raise UsageError(f"--muon_learning_rate {self.muon_learning_rate}: --muon is missing (expected with it)")
        for flag, value in (("muon", self.muon), ("average_decay", self.average_decay)):
            if value and self.fsdp:
                raise UsageError(f"--{flag} needs whole weights, which --fsdp splits (expected one of the two)")
        if self.output_dir is None:
            raise UsageError("--output_dir: missing (expected the folder to write to)")
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # Trainer assumes that greater is better for any metric whose name does not end with "loss".
            self.greater_is_better = self.metric_for_best_model.removeprefix("eval_") in GREATER_IS_BETTER
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        check_report_to(self.report_to)
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise UsageError("--early_stopping_patience needs --load_best_model_at_end and an --eval_strategy.")
        evaluates, saves = (getattr(value, "value", value) for value in (self.eval_strategy, self.save_strategy))
        if self.load_best_model_at_end and evaluates == "no":
            raise UsageError("--load_best_model_at_end needs an --eval_strategy (expected epoch or steps, got no)")
        if self.load_best_model_at_end and saves not in ("best", evaluates):
            raise UsageError(
                f"--load_best_model_at_end: --save_strategy {saves} (expected best, or {evaluates} as --eval_strategy)"
            )
        if self.dataloader_persistent_workers and self.dataloader_num_workers == 0:
            raise UsageError("--dataloader_persistent_workers needs --dataloader_num_workers (expected at least 1)")
        is_cpu = self.use_cpu or not torch.accelerator.is_available()
        if is_cpu and self.fp16:
            raise UsageError("--fp16 needs an accelerator, and the training is on the CPU (expected --bf16)")
        if is_cpu and self.bf16 and not self.use_cpu:
            raise UsageError("--bf16: there is no accelerator (expected --use_cpu with it)")
        check_evaluation(self)
        if self.use_liger_kernel and not is_liger_kernel_available():
            raise UsageError("--use_liger_kernel: not available here; `pip install liger-kernel` installs it.")
        if self.deepspeed and not is_deepspeed_available():
            raise UsageError(f"--deepspeed {self.deepspeed}: not available here; `pip install deepspeed` installs it.")
        try:
            super().__post_init__()
        except (ImportError, OSError, RuntimeError) as error:  # a package or a file is missing
            raise UsageError(one_line(error)) from error
        if self.torch_compile:
            try:
                torch.compile(torch.nn.Identity(), backend=self.torch_compile_backend, mode=self.torch_compile_mode)
            except RuntimeError as error:
                raise UsageError(f"--torch_compile: {one_line(error)}") from error
        check_optimizer(self)

    def __getstate__(self) -> dict:
        """Leaves the token out of training_args.bin, which Trainer pushes to the Hub."""
        return {**self.__dict__, "hub_token": None}


def check_json(args: ResumableTrainingArguments):
    """
    Raises:
        UsageError: --lr_scheduler_kwargs is not a JSON object.
    """
    value = args.lr_scheduler_kwargs
    if isinstance(value, str):
        try:
            is_object = isinstance(json.loads(value), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise UsageError(f"""--lr_scheduler_kwargs: {value!r} (expected JSON, such as '{{"min_lr_rate": 0.1}}')""")


def check_evaluation(args: ResumableTrainingArguments):
    """
    Raises:
        UsageError: a flag would change what evaluations compute, or the weights that are saved after them.
    """
    for flag in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(args, flag):
            raise UsageError(
                f"--{flag}: it would convert the weights that are saved after the last evaluation (expected "
                f"--{flag.removesuffix('_full_eval')}, which computes in this precision and keeps float32 weights)"
            )
    for flag, expected in (
        ("prediction_loss_only", False),
        ("batch_eval_metrics", False),
        ("eval_do_concat_batches", True),
        ("eval_use_gather_object", False),
    ):
        if (value := getattr(args, flag)) != expected:
            raise UsageError(
                f"--{flag}: {value} (expected {expected}: the metrics are computed over the predictions of all rows)"
            )


def check_optimizer(args: ResumableTrainingArguments):
    """
    Raises:
        UsageError: the optimizer of --optim, or the schedule, can't be made with its settings.
    """
    toy = torch.nn.ParameterList([torch.zeros(1)])  # unlike a layer, it draws no random numbers
    optimizer = torch.optim.SGD(toy.parameters())
    if hasattr(args, "optim") and args.optim_target_modules is None:
        try:
            optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, toy)
            optimizer = optimizer_class(toy.parameters(), **settings)
        except Exception as error:  # optimizers come from many libraries
            name = getattr(args.optim, "value", args.optim)
            raise UsageError(f"--optim {name} can't be made with these settings: {one_line(error)}") from error
    schedule, settings = args.lr_scheduler_type, args.lr_scheduler_kwargs
    settings = json.loads(settings) if isinstance(settings, str) else settings
    try:
        get_scheduler(schedule, optimizer, 1, 10, scheduler_specific_kwargs=settings)
    except (TypeError, ValueError) as error:
        given = "none" if settings is None else json.dumps(settings)
        raise UsageError(
            f"--lr_scheduler_type {getattr(schedule, 'value', schedule)} does not go with these --lr_scheduler_kwargs "
            f"({given}): {one_line(error)}"
        ) from error


def check_report_to(report_to: str | list[str]):
    """
    Raises:
        UsageError: a name is not among Transformers' integrations, or its package is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else report_to
    if len(names) > 1 and (alone := {"none", "all"}.intersection(names)):
        raise UsageError(f"--report_to: {' '.join(names)} (expected {' or '.join(sorted(alone))} alone)")
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            hint = suggestion([name], list(INTEGRATION_TO_CALLBACK))
            expected = ", ".join(["none", "all", *INTEGRATION_TO_CALLBACK])
            raise UsageError(f"--report_to: unknown: {name!r}{hint} (expected {expected})")
        if name not in get_available_reporting_integrations() and not (name == "flyte" and is_flytekit_available()):
            extra = ", as the extra [log] does" if name in LOG_EXTRA else ""
            raise UsageError(
                f"--report_to {name}: not available here; `pip install {REPORTER_PACKAGES.get(name, name)}` installs "
                f"its package{extra}."
            )


def check_metric(args: ResumableTrainingArguments, metrics: Sequence[str]):
    """
    Args:
        args: those of the training.
        metrics: names of the metrics that an evaluation computes.

    Raises:
        UsageError: --metric_for_best_model is not among them.
    """
    name = args.metric_for_best_model
    if name is not None and name.removeprefix("eval_") not in metrics:
        raise UsageError(
            f"--metric_for_best_model: unknown: {name!r}{suggestion([name], list(metrics))} (expected "
            f"{', '.join(metrics)})"
        )


def check_labels_differ(metric: str | None, needing: Sequence[str], labels: Callable[[], np.ndarray], where: str):
    """
    Args:
        metric: --metric_for_best_model.
        needing: names of the metrics that are not defined for labels that are all the same.
        labels: is called if the metric is one of them: those of validation, (rows,) or (rows, labels a row). NaN is a
            missing one.
        where: their name, for the message.

    Raises:
        UsageError: the metric is not defined on these labels, whatever the model says.
    """
    name = (metric or "").removeprefix("eval_")
    if name not in needing:
        return
    values = labels()
    values = values[values == values] if values.ndim == 1 else values
    # Of several labels a row, one that some rows have and others have not is enough.
    if not (values != values[:1]).any():
        raise UsageError(
            f"--metric_for_best_model {metric}: {name} is not defined where all labels are the same, as those of "
            f"{where} are (expected other validation data, or another metric)"
        )


def check_output_dir(args: ResumableTrainingArguments):
    """
    Checks that the folder can hold this run, before any work is done.

    Raises:
        UsageError: it holds other files, is a file, or can't be written to; or there is no such checkpoint.
    """
    on_stop(partial(how_to_go_on, args))
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"--output_dir: {args.output_dir!r} is a file (expected a folder)")
    nearest = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"--output_dir {args.output_dir}: {nearest} can't be written to (expected a folder)")
    if args.resume_from_checkpoint and not Path(args.resume_from_checkpoint, args.state_file).exists():
        raise UsageError(
            f"--resume_from_checkpoint: no checkpoint: {args.resume_from_checkpoint!r} (expected a folder with "
            f"{args.state_file})"
        )
    is_free = not output_dir.exists() or (output_dir / RUN_FILE).exists() or args.overwrite_output_dir
    if args.should_save and not is_free and (found := sorted(path.name for path in output_dir.iterdir())):
        raise UsageError(
            f"--output_dir: {args.output_dir!r} holds other files ({', '.join(found[:5])}) (expected a new or empty "
            "folder, that of the same run, or --overwrite_output_dir)"
        )


def prepare_output_dir(args: ResumableTrainingArguments, identity: dict) -> str | None:
    """
    Marks the folder as this run's, and returns the checkpoint to resume from, if there is one.

    Args:
        identity: what a run can't change once it has started: its model and its training data.

    Raises:
        UsageError: the folder holds a run with another identity.
    """
    run_file = Path(args.output_dir, RUN_FILE)
    if run_file.exists() and not args.overwrite_output_dir:
        found = json.loads(run_file.read_text(encoding="utf-8"))
        found = {RENAMED.get(key, key): value for key, value in found.items()}
        found, here = with_config_defaults(found), with_config_defaults(identity)
        differences = [
            f"{key} is {found.get(key)!r} there and {here.get(key)!r} here"
            for key in sorted(found.keys() | here.keys())
            if found.get(key) != here.get(key)
        ]
        if differences:
            raise UsageError(
                f"--output_dir: {args.output_dir!r} holds another model ({'; '.join(differences)}) (expected a new or "
                "empty folder, that of the same run, or --overwrite_output_dir)"
            )
    if args.should_save:
        if args.overwrite_output_dir:
            for checkpoint in sort_checkpoints(args.output_dir):
                shutil.rmtree(checkpoint)
            Path(args.output_dir, args.state_file).unlink(missing_ok=True)
        atomic_write(run_file, json.dumps(identity, indent=2).encode())
    if args.resume_from_checkpoint or args.overwrite_output_dir:
        return args.resume_from_checkpoint
    checkpoint = last_checkpoint(args.output_dir, args.state_file)
    if checkpoint is not None and args.should_log:
        logger.info(f"Resuming from {checkpoint}; --overwrite_output_dir starts from scratch.")
    return checkpoint


def with_config_defaults(identity: dict) -> dict:
    """Puts the default in place of an unset flag: a new model is the same whether or not it is given."""
    if identity.get("model_name_or_path") is not None:
        return identity
    return {key: getattr(RTransformerConfig, key, None) if value is None else value for key, value in identity.items()}


def last_checkpoint(output_dir: str, state_file: str) -> str | None:
    """The newest whole checkpoint. The state is saved last: a checkpoint without it was cut short."""
    whole = [path for path in sort_checkpoints(output_dir) if Path(path, state_file).exists()]
    return whole[-1] if whole else None


def how_to_go_on(args: ResumableTrainingArguments) -> str:
    checkpoint = last_checkpoint(args.output_dir, args.state_file)
    if checkpoint is None:
        return "There is no checkpoint yet: the same command starts from the beginning."
    if not has_optimizer(checkpoint):
        return (
            f"{checkpoint} holds the model alone (--save_only_model), so no command goes on from it: "
            f"--model_name_or_path {checkpoint} and another --output_dir start anew from its weights."
        )
    flags = [flag for flag in ("overwrite_output_dir", "resume_from_checkpoint") if getattr(args, flag)]
    without = f" without --{' and --'.join(flags)}" if flags else ""
    return f"The same command{without} goes on from {checkpoint}."


def planned_steps(args: ResumableTrainingArguments, batches_per_epoch: int | None) -> int:
    """Number of steps of the training. `batches_per_epoch` is None for a stream, which needs --max_steps."""
    if args.max_steps > 0:
        return args.max_steps
    steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
    return math.ceil(args.num_train_epochs * steps_per_epoch)
