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
"""What every training script does once model and data are there: train, or go on, evaluate, report and save."""

import json
from collections.abc import Callable
from pathlib import Path

from accelerate.utils import load_fsdp_model
from output_folder import TRAINER_STATE_FILE, planned_steps, steps_of, write_whole
from script_arguments import InputError
from torch.utils.data import Dataset
from training_report import TaskReport, model_card, plot_learning_curves
from transformers import EvalPrediction, Trainer, TrainerState

EVALUATION_FILE = "evaluation.json"  # how scripts/evaluate_checkpoint.py is to read the data


class ReportingTrainer(Trainer):
    """Trainer whose model card says what the model is and how to use it, in pushes to the Hub too."""

    def __init__(self, *args, report: TaskReport, **kwargs):
        super().__init__(*args, **kwargs)
        self.report = report

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        # Trainer makes no folder for a checkpoint in shards, but goes by it at once: does the best checkpoint exist?
        Path(output_dir or self.args.output_dir).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, **kwargs):
        if self.is_world_process_zero():
            write_whole(Path(self.args.output_dir, "README.md"), str(model_card(self, self.report)).encode())


def train_and_evaluate(
    trainer: ReportingTrainer,
    splits: dict[str, Dataset],
    metrics_of: Callable[[Dataset], Callable[[EvalPrediction], dict[str, float]]],
    checkpoint: str | None,
    evaluation: dict,
):
    """
    Args:
        trainer: with its model and training set.
        splits: "validation" and, where there is one, "test", on which the model is evaluated at the end.
        metrics_of: makes Trainer's `compute_metrics` for a split.
        checkpoint: that to go on from, as of `claim_output_dir`.
        evaluation: settings of the data, written beside the model for who evaluates it.

    Raises:
        InputError: --fsdp is given where nothing would be sharded.
    """
    if trainer.args.fsdp and not trainer.is_fsdp_enabled:
        raise InputError("--fsdp shards on accelerators alone; without it, the same command trains on a CPU.")
    if steps_of(checkpoint) < planned_steps(trainer):
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    else:  # Trainer would take one step more
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_FILE)))
        best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        load_model(trainer, best or checkpoint)
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in splits:
            trainer.compute_metrics = metrics_of(splits[split])
            metrics = trainer.evaluate(splits[split], metric_key_prefix=prefix)
            trainer.log_metrics(prefix, metrics)
            trainer.save_metrics(prefix, metrics)
    trainer.model.config.use_cache = True  # Trainer turns it off while it trains
    if trainer.is_fsdp_enabled:  # checkpoints may be in shards, the model is not
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.is_world_process_zero():
        write_whole(Path(trainer.args.output_dir, EVALUATION_FILE), json.dumps(evaluation, indent=2).encode())
        plot_learning_curves(trainer, trainer.report.loss_unit)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()  # saves the model and the card first
    else:
        trainer.save_model()
        trainer.create_model_card()


def load_model(trainer: Trainer, checkpoint: str):
    """Puts the weights of a checkpoint into the model of a Trainer that does not train."""
    if not trainer.is_fsdp_enabled:
        trainer.model.load_state_dict(type(trainer.model).from_pretrained(checkpoint).state_dict())
        return
    # Accelerate shards a model together with its optimizer alone, and Trainer has none for evaluation.
    trainer.model, _ = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    load_fsdp_model(trainer.accelerator.state.fsdp_plugin, trainer.accelerator, trainer.model, checkpoint)
