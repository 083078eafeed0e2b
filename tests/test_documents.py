# SPDX-License-Identifier: Apache-2.0
"""
The documents keep their word: their blocks run in order, each command as it stands but for the size of what it trains.
"""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import prepare_data
import pytest
import scipy.io
from golden import CHECKPOINTS, FILES
from hub_server import Hub
from PIL import Image

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = [
    "README.md",
    *(f"scripts/{name}.md" for name in ("README", "FINE_TUNING", "DEPLOYMENT", "BENCHMARKS")),
    ".github/CONTRIBUTING.md",
]
TEXT = "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in DOCUMENTS)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)

# What sets up an environment is run with a stand-in for Python by test_shell_scripts.py, the demo by test_demo.py, the
# server by test_serve.py and the evaluation harness by test_lm_eval.py.
SERVERS = (
    "python scripts/demo.py",
    "python scripts/serve.py",
    "curl",
    "lm_eval",
    'python -c "import rtransformer_hf;',
)
ELSEWHERE = ("bash scripts/quickstart.sh", "bash scripts/test.sh", "pip install", "hf auth", *SERVERS)
HUB_USER, TOKEN = "someone", "hf_someoneWrites"
SMALL = (
    "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 "
    "--max_steps 2 --save_steps 2 --eval_strategy no --load_best_model_at_end False --use_cpu"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The root of the repository as a user sees it, with small files under the documents' names of data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    (tmp_path / "model_cards").symlink_to(REPOSITORY / "model_cards")
    for name in ("ptb", "trec", "music", "mnist"):
        Path("data", name).mkdir(parents=True)
    for name in ("book", "letters", "data/ptb/ptb.train", "data/ptb/ptb.valid", "data/ptb/ptb.test", "ptb.test"):
        Path(f"{name}.txt").write_text("".join(f"line {i * i} of a text\n" for i in range(300)))
    for name in ("train", "test"):
        rows = "".join(f"{'abc'[i % 3]} {i},{i % 3}\n" for i in range(40))
        Path(f"data/trec/{name}.csv").write_text(f"text,label\n{rows}")

    random = np.random.default_rng(0)
    rolls = {split: np.empty((1, 4), dtype=object) for split in ("traindata", "validdata", "testdata")}
    for tunes in rolls.values():
        tunes[0] = [(random.random((50, 88)) < 0.05).astype(np.uint8) for _ in range(4)]
    scipy.io.savemat("data/music/Nottingham.mat", rolls)

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for split in ("train", "test"):
        images = [Image.fromarray(random.integers(0, 256, (4, 4), dtype=np.uint8)) for _ in range(40)]
        labels = [i % 10 for i in range(40)]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(f"data/mnist/{split}-00000-of-00001.parquet")
    months = [f"{2020 + step // 12}-{step % 12 + 1:02}" for step in range(40)]
    rows = [f"{shop},{month},{100 + 7 * i % 23}" for shop in ("north", "south") for i, month in enumerate(months)]
    Path("data/sales.csv").write_text("\n".join(["shop,month,sold", *rows]))
    rows = [f"{i},{i % 2},{(i % 2) * step + i},{step * i % 5}" for i in range(20) for step in range(6)]
    Path("data/motions.csv").write_text("\n".join(["id,label,x,y", *rows]))
    Path("model.pt").write_bytes(FILES[next(name for name in CHECKPOINTS if "module" in name)])
    return tmp_path


def test_python_blocks(folder):
    blocks = [code for language, code in BLOCKS if language == "python" and HUB_USER not in code]
    assert len(blocks) >= 4
    for code in blocks:
        if launcher := re.match(r"# torchrun (.+) this\.py$", code, flags=re.MULTILINE):
            Path("this.py").write_text(code)
            words = ["-m", "torch.distributed.run", "--standalone", *launcher[1].split(), "this.py"]
            subprocess.run([sys.executable, *words], check=True, timeout=300)
        else:
            exec(compile(code, "a document", "exec"), {})


def test_commands(folder, monkeypatch):
    monkeypatch.setattr("sys.path", [str(REPOSITORY / "scripts"), *sys.path])
    commands = [command for language, block in BLOCKS if language == "bash" for command in commands_of(block)]
    assert len(commands) >= 10
    for words in commands:
        if words[:2] == ["python", "-m"]:
            runpy.run_module(words[2], run_name="__main__")
        elif not any(HUB_USER in word for word in words):
            # Launchers of several processes are tested in test_distributed.py; here their script runs in one.
            script = next(index for index, word in enumerate(words) if word.startswith("scripts/"))
            monkeypatch.setattr("sys.argv", small(words[script:]))
            runpy.run_path(words[script], run_name="__main__")


SHARE = """
import json, runpy, shutil, sys

for program, *words in json.loads(sys.argv[1]):
    if words[0] == "-c":
        exec(words[1], {})
        continue
    if program == "hf":
        shutil.rmtree("outputs")  # on another machine
    sys.argv = [program, *words] if program == "hf" else words
    try:
        if program == "hf":
            runpy.run_module("huggingface_hub.cli.hf", run_name="__main__")
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
"""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name):
    """Links and pictures lead to files that are there, and to headings that are in them."""
    folder = (REPOSITORY / name).parent
    links = re.findall(r"\]\(([^)]+)\)", (REPOSITORY / name).read_text(encoding="utf-8"))
    for link in (link for link in links if not link.startswith("http")):
        path, _, heading = link.partition("#")
        target = (folder / path).resolve() if path else REPOSITORY / name
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], link


def test_the_table_of_data_sets_is_that_of_the_command():
    assert prepare_data.table() in TEXT


def test_sharing(folder):
    """The commands and the block that name the user, in a process that reaches for a Hub."""
    commands = [command for language, block in BLOCKS if language == "bash" for command in commands_of(block)]
    commands += [["python", "-c", code] for language, code in BLOCKS if language == "python"]
    commands = [command for command in commands if any(HUB_USER in word for word in command)]
    assert len(commands) >= 5
    commands = [[program, *(small(words) if program == "python" else words)] for program, *words in commands]
    with Hub({TOKEN: (HUB_USER, "write")}) as hub:
        environment = hub.environment(folder / "home", TOKEN, [REPOSITORY, REPOSITORY / "scripts"])
        process = [sys.executable, "-c", SHARE, json.dumps(commands)]
        subprocess.run(process, check=True, timeout=300, env=environment)


def commands_of(block: str) -> list[list[str]]:
    """The commands of a block as words, with its variables replaced."""
    variables, commands = {}, []
    for line in block.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assignment[1]] = assignment[2]
        elif not line.startswith(ELSEWHERE) and (words := shlex.split(line, comments=True)):
            commands.append(words)
    return commands


def small(words: list[str]) -> list[str]:
    """A script and its flags, with a training that takes a moment on a CPU, which FSDP does not shard on."""
    if "/train_" not in words[0]:
        return words
    if "--fsdp" in words:
        words = words[: words.index("--fsdp")]
    return [*words, *SMALL.split()]
