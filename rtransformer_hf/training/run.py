# SPDX-License-Identifier: Apache-2.0
"""Start and end of every training script: train or resume, evaluate, write the card, save and push."""

import atexit
import json
import logging
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path

import safetensors.torch
import torch
from accelerate.utils import load_fsdp_model
from huggingface_hub import HfApi
from torch import distributed
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer_utils import HubStrategy

from .cost import SECONDS, TrainingClock, num_positions
from .errors import UsageError, one_line
from .files import atomic_write
from .hub import explain_hub_error
from .model_arguments import EVALUATION_FILE
from .model_card import FACTS_FILE, render_card
from .optimization import MuonWithAdamW, WeightAverage, block_matrices
from .output_folder import (
    TRAINER_STATE_FILE,
    ResumableTrainingArguments,
    check_metric,
    check_output_dir,
    planned_steps,
)
from .report import Outcome, TaskReport, card_facts, plot_learning_curves, sample_outputs
from .resuming import check_can_go_on, find_best, write_settings

logger = logging.getLogger(__name__)

LAST_WEIGHTS_FILE = "last_weights.safetensors"  # of a checkpoint whose model is an average of the weights


class ReportingTrainer(Trainer):
    """A Trainer whose model card describes the model and its use, in pushes to the Hub, too."""

    def __init__(self, *args, report: TaskReport, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except UsageError:
            raise
        except (ImportError, ValueError) as error:
            raise UsageError(f"Trainer does not take these flags: {one_line(error)}") from error
        self.report = report
        self.outcome = Outcome(metrics={})
        self.num_parameters = self.model.num_parameters()  # before FSDP shards them
        self.clock = TrainingClock()
        self.add_callback(self.clock)
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(self.args.early_stopping_patience))
        self.average: WeightAverage | None = None
        if self.args.average_decay is not None:
            self.add_callback(AverageCallback(self))

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        if self.args.muon and self.optimizer is None:
            model = self.model if model is None else model
            weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            matrices = [weights.pop(name) for name in block_matrices(model) if name in weights]
            if not matrices:
                raise UsageError(
                    f"--muon: {type(model).__name__} has no nn.Linear in a list of blocks named `layers` (expected a "
                    "model with dense weights there, as butterfly and Monarch weights are not; or no --muon)"
                )
            decayed = self.get_decay_parameter_names(model)
            self.optimizer = MuonWithAdamW(
                matrices,
                [
                    {
                        "params": [weight for name, weight in weights.items() if (name in decayed) == is_decayed],
                        "weight_decay": self.args.weight_decay if is_decayed else 0.0,
                    }
                    for is_decayed in (True, False)
                ],
                lr=self.args.learning_rate,
                muon_lr=self.args.muon_learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: PreTrainedModel) -> list[str]:
        # A butterfly is a product of many factors, which decay would shrink together (the published code has none).
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(".twiddle")]

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        if "input_ids" in inputs:
            return super().floating_point_ops(inputs)
        # Trainer would count each value of an input vector, but the model does its work once per position.
        return 6 * num_positions(inputs) * self.model.num_parameters(exclude_embeddings=True)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args, **kwargs) -> torch.Tensor:
        self.clock.num_positions += num_positions(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None):
        super().log({**logs, SECONDS: round(self.clock.seconds, 3)} if self.is_in_train else logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        # For a sharded checkpoint, Trainer makes no folder, but at once checks that the best checkpoint's exists.
        Path(output_dir or self.args.output_dir).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, *args, **kwargs):
        with nullcontext() if self.average is None else self.average.in_place():
            super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            write_settings(self.args, output_dir)
        if self.average is not None and self.args.should_save:
            safetensors.torch.save_model(self.average.averaged.module, str(Path(output_dir, LAST_WEIGHTS_FILE)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        last_weights = Path(resume_from_checkpoint, LAST_WEIGHTS_FILE)
        if last_weights.exists():
            if self.args.average_decay is not None:
                state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, TRAINER_STATE_FILE)))
                self.average = WeightAverage(self.model, self.args.average_decay, state.global_step)
            safetensors.torch.load_model(self.model, last_weights)

    def _load_best_model(self):
        best = Path(self.state.best_model_checkpoint)
        if not best.is_dir():
            logger.warning(f"{best}, the best checkpoint, is not there any more: the last weights are saved.")
            return
        super()._load_best_model()
        self.average = None  # the best checkpoint holds an average already
        self.outcome.best_step = step_of(best)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        with self.all_rows():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        with self.all_rows():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def all_rows(self) -> Iterator[None]:
        """Data loaders made within keep the last batch: Trainer honours --dataloader_drop_last in evaluations, too."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        with self.clock.paused(), nullcontext() if self.average is None else self.average.in_place():
            metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        raise_if_diverged(metrics[f"{metric_key_prefix}_loss"], self.args.learning_rate)
        return metrics

    def _issue_warnings_after_load(self, load_result):
        # A tied weight is saved once, under one of its names. The others are not missing.
        missing = [name for name in load_result.missing_keys if name not in self.model.all_tied_weights_keys]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def create_model_card(self, **kwargs):
        if self.is_world_process_zero():
            facts = card_facts(self, self.report, self.num_parameters, self.outcome)
            atomic_write(Path(self.args.output_dir, FACTS_FILE), facts.to_json().encode())
            atomic_write(Path(self.args.output_dir, "README.md"), render_card(facts).encode())

    def init_hf_repo(self, *args, **kwargs):
        """
        Raises:
            UsageError: the repository can't be made or written to. Raised before the training.
        """
        if not self.is_world_process_zero():
            return
        try:
            super().init_hf_repo(*args, **kwargs)
            hub = HfApi(token=self.args.hub_token)
            hub.auth_check(self.hub_model_id, write=True)
            if self.args.hub_revision is not None:
                hub.create_branch(self.hub_model_id, branch=self.args.hub_revision, exist_ok=True)
        except Exception as error:  # the network and the Hub raise many kinds
            name = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).resolve().name
            raise UsageError(f"--push_to_hub: can't push to {name!r}: {explain_hub_error(error)}") from error

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """
        Pushes in the background, as Trainer does, but with code and card, so that the repository can be used at any
        time, and warns if it fails. A push in progress reads the files that this one changes: with --hub_always_push
        this one waits for it, otherwise it is skipped.
        """
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self.push_in_progress.wait_until_done()
        for file in Path(checkpoint_folder).glob("*.py"):
            shutil.copy(file, self.args.output_dir)
        self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)
        for job in self.push_in_progress.jobs:
            job.add_done_callback(warn_of_failure)


class AverageCallback(TrainerCallback):
    """Averages the weights while a ReportingTrainer trains, and leaves the average in the model."""

    def __init__(self, trainer: ReportingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state: TrainerState, control, **kwargs):
        if self.trainer.average is None:
            self.trainer.average = WeightAverage(self.trainer.model, args.average_decay)

    def on_step_end(self, args, state: TrainerState, control, **kwargs):
        self.trainer.average.update()

    def on_train_end(self, args, state: TrainerState, control, **kwargs):
        if self.trainer.average is not None:
            self.trainer.average.swap()
            self.trainer.average = None


class ResumedState(TrainerCallback):
    """Corrects what Trainer takes over from the checkpoint that it resumes from, whose state is `recorded`."""

    def __init__(self, checkpoint: str, recorded: TrainerState):
        self.checkpoint, self.recorded = checkpoint, recorded

    def on_train_begin(self, args, state: TrainerState, control, **kwargs):
        state.compute_steps(args, state.max_steps)  # those given now count
        if args.metric_for_best_model is None:
            return
        best, missing = find_best(self.recorded, self.checkpoint, args.metric_for_best_model, args.greater_is_better)
        for name in ("best_model_checkpoint", "best_global_step", "best_metric"):
            setattr(state, name, getattr(self.recorded, name))
        if args.should_log and missing is not None:
            logger.warning(
                f"{missing}, the best checkpoint so far, is not there: it is forgotten. "
                + ("The next evaluation is the best." if best is None else f"The best of those there is {best}.")
            )
        elif args.should_log and best is not None:
            logger.info(f"The best checkpoint so far is {best}.")


class EarlyStopping(EarlyStoppingCallback):
    """
    Continues to count in a resumed training. Trainer can restore the callback, too, but with the old patience.
    """

    def on_train_begin(self, args, state: TrainerState, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = self.counter(state)
        state.stateful_callbacks[type(self).__name__] = self.state()  # Trainer keeps the restored ones

    def on_evaluate(self, args, state: TrainerState, control, metrics, **kwargs):
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if control.should_training_stop:
            control.should_save = True

    def on_train_end(self, args, state: TrainerState, control, **kwargs):
        state.stateful_callbacks[type(self).__name__] = self.state()

    @classmethod
    def counter(cls, state: TrainerState) -> int:
        """The number of evaluations in a row without a better metric, from a saved state."""
        saved = state.stateful_callbacks.get(cls.__name__, {})
        return saved.get("attributes", {}).get("early_stopping_patience_counter", 0)


class EpochCallback(TrainerCallback):
    """Passes the epoch to the training set. Trainer passes it to samplers only."""

    def __init__(self, train_dataset: Dataset):
        self.train_dataset = train_dataset

    def on_epoch_begin(self, args, state: TrainerState, control, **kwargs):
        self.train_dataset.set_epoch(int(state.epoch))


def raise_if_diverged(loss: float, learning_rate: float):
    """
    Raises:
        UsageError: the loss of an evaluation is not finite. A training does not recover from that.
    """
    if not math.isfinite(loss):
        raise UsageError(
            f"the training has diverged: the loss of an evaluation is {loss}. A --learning_rate below "
            f"{learning_rate:g} or more --warmup_steps may help, in another --output_dir, as a run keeps the rate it "
            "began with. The checkpoints so far are kept."
        )


def warn_of_failure(push: Future):
    if error := push.exception():
        logger.warning(f"A push to the Hub failed; the training continues: {explain_hub_error(error)}.")


def start_training(args: ResumableTrainingArguments, metrics: Sequence[str]):
    """
    Starts a training script once its arguments are parsed: checks them against each other, logs to the terminal, and
    seeds all random numbers.

    Args:
        args: those of the training.
        metrics: names of the metrics that an evaluation computes, for --metric_for_best_model.

    Raises:
        UsageError: the metric is unknown, or the output folder can't be used.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    check_metric(args, metrics)
    check_output_dir(args)
    set_seed(args.seed)


def train_and_evaluate(
    trainer: ReportingTrainer,
    splits: dict[str, Dataset],
    metrics_of: Callable[[Dataset], Callable[[EvalPrediction], dict[str, float]]],
    checkpoint: str | None,
    evaluation: dict,
    data: str,
    commands: list[list[str]],
):
    """
    Args:
        trainer: with its model and training set.
        splits: "validation" and, where there is one, "test", on which the model is evaluated at the end.
        metrics_of: makes Trainer's `compute_metrics` for a split.
        checkpoint: the one to resume from, as returned by `prepare_output_dir`.
        evaluation: settings of the data, written beside the model for later evaluations.
        data: the training data, in words.
        commands: command lines that use the model, as of `command`.

    Raises:
        UsageError: --fsdp is given without an accelerator, --dataloader_drop_last leaves no batch to train on, or the
            run can't go on from the checkpoint.
    """
    atexit.register(leave_process_group)
    args = trainer.args
    if args.fsdp and not trainer.is_fsdp_enabled:
        raise UsageError("--fsdp needs an accelerator (expected no --fsdp on a CPU)")
    is_stream = isinstance(trainer.train_dataset, IterableDataset)
    num_batches = None if is_stream else len(trainer.get_train_dataloader())
    if num_batches == 0:
        raise UsageError(
            f"--dataloader_drop_last: no whole batch of --per_device_train_batch_size "
            f"{args.per_device_train_batch_size} in {len(trainer.train_dataset):,} training examples (expected a "
            "smaller batch, or no --dataloader_drop_last)"
        )
    num_steps = planned_steps(args, num_batches)
    state = None if checkpoint is None else TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_FILE)))
    finished, state_of_finished = finished_model(trainer, checkpoint, state, num_steps)
    if finished is None and checkpoint is not None:
        check_can_go_on(args, checkpoint)
        trainer.add_callback(ResumedState(checkpoint, state))
    is_main = trainer.is_world_process_zero()
    if is_main and finished is None:
        print_start(
            trainer.model,
            data,
            args,
            batches_per_epoch=num_batches,
            device=args.device,
            num_processes=args.world_size,
            loggers=[f"tensorboard ({args.output_dir}/runs)" if n == "tensorboard" else n for n in args.report_to],
            checkpoint=checkpoint,
            step=0 if state is None else state.global_step,
        )
    if finished is None:
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.remove_callback(EarlyStopping)  # it must not stop the evaluations below
        result.metrics["resumed_at_step"] = 0 if state is None else state.global_step
        result.metrics.update(trainer.clock.metrics(trainer.report.unit, args.world_size, args.device))
        trainer.outcome.training = result.metrics
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
    else:  # Trainer would take another step
        if is_main:
            print_finished(args, state_of_finished.global_step, num_steps)
        trainer.state = state_of_finished
        load_model(trainer, finished)
        trainer.outcome.has_new_weights = finished != args.output_dir
        if args.load_best_model_at_end and finished == state_of_finished.best_model_checkpoint:
            trainer.outcome.best_step = step_of(finished)
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in splits:
            trainer.compute_metrics = metrics_of(splits[split])
            metrics = trainer.evaluate(splits[split], metric_key_prefix=prefix)
            trainer.outcome.metrics[split] = metrics
            trainer.log_metrics(prefix, metrics)
            trainer.save_metrics(prefix, metrics)
    config = trainer.model.config
    config.use_cache = getattr(config, "is_causal", True)  # Trainer turns it off while it trains
    if trainer.is_fsdp_enabled:  # checkpoints may be in shards, the model is not
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if is_main:
        atomic_write(Path(args.output_dir, EVALUATION_FILE), json.dumps(evaluation, indent=2).encode())
        trainer.outcome.has_curves = plot_learning_curves(trainer, trainer.report.loss_unit)
    trainer.save_model(_internal_call=True)  # without a push, which may fail
    trainer.save_state()  # after the model: it marks the run as finished
    if is_main and not trainer.is_fsdp_enabled:  # which puts a class of its own in place of the model's
        saved = type(trainer.model).from_pretrained(args.output_dir, dtype=torch.float32)
        trainer.outcome.sample_outputs = sample_outputs(saved)
    trainer.create_model_card()
    if args.push_to_hub:
        push(trainer)
    if is_main:
        print_end(args.output_dir, commands)


def finished_model(
    trainer: ReportingTrainer, checkpoint: str | None, state: TrainerState | None, num_steps: int
) -> tuple[str | None, TrainerState | None]:
    """
    The folder with the model of a finished training, and its state; None and None if it is not finished.

    Raises:
        UsageError: it is finished, but its best checkpoint is not there.
    """
    args = trainer.args

    def is_over(state: TrainerState) -> bool:
        patience = args.early_stopping_patience
        return state.global_step >= num_steps or (patience is not None and EarlyStopping.counter(state) >= patience)

    if state is not None and is_over(state):
        if not args.load_best_model_at_end:
            return checkpoint, state
        best, missing = find_best(state, checkpoint, args.metric_for_best_model, args.greater_is_better)
        if missing is not None:
            raise UsageError(
                f"{missing}, the best checkpoint of this finished training, is not there (expected it beside "
                f"{checkpoint}, or --load_best_model_at_end False for the last weights)"
            )
        return best or checkpoint, state
    # Some values of --save_strategy leave no checkpoint of the last step.
    file = Path(args.output_dir, TRAINER_STATE_FILE)
    if args.resume_from_checkpoint is None and file.exists() and not trainer.is_fsdp_enabled:
        state = TrainerState.load_from_json(str(file))
        if is_over(state):
            return args.output_dir, state
    return None, None


def step_of(checkpoint: str | Path) -> int:
    return TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_FILE))).global_step


def print_start(
    model: PreTrainedModel,
    data: str,
    args: ResumableTrainingArguments,
    *,
    batches_per_epoch: int | None,
    device: torch.device,
    num_processes: int,
    loggers: list[str],
    checkpoint: str | None,
    step: int,
):
    """Prints model, data, device, length and log destinations of the training."""
    num_steps = planned_steps(args, batches_per_epoch)
    if batches_per_epoch is None:
        epochs = "of a stream"
    else:
        steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
        epochs = f"{num_steps / steps_per_epoch:.3g} epochs of {steps_per_epoch:,}"
    name = type(model).__name__.removeprefix("FSDP")
    reads = "" if getattr(model.config, "input_size", None) else f", a vocabulary of {model.config.vocab_size:,}"
    batch_size = args.per_device_train_batch_size * num_processes * args.gradient_accumulation_steps
    factors = f"{args.per_device_train_batch_size} a device x {num_processes} {plural(num_processes, 'process')}"
    if args.gradient_accumulation_steps > 1:
        factors += f" x {args.gradient_accumulation_steps} accumulated"
    places = "".join(f", {logger}" for logger in loggers)
    done = "" if checkpoint is None else f" On from step {step:,} ({checkpoint})."
    print(
        f"Model: {name}, {model.num_parameters():,} parameters{reads}.\n"
        f"Data: {data}.\n"
        f"Device: {device}, {num_processes} {plural(num_processes, 'process')}. "
        f"Batch: {batch_size} ({factors}).\n"
        f"Steps: {num_steps:,}, {epochs}.{done}\n"
        f"Logs: the terminal{places}. Model and checkpoints: {args.output_dir}.",
        flush=True,
    )


def print_finished(args: ResumableTrainingArguments, step: int, num_steps: int):
    why = "" if step >= num_steps else f" of {num_steps:,}, as --early_stopping_patience has it"
    print(
        f"{args.output_dir} holds this training, finished at step {step:,}{why}. It is evaluated again, not trained. "
        "More --num_train_epochs or --max_steps go on; --overwrite_output_dir starts anew.",
        flush=True,
    )


def print_end(output_dir: str, commands: list[list[str]]):
    """Prints where the model is, and commands that use it."""
    print(f"The model is in {output_dir}. To use it:", flush=True)
    for words in commands:
        print(f"    {shlex.join(words)}", flush=True)


def command(script: str, *words: str) -> list[str]:
    """The command line that runs one of the scripts from the current folder."""
    path = Path(os.path.relpath(Path(__file__).parents[2] / "scripts" / script))
    return ["python", str(path if ".." not in path.parts else path.resolve()), *words]


def evaluation_command(args: ResumableTrainingArguments, data: list[str] | None) -> list[str]:
    """The command line that evaluates the model, with flags for its data, or a placeholder if there are none."""
    return command("evaluate_checkpoint.py", args.output_dir, *(data or ["--data", "DATA"]))


def plural(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"


def leave_process_group():
    """
    Leaves the process group before the interpreter ends. Gloo's threads need the interpreter to free the tensors of
    their last operation; if it has ended, the process aborts and its launcher reports a failure. FSDP's caches can
    keep the group and its threads alive, so the wait lets them finish first.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        time.sleep(0.5)


def push(trainer: ReportingTrainer):
    try:
        trainer.push_to_hub()
    except Exception as error:  # the network and the Hub raise many kinds
        again = ["python", "scripts/push_to_hub.py", trainer.args.output_dir, trainer.hub_model_id]
        if trainer.args.hub_revision is not None:
            again += ["--revision", trainer.args.hub_revision]
        raise UsageError(
            f"pushing to the Hub failed: {explain_hub_error(error)}. The model is complete in "
            f"{trainer.args.output_dir}; push it again with: {shlex.join(again)}"
        ) from error


def load_model(trainer: Trainer, checkpoint: str):
    """Loads the weights of a checkpoint into the model of a Trainer that will not train."""
    if not trainer.is_fsdp_enabled:
        trainer.model.load_state_dict(type(trainer.model).from_pretrained(checkpoint).state_dict())
        return
    # Accelerate shards a model only together with an optimizer, which Trainer does not make for evaluation.
    trainer.model, _ = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    load_fsdp_model(trainer.accelerator.state.fsdp_plugin, trainer.accelerator, trainer.model, checkpoint)
