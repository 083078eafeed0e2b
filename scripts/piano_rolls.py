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
Piano rolls: from .mat files, MIDI files and data sets, and to MIDI, pictures and sound.

A tune is a (frames, 88) array of uint8, 1 where a key sounds: the keys of a piano from A0 (MIDI pitch 21) to C8 (108).
"""

import io
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pretty_midi
from matplotlib.figure import Figure
from output_folder import write_figure, write_whole
from scipy.io import loadmat, wavfile
from script_arguments import InputError

LOWEST_PITCH = 21  # A0
NUM_KEYS = 88
PITCHES = range(LOWEST_PITCH, LOWEST_PITCH + NUM_KEYS)
MAT_ARRAYS = {"train": "traindata", "validation": "validdata", "test": "testdata"}
MIDI_SUFFIXES = (".mid", ".midi")
MAX_FRAMES_PER_BEAT = 96
MAX_FRAMES = 1_000_000  # of a MIDI file, where a few bytes can claim silence of years
TICKS_PER_FRAME = 120  # of the MIDI files written here
SAMPLE_RATE = 44100  # Hz
ACCEPTED_DATA = (
    "a .mat file, a folder of MIDI files with a sub-folder for each split, and a data set's id on the Hub or local "
    "folder are accepted"
)


@dataclass
class PianoRollArguments:
    data: str | None = field(
        default=None,
        metadata={
            "help": "A .mat file with traindata, validdata and testdata; a folder of MIDI files with sub-folders "
            "train, validation and test; or a data set with a column of piano rolls: an id on the Hub or a folder."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split, or sub-folder, to train on."})
    validation_split: str = field(
        default="validation", metadata={"help": "Split, or sub-folder, to evaluate on while training, and at its end."}
    )
    test_split: str | None = field(
        default="test", metadata={"help": "Split, or sub-folder, to evaluate on at the end alone; empty: none."}
    )
    piano_roll_column: str = field(
        default="piano_roll",
        metadata={
            "help": "Column of the data set with a tune's frames: each a list of 88 zeros and ones, or of the MIDI "
            "pitches that sound."
        },
    )
    frames_per_beat: int = field(default=2, metadata={"help": "Frames for each quarter note of MIDI files."})

    def __post_init__(self):
        if not self.data:
            raise InputError(f"--data {self.data!r} is no data; {ACCEPTED_DATA}.")
        for name in ("train_split", "validation_split"):
            if not getattr(self, name):
                raise InputError(f"--{name} {getattr(self, name)!r} is no name; the name of a split is accepted.")
        self.test_split = self.test_split or None
        if not 1 <= self.frames_per_beat <= MAX_FRAMES_PER_BEAT:
            raise InputError(
                f"--frames_per_beat {self.frames_per_beat} must be at least 1 and at most {MAX_FRAMES_PER_BEAT}."
            )


# Reading


def load_piano_rolls(args: PianoRollArguments) -> dict[str, list[np.ndarray]]:
    """
    The tunes of "train", "validation" and, where `test_split` is given, "test".

    Raises:
        InputError: as [`load_split`] does.
    """
    names = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    return {split: load_split(args, name) for split, name in names.items() if name is not None}


def load_split(args: PianoRollArguments, split_name: str) -> list[np.ndarray]:
    """
    The tunes of one split of `args.data`, each (frames, 88) with at least two frames.

    Args:
        args: where the data is, and how to read it.
        split_name: "train", "validation" or "test" of a .mat file; a sub-folder of a folder of MIDI files, whose own
            sub-folders count too; or a split of a data set, or a part such as "train[:10%]".

    Raises:
        InputError: the data or the split does not exist, can't be read, holds no tune, or something that is no tune.
    """
    path = Path(args.data)
    if path.suffix.lower() == ".mat":
        tunes = read_mat(path, split_name)
    elif path.is_dir() and midi_files(path):
        tunes = read_midi_folder(path, split_name, args.frames_per_beat)
    elif path.is_file():
        raise InputError(f"{args.data!r} is a file of another kind; {ACCEPTED_DATA}.")
    else:
        tunes = read_data_set(args, split_name)
    if not tunes:
        raise InputError(f"Split {split_name!r} of {args.data!r} holds no tune; at least one is accepted.")
    for name, roll in tunes.items():
        if len(roll) < 2:
            raise InputError(f"{name} holds {len(roll)} frames; a tune of at least 2 is accepted.")
    return list(tunes.values())


def read_mat(path: Path, split_name: str) -> dict[str, np.ndarray]:
    """A split's tunes from a .mat file of `MAT_ARRAYS`, cell arrays of (frames, 88) matrices, each by its name."""
    if split_name not in MAT_ARRAYS:
        raise InputError(f"Split {split_name!r} of '{path}' does not exist; accepted: {', '.join(MAT_ARRAYS)}.")
    array = MAT_ARRAYS[split_name]
    try:
        with path.open("rb") as file:
            cells = loadmat(file, variable_names=[array]).get(array)
    except Exception as error:  # a damaged file makes the reader raise errors of many kinds
        raise InputError(
            f"'{path}' can't be read; a .mat file of MATLAB 7.2 or before with {', '.join(MAT_ARRAYS.values())} is "
            f"accepted: {error}"
        ) from error
    accepted = f"a cell array of (frames, {NUM_KEYS}) matrices of zeros and ones is accepted"
    if cells is None:
        raise InputError(f"'{path}' has no array {array}; {accepted}.")
    if cells.dtype != object and cells.size > 0:
        raise InputError(f"{array} of '{path}' is a {cells.shape} array of {cells.dtype}; {accepted}.")
    tunes = {f"{array}[{index}] of '{path}'": roll for index, roll in enumerate(cells.flat)}
    for name, roll in tunes.items():
        if not isinstance(roll, np.ndarray) or roll.ndim != 2 or roll.shape[1] != NUM_KEYS:
            raise InputError(f"{name} has the shape {np.shape(roll)}; {accepted}.")
        if not np.isin(roll, (0, 1)).all():
            raise InputError(f"{name} holds {roll[~np.isin(roll, (0, 1))][0]}; {accepted}.")
    return {name: roll.astype(np.uint8) for name, roll in tunes.items()}


def read_midi_folder(folder: Path, split_name: str, frames_per_beat: int) -> dict[str, np.ndarray]:
    """The tunes of a sub-folder, by their files."""
    accepted = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if split_name not in accepted:
        raise InputError(
            f"Split {split_name!r} of '{folder}' does not exist; accepted: the sub-folders, {', '.join(accepted)}."
        )
    return {f"'{path}'": read_midi(path, frames_per_beat) for path in midi_files(folder / split_name)}


def midi_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in MIDI_SUFFIXES)


def read_data_set(args: PianoRollArguments, split_name: str) -> dict[str, np.ndarray]:
    """The tunes of a split of a data set, by their rows."""
    data_set = (args.data, args.dataset_config_name)
    try:
        available = datasets.get_dataset_split_names(*data_set)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{args.data!r} (--dataset_config_name {args.dataset_config_name}) can't be loaded; {ACCEPTED_DATA}: "
            f"{error}"
        ) from error
    try:
        rows = datasets.load_dataset(*data_set, split=split_name)
    except datasets.exceptions.DatasetGenerationError as error:
        raise InputError(
            f"Split {split_name!r} of {args.data!r} can't be read; rows of one kind are accepted: {error.__cause__}"
        ) from error
    except ValueError as error:
        raise InputError(
            f"Split {split_name!r} of {args.data!r} does not exist; accepted: {', '.join(available)}, or a part such "
            f"as {available[0]}[:10%]."
        ) from error
    if args.piano_roll_column not in rows.column_names:
        raise InputError(
            f"--piano_roll_column {args.piano_roll_column!r} is no column of {args.data!r}; accepted: "
            f"{', '.join(rows.column_names)}."
        )
    names = [f"Row {index} of split {split_name!r} of {args.data!r}" for index in range(len(rows))]
    return {
        name: roll_of_frames(frames, name) for name, frames in zip(names, rows[args.piano_roll_column], strict=True)
    }


def roll_of_frames(frames: list[list[int]], name: str) -> np.ndarray:
    """
    (frames, 88) from lists. They hold zeros and ones where every frame has 88 values and no other ones, and else the
    pitches that sound. No tune is both: 0 and 1 are no pitches of a piano.
    """
    accepted = f"frames of {NUM_KEYS} zeros and ones, or of MIDI pitches {PITCHES[0]} to {PITCHES[-1]}, are accepted"
    if not isinstance(frames, list) or not all(isinstance(frame, list) for frame in frames):
        raise InputError(f"{name} holds no list of frames; {accepted}.")
    if frames and all(len(frame) == NUM_KEYS and all(value in (0, 1) for value in frame) for frame in frames):
        return np.array(frames, dtype=np.uint8)
    roll = np.zeros((len(frames), NUM_KEYS), dtype=np.uint8)
    for time, frame in enumerate(frames):
        for pitch in frame:
            if pitch not in PITCHES:
                raise InputError(f"{name} holds {pitch!r} in frame {time}, of {len(frame)} values; {accepted}.")
            roll[time, int(pitch) - LOWEST_PITCH] = 1
    return roll


def read_midi(path: str | Path, frames_per_beat: int) -> np.ndarray:
    """
    (frames, 88) of a MIDI file, all its instruments together. Frames are counted by the file's own ticks, whatever its
    tempo. A key is set in a frame if it sounds a quarter of the frame after its start, so that notes which are played
    up to that much late still count from their frame on. The percussion channel, whose notes are no pitches, is left
    out. The last frame is the last one with a key set: a file without notes has none.

    Raises:
        InputError: the file can't be read, holds a pitch that a piano does not have, or more than `MAX_FRAMES` frames.
    """
    try:
        midi = pretty_midi.PrettyMIDI(str(path))
        if midi.resolution < 1:
            raise ValueError("its time is not counted in ticks of a quarter note")
    except Exception as error:  # a damaged file makes the reader raise errors of many kinds
        raise InputError(f"'{path}' can't be read; a MIDI file is accepted: {error!r}") from error

    def first_frame_from(seconds: float) -> int:
        """The first frame that is a quarter over at this time or later: (frame + 1 / 4) * ticks_per_frame >= ticks."""
        quarters = 4 * frames_per_beat * midi.time_to_tick(seconds) - midi.resolution
        return -(-quarters // (4 * midi.resolution))

    spans = []
    for note in (note for instrument in midi.instruments if not instrument.is_drum for note in instrument.notes):
        if note.pitch not in PITCHES:
            raise InputError(
                f"'{path}' holds pitch {note.pitch} at {note.start:.2f} s; pitches {PITCHES[0]} to {PITCHES[-1]}, the "
                "keys of a piano, are accepted."
            )
        spans.append((note.pitch - LOWEST_PITCH, first_frame_from(note.start), first_frame_from(note.end)))
    num_frames = max((end for _, start, end in spans if end > start), default=0)
    if num_frames > MAX_FRAMES:
        raise InputError(f"'{path}' holds {num_frames:,} frames; at most {MAX_FRAMES:,} are accepted.")
    roll = np.zeros((num_frames, NUM_KEYS), dtype=np.uint8)
    for key, start, end in spans:
        roll[start:end, key] = 1
    return roll


# Writing


def to_midi(roll: np.ndarray, frames_per_beat: int, tempo: float) -> pretty_midi.PrettyMIDI:
    """A piano that plays a (frames, 88) roll at `tempo` quarter notes a minute. A key held over frames is one note."""
    midi = pretty_midi.PrettyMIDI(resolution=frames_per_beat * TICKS_PER_FRAME, initial_tempo=tempo)
    piano = pretty_midi.Instrument(program=0)
    seconds_per_frame = 60 / (tempo * frames_per_beat)
    edges = np.diff(np.pad(roll.astype(np.int8), ((1, 1), (0, 0))), axis=0).T  # (keys, frames + 1)
    for (key, start), (_, end) in zip(np.argwhere(edges == 1), np.argwhere(edges == -1), strict=True):
        start_time, end_time = (float(frame * seconds_per_frame) for frame in (start, end))
        piano.notes.append(pretty_midi.Note(80, int(key) + LOWEST_PITCH, start_time, end_time))
    midi.instruments.append(piano)
    return midi


def write_midi(path: str | Path, roll: np.ndarray, frames_per_beat: int, tempo: float):
    """
    Writes a (frames, 88) roll as a MIDI file, which `read_midi` reads back but for silence at its end.

    Args:
        path: the file, whose folder is made where there is none.
        roll: (frames, 88).
        frames_per_beat: frames for each quarter note, 1 to `MAX_FRAMES_PER_BEAT`.
        tempo: quarter notes a minute, 4 or more, as the format has no slower ones.
    """
    content = io.BytesIO()
    to_midi(roll, frames_per_beat, tempo).write(content)
    write_whole(Path(path), content.getvalue())


def write_piano_roll_picture(path: str | Path, roll: np.ndarray, prompt_frames: int):
    """Writes a (frames, 88) roll as a PNG file, pitches over time; the first `prompt_frames` frames are shaded."""
    keys = np.flatnonzero(roll.any(axis=0))
    lowest, highest = (keys[0], keys[-1]) if len(keys) else (0, NUM_KEYS - 1)
    c_keys = [key for key, pitch in enumerate(PITCHES) if pitch % 12 == 0]
    bottom = max((key for key in c_keys if key <= lowest), default=0)
    top = min((key for key in c_keys if key >= highest and key > bottom), default=NUM_KEYS - 1)
    ticks = [key for key in c_keys if bottom <= key <= top]

    figure = Figure(figsize=(min(max(6, len(roll) / 20), 20), 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(roll.T, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="lower")
    if prompt_frames > 0:
        axes.axvspan(-0.5, prompt_frames - 0.5, color="tab:orange", alpha=0.25, linewidth=0, label="prompt")
        figure.legend(loc="outside upper right", frameon=False)
    axes.set(xlabel="time (frames)", ylabel="pitch", ylim=(bottom - 0.5, top + 0.5), xlim=(-0.5, len(roll) - 0.5))
    axes.set_yticks(ticks, [pretty_midi.note_number_to_name(PITCHES[key]) for key in ticks])
    write_figure(Path(path), figure, dpi=120)


def write_audio(path: str | Path, roll: np.ndarray, frames_per_beat: int, tempo: float) -> bool:
    """
    Writes the sound of a (frames, 88) roll, at `tempo` quarter notes a minute, as a 16-bit mono WAV file.

    Returns:
        Whether FluidSynth played it, with a piano of the sound font that comes with pretty_midi. Where the package
        pyfluidsynth, its library or the font is missing, notes are sine waves that fade.
    """
    midi = to_midi(roll, frames_per_beat, tempo)
    if not roll.any():  # neither synthesizer takes a tune without notes
        samples, is_fluidsynth = np.zeros(round(SAMPLE_RATE * len(roll) * 60 / (tempo * frames_per_beat))), False
    else:
        try:
            samples, is_fluidsynth = midi.fluidsynth(fs=SAMPLE_RATE), True
        except (ImportError, ValueError):  # no pyfluidsynth or no library; no sound font
            samples, is_fluidsynth = midi.synthesize(fs=SAMPLE_RATE), False
    content = io.BytesIO()
    wavfile.write(content, SAMPLE_RATE, np.round(samples * np.iinfo(np.int16).max).astype(np.int16))
    write_whole(Path(path), content.getvalue())
    return is_fluidsynth
