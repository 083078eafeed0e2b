# SPDX-License-Identifier: Apache-2.0
"""The script that downloads the paper's data sets, without a network: sources are local files."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import prepare_data as script
import pytest
from PIL import Image

LINES = '0 What is caf\xe9 au lait ?\n3 Who said "now , then" ?\n'


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Every address leads to a local file of lines that the checksums fit."""
    monkeypatch.chdir(tmp_path)
    data_sets = {}
    for name, data_set in script.DATA_SETS.items():
        files = []
        for file in data_set.files:
            path = Path("sources", name, Path(file.url).name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(LINES.encode("latin-1"))
            sha256 = hashlib.sha256(file.convert(path.read_bytes())).hexdigest()
            files.append(replace(file, url=str(path), sha256=sha256))
        data_sets[name] = replace(data_set, files=tuple(files))
    monkeypatch.setattr(script, "DATA_SETS", data_sets)
    return Path("sources")


@pytest.mark.parametrize("name", ["ptb", "music", "trec", "sst2"])
def test_a_data_set_arrives_where_the_commands_expect_it(sources, capsys, name):
    script.main([name])
    files = {path.name for path in Path("data", name).iterdir()}
    assert files == {file.name for file in script.DATA_SETS[name].files}
    printed = capsys.readouterr().out
    command = printed.partition("Train on it: ")[2].split()
    assert all(Path(word).exists() for word in command if word.startswith("data/"))

    (sources / name).rename("elsewhere")  # what is there is not downloaded again
    script.main([name])
    assert capsys.readouterr().out.count("is there") == len(files)


def test_labeled_lines_become_a_table_in_utf_8(sources):
    script.main(["trec"])
    with open("data/trec/test.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"label": "0", "text": "What is caf\xe9 au lait ?"},
        {"label": "3", "text": 'Who said "now , then" ?'},
    ]


def test_another_content_is_refused(sources):
    (sources / "ptb" / "ptb.valid.txt").write_text("something else")
    with pytest.raises(SystemExit, match="does not hold what the results were measured on: SHA-256"):
        script.main(["ptb"])
    assert {path.name for path in Path("data/ptb").iterdir()} == {"ptb.train.txt"}


def test_a_damaged_file_is_named(sources):
    script.main(["music"])
    Path("data/music/MuseData.mat").write_bytes(b"half")
    with pytest.raises(SystemExit, match=r"data/music/MuseData.mat does not hold .* remove it"):
        script.main(["music"])
    assert Path("data/music/MuseData.mat").read_bytes() == b"half"


def test_without_a_network_each_data_set_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as error:
        script.main(["ptb", "mnist"])
    assert "ptb.train.txt can't be downloaded" in str(error.value)
    assert "https://huggingface.co/datasets/ylecun/mnist can't be read" in str(error.value)
    assert not Path("data").exists()


def test_mnist(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    labels = [7, 0, 2]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": labels}, features=datasets.Features(features)
    )
    content = b"".join(image.tobytes() + bytes([label]) for image, label in zip(pixels, labels, strict=True))
    load_dataset, loaded = datasets.load_dataset, []

    def load(name: str, **kwargs) -> datasets.Dataset:
        if name != script.MNIST_ID:
            return load_dataset(name, **kwargs)
        loaded.append(kwargs["split"])
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(SystemExit, match="does not hold what the results were measured on"):
        script.main(["mnist"])
    assert not Path("data").exists()

    monkeypatch.setattr(script, "MNIST_SHA256", dict.fromkeys(("train", "test"), hashlib.sha256(content).hexdigest()))
    loaded.clear()
    script.main(["mnist"])
    script.main(["mnist"])
    assert loaded == ["train", "test"]
    splits = load_dataset("data/mnist")
    assert splits["train"].features == rows.features and splits["test"][0]["label"] == 7
    assert np.array_equal(np.array(splits["train"][1]["image"]), pixels[1])


@pytest.mark.parametrize(("argv", "named"), [([], "nothing given"), (["ptb", "imagenet"], "unknown: imagenet")])
def test_bad_names(capsys, argv, named):
    with pytest.raises(SystemExit):
        script.main(argv)
    assert f"NAME: {named}" in capsys.readouterr().err


def test_list(capsys):
    script.main(["--list"])
    printed = capsys.readouterr().out
    assert all(f"| {name} | " in printed for name in ("ptb", "music", "mnist", "trec", "sst2"))
