# SPDX-License-Identifier: Apache-2.0
"""The flags of scripts/train_causal_lm_accelerate.py: those of Trainer's that its loop honours, and no others."""

import json
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from typing import ClassVar

import torch
from accelerate import PartialState
from transformers import SchedulerType

from .errors import UsageError
from .output_folder import TRAINER_TYPES, ResumableTrainingArguments, check_json, check_optimizer

LOOP_FLAGS = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "use_cpu", "bf16", "fp16"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "dataloader_pin_memory", "disable_tqdm", "logging_steps"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),  # of AdamW
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model"),
)
FIELDS = [(flag.name, flag.type, flag) for flag in fields(ResumableTrainingArguments) if flag.name in LOOP_FLAGS]


def one_of(*accepted: str) -> Callable[[str], str]:
    """The `type` of a flag that takes one of these words."""

    def parse(text: str) -> str:
        if text not in accepted:
            raise ArgumentTypeError(f"{text} (expected {', '.join(accepted[:-1])} or {accepted[-1]})")
        return text

    return parse


@dataclass
class LoopArguments(make_dataclass("TrainerFlags", FIELDS)):
    """The flags of `LOOP_FLAGS`, with Trainer's defaults and meaning."""

    state_file: ClassVar = "loop_state.json"
    unsupported_flags: ClassVar = {flag.name for flag in fields(ResumableTrainingArguments)}.difference(LOOP_FLAGS)
    flag_types: ClassVar = {
        **TRAINER_TYPES,
        # The schedules left out need more than the number of the step.
        "lr_scheduler_type": one_of(
            *(kind.value for kind in SchedulerType if kind not in ("reduce_lr_on_plateau", "greedy"))
        ),
        "metric_for_best_model": one_of("loss", "eval_loss"),
        "save_strategy": one_of("no", "steps", "epoch"),
    }
    should_save = should_log = property(lambda self: PartialState().is_main_process)

    def __post_init__(self):
        if self.output_dir is None:
            raise UsageError("--output_dir: missing (expected the folder to write to)")
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise UsageError("--fp16 needs an accelerator, and the training is on the CPU (expected --bf16)")
        if self.fp16 and self.bf16:
            raise UsageError("--fp16 and --bf16 exclude each other (expected one of them)")
        check_json(self)
        check_optimizer(self)
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = json.loads(self.lr_scheduler_kwargs)
