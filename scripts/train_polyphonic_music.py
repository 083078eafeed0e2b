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
"""
Trains the music model on piano rolls, evaluates it, and saves it with metrics, card and learning curves.

    python scripts/train_polyphonic_music.py scripts/recipes/nottingham.yaml --data Nottingham.mat --output_dir music

A recipe holds flags, one a line (`hidden_size: 160`); flags on the command line win over it. The same command again
goes on from the last checkpoint. Several processes: `accelerate launch scripts/train_polyphonic_music.py ...`.
"""

import hashlib
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from command_line import run_command
from model_arguments import ModelArguments, make_model
from output_folder import ResumableTrainingArguments, check_metric, check_output_dir, claim_output_dir
from piano_rolls import PianoRollArguments, load_piano_rolls
from polyphonic_music import METRIC_NAMES, MusicTrainer, Tunes, exact_metrics, pad_tunes, tune_losses
from script_arguments import InputError, parse_arguments
from training_report import TaskReport
from training_run import train_and_evaluate
from transformers import AutoModelForTimeSeriesPrediction, set_seed

from rtransformer_hf import RTransformerForPolyphonicMusic

USAGE = """\
import torch
from transformers import AutoModelForTimeSeriesPrediction

model = AutoModelForTimeSeriesPrediction.from_pretrained("{checkpoint}", trust_remote_code=True)
silence = torch.zeros(1, 1, 88)  # (batch, frames, keys from A0 to C8)
tune = model.sample(silence, max_new_frames=100, generator=torch.Generator().manual_seed(0))"""


@dataclass
class MusicModelArguments(ModelArguments):
    key_head_type: str | None = field(
        default=None,
        metadata={"help": "Keys of a frame, given the past: independent (the paper), or autoregressive."},
    )
    key_head_size: int | None = field(
        default=None, metadata={"help": "Hidden units a key of the autoregressive head."}
    )


@dataclass
class MusicArguments(PianoRollArguments):
    transpose: int = field(
        default=0, metadata={"help": "Largest shift of a training tune, in semitones up or down, drawn every epoch."}
    )
    sum_loss: bool = field(
        default=False,
        metadata={
            "help": "Sum the loss over the frames of a batch, as the published code does, in place of the mean."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.transpose < 88:
            raise InputError(f"--transpose {self.transpose} must be at least 0 and less than 88 semitones.")


def main(argv: list[str] | None = None):
    logging.basicConfig(format="%(message)s")
    logging.getLogger("output_folder").setLevel(logging.INFO)
    model_args, data_args, training_args = parse_arguments(
        (MusicModelArguments, MusicArguments, ResumableTrainingArguments),
        sys.argv[1:] if argv is None else argv,
        __doc__,
    )
    check_metric(training_args, METRIC_NAMES)
    if training_args.label_smoothing_factor != 0:
        raise InputError(
            f"--label_smoothing_factor: {training_args.label_smoothing_factor} (expected 0: smoothing is for one "
            "class of many, and each key of a frame sounds or not on its own)"
        )
    check_output_dir(training_args)
    set_seed(training_args.seed)

    with training_args.main_process_first(desc="data"):
        rolls = load_piano_rolls(data_args)
    model = make_model(
        model_args,
        RTransformerForPolyphonicMusic,
        AutoModelForTimeSeriesPrediction,
        architectures=(RTransformerForPolyphonicMusic.__name__,),
        input_size=rolls["train"][0].shape[1],
    )
    identity = {
        **asdict(model_args),
        "training tunes (sha256)": hashlib.sha256(b"".join(roll.tobytes() for roll in rolls["train"])).hexdigest(),
    }
    checkpoint = claim_output_dir(training_args, identity)

    splits = {split: Tunes(tunes, data_args.transpose if split == "train" else 0) for split, tunes in rolls.items()}
    trainer = MusicTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=pad_tunes,
        compute_metrics=exact_metrics(splits["validation"]),
        preprocess_logits_for_metrics=tune_losses,
        sums_loss=data_args.sum_loss,
        report=report(data_args),
    )
    evaluation = {"piano_roll_column": data_args.piano_roll_column, "frames_per_beat": data_args.frames_per_beat}
    train_and_evaluate(trainer, splits, exact_metrics, checkpoint, evaluation)


def report(args: MusicArguments) -> TaskReport:
    is_local = Path(args.data).exists()
    return TaskReport(
        pipeline_tag="time-series-forecasting",
        description="A model of polyphonic music",
        data_name=Path(args.data).resolve().name if is_local else args.data,
        dataset_id=None if is_local else args.data,
        usage=USAGE,
        metrics=("nll_per_frame",),
        metrics_note="Negative log-likelihood in nats, summed over the 88 keys of a frame and averaged over all "
        "frames of a split but the first of each tune; each is predicted from all frames before it in its tune.",
        limits="It knows the style of the tunes that it was trained on and no other; frames say which keys sound, not "
        "how loud or whether a key is struck again; tunes much longer than those in training may lose their thread.",
        loss_unit="nats per frame",
    )


if __name__ == "__main__":
    run_command(main)
