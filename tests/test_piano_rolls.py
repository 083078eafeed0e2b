# SPDX-License-Identifier: Apache-2.0
"""Piano rolls: reading .mat files, MIDI files and data sets; writing MIDI, pictures and sound."""

import json
import logging
import shutil
import struct
from pathlib import Path

import datasets
import mido
import numpy as np
import pretty_midi
import pytest
from scipy.io import savemat, wavfile

from rtransformer_hf.training import piano_rolls
from rtransformer_hf.training.arguments import parse_arguments
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.piano_rolls import (
    PianoRollArguments,
    load_piano_rolls,
    load_split,
    read_midi,
    read_midi_and_rest,
    report_skipped,
    write_audio,
    write_midi,
    write_piano_roll_picture,
)

A4 = 69 - 21  # its key


def random_roll(num_frames: int, seed: int, density: float = 0.05) -> np.ndarray:
    """A roll whose last frame has a key set."""
    roll = (np.random.default_rng(seed).random((num_frames, 88)) < density).astype(np.uint8)
    roll[-1, seed % 88] = 1
    return roll


def save_mat(path: Path, **arrays: list) -> str:
    cells = {}
    for name, rolls in arrays.items():
        cells[name] = np.empty((1, len(rolls)), dtype=object)
        cells[name][0, :] = rolls
    savemat(path, cells)
    return str(path)


def save_midi(path: Path, messages: list[mido.Message], ticks_per_beat: int = 96) -> Path:
    midi = mido.MidiFile(ticks_per_beat=ticks_per_beat)
    midi.tracks.append(mido.MidiTrack(messages))
    midi.save(path)
    return path


def note(pitch: int, wait: int, duration: int, channel: int = 0) -> list[mido.Message]:
    """A note that begins `wait` ticks after the message before it."""
    return [
        mido.Message("note_on", note=pitch, time=wait, channel=channel),
        mido.Message("note_off", note=pitch, time=duration, channel=channel),
    ]


# Parts of MIDI files by their bytes, as mido writes no damaged ones.


def smf(*tracks: bytes, midi_type: int = 1, ticks_per_beat: int = 480, num_tracks: int | None = None) -> bytes:
    header = struct.pack(">HHH", midi_type, len(tracks) if num_tracks is None else num_tracks, ticks_per_beat)
    chunks = [(b"MThd", header), *((b"MTrk", track) for track in tracks)]
    return b"".join(kind + struct.pack(">L", len(data)) + data for kind, data in chunks)


def rmid(content: bytes) -> bytes:
    chunks = b"DISP\x03\0\0\0abc\0" + b"data" + struct.pack("<L", len(content)) + content
    return b"RIFF" + struct.pack("<L", 4 + len(chunks)) + b"RMID" + chunks


END = b"\0\xff\x2f\0"
TWO_BEATS = b"".join(b"\0\x90" + pitch + b"\x50\x83\x60\x80" + pitch + b"\0" for pitch in (b"\x3c", b"\x40"))
GOOD = smf(TWO_BEATS + END)


def assert_equal_splits(found: dict, expected: dict):
    assert list(found) == list(expected)
    for split, rolls in expected.items():
        assert len(found[split]) == len(rolls)
        for roll, expected_roll in zip(found[split], rolls, strict=True):
            assert roll.dtype == np.uint8
            np.testing.assert_array_equal(roll, expected_roll)


@pytest.fixture
def splits():
    return {
        "train": [random_roll(9, seed=1), random_roll(4, seed=2), random_roll(9, seed=3)],
        "validation": [random_roll(2, seed=4)],
        "test": [random_roll(5, seed=5)],
    }


@pytest.fixture
def mat_file(tmp_path, splits):
    arrays = {"traindata": splits["train"], "validdata": splits["validation"], "testdata": splits["test"]}
    return save_mat(tmp_path / "tunes.mat", **arrays)


@pytest.fixture
def midi_folder(tmp_path, splits):
    folder = tmp_path / "tunes"
    for split, rolls in splits.items():
        for index, roll in enumerate(rolls):
            suffix = "mid" if index != 1 else "MIDI"
            write_midi(folder / split / f"{index}" / f"tune.{suffix}", roll, frames_per_beat=2, tempo=100)
        (folder / split / "notes.txt").write_text("not a tune")
    return str(folder)


# Reading


def test_mat_file(mat_file, splits):
    assert_equal_splits(load_piano_rolls(PianoRollArguments(data=mat_file)), splits)


def test_midi_folder(midi_folder, splits):
    assert_equal_splits(load_piano_rolls(PianoRollArguments(data=midi_folder)), splits)


@pytest.mark.parametrize("kind", ["zeros and ones", "pitches", "floats", "booleans"])
def test_data_set(tmp_path, splits, kind):
    for split, rolls in splits.items():
        column = {
            "zeros and ones": [roll.tolist() for roll in rolls],
            "floats": [roll.astype(float).tolist() for roll in rolls],
            "booleans": [roll.astype(bool).tolist() for roll in rolls],
            "pitches": [[(np.flatnonzero(frame) + 21).tolist() for frame in roll] for roll in rolls],
        }[kind]
        datasets.Dataset.from_dict({"name": ["a"] * len(rolls), "keys": column}).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    args = PianoRollArguments(data=str(tmp_path), piano_roll_column="keys", train_split="train[:2]")
    assert_equal_splits(load_piano_rolls(args), splits | {"train": splits["train"][:2]})


def test_all_keys_at_once_are_not_zeros_and_ones(tmp_path):
    """A frame of 88 pitches has as many values as one of zeros and ones."""
    (tmp_path / "train.json").write_text(f'{{"piano_roll": [{list(range(21, 109))}, []]}}')
    (roll,) = load_split(PianoRollArguments(data=str(tmp_path)), "train")
    assert roll.tolist() == [[1] * 88, [0] * 88]


def test_splits_that_are_asked_for(mat_file, midi_folder, splits):
    args = PianoRollArguments(data=mat_file, train_split="test", test_split="")
    assert args.test_split is None
    assert_equal_splits(load_piano_rolls(args), {"train": splits["test"], "validation": splits["validation"]})
    args = PianoRollArguments(data=midi_folder)
    assert_equal_splits({"validation": load_split(args, "validation")}, {"validation": splits["validation"]})


def test_arguments_from_the_command_line(capsys):
    (args,) = parse_arguments([PianoRollArguments], ["--data", "tunes.mat", "--frames_per_beat", "4"], "")
    assert args == PianoRollArguments(data="tunes.mat", frames_per_beat=4)
    (args,) = parse_arguments([PianoRollArguments], ["--dataset_name", "tunes"], "")  # as the other tasks call it
    assert args == PianoRollArguments(data="tunes")
    for frames in ("0", "97"):
        with pytest.raises(SystemExit):
            parse_arguments([PianoRollArguments], ["--data", "tunes.mat", "--frames_per_beat", frames], "")
        expected = f"--frames_per_beat: {frames} (expected an integer of at least 1 and at most 96)"
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("frames_per_beat", "expected"), [(1, [1, 1, 0, 1]), (2, [1, 1, 1, 0, 0, 0, 1, 1])])
def test_midi_frames_are_counted_in_beats(tmp_path, frames_per_beat, expected):
    """Whatever the tempo, which changes in the middle of the first note."""
    tempo = [mido.MetaMessage("set_tempo", tempo=300_000), mido.MetaMessage("set_tempo", tempo=700_000, time=31)]
    on, off = note(69, 0, 144)
    off.time -= 31
    roll = read_midi(
        save_midi(tmp_path / "tune.mid", [tempo[0], on, tempo[1], off, *note(69, 144, 96)]), frames_per_beat
    )
    assert roll.shape == (len(expected), 88) and roll[:, A4].tolist() == expected
    assert roll.sum() == sum(expected)


@pytest.mark.parametrize(
    ("start", "end", "expected"),  # in ticks, of which a frame has 48
    [
        (48, 96, [0, 1]),
        (60, 108, [0, 1]),  # up to a quarter of a frame late
        (61, 144, [0, 0, 1]),
        (40, 90, [0, 1]),  # early
        (48, 72, [0, 1]),  # a short note on the beat
        (72, 96, []),  # one between two beats
    ],
)
def test_a_note_counts_from_the_frame_that_it_begins_with(tmp_path, start, end, expected):
    roll = read_midi(save_midi(tmp_path / "tune.mid", note(69, start, end - start)), frames_per_beat=2)
    assert roll[:, A4].tolist() == expected


def test_instruments_sound_together_without_percussion(tmp_path):
    midi = mido.MidiFile(ticks_per_beat=48)
    for channel, pitch in ((0, 21), (3, 108), (9, 40)):
        midi.tracks.append(mido.MidiTrack(note(pitch, 0, 96, channel)))
    midi.tracks.append(mido.MidiTrack(note(2, 0, 960, channel=9)))  # no pitch, so none that a piano does not have
    midi.save(tmp_path / "tune.mid")
    roll = read_midi(tmp_path / "tune.mid", frames_per_beat=1)
    assert [np.flatnonzero(frame).tolist() for frame in roll] == [[0, 87], [0, 87]]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": None}, ["--data None", ".mat file"]),
        ({"train_split": ""}, ["--train_split ''", "name of a split"]),
        ({"validation_split": ""}, ["--validation_split ''", "name of a split"]),
    ],
)
def test_bad_arguments(changes, named):
    with pytest.raises(UsageError) as raised:
        PianoRollArguments(**({"data": "tunes.mat"} | changes))
    assert all(part in str(raised.value) for part in named)


def assert_refused(data: str | Path, named: list[str], split_name: str = "train", **arguments):
    """The message names the data, and all of `named`."""
    with pytest.raises(UsageError) as raised:
        load_split(PianoRollArguments(data=str(data), **arguments), split_name)
    missing = [part for part in [str(data), "expected", *named] if part not in str(raised.value)]
    assert not missing, str(raised.value)


def test_data_that_does_not_exist(tmp_path):
    assert_refused(tmp_path / "missing.mat", ["can't be read", "No such file"])
    assert_refused(tmp_path / "missing", ["can't be loaded", "folder of MIDI files"])


def test_files_of_another_kind(tmp_path):
    for name in ("tune.mid", "tunes.csv"):
        (tmp_path / name).write_text("a")
        assert_refused(tmp_path / name, ["another kind", ".mat file", "folder of MIDI files"])


@pytest.mark.parametrize("content", [b"", b"a", b"not a mat file at all" * 20])
def test_unreadable_mat_files(tmp_path, content):
    (tmp_path / "tunes.mat").write_bytes(content)
    assert_refused(tmp_path / "tunes.mat", ["can't be read", "traindata, validdata, testdata"])


def test_a_mat_file_that_is_cut_short(mat_file):
    Path(mat_file).write_bytes(Path(mat_file).read_bytes()[:300])
    assert_refused(mat_file, ["can't be read"])


def test_mat_files_of_something_else(tmp_path):
    path = tmp_path / "tunes.mat"
    good = random_roll(4, seed=0)
    for roll, named in (
        (good[:1], ["traindata[1]", "1 frames", "at least 2"]),
        (good[:, :87], ["traindata[1]", "(4, 87)"]),
        (good[0:0], ["traindata[1]", "0 frames"]),
        (np.zeros((4, 88, 2)), ["traindata[1]", "(4, 88, 2)"]),
        (good * 2, ["traindata[1]", "holds 2"]),
        (np.full((4, 88), np.nan), ["traindata[1]", "holds nan"]),
        (np.full((4, 88), 0.5), ["traindata[1]", "holds 0.5"]),
    ):
        save_mat(path, traindata=[good, roll])
        assert_refused(path, named)
    save_mat(path, traindata=[])
    assert_refused(path, ["'train'", "holds no tune"])
    savemat(path, {"traindata": good})
    assert_refused(path, ["traindata", "(4, 88) array of uint8", "cell array"])


def test_splits_that_do_not_exist(tmp_path, mat_file, midi_folder):
    assert_refused(mat_file, ["'valid'", "train, validation, test"], split_name="valid")
    assert_refused(midi_folder, ["'held_out'", "test, train, validation"], split_name="held_out")
    save_mat(tmp_path / "part.mat", traindata=[random_roll(4, seed=0)])
    assert_refused(tmp_path / "part.mat", ["testdata", "cell array"], split_name="test")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train.json").write_text('{"piano_roll": [[60], [62]]}')
    assert_refused(tmp_path / "data", ["'test'", "expected train"], split_name="test")


def test_a_midi_sub_folder_without_midi(midi_folder):
    (Path(midi_folder) / "empty").mkdir()
    assert_refused(midi_folder, ["'empty'", "holds no tune"], split_name="empty")


def test_midi_files_that_are_no_tunes(tmp_path):
    path = tmp_path / "train" / "tune.mid"
    path.parent.mkdir()
    good = save_midi(tmp_path / "good.mid", note(60, 0, 960)).read_bytes()
    with_smpte_time = good[:12] + b"\xe7\x28" + good[14:]
    for content in (b"", b"not a MIDI file", good[:30], with_smpte_time):
        path.write_bytes(content)
        assert_refused(tmp_path, [str(path), "can't be read", "(expected a MIDI file)"])
    for pitch in (20, 109):
        save_midi(path, note(pitch, 192, 96))
        assert_refused(tmp_path, [str(path), "holds 0 frames", "1 note outside of the piano (pitches 21 to 108)"])
    save_midi(path, note(60, 5_000_000, 96), ticks_per_beat=4)
    assert_refused(tmp_path, [str(path), "2,500,048 frames", "at most 1,000,000"])
    for messages in ([], note(60, 0, 48), note(40, 0, 960, channel=9)):
        save_midi(path, messages)
        assert_refused(tmp_path, [str(path), "frames", "at least 2"])


def test_notes_are_paired_as_pretty_midi_pairs_them(tmp_path):
    """Notes that overlap, that end at their start, or that end and begin at once, on several channels and tracks."""
    random = np.random.RandomState(0)
    kinds = ["note_on", "note_on", "note_off", "note_off", "program_change", "pitchwheel"]
    for _ in range(12):
        midi = mido.MidiFile(ticks_per_beat=int(random.choice([7, 24, 480])))
        for _ in range(3):
            messages = [mido.MetaMessage("set_tempo", tempo=int(random.randint(20_000, 900_000)))]
            for kind in random.choice(kinds, 80):
                message = mido.Message(
                    str(kind), time=int(random.choice([0, 0, 1, 90])), channel=int(random.choice([1, 9]))
                )
                if kind.startswith("note"):
                    message.note, message.velocity = int(random.randint(60, 64)), int(random.choice([0, 90]))
                messages.append(message)
            midi.tracks.append(mido.MidiTrack(messages))
        midi.save(tmp_path / "tune.mid")
        expected = pretty_midi.PrettyMIDI(str(tmp_path / "tune.mid"))
        notes = [
            (note.pitch, expected.time_to_tick(note.start), expected.time_to_tick(note.end))
            for instrument in expected.instruments
            for note in instrument.notes
            if not instrument.is_drum
        ]
        _, found, _ = piano_rolls.parse_midi((tmp_path / "tune.mid").read_bytes())
        assert sorted((note.pitch, note.start, note.end) for note in found if note.channel != 9) == sorted(notes)
        assert len(notes) > 10


@pytest.mark.parametrize(
    ("content", "left_out"),
    [
        (GOOD, None),
        (smf(b"\0\xff\x59\x02\xee\0" + TWO_BEATS + END), None),  # a key signature of 18 flats
        (smf(b"\0\xff\x58\x04\0\x02\x18\x08" + TWO_BEATS + END), None),  # a time signature of 0 / 4
        (smf(b"\0\xff\x58\x01\x04\0\xff\x51\0\0\xff\x54\x01\xff" + TWO_BEATS + END), None),  # too short ones
        (smf(b"\0\xff\x51\x03\0\0\0" + TWO_BEATS + END), None),  # a tempo of 0
        (smf(b"\0\xf0\x03\x01\x02\xf7\0\xf7\x01\x05\0\xc0\x05\0\xf8" + TWO_BEATS + END), None),
        (smf(b"\0\x90\x3c\xc8\x83\x60\x3c\0\0\x40\x50\x83\x60\x40\0" + END), None),  # a velocity of 200
        (smf(TWO_BEATS), None),  # no end of the track
        (smf(TWO_BEATS + END + b"\0\x90\x50"), None),  # something after it
        (GOOD + b"anything", None),
        (GOOD[:14] + b"XTRA\0\0\0\x02ab" + GOOD[14:], None),  # a chunk of another kind
        (smf(TWO_BEATS + END, midi_type=0), None),
        (smf(END, TWO_BEATS + END, midi_type=2), None),  # one sequence
        (rmid(GOOD), None),
        (
            smf(b"\0\x90\x14\x50\0\x7f\x50\x83\x60\x14\0\0\x7f\0" + END, TWO_BEATS + END),
            "2 notes outside of the piano",
        ),
        (smf(b"\0\x90\x30\x50" + TWO_BEATS + END), "1 note without an end"),
        (smf(b"\0\x99\x30\x50" + TWO_BEATS + END), None),  # of percussion
    ],
    ids=lambda value: len(value) if isinstance(value, bytes) else None,
)
def test_odd_midi_files_are_read(tmp_path, content, left_out):
    (tmp_path / "tune.kar").write_bytes(content)
    roll, rest = read_midi_and_rest(tmp_path / "tune.kar", frames_per_beat=1)
    assert [np.flatnonzero(frame).tolist() for frame in roll] == [[60 - 21], [64 - 21]]
    assert rest is None if left_out is None else left_out in rest


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html><body>404 Not found</body></html>", "it is a web page"),
        (b"PK\x03\x04" + GOOD, "it is compressed (ZIP)"),
        (b"\x1f\x8b" + GOOD, "it is compressed (gzip)"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "it begins with b'RIFF$"),
        (rmid(GOOD)[:30], "it is a RIFF file (RMID) without MIDI data"),
        (GOOD[:11], "it is cut short: its header has 11 of 14 bytes"),
        (GOOD[:14], "it is cut short: it has 0 of 1 tracks"),
        (GOOD[:-9], "it is cut short: track 1 of 1 lacks 9 of 22 bytes"),
        (smf(TWO_BEATS + END, num_tracks=2), "it is cut short: it has 1 of 2 tracks"),
        (smf(TWO_BEATS[:-1]), "the last event of track 1 of 1 is cut short"),
        (smf(b"\0\xff\x01\x7fabc"), "the last event of track 1 of 1 is cut short"),
        (smf(b"\0\x3c\x40"), "an event of unknown kind at tick 0"),
        (smf(b"\x05\xf4"), "an event of unknown kind, 0xf4, at tick 5"),
        (smf(b"\xff" * 9), "a number of more than 4 bytes"),
        (GOOD[:14] + b"\0" + GOOD[14:], "it has b'\\x00MTr' in place of track 1 of 1"),
        (smf(TWO_BEATS + END, ticks_per_beat=0), "not counted in ticks of a quarter note"),
        (smf(TWO_BEATS + END, ticks_per_beat=0xE728), "not counted in ticks of a quarter note"),
        (smf(TWO_BEATS + END, midi_type=5), "its type is 5, not 0, 1 or 2"),
        (smf(TWO_BEATS + END, TWO_BEATS + END, midi_type=2), "it holds 2 independent sequences (type 2)"),
    ],
    ids=lambda value: len(value) if isinstance(value, bytes) else None,
)
def test_what_is_wrong_with_a_midi_file(tmp_path, content, fault):
    path = tmp_path / "tune.mid"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_midi(path, frames_per_beat=1)
    assert f"'{path}' can't be read (expected a MIDI file): " in str(raised.value) and fault in str(raised.value)


def bad_tunes(tmp_path: Path, kind: str, splits: dict) -> tuple[str, list[str], list[str]]:
    """Data of which three tunes can't be used, those of train and of validation; and their names, and the faults."""
    good = splits["train"]
    if kind == "mat":
        data = save_mat(
            tmp_path / "x.mat", traindata=[good[0] * 2, good[1], good[2] / 2], validdata=[good[0], good[0][:1]]
        )
        return data, ["traindata[0]", "traindata[2]", "validdata[1]"], ["holds 2", "holds 0.5", "holds 1 frames"]
    if kind == "data set":
        rows = {"train": [[[60], [20]], [[60], [62]], None], "validation": [[[60], [62]], [[60]]]}
        for split, tunes in rows.items():
            datasets.Dataset.from_dict({"piano_roll": tunes}).to_parquet(tmp_path / f"{split}.parquet")
        return str(tmp_path), ["Row 0", "Row 2", "Row 1"], ["holds 20", "no list of frames", "holds 1 frames"]
    files = {"train/a.mid": b"", "train/b.rmi": rmid(GOOD), "train/c.kar": smf(END)}
    files |= {"validation/d.midi": GOOD, "validation/e.mid": GOOD[:-9]}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return (
        str(tmp_path),
        ["train/a.mid", "train/c.kar", "validation/e.mid"],
        ["is empty", "holds 0 frames", "cut short"],
    )


@pytest.mark.parametrize("kind", ["MIDI", "mat", "data set"])
def test_all_bad_tunes_are_named_at_once(tmp_path, splits, kind, caplog):
    data, names, named_faults = bad_tunes(tmp_path, kind, splits)
    with pytest.raises(UsageError) as raised:
        load_piano_rolls(PianoRollArguments(data=data, test_split=""))
    first, *lines = str(raised.value).splitlines()
    assert first == f"3 of 5 tunes of {data!r} can't be used; --skip_unreadable goes on without them:"
    for line, name, fault in zip(lines, names, named_faults, strict=True):
        assert name in line and fault in line

    args, tunes = PianoRollArguments(data=data, test_split="", skip_unreadable=True), []
    rolls = load_piano_rolls(args, tunes)
    assert {split: len(split_rolls) for split, split_rolls in rolls.items()} == {"train": 1, "validation": 1}
    with caplog.at_level(logging.WARNING):
        report_skipped(args, tunes, str(tmp_path / "out"))
    assert "3 of 5 tunes are left out" in caplog.text and all(name in caplog.text for name in names)
    report = json.loads((tmp_path / "out" / "skipped_tunes.json").read_text())
    assert (report["tunes"], report["skipped"]) == (5, 3)
    for (found, reason), name, fault in zip(report["reasons"].items(), names, named_faults, strict=True):
        assert name in found and fault in reason
        assert str(tmp_path) not in found + reason  # the folder may be pushed to the Hub


def test_notes_that_are_left_out_are_reported(tmp_path, caplog):
    (tmp_path / "odd.mid").write_bytes(smf(b"\0\x90\x30\x50" + TWO_BEATS + END))
    (tmp_path / "good.mid").write_bytes(GOOD)
    args, tunes, path = PianoRollArguments(data=str(tmp_path)), [], tmp_path / "out" / "skipped_tunes.json"
    load_piano_rolls(args, tunes)
    report_skipped(args, tunes, str(tmp_path / "out"))
    assert "Some notes of 1 of 2 tunes are left out" in caplog.text
    report = json.loads(path.read_text())
    assert report["skipped"] == 0 and list(report["notes left out"].values()) == ["1 note without an end"]
    report_skipped(args, [tune for tune in tunes if not tune.left_out], str(tmp_path / "out"))
    assert not path.exists()


def test_a_split_without_a_usable_tune(tmp_path):
    for name, content in (("train/a.mid", GOOD), ("validation/b.mid", b"")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"Split 'validation' of .* holds no tune"):
        load_piano_rolls(PianoRollArguments(data=str(tmp_path), test_split="", skip_unreadable=True))


@pytest.mark.parametrize("folder_of", [lambda index: "", lambda index: f"composer{index % 3}"])
def test_a_folder_that_is_not_split(tmp_path, folder_of):
    """Some files are held out to validate on, by their names."""
    for index in range(20):
        write_midi(tmp_path / folder_of(index) / f"{index}.mid", random_roll(3 + index, seed=index), 2, 120)
    lengths = {}
    for fraction in (0.1, 0.1, 0.3):
        rolls = load_piano_rolls(PianoRollArguments(data=str(tmp_path), validation_fraction=fraction))
        assert list(rolls) == ["train", "validation"] and len(rolls["validation"]) == round(20 * fraction)
        found = {split: {len(roll) for roll in split_rolls} for split, split_rolls in rolls.items()}
        assert found["train"] | found["validation"] == set(range(3, 23)) and not found["train"] & found["validation"]
        assert lengths.setdefault(fraction, found) == found
    assert lengths[0.1]["validation"] < lengths[0.3]["validation"]
    args = PianoRollArguments(data=str(tmp_path))
    for split in ("train", "validation"):
        assert {len(roll) for roll in load_split(args, split)} == lengths[0.1][split]
    assert len(load_split(args, "all")) == 20
    assert_refused(tmp_path, ["'test'", "all, train, validation"], split_name="test")


def test_a_sub_folder_named_all(midi_folder, splits, caplog):
    """It is one like any other, and the splits beside it are read."""
    Path(midi_folder, "train").rename(Path(midi_folder, "all"))
    args = PianoRollArguments(data=midi_folder, train_split="all")
    assert_equal_splits(load_piano_rolls(args), splits)
    assert len(load_split(args, "all")) == 3
    assert not caplog.text
    shutil.copytree(Path(midi_folder, "all"), Path(midi_folder, "train"))
    assert_equal_splits(load_piano_rolls(PianoRollArguments(data=midi_folder)), splits)
    assert "in no split that is used are 3 of 8 files, those of 'all'" in caplog.text


def test_a_share_to_hold_out_where_nothing_is(midi_folder):
    for data in (midi_folder, "some.mat"):
        args = PianoRollArguments(data=data, validation_fraction=0.2)
        with pytest.raises(UsageError, match=r"--validation_fraction: 0\.2: nothing is held out of --data"):
            load_piano_rolls(args)


def test_held_out_from_the_sub_folder_to_train_on(midi_folder, splits):
    shutil.rmtree(Path(midi_folder) / "validation")
    rolls = load_piano_rolls(PianoRollArguments(data=midi_folder))
    assert {split: len(split_rolls) for split, split_rolls in rolls.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }


@pytest.mark.parametrize("name", ["valid", "Validation", "VAL", "dev"])
def test_sub_folders_by_other_names(midi_folder, splits, name):
    for split, renamed in (("train", "Train"), ("validation", name), ("test", "TEST")):
        Path(midi_folder, split).rename(Path(midi_folder, renamed))
    assert_equal_splits(load_piano_rolls(PianoRollArguments(data=midi_folder)), splits)
    args = PianoRollArguments(data=midi_folder, train_split="Train", validation_split=name, test_split="TEST")
    assert_equal_splits(load_piano_rolls(args), splits)
    assert len(load_split(args, "train")) == 3 and len(load_split(args, "valid")) == 1
    shutil.copytree(Path(midi_folder, name), Path(midi_folder, "vaL"))
    with pytest.raises(UsageError, match=f"'(vaL|{name})' and '(vaL|{name})' are both of split 'validation'"):
        load_piano_rolls(PianoRollArguments(data=midi_folder))


@pytest.mark.parametrize(
    ("folders", "arguments", "refused", "unused"),
    [
        ({"training": "train", "test-set": "test"}, {}, ["test-set", "training"], []),
        ({"a/train": "train", "a/test": "test"}, {}, ["a/test", "a/train"], []),
        ({"train": "train", "test": "test", "eval": "validation"}, {}, ["eval"], []),
        ({"train": "train", "test": "test", "jazz": "validation"}, {}, [], ["jazz"]),
        ({"train": "train", "validation": "validation", "test": "test"}, {"test_split": ""}, [], ["test"]),
        ({"classical": "train", "jazz": "test"}, {"train_split": "classical", "test_split": ""}, [], ["jazz"]),
        ({"classical": "train", "jazz": "test"}, {}, [], []),
        (
            {"training": "train", "eval": "validation"},
            {"train_split": "training", "validation_split": "eval", "test_split": ""},
            [],
            [],
        ),
    ],
)
def test_sub_folders_that_are_no_splits(tmp_path, midi_folder, caplog, folders, arguments, refused, unused):
    for name, split in folders.items():
        shutil.copytree(Path(midi_folder, split), tmp_path / "own" / name)
    args = PianoRollArguments(data=str(tmp_path / "own"), **arguments)
    if refused:
        with pytest.raises(UsageError, match=f"{', '.join(map(repr, refused))} may be splits"):
            load_piano_rolls(args)
    else:
        load_piano_rolls(args)
        assert ("in no split that is used" in caplog.text) == bool(unused)
        assert all(f"those of '{name}'" in caplog.text for name in unused)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ('{"piano_roll": [[60], [20]]}', ["Row 0", "holds 20 in frame 1"]),
        ('{"piano_roll": [[60], [61.5]]}', ["Row 0", "holds 61.5 in frame 1"]),
        ('{"piano_roll": [[60], [null]]}', ["Row 0", "holds None in frame 1"]),
        (f'{{"piano_roll": [{[0] * 88}, {[0] * 87}]}}', ["Row 0", "holds 0 in frame 0", "88 zeros and ones"]),
        (f'{{"piano_roll": [{[0] * 88}, {[2] * 88}]}}', ["Row 0"]),
        ('{"piano_roll": [[60], null]}', ["Row 0", "no list of frames"]),
        ('{"piano_roll": [60, 62]}', ["Row 0", "no list of frames"]),
        ('{"piano_roll": "c d e"}', ["Row 0", "no list of frames"]),
        ('{"piano_roll": [[60], [62]]}\n{"piano_roll": null}', ["Row 1", "no list of frames"]),
        ('{"piano_roll": [[[60]], [[62]]]}', ["Row 0", "holds [60] in frame 0"]),
        ('{"piano_roll": [[60]]}', ["Row 0", "1 frames", "at least 2"]),
        ('{"keys": [[60], [62]]}', ["--piano_roll_column 'piano_roll'", "keys"]),
        ('{"piano_roll": [[60', ["'train'"]),
    ],
)
def test_data_sets_of_something_else(tmp_path, rows, named):
    (tmp_path / "train.json").write_text(rows)
    assert_refused(tmp_path, named)


# Writing


@pytest.mark.parametrize(
    ("frames_per_beat", "tempo"), [(1, 120), (2, 120), (2, 4), (3, 97.3), (4, 1000), (7, 61.7), (96, 33.3)]
)
@pytest.mark.parametrize("density", [0, 0.03, 0.5, 1])
def test_midi_files_are_read_back(tmp_path, frames_per_beat, tempo, density):
    roll = random_roll(150, seed=frames_per_beat, density=density)
    silent_end = np.zeros((3, 88), dtype=np.uint8)
    write_midi(tmp_path / "new" / "tune.mid", np.concatenate([roll, silent_end]), frames_per_beat, tempo)
    np.testing.assert_array_equal(read_midi(tmp_path / "new" / "tune.mid", frames_per_beat), roll)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tune.mid"]


def test_a_key_held_is_one_note(tmp_path):
    roll = np.zeros((8, 88), dtype=np.uint8)
    roll[1:5, A4] = roll[6, A4] = roll[4:, 0] = 1
    write_midi(tmp_path / "tune.mid", roll, frames_per_beat=2, tempo=60)
    midi = pretty_midi.PrettyMIDI(str(tmp_path / "tune.mid"))
    notes = sorted((note.pitch, note.start, note.end) for note in midi.instruments[0].notes)
    np.testing.assert_allclose(notes, [(21, 2, 4), (69, 0.5, 2.5), (69, 3, 3.5)], rtol=1e-5)
    np.testing.assert_allclose(midi.get_tempo_changes()[1], [60], rtol=1e-5)


def test_a_silent_tune(tmp_path):
    roll = np.zeros((4, 88), dtype=np.uint8)
    write_midi(tmp_path / "tune.mid", roll, frames_per_beat=2, tempo=120)
    assert read_midi(tmp_path / "tune.mid", frames_per_beat=2).shape == (0, 88)
    write_piano_roll_picture(tmp_path / "tune.png", roll, prompt_frames=0)
    assert not write_audio(tmp_path / "tune.wav", roll, frames_per_beat=2, tempo=120)
    rate, samples = wavfile.read(tmp_path / "tune.wav")
    assert len(samples) == rate and not samples.any()


def test_the_picture_names_pitches_and_shades_the_prompt(tmp_path, monkeypatch):
    drawn = []

    def write_figure(path, figure, dpi):
        drawn.append(figure.axes[0])
        piano_write_figure(path, figure, dpi)

    piano_write_figure = piano_rolls.write_figure
    monkeypatch.setattr(piano_rolls, "write_figure", write_figure)
    roll = np.zeros((40, 88), dtype=np.uint8)
    roll[:, A4 - 12] = roll[::2, A4] = 1  # A3 and A4
    write_piano_roll_picture(tmp_path / "tune.png", roll, prompt_frames=10)
    write_piano_roll_picture(tmp_path / "whole.png", np.ones_like(roll), prompt_frames=0)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("tune.png", "whole.png"))

    with_prompt, without_prompt = drawn
    assert (with_prompt.get_xlabel(), with_prompt.get_ylabel()) == ("time (frames)", "pitch")
    assert [label.get_text() for label in with_prompt.get_yticklabels()] == ["C3", "C4", "C5"]
    assert [label.get_text() for label in without_prompt.get_yticklabels()] == [f"C{octave}" for octave in range(1, 9)]
    (shade,) = with_prompt.patches
    assert shade.get_label() == "prompt" and (shade.get_x(), shade.get_width()) == (-0.5, 10)
    assert not without_prompt.patches


def test_sine_waves_where_fluidsynth_is_missing(tmp_path, monkeypatch):
    def fluidsynth(self, fs):
        raise ImportError("fluidsynth() was called but pyfluidsynth is not installed.")

    monkeypatch.setattr(pretty_midi.PrettyMIDI, "fluidsynth", fluidsynth)
    roll = np.zeros((4, 88), dtype=np.uint8)
    roll[:2, A4] = roll[2:, A4 + 12] = 1
    assert write_audio(tmp_path / "tune.wav", roll, frames_per_beat=2, tempo=60) is False
    rate, samples = wavfile.read(tmp_path / "tune.wav")
    assert samples.dtype == np.int16 and samples.ndim == 1 and 0.9 < np.abs(samples / 2**15).max() <= 1
    for second, hertz in ((0, 440), (1, 880)):
        spectrum = np.abs(np.fft.rfft(samples[second * rate : (second + 1) * rate].astype(float)))
        assert abs(spectrum.argmax() - hertz) <= 1


def test_fluidsynth_where_it_is_there(tmp_path, monkeypatch):
    wave = np.sin(np.arange(1000))
    monkeypatch.setattr(pretty_midi.PrettyMIDI, "fluidsynth", lambda self, fs: wave)
    assert write_audio(tmp_path / "tune.wav", random_roll(4, seed=0), frames_per_beat=2, tempo=120) is True
    rate, samples = wavfile.read(tmp_path / "tune.wav")
    assert rate == 44100
    np.testing.assert_allclose(samples / 32767, wave, atol=1e-4)
