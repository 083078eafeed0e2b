# SPDX-License-Identifier: Apache-2.0
"""The commands as a whole: what imports what, what they print when they start, and that --help is answered at once."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io

REPOSITORY = Path(__file__).parent.parent
COMMANDS = {path.stem: path for path in sorted((REPOSITORY / "scripts").glob("*.py"))}
TRAINING = REPOSITORY / "rtransformer_hf" / "training"
MODEL = REPOSITORY / "rtransformer_hf"
OPERATOR = {"local_rnn", "local_rnn_blocked", "local_rnn_triton", "cpu_linear"}


def imported_modules(path: Path) -> set[str]:
    """The full names of the modules of this repository that a file imports anywhere in it."""
    package = ".".join(path.relative_to(REPOSITORY).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return names


def floor_of(module: str) -> int | None:
    """0: the operator, 1: the model, 2: what the commands share, 3: a command; None: not of this repository."""
    if module in COMMANDS:
        return 3
    package, _, rest = module.partition(".")
    if package != "rtransformer_hf":
        return None
    part = rest.partition(".")[0]
    return 2 if part == "training" else 0 if part in OPERATOR else 1


FILES = [*COMMANDS.values(), *TRAINING.rglob("*.py"), *MODEL.glob("*.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_down_only(path):
    """Commands import what they share, that the model, and the model the operator. No command imports another."""
    own = path.stem if path.parent.name == "scripts" else ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    floor = floor_of(own)
    up = {name for name in imported_modules(path) if (other := floor_of(name)) is not None and other > floor}
    across = {name for name in imported_modules(path) if floor == 3 and name in COMMANDS}
    assert up | across == set()


READ = """
import gc, logging, sys
from rtransformer_hf.training.piano_rolls import read_midi
assert sys.excepthook is sys.__excepthook__ and gc.isenabled()
assert logging.getLogger("torchao").level == logging.NOTSET
"""


def test_only_commands_change_the_process():
    """Who imports a reader keeps Ctrl-C, warnings and garbage collection, in a script of whatever folder."""
    start = "rtransformer_hf.training.command_line"
    assert [path.name for path in FILES if path.stem not in COMMANDS and start in imported_modules(path)] == []
    result = subprocess.run([sys.executable, "-c", READ], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# Runs commands one after another in one process, which saves the imports.
RUN = """
import json, logging, os, runpy, sys
from rtransformer_hf.training import command_line

ours = logging.getLogger("rtransformer_hf")
ours.addHandler(logging.NullHandler())
ours.propagate = False
os._exit = sys.exit  # the end of --help, which saves Python's own
for path, *arguments in json.loads(sys.argv[1]):
    sys.argv = [path, *arguments]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, (path, stop.code)
print("imported:", *({"torch", "transformers", "datasets", "evaluate"} & set(sys.modules)))
"""


PROGRESS_BAR = re.compile(r"\d+%\||examples/s\]|\x1b\[A")


def start(*commands: list[str], folder: Path | None = None) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [[str(COMMANDS[name]), *arguments] for name, *arguments in commands]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(words)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_is_answered_without_pytorch():
    names = [name for name in COMMANDS if not name.startswith("train_")]
    said, complained = start(*([name, "--help"] for name in names)).communicate(timeout=60)
    assert complained == ""
    assert said.count("usage: ") == len(names)
    assert said.splitlines()[-1] == "imported:"


def test_trainings_print_nothing_that_nobody_caused(tmp_path):
    """Help and a short run of the training scripts: without progress bars and our own log, nothing is left."""
    random = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text("".join(f"line {i * i} of a text\n" for i in range(200)))
    rows = "".join(f"{'abc'[i % 3]} {i},{i % 3}\n" for i in range(40))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "words.conll").write_text("it O\nrains O\nin O\nRome B-LOC\n\n" * 20)
    (tmp_path / "sales.csv").write_text("sold\n" + "".join(f"{number}\n" for number in random.normal(size=60)))
    tunes = np.empty((1, 4), dtype=object)
    tunes[0] = [(random.random((20, 88)) < 0.05).astype(np.uint8) for _ in range(4)]
    scipy.io.savemat(tmp_path / "tunes.mat", {f"{split}data": tunes for split in ("train", "valid", "test")})
    text = ["--train_file=text.txt", "--validation_file=text.txt"]
    trainings = [
        ["train_causal_lm", *text],
        ["train_causal_lm_accelerate", *text],
        ["train_polyphonic_music", "--data=tunes.mat"],
        ["train_sequence_classification", "--train_file=rows.csv"],
        ["train_time_series", "--train_file=sales.csv", "--target_columns=sold", "--horizon=2"],
        ["train_token_classification", "--train_file=words.conll"],
    ]
    assert {name for name, *_ in trainings} == {name for name in COMMANDS if name.startswith("train_")}
    size = ["--hidden_size=16", "--num_hidden_layers=1", "--num_attention_heads=2"]
    steps = ["--max_steps=6", "--save_steps=2", "--eval_steps=2", "--use_cpu"]
    runs = [[name, *data, f"--output_dir=out_{name}", *size, *steps] for name, *data in trainings]
    helps = [[name, "--help"] for name, *_ in trainings]
    said, complained = start(*helps, *runs, folder=tmp_path).communicate(timeout=300)
    assert [line for line in complained.splitlines() if line.strip() and not PROGRESS_BAR.search(line)] == []
    assert said.count("usage: ") == len(helps)
    assert said.count("The model is in ") == len(runs)
