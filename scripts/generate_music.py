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
from typing import TYPE_CHECKING

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, number, output_file, positive_integer, seed

if TYPE_CHECKING:
    import numpy as np


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    import numpy as np
    import torch

    from rtransformer_hf.training import piano_rolls
    from rtransformer_hf.training.checkpoints import load_music_model
    from rtransformer_hf.training.generation import FrameProgress

    set_frames_per_beat(args)
    if args.frames_per_beat > piano_rolls.MAX_FRAMES_PER_BEAT:
        limit = piano_rolls.MAX_FRAMES_PER_BEAT
        raise UsageError(f"--frames_per_beat: {args.frames_per_beat} (expected at most {limit})")
    prompt = load_prompt(args)
    model = load_music_model(args.checkpoint)

    given = np.zeros((1, piano_rolls.NUM_KEYS), dtype=np.uint8) if prompt is None else prompt  # silence starts a tune
    frames = model.sample(
        torch.from_numpy(given)[None],
        max_new_frames=args.num_frames,
        temperature=args.temperature,
        generator=torch.Generator(model.device).manual_seed(args.seed),
        streamer=FrameProgress(args.num_frames),
    )
    tune = frames[0].to("cpu", torch.uint8).numpy()
    if prompt is None:
        tune = tune[1:]

    piano_rolls.write_midi(f"{args.output}.mid", tune, args.frames_per_beat, args.tempo)
    print(f"{args.output}.mid")
    prompt_frames = 0 if prompt is None else len(prompt)
    piano_rolls.write_piano_roll_picture(f"{args.output}.png", tune, prompt_frames=prompt_frames)
    print(f"{args.output}.png")
    if args.audio:
        is_fluidsynth = piano_rolls.write_audio(f"{args.output}.wav", tune, args.frames_per_beat, args.tempo)
        print(f"{args.output}.wav ({'FluidSynth' if is_fluidsynth else 'sine waves'})")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("checkpoint", help="Folder or Hub id of a model of piano rolls.")
    add("--prompt", metavar="FILE.mid", help="MIDI file to continue.")
    add(
        "--prompt_data",
        help="Data with the tune to continue: a .mat file, a folder of MIDI files or a data set, as for training.",
    )
    add("--prompt_split", default="test", help="Split of --prompt_data. (default: %(default)s)")
    add(
        "--prompt_index", type=number(int, at_least=0), default=0, help="Which tune of the split, from 0. (default: 0)"
    )
    add("--prompt_frames", type=positive_integer, help="Continue only this many frames from its start. (default: all)")
    add("--num_frames", type=positive_integer, default=200, help="Frames to write. (default: %(default)s)")
    add(
        "--temperature",
        type=number(float, more_than=0),
        default=1.0,
        help="Below 1, likely keys become likelier. (default: 1)",
    )
    add("--seed", type=seed, default=0, help="The same seed gives the same tune. (default: 0)")
    add(
        "--frames_per_beat",
        type=positive_integer,
        help="Frames per quarter note. (default: as in the model's training data)",
    )
    add(
        "--tempo",
        type=number(float, at_least=4, at_most=1000),
        default=120.0,
        help="Quarter notes per minute of the new files. (default: 120)",
    )
    add(
        "--output",
        default="outputs/music/tune",
        type=tune_name,
        help="The MIDI file, with or without .mid; a .png and a .wav file get the same name. (default: %(default)s)",
    )
    add("--no_audio", dest="audio", action="store_false", help="Write no .wav file.")
    args = parser.parse_args(argv)
    if args.prompt_data == "":
        parser.error("--prompt_data: '' (expected a path or the id of a data set)")
    if args.prompt is not None and args.prompt_data is not None:
        parser.error(f"--prompt {args.prompt}: there is also --prompt_data {args.prompt_data} (expected one of them)")
    if args.prompt_frames is not None and args.prompt is None and args.prompt_data is None:
        parser.error(f"--prompt_frames {args.prompt_frames}: nothing to continue (expected --prompt or --prompt_data)")
    return args


def tune_name(text: str) -> str:
    """
    The name of a MIDI file without ".mid".

    Raises:
        argparse.ArgumentTypeError: it is a folder's, or the file can't be made.
    """
    name = text.removesuffix(".mid")
    if Path(f"{name}.mid").name == ".mid":
        raise argparse.ArgumentTypeError(f"{text!r} is a folder (expected a file's name)")
    output_file(".mid")(f"{name}.mid")
    return name


def set_frames_per_beat(args: argparse.Namespace):
    """
    Sets the frames per quarter note, unless a flag does, to those of the model's training data, and warns of a flag
    that differs. (A checkpoint that can't be opened is refused when the model is loaded.)
    """
    from rtransformer_hf.training.model_arguments import trained_frames_per_beat
    from rtransformer_hf.training.piano_rolls import DEFAULT_FRAMES_PER_BEAT

    try:
        trained = trained_frames_per_beat(args.checkpoint)
    except (OSError, ValueError):
        args.frames_per_beat = args.frames_per_beat or DEFAULT_FRAMES_PER_BEAT
        return
    notice = None
    if args.frames_per_beat is None:
        args.frames_per_beat = trained or DEFAULT_FRAMES_PER_BEAT
        if trained is None:
            notice = f"{args.checkpoint} does not state its frames per beat: assuming {args.frames_per_beat}."
    elif trained not in (None, args.frames_per_beat):
        notice = (
            f"{args.checkpoint} was trained on {trained} frames per beat: with --frames_per_beat "
            f"{args.frames_per_beat} its music has another pace."
        )
    if notice:
        print(f"generate_music.py: {notice}", file=sys.stderr)


def load_prompt(args: argparse.Namespace) -> "np.ndarray | None":
    """
    The (frames, 88) to continue, or None for a new tune.

    Raises:
        UsageError: the prompt can't be read, is empty, or is shorter than --prompt_frames.
    """
    from rtransformer_hf.training.piano_rolls import PianoRollArguments, read_midi_and_rest, read_split

    if args.prompt is not None:
        name = f"--prompt {args.prompt}"
        tune, left_out = read_midi_and_rest(args.prompt, args.frames_per_beat)
    elif args.prompt_data is not None:
        data = PianoRollArguments(data=args.prompt_data, frames_per_beat=args.frames_per_beat)
        tunes = read_split(data, args.prompt_split)
        if args.prompt_index >= len(tunes):
            raise UsageError(
                f"--prompt_index: no tune {args.prompt_index} in split {args.prompt_split!r} of --prompt_data "
                f"{args.prompt_data} (expected 0 to {len(tunes) - 1})"
            )
        name = f"tune {args.prompt_index} of --prompt_data {args.prompt_data}"
        if (chosen := tunes[args.prompt_index]).roll is None:
            raise UsageError(f"{name} can't be used (expected another --prompt_index): {chosen.fault}")
        tune, left_out = chosen.roll, chosen.left_out
    else:
        return None
    if len(tune) == 0:
        why = f" (left out: {left_out})" if left_out else ""
        raise UsageError(f"{name}: no notes{why} (expected a tune of at least one frame)")
    if left_out:
        print(f"{name}: left out: {left_out}", file=sys.stderr)
    if args.prompt_frames is not None and args.prompt_frames > len(tune):
        raise UsageError(f"--prompt_frames: {args.prompt_frames} is more than {name} has (expected 1 to {len(tune)})")
    return tune[: args.prompt_frames]


if __name__ == "__main__":
    run_command(main)
