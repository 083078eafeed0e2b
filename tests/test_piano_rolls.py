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
"""Piano rolls: reading .mat files, MIDI files and data sets; writing MIDI, pictures and sound."""

import sys
from pathlib import Path

import datasets
import mido
import numpy as np
import pretty_midi
import pytest
from scipy.io import savemat, wavfile

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import piano_rolls
from piano_rolls import (
    PianoRollArguments,
    load_piano_rolls,
    load_split,
    read_midi,
    write_audio,
    write_midi,
    write_piano_roll_picture,
)
from script_arguments import InputError, parse_arguments

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
    with pytest.raises(SystemExit):
        parse_arguments([PianoRollArguments], ["--data", "tunes.mat", "--frames_per_beat", "0"], "")
    assert "--frames_per_beat 0 must be at least 1" in capsys.readouterr().err


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
        ({"frames_per_beat": 0}, ["--frames_per_beat 0", "at least 1"]),
        ({"frames_per_beat": 97}, ["--frames_per_beat 97", "at most 96"]),
    ],
)
def test_bad_arguments(changes, named):
    with pytest.raises(InputError) as raised:
        PianoRollArguments(**({"data": "tunes.mat"} | changes))
    assert all(part in str(raised.value) for part in named)


def assert_refused(data: str | Path, named: list[str], split_name: str = "train", **arguments):
    """The message names the data, and all of `named`."""
    with pytest.raises(InputError) as raised:
        load_split(PianoRollArguments(data=str(data), **arguments), split_name)
    missing = [part for part in [str(data), "accepted", *named] if part not in str(raised.value)]
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
    assert_refused(midi_folder, ["'valid'", "test, train, validation"], split_name="valid")
    save_mat(tmp_path / "part.mat", traindata=[random_roll(4, seed=0)])
    assert_refused(tmp_path / "part.mat", ["testdata", "cell array"], split_name="test")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train.json").write_text('{"piano_roll": [[60], [62]]}')
    assert_refused(tmp_path / "data", ["'test'", "accepted: train"], split_name="test")


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
        assert_refused(tmp_path, [str(path), "can't be read", "a MIDI file is accepted"])
    for pitch in (20, 109):
        save_midi(path, note(pitch, 192, 96))
        assert_refused(tmp_path, [str(path), f"pitch {pitch} at 1.00 s", "21 to 108"])
    save_midi(path, note(60, 5_000_000, 96), ticks_per_beat=4)
    assert_refused(tmp_path, [str(path), "2,500,048 frames", "at most 1,000,000"])
    for messages in ([], note(60, 0, 48), note(40, 0, 960, channel=9)):
        save_midi(path, messages)
        assert_refused(tmp_path, [str(path), "frames", "at least 2"])


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
