# SPDX-License-Identifier: Apache-2.0
"""What a run goes on from: a checkpoint with its optimizer, made with the same settings, and the best so far."""

import json
import logging
import re
from pathlib import Path

from transformers import TrainerState

from .errors import UsageError
from .files import atomic_write

logger = logging.getLogger(__name__)

SETTINGS_FILE = "training_settings.json"  # in a checkpoint, beside the optimizer's state, which holds most of them
OPTIMIZER_FLAGS = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("muon", "muon_learning_rate", "optim", "optim_args", "optim_target_modules"),
)
SCHEDULE_FLAGS = ("lr_scheduler_type", "lr_scheduler_kwargs")
# These keep their settings in the checkpoint. All others compute the rate from the step and the flags given now.
SCHEDULES_WITH_STATE = ("reduce_lr_on_plateau", "greedy")


def optimizer_settings(args) -> dict:
    """The flags, of those that `args` has, whose values a checkpoint keeps."""
    values = {flag: getattr(args, flag) for flag in (*OPTIMIZER_FLAGS, *SCHEDULE_FLAGS) if hasattr(args, flag)}
    return {flag: getattr(value, "value", value) for flag, value in values.items()}  # names of enumerations


def write_settings(args, checkpoint: str | Path):
    atomic_write(Path(checkpoint, SETTINGS_FILE), json.dumps(optimizer_settings(args), indent=2).encode())


def has_optimizer(checkpoint: str | Path) -> bool:
    """Whether a checkpoint holds optimizer and schedule, in the files of Trainer, FSDP, DeepSpeed or Accelerate."""
    names = [path.name for path in Path(checkpoint).iterdir()]
    is_whole = any(name.startswith("optimizer") for name in names) and any(n.startswith("scheduler") for n in names)
    return is_whole or any(name.startswith("global_step") for name in names)


def check_can_go_on(args, checkpoint: str):
    """
    Raises:
        UsageError: the checkpoint has no optimizer, or its optimizer has other settings than `args`, which loading it
            would undo.
    """
    if not has_optimizer(checkpoint):
        raise UsageError(
            f"{checkpoint} holds no optimizer and no schedule, as --save_only_model leaves it: the training can't go "
            f"on from it (expected a whole checkpoint; --model_name_or_path {checkpoint} and another --output_dir "
            "start anew from its weights)"
        )
    file = Path(checkpoint, SETTINGS_FILE)
    if not file.exists():
        if args.should_log:
            logger.warning(
                f"{checkpoint} is of an earlier version, which did not note the optimizer's flags: the learning rate, "
                "weight decay and the like stay as they were, whatever is given now."
            )
        return
    found, here = json.loads(file.read_text(encoding="utf-8")), optimizer_settings(args)
    schedules = found.get("lr_scheduler_type"), here["lr_scheduler_type"]
    flags = [*OPTIMIZER_FLAGS, *(SCHEDULE_FLAGS if set(schedules) & set(SCHEDULES_WITH_STATE) else ())]
    differences = [
        f"--{flag} is {found.get(flag)!r} there and {here.get(flag)!r} here"
        for flag in flags
        if found.get(flag) != here.get(flag)
    ]
    if differences:
        raise UsageError(
            f"{checkpoint} goes on with the optimizer that it holds: {'; '.join(differences)} (expected the same; "
            "another --output_dir starts anew)"
        )


def find_best(
    state: TrainerState, checkpoint: str, metric: str, greater_is_better: bool
) -> tuple[str | None, str | None]:
    """
    Looks for the best checkpoint beside the last, wherever the run's folder is now: the state holds the path that it
    had. If it is not there, or is the best by another metric, the best of those that are there takes its place in the
    state.

    Args:
        state: that of `checkpoint`; it is corrected in place.
        metric: --metric_for_best_model.

    Returns:
        The best checkpoint, and the one that is missed, if any.
    """

    def folder_of(step: int) -> Path:
        own = Path(checkpoint)  # it may have another name: last-checkpoint
        return own if step == state.global_step else own.parent / f"checkpoint-{step}"

    values = metric_values(state, metric)
    is_of_metric = state.best_global_step is not None and values.get(state.best_global_step) == state.best_metric
    recorded = re.search(r"checkpoint-(\d+)$", state.best_model_checkpoint or "")
    best = folder_of(int(recorded[1])) if recorded else None
    if is_of_metric and (best is None or best.is_dir()):
        state.best_model_checkpoint = None if best is None else str(best)
        return state.best_model_checkpoint, None
    there = [step for step in values if folder_of(step).is_dir()]
    step = (max if greater_is_better else min)(there, key=values.get, default=None)
    state.best_global_step, state.best_metric = step, values.get(step)
    state.best_model_checkpoint = None if step is None else str(folder_of(step))
    return state.best_model_checkpoint, str(best) if is_of_metric else None


def metric_values(state: TrainerState, metric: str) -> dict[int, float]:
    """The metric on validation, by the step of the evaluation."""
    key = f"eval_{metric.removeprefix('eval_')}"
    # The evaluation at the end has the step of the last one, but may be of an earlier, better model.
    return {entry["step"]: entry[key] for entry in reversed(state.log_history) if key in entry}
