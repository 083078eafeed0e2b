# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_folder, atomic_write


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file.json"
    atomic_write(path, b"first")
    atomic_write(path, b"second")
    assert path.read_bytes() == b"second"

    def write_half(self, content):
        self.open("wb").write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"third")
    assert path.read_bytes() == b"second"


def test_a_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "folder"
    with atomic_folder(target, "output_folder") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text("text")
        assert not target.exists()
    assert (target / "part" / "file").read_text() == "text"
    assert list(target.parent.iterdir()) == [target]


def test_nothing_is_left_of_a_block_that_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "folder", "output_folder") as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with atomic_folder(tmp_path / "folder", "target") as folder:  # an empty one is filled
        (folder / "file").write_text("new")
    for name, problem in (("file", "is a file"), ("folder", "is not empty"), ("file/folder", "can't be made")):
        match = rf"target: '.*{name}' {problem} \(expected a new or empty folder\)"
        with pytest.raises(UsageError, match=match), atomic_folder(tmp_path / name, "target"):
            pytest.fail("the block runs")
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "folder" / "file").read_text() == "new"
