# SPDX-License-Identifier: Apache-2.0
"""
Trains a causal language model as scripts/train_causal_lm.py does, with a plain loop on Accelerate in place of Trainer:
change it where Trainer can't be changed. Data, model and recipes are the same. Of Trainer's flags, the loop honours
those that --help lists and refuses the others.

    python scripts/train_causal_lm_accelerate.py [RECIPE.yaml] --train_file book.txt --output_dir outputs/book

The same command again resumes from the last checkpoint, with the losses of an uninterrupted run. On several devices:
`accelerate launch scripts/train_causal_lm_accelerate.py ...`.
"""

import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, get_scheduler
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import CONFIG_NAME

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
from rtransformer_hf.training.files import atomic_write
from rtransformer_hf.training.loop_arguments import LoopArguments
from rtransformer_hf.training.model_arguments import EVALUATION_FILE, ArchitectureArguments
from rtransformer_hf.training.output_folder import planned_steps, prepare_output_dir
from rtransformer_hf.training.report import prompt_for
from rtransformer_hf.training.resuming import check_can_go_on, write_settings
from rtransformer_hf.training.run import (
    command,
    evaluation_command,
    print_end,
    print_finished,
    print_start,
    raise_if_diverged,
    start_training,
)

logger = logging.getLogger(__name__)


@dataclass
class LoopState:
    """Where a run is. Model, optimizer, schedule and random numbers are in the files that Accelerate saves with it."""

    step: int = 0
    best_loss: float = math.inf  # that of the model in the output folder


def main(argv: list[str] | None = None):
    model_args, data_args, args = parse_arguments(
        (ArchitectureArguments, DataArguments, LoopArguments),
        sys.argv[1:] if argv is None else argv,
        __doc__,
        DEFAULTS,
    )
    if data_args.streaming:
        raise UsageError("--streaming: not in this loop (expected scripts/train_causal_lm.py)")
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # it warns that tied weights are saved once
    accelerator = Accelerator(
        cpu=args.use_cpu,
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,  # None: as `accelerate launch` says
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True
        ),  # the order depends on seed and epoch only
        step_scheduler_with_optimizer=False,  # else it would take as many steps as there are processes
        log_with="tensorboard" if is_tensorboard_available() else None,
        project_dir=args.output_dir,
    )
    start_training(args, metrics=["loss"])
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
    accelerator.end_training()
    if accelerator.is_main_process:
        for name, content in (("all_results.json", results), (EVALUATION_FILE, evaluation_settings(data_args))):
            atomic_write(Path(args.output_dir, name), json.dumps(content, indent=2).encode())
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
    """Trains from the checkpoint on, and saves the model: the last, or with --load_best_model_at_end the best."""
    loader = DataLoader(
        windows["train"],
        args.per_device_train_batch_size,
        shuffle=True,
        generator=torch.Generator(),  # its own, so that starting an epoch takes no random numbers from dropout
        pin_memory=args.dataloader_pin_memory,
    )
    loader = accelerator.prepare(loader)
    num_steps = planned_steps(args, len(loader))
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    periods = {"no": num_steps, "epoch": steps_per_epoch}
    log_every = in_steps(args.logging_steps, num_steps)
    eval_every = (periods | {"steps": in_steps(args.eval_steps or args.logging_steps, num_steps)})[args.eval_strategy]
    save_every = (periods | {"steps": in_steps(args.save_steps, num_steps)})[args.save_strategy]

    decayed, others = [], []  # biases, norms, and the twiddles of butterflies, which are products of many factors
    for name, weight in model.named_parameters():
        (decayed if weight.ndim > 1 and not name.endswith(".twiddle") else others).append(weight)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
    warmup_steps = in_steps(args.warmup_steps, num_steps)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, num_steps, args.lr_scheduler_kwargs)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

    state = LoopState()
    if checkpoint is not None:
        state = LoopState(**json.loads(Path(checkpoint, args.state_file).read_text()))
        if state.step < num_steps:
            check_can_go_on(args, checkpoint)
            forget_best_of_another_folder(args, checkpoint, state)
        elif not Path(args.output_dir, CONFIG_NAME).exists():
            raise UsageError(
                f"--resume_from_checkpoint {checkpoint}: it ends at step {state.step}, and --output_dir "
                f"{args.output_dir} lacks its model (expected the run's own --output_dir, or more steps)"
            )
        accelerator.load_state(checkpoint)
    if accelerator.is_main_process and state.step >= num_steps:
        print_finished(args, state.step, num_steps)
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
            step=state.step,
        )

    is_silent = args.disable_tqdm or not accelerator.is_main_process
    progress_bar = tqdm(total=num_steps, initial=state.step, disable=is_silent)
    while state.step < num_steps:
        epoch, step_of_epoch = divmod(state.step, steps_per_epoch)
        loader.set_epoch(epoch)
        windows["train"].set_epoch(epoch)
        rest = accelerator.skip_first_batches(loader, step_of_epoch * args.gradient_accumulation_steps)
        for batches in islice(batched(rest, args.gradient_accumulation_steps), num_steps - state.step):
            loss = accumulate_gradients(accelerator, model, batches)
            if args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            learning_rate = scheduler.get_last_lr()[0]
            scheduler.step()
            optimizer.zero_grad()
            state.step += 1
            progress_bar.update()

            is_last = state.step == num_steps  # everything is done after the last step
            if is_last or state.step % log_every == 0:
                accelerator.log({"loss": loss, "learning_rate": learning_rate}, state.step)
                if accelerator.is_main_process:
                    progress_bar.write(f"step {state.step}: loss {loss:.4f}, learning rate {learning_rate:.2e}")
            if is_last or state.step % eval_every == 0:
                eval_loss = evaluate(accelerator, model, windows["validation"], args)["loss"]
                accelerator.log({"eval_loss": eval_loss}, state.step)
                if accelerator.is_main_process:
                    progress_bar.write(f"step {state.step}: validation loss {eval_loss:.4f}")
                if eval_loss < state.best_loss or not args.load_best_model_at_end:
                    state.best_loss = eval_loss
                    if accelerator.is_main_process:
                        accelerator.unwrap_model(model).save_pretrained(args.output_dir)
                        tokenizer.save_pretrained(args.output_dir)
            if is_last or state.step % save_every == 0:
                save_checkpoint(accelerator, args, state)
    progress_bar.close()
    accelerator.wait_for_everyone()


def forget_best_of_another_folder(args: LoopArguments, checkpoint: str, state: LoopState):
    """The best model is not in a checkpoint but in its run's folder, whence it does not come along to another."""
    if Path(checkpoint).resolve().parent != Path(args.output_dir).resolve():
        if args.load_best_model_at_end and args.should_log:
            logger.warning(
                f"--output_dir {args.output_dir} lacks the best model of the run of {checkpoint}: it is forgotten, "
                "and the next evaluation is the best."
            )
        state.best_loss = math.inf


def in_steps(number: float, num_steps: int) -> int:
    """A number of steps, which Trainer's flags may state as a share of all steps, below 1."""
    return int(number) if number >= 1 else math.ceil(number * num_steps)


def batched(batches: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Lists of `size` batches; the last may be shorter. (`itertools.batched`, from Python 3.12 on, gives tuples.)"""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def accumulate_gradients(accelerator: Accelerator, model: torch.nn.Module, batches: list[dict]) -> float:
    """Adds up the gradients of a step, and returns its loss: the mean over the tokens of all batches and processes."""
    model.train()
    num_tokens = accelerator.reduce(sum((batch["labels"][:, 1:] != -100).sum() for batch in batches))
    nats = torch.zeros((), device=accelerator.device)
    for batch in batches:
        is_last = batch is batches[-1]
        with nullcontext() if is_last else accelerator.no_sync(model):  # processes exchange gradients once a step
            loss = model(**batch, num_items_in_batch=num_tokens, use_cache=False).loss
            accelerator.backward(loss * accelerator.num_processes)  # the exchange takes the mean, not the sum
        nats += loss.detach()
    return accelerator.reduce(nats).item()


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, windows: TokenWindows, args: LoopArguments) -> dict:
    """The metrics over all tokens of a split. Each token counts once, on any number of processes."""
    loader = DataLoader(windows, args.per_device_eval_batch_size, generator=torch.Generator())
    model.eval()
    losses = []
    for batch in accelerator.prepare_data_loader(loader):
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        losses.append(accelerator.gather_for_metrics(window_losses(logits, batch["labels"])))
    metrics = make_compute_metrics(windows)(EvalPrediction(torch.cat(losses).cpu().numpy(), label_ids=None))
    raise_if_diverged(metrics["loss"], args.learning_rate)
    return metrics


def save_checkpoint(accelerator: Accelerator, args: LoopArguments, state: LoopState):
    """Saves all that the run needs to go on. The state comes last: a checkpoint without it was cut short."""
    folder = Path(args.output_dir, f"checkpoint-{state.step}")
    accelerator.save_state(str(folder))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_settings(args, folder)
        atomic_write(folder / args.state_file, json.dumps(asdict(state)).encode())
        rotate_checkpoints(args.output_dir, args.save_total_limit)


if __name__ == "__main__":
    run_command(main)
