# SPDX-License-Identifier: Apache-2.0
"""
Piano rolls: read from .mat files, MIDI files and data sets; written as MIDI, pictures and sound.

A tune is a (frames, 88) array of uint8, 1 where a key sounds: the keys of a piano from A0 (MIDI pitch 21) to C8 (108).
"""

import hashlib
import io
import json
import logging
import re
import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pretty_midi
from matplotlib.figure import Figure
from scipy.io import loadmat, wavfile

from .data_files import VALIDATION_FRACTION
from .errors import UsageError, listed
from .files import atomic_write, write_figure
from .flags import fraction, number

logger = logging.getLogger(__name__)

LOWEST_PITCH = 21  # A0
NUM_KEYS = 88
PITCHES = range(LOWEST_PITCH, LOWEST_PITCH + NUM_KEYS)
MAT_ARRAYS = {"train": "traindata", "validation": "validdata", "test": "testdata"}
SPLIT_FOLDERS = {  # whatever their case
    "train": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
LOOK_ALIKES = {  # words in the names of folders that may be meant as splits
    *SPLIT_FOLDERS,
    *(name + ending for name in ("train", "test") for ending in ("ing", "set", "data")),
    *("validate", "valset", "devset", "eval", "evaluation", "heldout", "holdout"),
}
MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
PERCUSSION_CHANNEL = 9
# Data bytes after a status byte: of channel messages, by its upper half, and of the other messages.
CHANNEL_DATA = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}
SYSTEM_DATA = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
DEFAULT_FRAMES_PER_BEAT = 2
MAX_FRAMES_PER_BEAT = 96
SKIPPED_FILE = "skipped_tunes.json"
MAX_FRAMES = 1_000_000  # of a MIDI file: a few bytes can claim years of silence
TICKS_PER_FRAME = 120  # of the MIDI files written here
SAMPLE_RATE = 44100  # Hz
EXPECTED_DATA = (
    "expected a .mat file, a folder of MIDI files with or without a sub-folder for each split, or a data set by id on "
    "the Hub or by local folder"
)


@dataclass
class PianoRollArguments:
    data: str | None = field(
        default=None,
        metadata={
            "help": "A .mat file with traindata, validdata and testdata; a folder of MIDI files, with sub-folders "
            "train, validation (or valid, val, dev) and test or without; or a data set with a column of piano rolls: "
            "an id on the Hub or a folder.",
            "aliases": "--dataset_name",
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
    frames_per_beat: int | None = field(
        default=None,
        metadata={
            "help": "Frames for each quarter note, by which MIDI files are read. Unset: those of "
            f"--model_name_or_path, or else {DEFAULT_FRAMES_PER_BEAT}.",
            "type": number(int, at_least=1, at_most=MAX_FRAMES_PER_BEAT),
        },
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the files of a MIDI folder held out where it has no sub-folder to validate on: some by "
            f"their names, the same whatever --seed is. Unset: {VALIDATION_FRACTION}.",
            "type": fraction,
        },
    )
    skip_unreadable: bool = field(
        default=False,
        metadata={
            "help": "Leave out tunes that can't be used, and name them with the reason here and in "
            f"{SKIPPED_FILE} of the output folder. Unset: they are named, and nothing is trained."
        },
    )

    def __post_init__(self):
        if not self.data:
            raise UsageError(f"--data {self.data!r} is no data ({EXPECTED_DATA})")
        for name in ("train_split", "validation_split"):
            if not getattr(self, name):
                raise UsageError(f"--{name} {getattr(self, name)!r} is no name (expected the name of a split)")
        self.test_split = self.test_split or None


# Reading


@dataclass
class ReadTune:
    """
    A tune as read from its source.

    Args:
        name: its source, for messages.
        roll: (frames, 88), or None where it can't be used.
        fault: what is wrong with it, starting with the name.
        left_out: notes of a MIDI file that are not in its roll, in words; None where all are.
    """

    name: str
    roll: np.ndarray | None = None
    fault: str | None = None
    left_out: str | None = None


def load_piano_rolls(args: PianoRollArguments, tunes: list[ReadTune] | None = None) -> dict[str, list[np.ndarray]]:
    """
    The tunes of "train", "validation" and, where `test_split` is given, "test", as of [`load_split`]. A folder of MIDI
    files that are not split has no "test".

    Args:
        args: where the data is, and how to read it.
        tunes: receives all tunes as read, unusable ones included.

    Raises:
        UsageError: as [`load_split`] does, but of the unusable tunes of all splits at once; or `validation_fraction`
            is given, and nothing is held out.
    """
    names = {"train": args.train_split, "validation": args.validation_split, "test": args.test_split}
    is_held_out = False
    if is_midi_folder(args.data):
        folders, files = split_folders(args), midi_splits(args)
        is_held_out = has_held_out(folders, files)
        check_sub_folders(args, folders, files)
        if names["test"] == "test" and not has_splits(args, folders):
            names["test"] = None
    if args.validation_fraction is not None and not is_held_out:
        raise UsageError(
            f"--validation_fraction: {args.validation_fraction}: nothing is held out of --data {args.data!r}, whose "
            f"split {args.validation_split!r} is validated on (expected none)"
        )
    splits = {split: read_split(args, name) for split, name in names.items() if name is not None}
    found = [tune for split in splits.values() for tune in split]
    if tunes is not None:
        tunes += found
    check_tunes(args, found)
    return {split: usable_rolls(args, names[split], found) for split, found in splits.items()}


def load_split(args: PianoRollArguments, split_name: str) -> list[np.ndarray]:
    """
    The tunes of one split of `args.data`, each (frames, 88) with at least two frames.

    Args:
        args: where the data is, and how to read it.
        split_name: "train", "validation" or "test" of a .mat file; a sub-folder of a folder of MIDI files, whose own
            sub-folders count too, or one of its other splits as of [`midi_splits`]; or a split of a data set, or a
            part such as "train[:10%]".

    Raises:
        UsageError: the data or the split does not exist, can't be read, or holds no tune; or, unless
            `args.skip_unreadable`, some of the tunes can't be used, all of which are named.
    """
    tunes = read_split(args, split_name)
    check_tunes(args, tunes)
    return usable_rolls(args, split_name, tunes)


def read_split(args: PianoRollArguments, split_name: str) -> list[ReadTune]:
    """
    All tunes of one split, see [`load_split`], unusable ones included.

    Raises:
        UsageError: the data or the split does not exist, or can't be read.
    """
    path = Path(args.data)
    if path.suffix.lower() == ".mat":
        return read_mat(path, split_name)
    if is_midi_folder(args.data):
        return read_midi_files(args, split_name)
    if path.is_file():
        raise UsageError(f"{args.data!r} is a file of another kind ({EXPECTED_DATA})")
    return read_data_set(args, split_name)


def usable_rolls(args: PianoRollArguments, split_name: str, tunes: list[ReadTune]) -> list[np.ndarray]:
    rolls = [tune.roll for tune in tunes if tune.roll is not None]
    if not rolls:
        raise UsageError(f"Split {split_name!r} of {args.data!r} holds no tune (expected at least one)")
    return rolls


def check_tunes(args: PianoRollArguments, tunes: list[ReadTune]):
    """
    Raises:
        UsageError: some of the tunes can't be used, and may not be skipped. The message names them all.
    """
    unusable = [tune for tune in tunes if tune.roll is None]
    if unusable and not args.skip_unreadable:
        raise UsageError(
            f"{len(unusable)} of {len(tunes)} tunes of {args.data!r} can't be used; --skip_unreadable goes on without "
            f"them:\n{faults(unusable)}"
        )


def faults(tunes: list[ReadTune]) -> str:
    return "\n".join(f"  {tune.fault}" for tune in tunes)


def report_skipped(args: PianoRollArguments, tunes: list[ReadTune], output_dir: str):
    """
    Names the tunes that are skipped, and those with notes that are left out, in the log and in `SKIPPED_FILE` of the
    output folder, which is there in this case alone.
    """
    skipped = [tune for tune in tunes if tune.roll is None]
    changed = [tune for tune in tunes if tune.roll is not None and tune.left_out]
    path = Path(output_dir, SKIPPED_FILE)
    if not skipped and not changed:
        path.unlink(missing_ok=True)
        return

    def shared(text: str) -> str:  # the folder may be pushed to the Hub, so local paths are left out
        return text.replace(str(Path(args.data)), Path(args.data).resolve().name)

    content = {
        "tunes": len(tunes),
        "skipped": len(skipped),
        "reasons": {shared(tune.name): shared(tune.fault.removeprefix(tune.name).strip()) for tune in skipped},
        "notes left out": {shared(tune.name): tune.left_out for tune in changed},
    }
    atomic_write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())
    if skipped:
        logger.warning(
            f"--skip_unreadable: {len(skipped)} of {len(tunes)} tunes are left out (see {path}):\n{faults(skipped)}"
        )
    if changed:
        logger.warning(f"Some notes of {len(changed)} of {len(tunes)} tunes are left out (see {path}).")


def read_tune(name: str, read: Callable[[], tuple[np.ndarray, str | None]]) -> ReadTune:
    """What `read` returns, a roll and the notes that are left out, or the UsageError that it raises."""
    try:
        roll, left_out = read()
    except UsageError as error:
        return ReadTune(name, fault=str(error))
    if len(roll) < 2:
        why = f" (left out: {left_out})" if left_out else ""
        return ReadTune(name, fault=f"{name} holds {len(roll)} frames{why} (expected at least 2)")
    return ReadTune(name, roll, left_out=left_out)


def read_mat(path: Path, split_name: str) -> list[ReadTune]:
    """A split's tunes from a .mat file of `MAT_ARRAYS`, cell arrays of (frames, 88) matrices."""
    if split_name not in MAT_ARRAYS:
        raise UsageError(f"Split {split_name!r} of '{path}' does not exist (expected {', '.join(MAT_ARRAYS)})")
    array = MAT_ARRAYS[split_name]
    try:
        with path.open("rb") as file:
            cells = loadmat(file, variable_names=[array]).get(array)
    except Exception as error:  # the reader raises many kinds of errors for damaged files
        raise UsageError(
            f"'{path}' can't be read (expected a .mat file of MATLAB 7.2 or before with "
            f"{', '.join(MAT_ARRAYS.values())}): {error}"
        ) from error
    expected = f"expected a cell array of (frames, {NUM_KEYS}) matrices of zeros and ones"
    if cells is None:
        raise UsageError(f"'{path}' has no array {array} ({expected})")
    if cells.dtype != object and cells.size > 0:
        raise UsageError(f"{array} of '{path}' is a {cells.shape} array of {cells.dtype} ({expected})")
    names = [f"{array}[{index}] of '{path}'" for index in range(cells.size)]
    return [
        read_tune(name, lambda name=name, roll=roll: (checked_roll(roll, name), None))
        for name, roll in zip(names, cells.flat, strict=True)
    ]


def checked_roll(roll: np.ndarray, name: str) -> np.ndarray:
    """
    A (frames, 88) array of zeros and ones as uint8.

    Raises:
        UsageError: it is something else.
    """
    expected = f"expected a (frames, {NUM_KEYS}) matrix of zeros and ones"
    if not isinstance(roll, np.ndarray) or roll.ndim != 2 or roll.shape[1] != NUM_KEYS:
        raise UsageError(f"{name} has the shape {np.shape(roll)} ({expected})")
    is_valid = np.isin(roll, (0, 1))
    if not is_valid.all():
        raise UsageError(f"{name} holds {roll[~is_valid][0]} ({expected})")
    return roll.astype(np.uint8, copy=False)


def read_data_set(args: PianoRollArguments, split_name: str) -> list[ReadTune]:
    """The tunes of a split of a data set, a row each."""
    data_set = (args.data, args.dataset_config_name)
    try:
        available = datasets.get_dataset_split_names(*data_set)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{args.data!r} (--dataset_config_name {args.dataset_config_name}) can't be loaded ({EXPECTED_DATA}): "
            f"{error}"
        ) from error
    try:
        rows = datasets.load_dataset(*data_set, split=split_name)
    except datasets.exceptions.DatasetGenerationError as error:
        raise UsageError(
            f"Split {split_name!r} of {args.data!r} can't be read (expected rows of one kind): {error.__cause__}"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"Split {split_name!r} of {args.data!r} does not exist (expected {', '.join(available)}, or a part such "
            f"as {available[0]}[:10%])"
        ) from error
    if args.piano_roll_column not in rows.column_names:
        raise UsageError(
            f"--piano_roll_column {args.piano_roll_column!r} is no column of {args.data!r} (expected "
            f"{', '.join(rows.column_names)})"
        )
    names = [f"Row {index} of split {split_name!r} of {args.data!r}" for index in range(len(rows))]
    return [
        read_tune(name, lambda name=name, frames=frames: (roll_of_frames(frames, name), None))
        for name, frames in zip(names, rows[args.piano_roll_column], strict=True)
    ]


def roll_of_frames(frames: list[list[int]], name: str) -> np.ndarray:
    """
    (frames, 88) from lists. They hold zeros and ones where every frame has 88 values and no other ones, and else the
    pitches that sound. No tune is both: 0 and 1 are no pitches of a piano.
    """
    expected = f"expected frames of {NUM_KEYS} zeros and ones, or of MIDI pitches {PITCHES[0]} to {PITCHES[-1]}"
    if not isinstance(frames, list) or not all(isinstance(frame, list) for frame in frames):
        raise UsageError(f"{name} holds no list of frames ({expected})")
    if frames and all(len(frame) == NUM_KEYS and all(value in (0, 1) for value in frame) for frame in frames):
        return np.array(frames, dtype=np.uint8)
    roll = np.zeros((len(frames), NUM_KEYS), dtype=np.uint8)
    for time, frame in enumerate(frames):
        for pitch in frame:
            if pitch not in PITCHES:
                raise UsageError(f"{name} holds {pitch!r} in frame {time}, of {len(frame)} values ({expected})")
            roll[time, int(pitch) - LOWEST_PITCH] = 1
    return roll


# Reading MIDI


def is_midi_folder(data: str) -> bool:
    return Path(data).is_dir() and any(map(is_midi_file, Path(data).rglob("*")))


def is_midi_file(path: Path) -> bool:
    return path.suffix.lower() in MIDI_SUFFIXES and path.is_file()


def midi_files(folder: Path) -> list[Path]:
    return sorted(filter(is_midi_file, folder.rglob("*")))


def split_folders(args: PianoRollArguments) -> dict[str, Path]:
    """
    The sub-folders of a folder of MIDI files by what split they would be: those of `SPLIT_FOLDERS` under the names
    there unless `args` has their own.

    Raises:
        UsageError: two sub-folders are the same split.
    """
    asked = {args.train_split, args.validation_split, args.test_split}
    folders = {}
    for path in sorted(filter(Path.is_dir, Path(args.data).iterdir())):
        split = path.name if path.name in asked else SPLIT_FOLDERS.get(path.name.lower(), path.name)
        if split in folders:
            raise UsageError(
                f"--data {args.data!r}: the sub-folders {folders[split].name!r} and {path.name!r} are both of split "
                f"{split!r} (expected one)"
            )
        folders[split] = path
    return folders


def has_splits(args: PianoRollArguments, folders: dict[str, Path]) -> bool:
    """Whether sub-folders, as of [`split_folders`], are named as splits; else the folder is not split."""
    return not folders.keys().isdisjoint({*MAT_ARRAYS, args.train_split, args.validation_split, args.test_split})


def midi_splits(args: PianoRollArguments) -> dict[str, list[Path]]:
    """
    The files of the splits of a folder of MIDI files: those of its sub-folders, or, where none is named as a split,
    "all" and "train" with all files. Where there is no "validation", some files of the split to train on are held out
    for it: by their names, so that they are the same in every run.

    Raises:
        UsageError: two sub-folders are the same split.
    """
    folder, folders = Path(args.data), split_folders(args)
    splits = {split: midi_files(path) for split, path in folders.items()}
    if not has_splits(args, folders):
        files = midi_files(folder)
        splits = {"all": files, "train": files} if args.train_split == "train" else {"all": files, **splits}
    train = known_split(args.train_split, splits)
    if args.validation_split == "validation" not in splits and len(files := splits.get(train, [])) > 1:
        share = VALIDATION_FRACTION if args.validation_fraction is None else args.validation_fraction
        num_held_out = min(max(1, round(len(files) * share)), len(files) - 1)
        files = sorted(files, key=lambda file: hashlib.sha256(file.relative_to(folder).as_posix().encode()).digest())
        splits[train], splits["validation"] = sorted(files[num_held_out:]), sorted(files[:num_held_out])
    return splits


def has_held_out(folders: dict[str, Path], splits: dict[str, list[Path]]) -> bool:
    """Whether the files to validate on, of [`midi_splits`], are held out, and not those of a sub-folder."""
    return "validation" in splits.keys() - folders.keys()


def known_split(name: str, splits: dict[str, list[Path]]) -> str:
    """The name of a split among those of [`midi_splits`]: of valid, validation or dev, the one that is there."""
    split = SPLIT_FOLDERS.get(name.lower())
    others = (other for other in splits if split is not None and SPLIT_FOLDERS.get(other.lower()) == split)
    return next((known for known in (name, split) if known in splits), next(others, name))


def check_sub_folders(args: PianoRollArguments, folders: dict[str, Path], splits: dict[str, list[Path]]):
    """
    Warns of files of a folder of MIDI files that are in none of the splits to train and evaluate on.

    Args:
        folders: as of [`split_folders`].
        splits: as of [`midi_splits`].

    Raises:
        UsageError: a sub-folder looks like a split and is none, while its files would be trained on, or files to
            validate on be held out from others.
    """
    folder = Path(args.data)
    used = {known_split(name, splits) for name in (args.train_split, args.validation_split, args.test_split) if name}
    files = midi_files(folder)
    is_whole = not has_splits(args, folders)
    read = set(files) if is_whole else {file for split in used for file in splits.get(split, ())}
    unused = [file for file in files if file not in read]
    is_held_out = args.train_split == "train" and has_held_out(folders, splits)
    suspects = files if is_whole else unused if is_held_out else []
    parents = {parent for file in suspects for parent in file.relative_to(folder).parents}
    if look_alikes := sorted(
        parent.as_posix()
        for parent in parents
        if LOOK_ALIKES.intersection(re.split("[^a-z]+", parent.name.lower()))
        and str(parent).lower() not in SPLIT_FOLDERS
    ):
        raise UsageError(
            f"--data {args.data!r}: {listed(map(repr, look_alikes))} may be splits, and would not be read as such "
            "(expected sub-folders train, validation and test, or others with their names as --train_split, "
            "--validation_split and --test_split)"
        )
    if unused:
        names = sorted({file.relative_to(folder).parts[0] for file in unused})
        logger.warning(
            f"--data {args.data!r}: in no split that is used are {len(unused):,} of {len(files):,} files, those of "
            f"{listed(map(repr, names))}."
        )


def read_midi_files(args: PianoRollArguments, split_name: str) -> list[ReadTune]:
    """The tunes of one of [`midi_splits`], a file each."""
    splits = midi_splits(args)
    known = known_split(split_name, splits)
    if known not in splits:
        raise UsageError(
            f"Split {split_name!r} of {args.data!r} does not exist (expected {', '.join(splits)}). "
            "Sub-folders are the splits if one is named train, validation or test. Without validation, some of at "
            "least two files of train are held out (--validation_fraction)."
        )
    frames_per_beat = args.frames_per_beat or DEFAULT_FRAMES_PER_BEAT
    return [
        read_tune(f"'{path}'", lambda path=path: read_midi_and_rest(path, frames_per_beat)) for path in splits[known]
    ]


def read_midi(path: str | Path, frames_per_beat: int) -> np.ndarray:
    """(frames, 88) of a MIDI file, as of [`read_midi_and_rest`]."""
    return read_midi_and_rest(path, frames_per_beat)[0]


def read_midi_and_rest(path: str | Path, frames_per_beat: int) -> tuple[np.ndarray, str | None]:
    """
    (frames, 88) of a MIDI file, all its instruments together, and which notes are left out, in words.

    Frames are counted by the file's own ticks, whatever its tempo. A key is set in a frame if it sounds a quarter of
    the frame after its start, so that notes which are played up to that much late still count from their frame on. The
    percussion channel, whose notes are no pitches, is left out; so are notes outside of the piano, and those that
    never end. The last frame is the last one with a key set: a file without notes has none.

    Raises:
        UsageError: the file can't be read, or holds more than `MAX_FRAMES` frames.
    """
    try:
        ticks_per_beat, notes, num_endless = parse_midi(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise UsageError(f"'{path}' can't be read (expected a MIDI file): {why}") from error

    def first_frame_from(tick: int) -> int:
        """The first frame that is a quarter over at this time or later: (frame + 1 / 4) * ticks_per_frame >= tick."""
        return -(-(4 * frames_per_beat * tick - ticks_per_beat) // (4 * ticks_per_beat))

    pitched = [note for note in notes if note.channel != PERCUSSION_CHANNEL]
    spans = [
        (note.pitch - LOWEST_PITCH, first_frame_from(note.start), first_frame_from(note.end))
        for note in pitched
        if note.pitch in PITCHES
    ]
    num_frames = max((end for _, start, end in spans if end > start), default=0)
    if num_frames > MAX_FRAMES:
        raise UsageError(f"'{path}' holds {num_frames:,} frames (expected at most {MAX_FRAMES:,})")
    roll = np.zeros((num_frames, NUM_KEYS), dtype=np.uint8)
    for key, start, end in spans:
        roll[start:end, key] = 1
    rest = {
        f"outside of the piano (pitches {PITCHES[0]} to {PITCHES[-1]})": len(pitched) - len(spans),
        "without an end": num_endless,
        "of percussion": 0 if len(spans) else len(notes) - len(pitched),  # every other tune has some
    }
    left_out = [f"{number} note{'s' if number > 1 else ''} {what}" for what, number in rest.items() if number > 0]
    return roll, ", ".join(left_out) or None


class MidiNote(NamedTuple):
    """Times are in ticks."""

    channel: int
    pitch: int
    start: int
    end: int


def parse_midi(content: bytes) -> tuple[int, list[MidiNote], int]:
    """
    Reads the notes of a MIDI file (Standard MIDI Files 1.0), or of one in a RIFF file. Of other events no more is read
    than their size: mido, which reads all of them, gives up a file for a key signature that makes no sense.

    Returns:
        The ticks of a quarter note, the notes, and the number of notes that are begun and not ended.

    Raises:
        ValueError: it is no MIDI file, or damaged; the message says how.
    """
    content = content_of_riff(content)
    if not content.startswith(b"MThd"):
        raise ValueError(kind_of(content))
    if len(content) < 14:
        raise ValueError(f"it is cut short: its header has {len(content)} of 14 bytes")
    header_size, midi_type, num_tracks, ticks_per_beat = struct.unpack(">LHHH", content[4:14])
    if midi_type > 2:
        raise ValueError(f"its type is {midi_type}, not 0, 1 or 2")
    if not 1 <= ticks_per_beat < 2**15:  # those above are of film
        raise ValueError("its time is not counted in ticks of a quarter note")

    tracks, num_endless, position = [], 0, 8 + header_size
    while len(tracks) < num_tracks:
        kind, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "big")
        position += 8
        if position > len(content):
            raise ValueError(f"it is cut short: it has {len(tracks)} of {num_tracks} tracks")
        if kind == b"MTrk":
            try:
                notes, track_endless = notes_of_track(content[position : position + size], size)
            except IndexError:
                lacking = position + size - len(content)
                raise ValueError(
                    f"it is cut short: track {len(tracks) + 1} of {num_tracks} lacks {lacking} of {size} bytes"
                    if lacking > 0
                    else f"the last event of track {len(tracks) + 1} of {num_tracks} is cut short"
                ) from None
            tracks.append(notes)
            num_endless += track_endless
        elif not kind.isalnum():  # chunks of other kinds are to be passed over
            raise ValueError(f"it has {kind!r} in place of track {len(tracks) + 1} of {num_tracks}")
        position += size
    if midi_type == 2 and (num_sequences := sum(map(bool, tracks))) > 1:
        raise ValueError(f"it holds {num_sequences} independent sequences (type 2), which are not one tune")
    return ticks_per_beat, [note for track in tracks for note in track], num_endless


def content_of_riff(content: bytes) -> bytes:
    """The MIDI file in a RIFF file (RMID), or the content as it is."""
    if content[:4] != b"RIFF" or content[8:12] != b"RMID":
        return content
    position = 12
    while position + 8 <= len(content):
        kind, size = struct.unpack("<4sL", content[position : position + 8])
        if kind == b"data":
            return content[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    raise ValueError("it is a RIFF file (RMID) without MIDI data in it")


def kind_of(content: bytes) -> str:
    """What kind of file a non-MIDI file is, judged by its first bytes."""
    beginning = content[:1000].lstrip().lower()
    if not content:
        return "it is empty"
    if beginning.startswith((b"<!doctype html", b"<html")) or b"<html" in beginning:
        return "it is a web page (HTML)"
    if content.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return f"it is compressed ({'ZIP' if content[:1] == b'P' else 'gzip'})"
    return f"it begins with {content[:8]!r}, not with {b'MThd'!r}"


def notes_of_track(track: bytes, size: int) -> tuple[list[MidiNote], int]:
    """
    The notes in the bytes of a track, of which there should be `size`, and the number of notes that are not ended. The
    end of a note ends all notes of its channel and pitch, but for those that begin at the same time.

    Raises:
        IndexError: the bytes end before the track does, or in the middle of an event.
        ValueError: an event is none.
    """
    notes, open_notes = [], defaultdict(list)
    position = tick = 0
    status = None

    def read_number() -> int:
        """Seven bits a byte, the highest of which says whether another one follows."""
        nonlocal position
        number = 0
        while True:
            byte = track[position]
            position += 1
            number = number << 7 | byte & 0x7F
            if number >= 2**28:
                raise ValueError(f"it has a number of more than 4 bytes after tick {tick}")
            if byte < 0x80:
                return number

    while position < size:
        tick += read_number()
        message = track[position]
        if message >= 0x80:
            position += 1
        else:
            message = status  # a channel's messages of one kind share their status byte
        if message is None:
            raise ValueError(f"it has an event of unknown kind at tick {tick}")
        if message == 0xFF and track[position] == 0x2F:  # end of the track
            break
        if message in (0xF0, 0xF7, 0xFF):
            position += message == 0xFF  # the kind of a meta event
            num_data = read_number()
        elif message >= 0xF0:
            if message not in SYSTEM_DATA:
                raise ValueError(f"it has an event of unknown kind, {message:#x}, at tick {tick}")
            num_data = SYSTEM_DATA[message]
        else:
            status, num_data = message, CHANNEL_DATA[message >> 4]
        position += num_data
        if position > len(track):
            raise IndexError
        if message >> 4 not in (0x8, 0x9):
            continue
        key = message & 0xF, min(track[position - 2], 127)
        if message >> 4 == 0x9 and track[position - 1] > 0:
            open_notes[key].append(tick)
            continue
        starts = open_notes.pop(key, [])
        ended = [start for start in starts if start != tick]
        notes += [MidiNote(*key, start, tick) for start in ended]
        if ended and len(ended) < len(starts):
            open_notes[key] = [tick] * (len(starts) - len(ended))
    num_endless = sum(len(starts) for (channel, _), starts in open_notes.items() if channel != PERCUSSION_CHANNEL)
    return notes, num_endless


# Writing


def to_midi(roll: np.ndarray, frames_per_beat: int, tempo: float) -> pretty_midi.PrettyMIDI:
    """A piano playing a (frames, 88) roll at `tempo` quarter notes per minute. A held key is one note."""
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
    atomic_write(Path(path), content.getvalue())


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
        Whether FluidSynth rendered it, with the piano of pretty_midi's sound font. Where the package
        pyfluidsynth, its library or the font is missing, notes are sine waves that fade.
    """
    midi = to_midi(roll, frames_per_beat, tempo)
    if not roll.any():  # neither synthesizer accepts a tune without notes
        samples, is_fluidsynth = np.zeros(round(SAMPLE_RATE * len(roll) * 60 / (tempo * frames_per_beat))), False
    else:
        try:
            samples, is_fluidsynth = midi.fluidsynth(fs=SAMPLE_RATE), True
        except (ImportError, ValueError):  # pyfluidsynth, its library or the sound font is missing
            samples, is_fluidsynth = midi.synthesize(fs=SAMPLE_RATE), False
    content = io.BytesIO()
    wavfile.write(content, SAMPLE_RATE, np.round(samples * np.iinfo(np.int16).max).astype(np.int16))
    atomic_write(Path(path), content.getvalue())
    return is_fluidsynth
