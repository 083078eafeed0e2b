# SPDX-License-Identifier: Apache-2.0
"""The script that writes tunes with a checkpoint."""

import json
from pathlib import Path

import generate_music
import numpy as np
import pretty_midi
import pytest
from scipy.io import savemat, wavfile

from rtransformer_hf import RTransformerForCausalLM, RTransformerForPolyphonicMusic
from rtransformer_hf.training import piano_rolls
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import EVALUATION_FILE, trained_frames_per_beat
from rtransformer_hf.training.piano_rolls import read_midi, to_midi, write_midi

NUM_FRAMES = 6


@pytest.fixture
def checkpoint(tmp_path, tiny_config):
    RTransformerForPolyphonicMusic(tiny_config(input_size=88)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def generate(checkpoint, tmp_path):
    """Runs the script and returns the tune that it wrote. An untrained model leaves no frame without a key."""

    def run(*flags: str, frames_per_beat: int = 2, checkpoint: str = checkpoint) -> np.ndarray:
        output = str(tmp_path / "new" / "tune.v1")
        generate_music.main([checkpoint, "--num_frames", str(NUM_FRAMES), "--output", output, "--no_audio", *flags])
        return read_midi(f"{output}.mid", frames_per_beat)

    return run


@pytest.fixture
def prompt():
    return np.eye(9, 88, k=40, dtype=np.uint8)


@pytest.fixture
def prompt_file(tmp_path, prompt):
    write_midi(tmp_path / "prompt.mid", prompt, frames_per_beat=2, tempo=90)
    return str(tmp_path / "prompt.mid")


@pytest.fixture
def prompt_data(tmp_path, prompt):
    cells = np.empty((1, 3), dtype=object)
    cells[0, :] = [prompt[:4], prompt, prompt[:2]]
    savemat(tmp_path / "tunes.mat", {"testdata": cells[:, :1], "validdata": cells})
    return str(tmp_path / "tunes.mat")


def test_a_new_tune_is_written_in_three_forms(checkpoint, tmp_path, capsys):
    output = tmp_path / "new" / "folder" / "tune.v1"
    flags = ["--output", f"{output}.mid", "--tempo", "240"]
    generate_music.main([checkpoint, "--num_frames", str(NUM_FRAMES), *flags])
    printed = capsys.readouterr()
    paths = [f"{output}.mid", f"{output}.png", f"{output}.wav"]
    assert [line.split(" (")[0] for line in printed.out.splitlines()] == paths
    assert sorted(map(str, output.parent.iterdir())) == paths
    assert f"{NUM_FRAMES}/{NUM_FRAMES}" in printed.err  # the progress bar's end
    assert len(read_midi(paths[0], frames_per_beat=2)) == NUM_FRAMES  # without the silent frame that starts it
    rate, samples = wavfile.read(paths[2])
    assert NUM_FRAMES / 8 < len(samples) / rate < NUM_FRAMES / 8 + 3  # in seconds; notes fade


def test_without_audio(generate, tmp_path, capsys):
    generate()
    assert [Path(line).suffix for line in capsys.readouterr().out.split()] == [".mid", ".png"]
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".mid", ".png"]


def test_the_same_seed_gives_the_same_tune(generate):
    first, again, other = (generate("--seed", seed) for seed in ("1", "1", "2"))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_low_temperature_takes_the_likeliest_keys(generate, prompt_file):
    flags = ("--prompt", prompt_file, "--temperature", "1e-6")
    first, other = (generate(*flags, "--seed", seed) for seed in ("1", "2"))
    np.testing.assert_array_equal(first, other)


def test_a_prompt_is_continued(generate, prompt, prompt_file):
    tune = generate("--prompt", prompt_file)
    assert len(tune) == len(prompt) + NUM_FRAMES
    np.testing.assert_array_equal(tune[: len(prompt)], prompt)
    tune = generate("--prompt", prompt_file, "--prompt_frames", "4")
    assert len(tune) == 4 + NUM_FRAMES
    np.testing.assert_array_equal(tune[:4], prompt[:4])


def test_frames_per_beat(generate, prompt, prompt_file):
    tune = generate("--prompt", prompt_file, "--frames_per_beat", "4", frames_per_beat=4)
    assert len(tune) == 2 * len(prompt) + NUM_FRAMES
    np.testing.assert_array_equal(tune[: 2 * len(prompt)], prompt.repeat(2, axis=0))


@pytest.mark.parametrize("place", ["config", EVALUATION_FILE])
def test_the_checkpoint_says_its_frames_per_beat(generate, tiny_config, tmp_path, prompt, prompt_file, capsys, place):
    """Its configuration does, or for older ones the settings of its evaluation. A flag wins over both, with a word."""
    known = {"frames_per_beat": 4}
    checkpoint = str(tmp_path / "four")
    config = tiny_config(input_size=88, **(known if place == "config" else {}))
    RTransformerForPolyphonicMusic(config).save_pretrained(checkpoint)
    if place == EVALUATION_FILE:
        Path(checkpoint, EVALUATION_FILE).write_text(json.dumps(known))
    assert trained_frames_per_beat(checkpoint) == 4
    tune = generate("--prompt", prompt_file, frames_per_beat=4, checkpoint=checkpoint)
    np.testing.assert_array_equal(tune[: 2 * len(prompt)], prompt.repeat(2, axis=0))
    assert "frames per beat" not in capsys.readouterr().err

    tune = generate("--prompt", prompt_file, "--frames_per_beat", "2", checkpoint=checkpoint)
    np.testing.assert_array_equal(tune[: len(prompt)], prompt)
    assert f"{checkpoint} was trained on 4 frames per beat: with --frames_per_beat 2 its" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_say_its_frames_per_beat(generate, checkpoint, capsys):
    generate()
    assert f"{checkpoint} does not state its frames per beat: assuming 2." in capsys.readouterr().err


def test_notes_of_a_prompt_that_are_left_out(generate, tmp_path, prompt, capsys):
    path = str(tmp_path / "low.mid")
    midi = to_midi(prompt, frames_per_beat=2, tempo=120)
    midi.instruments[0].notes.append(pretty_midi.Note(80, 12, 0.0, 1.0))
    midi.write(path)
    np.testing.assert_array_equal(generate("--prompt", path)[: len(prompt)], prompt)
    assert f"--prompt {path}: left out: 1 note outside of the piano" in capsys.readouterr().err


def test_bad_tunes_beside_the_prompt_do_no_harm(generate, tmp_path, prompt):
    cells = np.empty((1, 2), dtype=object)
    cells[0, :] = [2 * prompt, prompt]
    savemat(tmp_path / "tunes.mat", {"testdata": cells})
    data = str(tmp_path / "tunes.mat")
    np.testing.assert_array_equal(generate("--prompt_data", data, "--prompt_index", "1")[: len(prompt)], prompt)
    assert_stops(["any", "--prompt_data", data], ["tune 0", data, "holds 2", "another --prompt_index"])


def test_a_prompt_from_a_data_set(generate, prompt, prompt_file, prompt_data):
    tune = generate("--prompt_data", prompt_data)
    np.testing.assert_array_equal(tune[:4], prompt[:4])
    assert len(tune) == 4 + NUM_FRAMES
    tune = generate("--prompt_data", prompt_data, "--prompt_split", "validation", "--prompt_index", "1")
    np.testing.assert_array_equal(tune, generate("--prompt", prompt_file))


def test_the_picture_knows_the_prompt(generate, prompt_file, monkeypatch):
    shaded = []
    monkeypatch.setattr(
        piano_rolls, "write_piano_roll_picture", lambda path, roll, prompt_frames: shaded.append(prompt_frames)
    )
    generate()
    generate("--prompt", prompt_file, "--prompt_frames", "4")
    assert shaded == [0, 4]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--num_frames", "0"], "--num_frames: 0 (expected"),
        (["--temperature", "0"], "--temperature: 0 (expected"),
        (["--temperature", "nan"], "--temperature: nan (expected"),
        (["--seed", "-1"], "--seed: -1 (expected"),
        (["--frames_per_beat", "0"], "--frames_per_beat: 0 (expected"),
        (["--tempo", "3"], "--tempo: 3 (expected"),
        (["--tempo", "1001"], "--tempo: 1001 (expected"),
        (["--prompt", "a.mid", "--prompt_frames", "0"], "--prompt_frames: 0 (expected"),
        (["--prompt_frames", "4"], "--prompt_frames 4: nothing to continue"),
        (["--prompt_data", "a.mat", "--prompt_index", "-1"], "--prompt_index: -1 (expected"),
        (["--prompt_data", ""], "--prompt_data: '' (expected"),
        (["--prompt", "a.mid", "--prompt_data", "a.mat"], "--prompt a.mid: there is also --prompt_data a.mat"),
        (["--output", "outputs/"], "--output: 'outputs/' is a folder (expected"),
        (["--output", ""], "--output: '' is a folder (expected"),
        (["--temp", "1"], "--temp"),
    ],
)
def test_bad_flags(capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        generate_music.main(["any", *flags])
    assert stop.value.code == 2 and named in capsys.readouterr().err


def assert_stops(argv: list[str], named: list[str]):
    """With a message that names all of `named`."""
    with pytest.raises(UsageError) as refusal:
        generate_music.main(argv)
    missing = [part for part in named if part not in str(refusal.value)]
    assert not missing, str(refusal.value)


def test_what_is_no_model_of_piano_rolls(tmp_path, tiny_config):
    RTransformerForCausalLM(tiny_config()).save_pretrained(tmp_path / "text")
    RTransformerForPolyphonicMusic(tiny_config(input_size=12)).save_pretrained(tmp_path / "octave")
    tiny_config().save_pretrained(tmp_path / "config")
    (tmp_path / "empty").mkdir()
    for bad, named in (
        ("text", "it holds RTransformerForCausalLM"),
        ("octave", "its input_size is 12"),
        ("config", "no named architecture"),
        ("empty", "can't be used"),
        ("missing", "can't be used"),
    ):
        path = str(tmp_path / bad)
        assert_stops([path, "--output", str(tmp_path / "tune")], [path, named, "model of piano rolls"])


def test_bad_prompts(tmp_path, prompt_file, prompt_data):
    silent = str(tmp_path / "silent.mid")
    write_midi(silent, np.zeros((4, 88), dtype=np.uint8), frames_per_beat=2, tempo=120)
    missing = str(tmp_path / "missing.mid")
    for flags, named in (
        (["--prompt", missing], [missing, "can't be read"]),
        (["--frames_per_beat", "97"], ["--frames_per_beat: 97 (expected at most 96)"]),
        (["--prompt", silent], [f"--prompt {silent}", "no notes"]),
        (["--prompt", prompt_file, "--prompt_frames", "10"], ["--prompt_frames: 10", prompt_file, "expected 1 to 9"]),
        (["--prompt_data", missing], [missing, "can't be loaded"]),
        (["--prompt_data", prompt_data, "--prompt_split", "other"], [prompt_data, "'other'", "validation"]),
        (
            ["--prompt_data", prompt_data, "--prompt_index", "1"],
            ["--prompt_index: no tune 1", prompt_data, "expected 0 to 0"],
        ),
    ):
        assert_stops(["any", *flags, "--output", str(tmp_path / "tune")], named)


def test_an_output_that_cannot_be_written(tmp_path, prompt_file, capsys):
    for output, problem in (
        (f"{prompt_file}/tune", f"'{prompt_file}/tune.mid' can't be written: '{prompt_file}' is a file"),
        (f"{tmp_path}/tunes/", f"'{tmp_path}/tunes/' is a folder (expected a file's name)"),
    ):
        with pytest.raises(SystemExit):
            generate_music.main(["any", "--output", output])
        assert f"error: --output: {problem}" in capsys.readouterr().err
