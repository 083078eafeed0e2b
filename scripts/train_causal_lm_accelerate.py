# SPDX-License-Identifier: Apache-2.0
"""
Trains a causal language model as scripts/train_causal_lm.py does, with a loop of its own in place of Trainer: for who
wants to change the loop. Data, model and recipes are the same. Of Trainer's flags, those in `LOOP_FLAGS` are honoured;
any other is refused.

    python scripts/train_causal_lm_accelerate.py [RECIPE.yaml] --train_file book.txt --output_dir outputs/book

The same command again goes on from the last checkpoint, with the same losses as if it had not been stopped. Several
processes: `accelerate launch scripts/train_causal_lm_accelerate.py ...`.
"""

import json
import logging
import math
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass, fields, make_dataclass
from itertools import count, islice
from pathlib import Path
from typing import ClassVar

from rtransformer_hf.training.command_line import run_command

import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SchedulerType,
    get_scheduler,
    set_seed,
)
from transformers.integrations import is_tensorboard_available

from rtransformer_hf.training.arguments import parse_arguments
from rtransformer_hf.training.causal_lm import (
    DEFAULTS,
    DataArguments,
    TokenWindows,
    describe,
    evaluation_settings,
    make_compute_metrics,
    model_and_windows,
    run_identity,
    window_losses,
)
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import ArchitectureArguments
from rtransformer_hf.training.output_folder import (
    TRAINER_STATE_FILE,
    ResumableTrainingArguments,
    atomic_write,
    check_json,
    check_numbers,
    check_optimizer,
    check_output_dir,
    checkpoints,
    planned_steps,
    prepare_output_dir,
)
from rtransformer_hf.training.report import prompt_for
from rtransformer_hf.training.run import (
    EVALUATION_FILE,
    command,
    evaluation_command,
    print_end,
    print_finished,
    print_start,
    raise_if_diverged,
)

LOOP_FLAGS = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "use_cpu", "bf16", "fp16"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "dataloader_pin_memory", "disable_tqdm", "logging_steps"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),  # of AdamW
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model"),
)
ACCEPTED = {
    "lr_scheduler_type": [kind.value for kind in SchedulerType if kind not in ("reduce_lr_on_plateau", "greedy")],
    "metric_for_best_model": [None, "loss", "eval_loss"],
    "save_strategy": ["no", "steps", "epoch"],
}
FIELDS = [(flag.name, flag.type, flag) for flag in fields(ResumableTrainingArguments) if flag.name in LOOP_FLAGS]


@dataclass
class LoopArguments(make_dataclass("TrainerFlags", FIELDS)):
    """The flags of `LOOP_FLAGS`, with Trainer's defaults and meaning."""

    unsupported_flags: ClassVar[set[str]] = {flag.name for flag in fields(ResumableTrainingArguments)}.difference(
        LOOP_FLAGS
    )
    should_save = should_log = property(lambda self: PartialState().is_main_process)

    def __post_init__(self):
        if self.output_dir is None:
            raise UsageError("--output_dir: missing (expected the folder to write to)")
        for name, accepted in ACCEPTED.items():
            if getattr(self, name) not in accepted:
                raise UsageError(f"--{name} {getattr(self, name)} is not accepted; {accepted} are.")
        check_numbers(self)
        check_json(self)
        check_optimizer(self)
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise UsageError("--fp16 needs an accelerator, and the training is on the CPU (expected --bf16)")
        if self.fp16 and self.bf16:
            raise UsageError("--fp16 and --bf16 exclude each other (expected one of them)")
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = json.loads(self.lr_scheduler_kwargs)


def main(argv: list[str] | None = None):
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rtransformer_hf.training.output_folder").setLevel(logging.INFO)
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # it warns that tied weights are saved once
    model_args, data_args, args = parse_arguments(
        (ArchitectureArguments, DataArguments, LoopArguments),
        sys.argv[1:] if argv is None else argv,
        __doc__,
        DEFAULTS,
    )
    if data_args.streaming:
        raise UsageError("--streaming: not in this loop (expected scripts/train_causal_lm.py)")
    accelerator = Accelerator(
        cpu=args.use_cpu,
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,  # None: as `accelerate launch` says
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # seed and epoch alone give the order
        step_scheduler_with_optimizer=False,  # one step of the schedule a step, however many processes there are
        log_with="tensorboard" if is_tensorboard_available() else None,
        project_dir=args.output_dir,
    )
    check_output_dir(args)
    set_seed(args.seed)
    with accelerator.main_process_first():
        model, tokenizer, windows = model_and_windows(model_args, data_args)
    identity = {"loop": "accelerate", **run_identity(model_args, data_args, tokenizer, windows["train"])}
    checkpoint = prepare_output_dir(args, identity)
    accelerator.init_trackers("tensorboard")

    train(accelerator, model, tokenizer, windows, args, checkpoint)

    model = AutoModelForCausalLM.from_pretrained(args.output_dir)  # the last or the best
    model = accelerator.prepare_model(model, evaluation_mode=True)
    results = {}
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in windows:
            metrics = evaluate(accelerator, model, windows[split], args)
            results |= {f"{prefix}_{name}": value for name, value in metrics.items()}
            accelerator.print(
                f"{split}: perplexity {metrics['perplexity']:.4f}, bits per character "
                f"{metrics['bits_per_character']:.4f}"
            )
    if accelerator.is_main_process:
        atomic_write(Path(args.output_dir, "all_results.json"), json.dumps(results, indent=2).encode())
        settings = json.dumps(evaluation_settings(data_args), indent=2)
        atomic_write(Path(args.output_dir, EVALUATION_FILE), settings.encode())
    accelerator.end_training()
    if accelerator.is_main_process:
        commands = [
            command("generate.py", args.output_dir, prompt_for(tokenizer)),
            evaluation_command(args, data_args.evaluation_data),
        ]
        print_end(args.output_dir, commands)


def train(
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: dict[str, TokenWindows],
    args: LoopArguments,
    checkpoint: str | None,
):
    """Leaves the model in the output folder: the last, or with --load_best_model_at_end the best."""
    loader = DataLoader(
        windows["train"],
        args.per_device_train_batch_size,
        shuffle=True,
        generator=torch.Generator(),  # of its own: a loader that starts takes nothing from dropout's random numbers
        pin_memory=args.dataloader_pin_memory,
    )
    loader = accelerator.prepare(loader)
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    num_steps = planned_steps(args, len(loader))

    def as_steps(number: float) -> int:
        """Trainer's flags hold steps, or below 1 a share of all steps."""
        return int(number) if number >= 1 else math.ceil(number * num_steps)

    def is_due(strategy: str, every: float) -> bool:
        """Whether something is done after this step. All is done after the last one."""
        period = {"no": num_steps, "epoch": steps_per_epoch, "steps": as_steps(every)}[strategy]
        return step == num_steps or step % period == 0

    decayed, others = [], []  # biases, norms, and the twiddles of butterflies, which are products of many factors
    for name, weight in model.named_parameters():
        (decayed if weight.ndim > 1 and not name.endswith(".twiddle") else others).append(weight)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
    scheduler = get_scheduler(
        args.lr_scheduler_type, optimizer, as_steps(args.warmup_steps), num_steps, args.lr_scheduler_kwargs
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

    step, best_loss = 0, math.inf
    if checkpoint is not None:
        accelerator.load_state(checkpoint)
        step, best_loss = json.loads(Path(checkpoint, TRAINER_STATE_FILE).read_text()).values()

    if accelerator.is_main_process and step >= num_steps:
        print_finished(args, step, num_steps)
    elif accelerator.is_main_process:
        print_start(
            accelerator.unwrap_model(model),
            describe(windows),
            args,
            batches_per_epoch=len(loader),
            device=accelerator.device,
            num_processes=accelerator.num_processes,
            loggers=[f"{tracker.name} ({args.output_dir}/{tracker.name})" for tracker in accelerator.trackers],
            checkpoint=checkpoint,
            step=step,
        )
    progress_bar = tqdm(total=num_steps, initial=step, disable=args.disable_tqdm or not accelerator.is_main_process)
    for epoch in count(step // steps_per_epoch):
        loader.set_epoch(epoch)
        windows["train"].set_epoch(epoch)
        num_done = step % steps_per_epoch * args.gradient_accumulation_steps
        batches = iter(accelerator.skip_first_batches(loader, num_done))
        while step < num_steps and (micro_batches := list(islice(batches, args.gradient_accumulation_steps))):
            loss = accumulate_gradients(accelerator, model, micro_batches)
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            learning_rate = scheduler.get_last_lr()[0]
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            progress_bar.update()

            if is_due("steps", args.logging_steps):
                accelerator.log({"loss": loss, "learning_rate": learning_rate}, step)
                if accelerator.is_main_process:
                    progress_bar.write(f"step {step}: loss {loss:.4f}, learning rate {learning_rate:.2e}")
            if is_due(args.eval_strategy, args.eval_steps or args.logging_steps):
                eval_loss = evaluate(accelerator, model, windows["validation"], args)["loss"]
                accelerator.log({"eval_loss": eval_loss}, step)
                if accelerator.is_main_process:
                    progress_bar.write(f"step {step}: validation loss {eval_loss:.4f}")
                    if eval_loss < best_loss or not args.load_best_model_at_end:
                        accelerator.unwrap_model(model).save_pretrained(args.output_dir)
                        tokenizer.save_pretrained(args.output_dir)
                best_loss = min(best_loss, eval_loss)
            if is_due(args.save_strategy, args.save_steps):
                save_checkpoint(accelerator, args, step, best_loss)
        if step >= num_steps:
            break
    progress_bar.close()
    accelerator.wait_for_everyone()


def accumulate_gradients(accelerator: Accelerator, model: torch.nn.Module, micro_batches: list[dict]) -> float:
    """The gradients of a step's loss, a mean over the tokens of all its batches on all processes; and that loss."""
    model.train()
    num_tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
    num_tokens = accelerator.reduce(num_tokens)
    nats = torch.zeros((), device=accelerator.device)
    for batch in micro_batches:
        is_last = batch is micro_batches[-1]
        with nullcontext() if is_last else accelerator.no_sync(model):  # processes share gradients once a step
            loss = model(**batch, num_items_in_batch=num_tokens, use_cache=False).loss
            accelerator.backward(loss * accelerator.num_processes)  # sharing divides by that number
        nats += loss.detach()
    return accelerator.reduce(nats).item()


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, windows: TokenWindows, args: LoopArguments) -> dict:
    """Metrics over all tokens of a split, each of which counts once on however many processes."""
    loader = DataLoader(windows, args.per_device_eval_batch_size, generator=torch.Generator())
    model.eval()
    losses = []
    for batch in accelerator.prepare_data_loader(loader):
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        losses.append(accelerator.gather_for_metrics(window_losses(logits, batch["labels"])))
    metrics = make_compute_metrics(windows)(EvalPrediction(torch.cat(losses).cpu().numpy(), label_ids=None))
    raise_if_diverged(metrics["loss"], args.learning_rate)
    return metrics


def save_checkpoint(accelerator: Accelerator, args: LoopArguments, step: int, best_loss: float):
    """All that a run needs to go on from here. The state comes last: a checkpoint without it was cut short."""
    folder = Path(args.output_dir, f"checkpoint-{step}")
    accelerator.save_state(str(folder))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state = {"step": step, "best_loss": best_loss}
        atomic_write(folder / TRAINER_STATE_FILE, json.dumps(state).encode())
        if args.save_total_limit:
            for outdated in checkpoints(args.output_dir)[: -args.save_total_limit]:
                shutil.rmtree(outdated)


if __name__ == "__main__":
    run_command(main)
