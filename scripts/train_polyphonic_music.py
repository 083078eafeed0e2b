# SPDX-License-Identifier: Apache-2.0
"""
Trains the music model on piano rolls, evaluates it, and saves it with metrics, card and learning curves.

    python scripts/train_polyphonic_music.py scripts/recipes/nottingham.yaml --data Nottingham.mat --output_dir music

A recipe holds flags, one per line (`hidden_size: 160`); flags on the command line override it. The same command again
resumes from the last checkpoint. On several devices: `accelerate launch scripts/train_polyphonic_music.py ...`.
"""

import contextlib
import hashlib
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

from transformers import AutoModelForAudioFrameClassification

from rtransformer_hf import RTransformerForPolyphonicMusic
from rtransformer_hf.training.arguments import Defaults, parse_arguments
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import number
from rtransformer_hf.training.model_arguments import (
    NEW_MODEL,
    ModelArguments,
    make_model,
    trained_frames_per_beat,
    unset_sizes,
)
from rtransformer_hf.training.model_card import CardArguments
from rtransformer_hf.training.output_folder import ResumableTrainingArguments, prepare_output_dir
from rtransformer_hf.training.piano_rolls import (
    DEFAULT_FRAMES_PER_BEAT,
    NUM_KEYS,
    PianoRollArguments,
    ReadTune,
    load_piano_rolls,
    report_skipped,
)
from rtransformer_hf.training.polyphonic_music import (
    METRIC_NAMES,
    MusicTrainer,
    Tunes,
    make_compute_metrics,
    pad_tunes,
    tune_losses,
)
from rtransformer_hf.training.report import TaskReport
from rtransformer_hf.training.run import command, evaluation_command, start_training, train_and_evaluate

logger = logging.getLogger(__name__)


@dataclass
class MusicModelArguments(ModelArguments):
    key_head_type: str | None = field(
        default=None,
        metadata={"help": "Keys of a frame, given the past: independent (the paper) or autoregressive."},
    )
    key_head_size: int | None = field(
        default=None, metadata={"help": "Hidden units per key of the autoregressive head."}
    )


@dataclass
class MusicArguments(PianoRollArguments):
    transpose: int = field(
        default=0,
        metadata={
            "help": "Transpose training tunes by up to this many semitones, at random each epoch.",
            "type": number(int, at_least=0, less_than=NUM_KEYS),
        },
    )
    sum_loss: bool = field(
        default=False,
        metadata={"help": "Sum the loss over the frames of a batch, as the published code does, instead of the mean."},
    )


TRAINING = {"per_device_train_batch_size": 4, "num_train_epochs": 20, "adam_beta2": 0.99}
DEFAULTS = Defaults(
    new={**NEW_MODEL, **TRAINING, "hidden_dropout": 0.2, "learning_rate": 1e-3},
    fine_tuning={**TRAINING, "learning_rate": 3e-4},
    shown=unset_sizes(MusicModelArguments),
)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, card_args, training_args = parse_arguments(
        (MusicModelArguments, MusicArguments, CardArguments, ResumableTrainingArguments), argv, __doc__, DEFAULTS
    )
    if training_args.label_smoothing_factor != 0:
        raise UsageError(
            f"--label_smoothing_factor: {training_args.label_smoothing_factor} (expected 0: smoothing is for one "
            "class of many, and each key of a frame sounds or not on its own)"
        )
    start_training(training_args, METRIC_NAMES)

    set_frames_per_beat(data_args, model_args.model_name_or_path, warns=training_args.should_log)
    tunes: list[ReadTune] = []
    with training_args.main_process_first(desc="data"):
        rolls = load_piano_rolls(data_args, tunes)
    model = make_model(
        model_args,
        RTransformerForPolyphonicMusic,
        AutoModelForAudioFrameClassification,
        architectures=(RTransformerForPolyphonicMusic.__name__,),
        input_size=rolls["train"][0].shape[1],
    )
    model.config.frames_per_beat = data_args.frames_per_beat
    identity = {
        **asdict(model_args),
        "training tunes (sha256)": hashlib.sha256(b"".join(roll.tobytes() for roll in rolls["train"])).hexdigest(),
    }
    checkpoint = prepare_output_dir(training_args, identity)
    if training_args.should_save:
        report_skipped(data_args, tunes, training_args.output_dir)

    splits = {split: Tunes(tunes, data_args.transpose if split == "train" else 0) for split, tunes in rolls.items()}
    is_local = Path(data_args.data).exists()
    config_name = f" ({data_args.dataset_config_name})" if data_args.dataset_config_name else ""
    data_name = Path(data_args.data).resolve().name if is_local else f"{data_args.data}{config_name}"
    trainer = MusicTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=pad_tunes,
        compute_metrics=make_compute_metrics(splits["validation"]),
        preprocess_logits_for_metrics=tune_losses,
        sums_loss=data_args.sum_loss,
        report=TaskReport(
            task="polyphonic-music",
            command=["scripts/train_polyphonic_music.py", *argv],
            card=card_args,
            data_name=data_name,
            dataset_id=None if is_local else data_args.data,
            base_model=model_args.model_name_or_path,
        ),
    )
    how_to_read = ("piano_roll_column", "frames_per_beat", "validation_fraction")
    of_splits = ("train_split", "validation_split", "test_split")  # they say what of a folder is held out
    evaluation = {name: getattr(data_args, name) for name in (*how_to_read, *of_splits)}
    sizes = ", ".join(f"{split} {len(tunes):,}" for split, tunes in rolls.items())
    num_frames = sum(map(len, rolls["train"]))
    test_split = data_args.test_split if "test" in rolls else data_args.validation_split
    data = ["--data", data_args.data, "--split", test_split]
    data += ["--skip_unreadable"] if data_args.skip_unreadable else []
    commands = [
        command("generate_music.py", training_args.output_dir),
        evaluation_command(training_args, None if data_args.dataset_config_name else data),
    ]
    train_and_evaluate(
        trainer,
        splits,
        make_compute_metrics,
        checkpoint,
        evaluation,
        data=f"{sizes} tunes; {num_frames:,} frames to train on",
        commands=commands,
    )


def set_frames_per_beat(args: MusicArguments, model_name_or_path: str | None, warns: bool):
    """
    Sets unset frames per quarter note to those of the model to fine-tune, or else the default.

    Args:
        args: where they are set.
        model_name_or_path: the model to fine-tune, if any. One that can't be opened is refused later.
        warns: whether to warn that the flag differs from the model's training.
    """
    trained = None
    if model_name_or_path is not None:
        with contextlib.suppress(OSError, ValueError):
            trained = trained_frames_per_beat(model_name_or_path)
    if args.frames_per_beat is None:
        args.frames_per_beat = trained or DEFAULT_FRAMES_PER_BEAT
    elif trained not in (None, args.frames_per_beat) and warns:
        logger.warning(
            f"--frames_per_beat {args.frames_per_beat}: --model_name_or_path {model_name_or_path} was trained on "
            f"{trained}, and has to learn another pace."
        )


if __name__ == "__main__":
    run_command(main)
