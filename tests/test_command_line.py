# SPDX-License-Identifier: Apache-2.0

import argparse
import ast
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

import pytest

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.flags import CommandParser, number, output_file, output_folder, seed
from rtransformer_hf.training.stopping import on_stop

SCRIPTS = Path(__file__).parent.parent / "scripts"
COMMANDS = [path for path in sorted(SCRIPTS.glob("*.py")) if '__name__ == "__main__"' in path.read_text()]


@pytest.fixture
def stopped(monkeypatch, capsys):
    """What a command prints, and its exit code, when `main` ends it."""
    monkeypatch.setattr("sys.argv", ["scripts/some_command.py"])

    def run(main) -> tuple[str, int]:
        with pytest.raises(SystemExit) as stop:
            run_command(main)
        return capsys.readouterr().err, stop.value.code

    return run


def interrupt():
    raise KeyboardInterrupt


def test_ctrl_c_is_one_line(stopped):
    assert stopped(interrupt) == ("\nsome_command.py: stopped.\n", 130)

    def interrupted_training():
        on_stop(lambda: "The same command goes on.")
        raise KeyboardInterrupt

    assert stopped(interrupted_training) == ("\nsome_command.py: stopped. The same command goes on.\n", 130)
    assert stopped(interrupt) == ("\nsome_command.py: stopped.\n", 130)


def test_garbage_is_collected_once_the_imports_are_done():
    found = []
    gc.disable()
    run_command(lambda: found.append(gc.isenabled()))
    assert found == [True]


def test_unusable_input_is_one_line(stopped):
    def refuse():
        raise UsageError("--data: no such file: 'x' (expected text)")

    assert stopped(refuse) == ("", "some_command.py: error: --data: no such file: 'x' (expected text)")


HELP = """
import atexit
from rtransformer_hf.training.command_line import run_command
from rtransformer_hf.training.flags import CommandParser
atexit.register(print, "Python's own end")
run_command(lambda: CommandParser(description="What it does.").parse_args(["--help"]))
"""


def test_help_ends_at_once():
    command = start(HELP)
    said, complained = command.communicate(timeout=30)
    assert "What it does." in said and "Python's own end" not in said
    assert (complained, command.returncode) == ("", 0)


# Stands for a training of two processes. The first is stopped; the second, which waits for it, fails in its own way.
MEMBER = """
import os, signal, sys
from rtransformer_hf.training.command_line import run_command

def main():
    print("ready", flush=True)
    try:
        while True:
            signal.pause()
    finally:
        if os.environ["RANK"] == "1":
            raise RuntimeError("Connection closed by peer")

sys.argv[0] = "train.py"
run_command(main)
"""
IMPORTING = """
import rtransformer_hf.training.command_line, sys
sys.argv[0] = "train.py"
raise KeyboardInterrupt  # where an import would be under way
"""


def start(code: str, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_one_of_several_processes_speaks():
    members = [start(MEMBER, RANK=rank) for rank in "01"]
    for member in members:
        member.stdout.readline()
        member.send_signal(signal.SIGINT)  # the terminal's
        member.send_signal(signal.SIGINT)  # the launcher's
    assert [member.communicate(timeout=30)[1] for member in members] == ["\ntrain.py: stopped.\n", ""]
    assert [member.returncode for member in members] == [130, 130]


def test_ctrl_c_while_imports_are_under_way():
    command = start(IMPORTING)
    assert command.communicate(timeout=30)[1] == "\ntrain.py: stopped.\n"
    assert command.returncode == 130


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_command_is_run_the_same_way(path):
    source = path.read_text()
    assert source.endswith('\n\nif __name__ == "__main__":\n    run_command(main)\n')
    assert "argparse.ArgumentParser(description" not in source
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    slow = [name for name in imported if name.split(".")[0] not in sys.stdlib_module_names]
    assert slow[0] == "rtransformer_hf.training.command_line"  # so that Ctrl-C is answered while the others load


def test_an_unknown_flag_is_answered_with_the_nearest(capsys):
    parser = CommandParser()
    parser.add_argument("--learning_rate")
    parser.add_subparsers().add_parser("part").add_argument("--batch_size")
    for arguments, hint in (
        (["part", "--learning_rte=1"], "unrecognized arguments: --learning_rte=1 (did you mean --learning_rate?)"),
        (["part", "--batchsize=1"], "(did you mean --batch_size?)"),
        (["part", "--xyz"], "unrecognized arguments: --xyz\n"),
        (["part", "--learning=1"], "unrecognized arguments: --learning=1"),  # no abbreviations
    ):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(arguments)
        assert stop.value.code == 2
        assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("type_", "good", "bad", "expected"),
    [
        (number(int, at_least=1), {"1": 1, "07": 7}, ["0", "1.0", "x", "", "1e3"], "an integer of at least 1"),
        (number(float, more_than=0), {"1e-3": 1e-3, "2": 2.0}, ["0", "-1", "nan", "inf"], "a number of more than 0"),
        (number(float, more_than=0, at_most=1), {"1": 1.0}, ["1.01"], "a number of more than 0 and at most 1"),
        (number(int), {"-3": -3}, ["1" * 5000], "an integer"),
        (seed, {"4294967295": 2**32 - 1}, ["-1", "4294967296"], "an integer of at least 0 and at most 4294967295"),
    ],
)
def test_numbers_within_bounds(capsys, type_, good, bad, expected):
    parser = CommandParser()
    parser.add_argument("--number", type=type_)
    for text, value in good.items():
        assert parser.parse_args([f"--number={text}"]).number == value
    for text in bad:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--number={text}"])
        assert f"error: --number: {text} (expected {expected})\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (
            output_file(".json", ".md"),
            ["new.json", "old.json", "new/folder/new.md"],
            {
                "new.txt": "(expected a name that ends with .json or .md)",
                "folder.md": "is a folder (expected a file's name)",
                "old.json/below/new.md": "can't be written: '{cwd}/old.json' is a file (expected a folder)",
            },
        ),
        (output_file(), ["new"], {"": "is a folder (expected a file's name)"}),
        (
            output_folder,
            ["new", "new/folder", "folder.md", "."],
            {"old.json": "can't be written: '{cwd}/old.json' is a file (expected a folder)"},
        ),
    ],
)
def test_outputs_that_can_not_be_written_are_refused_at_once(tmp_path, monkeypatch, capsys, type_, good, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "folder.md").mkdir()
    parser = CommandParser()
    parser.add_argument("--output", type=type_)
    for text in good:
        assert parser.parse_args([f"--output={text}"]).output == Path(text)
    for text, problem in bad.items():
        with pytest.raises(SystemExit):
            parser.parse_args([f"--output={text}"])
        assert f"error: --output: {text!r} {problem.format(cwd=tmp_path)}\n" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.md", "old.json"]  # nothing was made


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # nothing is forbidden to root
    with pytest.raises(argparse.ArgumentTypeError, match=f"no permission to write to '{tmp_path}'"):
        output_file(".csv")(str(tmp_path / "new" / "table.csv"))
