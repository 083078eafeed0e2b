# Copyright 2026 The rtransformer_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The output folder of a training script: it holds one run, which goes on where it stopped."""

import io
import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from command_line import InputError, suggestion
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

RUN_FILE = "training_run.json"  # says what the folder's model is
TRAINER_STATE_FILE = "trainer_state.json"
GREATER_IS_BETTER = ("accuracy",)
LOG_EXTRA = ("tensorboard", "wandb")  # what the extra [log] of pyproject.toml installs


@dataclass
class ResumableTrainingArguments(TrainingArguments):
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Train anew where --output_dir holds another model, or this one."}
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the order that HfArgumentParser reads)
        default=None,
        metadata={
            "help": "What to log to: tensorboard, wandb, trackio, all, none and others of Transformers' integrations. "
            "Unset: tensorboard, where it is installed."
        },
    )

    muon: bool = field(
        default=False,
        metadata={"help": "Train the matrices of the blocks with Muon, everything else with AdamW."},
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of Muon, on AdamW's scale. Unset: --learning_rate."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations in a row without a better --metric_for_best_model. With "
            "--load_best_model_at_end."
        },
    )
    average_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights, of which a step keeps this part: "
            "0.999, for example."
        },
    )

    def __post_init__(self):
        if self.muon_learning_rate is not None and not (self.muon and self.muon_learning_rate > 0):
            raise InputError(
                f"--muon_learning_rate {self.muon_learning_rate} must be more than 0, and goes with --muon alone."
            )
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise InputError(f"--average_decay {self.average_decay} must be more than 0 and less than 1.")
        for flag, value in (("muon", self.muon), ("average_decay", self.average_decay)):
            if value and self.fsdp:
                raise InputError(f"--{flag} needs whole weights, which --fsdp splits; one of the two is accepted.")
        if not 0 <= self.label_smoothing_factor < 1:
            raise InputError(
                f"--label_smoothing_factor: {self.label_smoothing_factor} (expected at least 0 and less than 1)"
            )
        if self.output_dir is None:
            raise InputError("--output_dir: missing (expected the folder to write to)")
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # Trainer takes every metric for one that grows, whose name does not end with "loss".
            self.greater_is_better = self.metric_for_best_model.removeprefix("eval_") in GREATER_IS_BETTER
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        check_report_to(self.report_to)
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                raise InputError(f"--early_stopping_patience: {self.early_stopping_patience} (expected at least 1)")
            if not self.load_best_model_at_end:
                raise InputError("--early_stopping_patience needs --load_best_model_at_end and an --eval_strategy.")
            self.restore_callback_states_from_checkpoint = True  # a resumed run goes on counting
        super().__post_init__()

    def __getstate__(self) -> dict:
        """What training_args.bin holds, which Trainer pushes to the Hub: without the token."""
        return {**self.__dict__, "hub_token": None}


def check_report_to(report_to: str | list[str]):
    """
    Raises:
        InputError: a name is not among Transformers' integrations, or its package is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else report_to
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            hint = suggestion([name], list(INTEGRATION_TO_CALLBACK))
            expected = ", ".join(["none", "all", *INTEGRATION_TO_CALLBACK])
            raise InputError(f"--report_to: unknown: {name!r}{hint} (expected {expected})")
        if name not in get_available_reporting_integrations():
            package = "'rtransformer-hf[log]'" if name in LOG_EXTRA else f"the package of {name}"
            raise InputError(f"--report_to {name}: its package is not installed; `pip install {package}` brings it.")


def check_metric(args: ResumableTrainingArguments, metrics: Sequence[str]):
    """
    Args:
        args: those of the training.
        metrics: the names that an evaluation gives.

    Raises:
        InputError: --metric_for_best_model is none of them.
    """
    name = args.metric_for_best_model
    if name is not None and name.removeprefix("eval_") not in metrics:
        raise InputError(
            f"--metric_for_best_model: unknown: {name!r}{suggestion([name], list(metrics))} (expected "
            f"{', '.join(metrics)})"
        )


def check_output_dir(args: ResumableTrainingArguments):
    """Refuse a folder that holds anything but a run of this script."""
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {args.output_dir} is a file; a folder is accepted.")
    if args.resume_from_checkpoint and not Path(args.resume_from_checkpoint, TRAINER_STATE_FILE).exists():
        raise InputError(
            f"--resume_from_checkpoint {args.resume_from_checkpoint} is no checkpoint of Trainer; a folder with "
            f"{TRAINER_STATE_FILE} in it is accepted."
        )
    is_free = not output_dir.exists() or (output_dir / RUN_FILE).exists() or args.overwrite_output_dir
    if args.should_save and not is_free and (found := sorted(path.name for path in output_dir.iterdir())):
        raise InputError(
            f"--output_dir {args.output_dir} holds something else ({', '.join(found[:5])}); accepted: a new or empty "
            "folder, that of the same run, or any with --overwrite_output_dir."
        )


def claim_output_dir(args: ResumableTrainingArguments, identity: dict) -> str | None:
    """Mark the folder as this run's, and return the checkpoint to go on from, if there is one."""
    run_file = Path(args.output_dir, RUN_FILE)
    if run_file.exists() and not args.overwrite_output_dir:
        found = json.loads(run_file.read_text(encoding="utf-8"))
        differences = [
            f"{key} is {found.get(key)!r} there and {identity.get(key)!r} here"
            for key in sorted(found.keys() | identity.keys())
            if found.get(key) != identity.get(key)
        ]
        if differences:
            raise InputError(
                f"--output_dir {args.output_dir} holds another model ({'; '.join(differences)}); accepted: a new or "
                "empty folder, that of the same run, or any with --overwrite_output_dir."
            )
    if args.should_save:
        if args.overwrite_output_dir:
            for checkpoint in checkpoints(args.output_dir):
                shutil.rmtree(checkpoint)
        write_whole(run_file, json.dumps(identity, indent=2).encode())
    if args.resume_from_checkpoint or args.overwrite_output_dir:
        return args.resume_from_checkpoint
    checkpoint = last_checkpoint(args.output_dir)
    if checkpoint is not None and args.should_log:
        logger.info(f"Going on from {checkpoint}; --overwrite_output_dir starts anew.")
    return checkpoint


def last_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint. A checkpoint gets its state last: one without it was cut short."""
    whole = [path for path in checkpoints(output_dir) if (path / TRAINER_STATE_FILE).exists()]
    return str(whole[-1]) if whole else None


def how_to_go_on(output_dir: str) -> str:
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        return "There is no checkpoint yet: the same command starts from the beginning."
    return f"The same command goes on from {checkpoint}."


def checkpoints(output_dir: str) -> list[Path]:
    return sorted(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1]))


def planned_steps(trainer: Trainer) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    steps_per_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
    return math.ceil(args.num_train_epochs * steps_per_epoch)


def write_whole(path: Path, content: bytes):
    """A file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def write_figure(path: Path, figure, dpi: int):
    """Writes a figure of matplotlib as a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    write_whole(path, picture.getvalue())
