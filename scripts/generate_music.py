# SPDX-License-Identifier: Apache-2.0
"""
Continues a tune, or starts one, with a model of piano rolls, and writes it as MIDI, picture and sound.

    python scripts/generate_music.py outputs/nottingham --num_frames 200
    python scripts/generate_music.py outputs/nottingham --prompt tune.mid --prompt_frames 32
    python scripts/generate_music.py outputs/nottingham --prompt_data Nottingham.mat --prompt_index 3 --tempo 160
"""

import argparse
import sys
from pathlib import Path

from rtransformer_hf.training.command_line import CommandParser, run_command

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForAudioFrameClassification, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import rtransformer_hf  # noqa: F401  (makes the model known to the Auto classes)
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import check_architecture, default_device, trained_frames_per_beat
from rtransformer_hf.training.piano_rolls import (
    DEFAULT_FRAMES_PER_BEAT,
    MAX_FRAMES_PER_BEAT,
    NUM_KEYS,
    PianoRollArguments,
    read_midi_and_rest,
    read_split,
    write_audio,
    write_midi,
    write_piano_roll_picture,
)


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    set_frames_per_beat(args)
    try:
        prompt = load_prompt(args)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        model = load_music_model(args.checkpoint)
    except UsageError as error:
        sys.exit(f"generate_music.py: error: {error}")
    except OSError as error:
        sys.exit(
            f"generate_music.py: error: --output {args.output!r} can't be written; the beginning of file names in a "
            f"folder that is there or can be made is accepted: {error}"
        )

    given = np.zeros((1, NUM_KEYS), dtype=np.uint8) if prompt is None else prompt  # a silent frame starts a new tune
    frames = model.sample(
        torch.from_numpy(given)[None],
        max_new_frames=args.num_frames,
        temperature=args.temperature,
        generator=torch.Generator(model.device).manual_seed(args.seed),
        streamer=ProgressBar(args.num_frames),
    )
    tune = frames[0].to("cpu", torch.uint8).numpy()
    if prompt is None:
        tune = tune[1:]

    write_midi(f"{args.output}.mid", tune, args.frames_per_beat, args.tempo)
    print(f"{args.output}.mid")
    write_piano_roll_picture(f"{args.output}.png", tune, prompt_frames=0 if prompt is None else len(prompt))
    print(f"{args.output}.png")
    if args.audio:
        is_fluidsynth = write_audio(f"{args.output}.wav", tune, args.frames_per_beat, args.tempo)
        print(f"{args.output}.wav ({'FluidSynth' if is_fluidsynth else 'sine waves'})")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", help="Folder or Hub id of a model of piano rolls.")
    parser.add_argument("--prompt", metavar="FILE.mid", help="MIDI file to continue.")
    parser.add_argument(
        "--prompt_data",
        help="Data with the tune to continue: a .mat file, a folder of MIDI files or a data set, as for training.",
    )
    parser.add_argument("--prompt_split", default="test", help="Split of --prompt_data. (default: %(default)s)")
    parser.add_argument("--prompt_index", type=int, default=0, help="Tune of the split, from 0. (default: 0)")
    parser.add_argument(
        "--prompt_frames", type=int, help="Frames of the tune to give, from its start. (default: all of them)"
    )
    parser.add_argument("--num_frames", type=int, default=200, help="Frames to write. (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="Below 1, likely keys become likelier. (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed gives the same tune. (default: 0)")
    parser.add_argument(
        "--frames_per_beat",
        type=int,
        help="Frames for each quarter note of MIDI. (default: those that the model was trained on)",
    )
    parser.add_argument(
        "--tempo", type=float, default=120.0, help="Quarter notes a minute of what is written. (default: 120)"
    )
    parser.add_argument(
        "--output",
        default="outputs/music/tune",
        type=lambda name: name.removesuffix(".mid"),
        help="The MIDI file, with or without .mid; .png and .wav stand beside it. (default: %(default)s)",
    )
    parser.add_argument("--no_audio", dest="audio", action="store_false", help="Write no .wav file.")
    args = parser.parse_args(argv)
    for name, is_accepted, accepted in (
        ("prompt_data", args.prompt_data != "", "a path or the id of a data set"),
        ("prompt_index", args.prompt_index >= 0, "0 or more"),
        ("prompt_frames", args.prompt_frames is None or args.prompt_frames > 0, "more than 0"),
        ("num_frames", args.num_frames > 0, "more than 0"),
        ("temperature", args.temperature > 0, "more than 0"),
        ("seed", 0 <= args.seed < 2**32, "0 or more and less than 2**32"),
        (
            "frames_per_beat",
            args.frames_per_beat is None or 1 <= args.frames_per_beat <= MAX_FRAMES_PER_BEAT,
            f"1 to {MAX_FRAMES_PER_BEAT}",
        ),
        ("tempo", 4 <= args.tempo <= 1000, "4 to 1000"),
        ("output", Path(f"{args.output}.mid").stem != ".mid", "the beginning of file names, not a folder"),
    ):
        if not is_accepted:
            parser.error(f"--{name} {getattr(args, name)} is not accepted; it must be {accepted}.")
    if args.prompt is not None and args.prompt_data is not None:
        parser.error(
            f"--prompt {args.prompt} and --prompt_data {args.prompt_data} both give a prompt; one of them is accepted."
        )
    if args.prompt_frames is not None and args.prompt is None and args.prompt_data is None:
        parser.error(f"--prompt_frames {args.prompt_frames} is accepted with --prompt or --prompt_data alone.")
    return args


def set_frames_per_beat(args: argparse.Namespace):
    """
    Sets the frames for each quarter note, where no flag does, to those that the model was trained on. A flag that
    differs from them counts, with a word. A checkpoint that can't be opened is refused later on, by what loads it.
    """
    try:
        trained = trained_frames_per_beat(args.checkpoint)
    except (OSError, ValueError):
        args.frames_per_beat = args.frames_per_beat or DEFAULT_FRAMES_PER_BEAT
        return
    notice = None
    if args.frames_per_beat is None:
        args.frames_per_beat = trained or DEFAULT_FRAMES_PER_BEAT
        if trained is None:
            notice = f"{args.checkpoint} does not say its frames a beat; taken for {args.frames_per_beat}."
    elif trained not in (None, args.frames_per_beat):
        notice = (
            f"{args.checkpoint} was trained on {trained} frames a beat: with --frames_per_beat {args.frames_per_beat} "
            "its music has another pace."
        )
    if notice:
        print(f"generate_music.py: {notice}", file=sys.stderr)


def load_prompt(args: argparse.Namespace) -> np.ndarray | None:
    """(frames, 88), the frames to continue, or None where none are asked for."""
    if args.prompt is not None:
        name = f"--prompt {args.prompt}"
        tune, left_out = read_midi_and_rest(args.prompt, args.frames_per_beat)
    elif args.prompt_data is not None:
        data = PianoRollArguments(data=args.prompt_data, frames_per_beat=args.frames_per_beat)
        tunes = read_split(data, args.prompt_split)
        if args.prompt_index >= len(tunes):
            raise UsageError(
                f"--prompt_index {args.prompt_index} is not in split {args.prompt_split!r} of --prompt_data "
                f"{args.prompt_data}; 0 to {len(tunes) - 1} are accepted."
            )
        name = f"tune {args.prompt_index} of --prompt_data {args.prompt_data}"
        if (chosen := tunes[args.prompt_index]).roll is None:
            raise UsageError(f"{name} can't be used; another --prompt_index is accepted: {chosen.fault}")
        tune, left_out = chosen.roll, chosen.left_out
    else:
        return None
    if len(tune) == 0:
        why = f" (left out: {left_out})" if left_out else ""
        raise UsageError(f"{name} holds no notes{why}; a tune of at least one frame is accepted.")
    if left_out:
        print(f"{name}: left out: {left_out}", file=sys.stderr)
    if args.prompt_frames is not None and args.prompt_frames > len(tune):
        raise UsageError(
            f"--prompt_frames {args.prompt_frames} is more than {name} has; 1 to {len(tune)} are accepted."
        )
    return tune[: args.prompt_frames]


def load_music_model(checkpoint: str) -> PreTrainedModel:
    """
    The model of piano rolls.

    Raises:
        UsageError: there is no such checkpoint, or it is none of piano rolls with 88 keys. The Auto class alone would
            open other models with a new, untrained output layer.
    """
    accepted = f"a folder or Hub id of a model of piano rolls with {NUM_KEYS} keys is accepted"
    try:
        check_architecture(checkpoint, "RTransformerForPolyphonicMusic")
        if (input_size := AutoConfig.from_pretrained(checkpoint).input_size) != NUM_KEYS:
            raise ValueError(f"its input_size is {input_size}")
        return AutoModelForAudioFrameClassification.from_pretrained(checkpoint).to(default_device())
    except (OSError, ValueError) as error:
        raise UsageError(f"checkpoint {checkpoint!r} can't be used; {accepted}: {error}") from error


class ProgressBar(BaseStreamer):
    """Counts the new frames as `sample` makes them."""

    def __init__(self, num_frames: int):
        self.bar = tqdm(total=num_frames, unit="frame")

    def put(self, frames: torch.Tensor):
        if frames.ndim == 2:  # (batch, keys) is a new frame; the given ones come first, as (batch, time, keys)
            self.bar.update()

    def end(self):
        self.bar.close()


if __name__ == "__main__":
    run_command(main)
