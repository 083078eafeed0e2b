# SPDX-License-Identifier: Apache-2.0
"""quickstart.sh, test.sh and the set-up that they share, with a stand-in for Python where one is needed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

# Answers as an interpreter would that makes an environment of itself, and notes each installation.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
    *version_info*) exit "${OLD_PYTHON:-0}" ;;
    *ensurepip*) exit "${NO_VENV:-0}" ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip"*--target*) mkdir "$7" ;;
    "-m pip"*) echo "$PIP_SAYS"; echo "${@: -1}" >> installations; exit "${PIP_FAILS:-0}" ;;
    *) [ -z "$LOG" ] || echo "$*" >> "$LOG" ;;
esac
"""


@pytest.fixture
def repository(tmp_path):
    """A copy with the files that the shell scripts need, and the stand-in as `python3` on PATH, beside a browser."""
    root = tmp_path / "a repository"
    shutil.copytree(REPOSITORY / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / ".ci", root / ".ci")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(STAND_IN)
    (tmp_path / "bin" / "python3").chmod(0o755)
    (tmp_path / "bin" / "chromium").touch(0o755)
    return root


def run(repository: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = f"{repository.parent / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", str(repository / script), *arguments],
        cwd=repository.parent,  # another folder than the repository's
        env={**os.environ, "PATH": path, "PYTHON": "", **environment},
        capture_output=True,
        text=True,
    )


def test_set_up_installs_once(repository):
    def set_up(*extra: str) -> list[str]:
        for _ in range(2):
            assert run(repository, "scripts/setup_environment.sh", *extra).returncode == 0
        return (repository / "installations").read_text().splitlines()

    assert set_up() == [".[train]"]
    assert set_up("test") == [".[train]", ".[test]"]
    assert set_up("train") == [".[train]", ".[test]"]  # the tests' environment has it
    with (repository / "scripts" / "constraints.txt").open("a") as constraints:
        constraints.write("# a new version\n")
    assert set_up("train")[2:] == [".[train]"]
    assert set_up("test")[3:] == [".[test]"]


def test_set_up_refuses_other_extras(repository):
    result = run(repository, "scripts/setup_environment.sh", "everything")
    assert result.returncode == 1 and "unknown extra 'everything' (expected train or test)" in result.stderr


def test_an_interrupted_set_up_is_repaired(repository):
    assert run(repository, "scripts/setup_environment.sh", PIP_FAILS="1").returncode != 0
    assert run(repository, "scripts/setup_environment.sh").returncode == 0
    assert (repository / "installations").read_text() == ".[train]\n" * 2


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"OLD_PYTHON": "1"}, "Python 3.11"),
        ({"PYTHON": "no_such_python"}, "PYTHON=no_such_python"),
        ({"NO_VENV": "1"}, "python3-venv"),
        ({"PIP_FAILS": "1", "PIP_SAYS": "Failed to establish a new connection"}, "needs the network"),
        ({"PIP_FAILS": "1", "PIP_SAYS": "No matching distribution"}, "pip could not install"),
    ],
)
def test_set_up_says_what_is_missing(repository, environment, named):
    if "OLD_PYTHON" in environment:  # whatever else is installed is as old
        for name in ("python", "python3.11", "python3.12", "python3.13"):
            shutil.copy(repository.parent / "bin" / "python3", repository.parent / "bin" / name)
    result = run(repository, "scripts/quickstart.sh", **environment)
    assert result.returncode == 1
    assert "error:" in result.stderr and named in result.stderr
    assert not (repository / "outputs").exists()


def test_quickstart_trains_then_generates_in_another_process(repository, tmp_path):
    result = run(repository, "scripts/quickstart.sh", LOG=str(tmp_path / "log"))
    assert result.returncode == 0, result.stderr
    commands = (tmp_path / "log").read_text().splitlines()
    assert [command.split()[0] for command in commands if command.startswith("scripts/")] == [
        "scripts/make_quickstart_data.py",
        "scripts/train_causal_lm.py",
        "scripts/generate.py",
    ]
    assert commands[-2].endswith("--output_dir outputs/quickstart")


def test_quickstart_takes_a_text_file(repository, tmp_path):
    (tmp_path / "my book.txt").write_text("text")
    result = run(repository, "scripts/quickstart.sh", "my book.txt", LOG=str(tmp_path / "log"))
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "log").read_text()
    assert f"--train_file {tmp_path}/my book.txt --output_dir outputs/quickstart-my book" in log
    assert "make_quickstart_data" not in log


@pytest.mark.parametrize("arguments", [("no_such_file",), ("a", "b"), ("--fast",)])
def test_quickstart_refuses_other_arguments(repository, arguments):
    result = run(repository, "scripts/quickstart.sh", *arguments)
    assert result.returncode == 2
    assert arguments[0] in result.stderr and "expected" in result.stderr
    assert not (repository / ".venv").exists()


def test_quickstart_help(repository):
    result = run(repository, "scripts/quickstart.sh", "--help")
    assert result.returncode == 0
    assert "TEXT_FILE" in result.stdout and "outputs/quickstart" in result.stdout
    assert not (repository / ".venv").exists()


def test_ci_runs_the_linter_and_the_tests(repository, tmp_path):
    result = run(repository, ".ci/run", LOG=str(tmp_path / "log"))
    assert result.returncode == 0, result.stderr
    commands = (tmp_path / "log").read_text().splitlines()
    assert commands[-4:] == [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m pytest -n 2 --dist loadfile --no-loadscope-reorder",
        "-m pytest -n 2 tests/test_modeling_rtransformer.py tests/test_cache_rtransformer.py "
        "tests/test_both_directions.py",
    ]


def test_test_sh_passes_arguments_and_failures_on(repository, tmp_path):
    run(repository, "scripts/test.sh")
    interpreter = repository / ".venv" / "bin" / "python"
    interpreter.write_text('#!/usr/bin/env bash\n[[ "$*" != *pytest* ]] || { echo "$*"; exit 3; }\n')
    result = run(repository, "scripts/test.sh", "-k", "some name")
    assert result.returncode == 3
    assert result.stdout.splitlines()[-1] == "-m pytest -n 2 --dist loadfile --no-loadscope-reorder -k some name"


def test_a_gpu_is_measured_step_by_step(repository, tmp_path):
    log = tmp_path / "commands"
    no_gpu = run(repository, "scripts/check_gpu.sh", PYTHON="false")
    assert no_gpu.returncode == 1
    assert "PyTorch finds no CUDA device" in no_gpu.stderr
    assert not (repository / "outputs").exists()

    measured = run(
        repository, "scripts/check_gpu.sh", str(tmp_path / "gpu"), PYTHON="python3", DEVICE="cpu", LOG=str(log)
    )
    assert measured.returncode == 0, measured.stderr
    commands = log.read_text()
    for dtype in ("bfloat16", "float32"):
        for command in ("operator", "train", "generate"):
            assert f"scripts/benchmark.py {command} --device cpu --dtype {dtype}" in commands
    assert commands.count("--compile reduce-overhead") == 4
    steps = (tmp_path / "gpu" / "steps.txt").read_text().splitlines()
    assert len(steps) == 12 and all("exit code 0" in step for step in steps)

    (repository.parent / "bin" / "python3").write_text(
        '#!/usr/bin/env bash\ncase "$*" in *"-m pytest"*) exit 3 ;; esac\n'
    )
    failed = run(repository, "scripts/check_gpu.sh", str(tmp_path / "gpu"), PYTHON="python3", DEVICE="cpu")
    assert failed.returncode == 1  # and the later steps ran
    codes = [step.split(": ")[1] for step in (tmp_path / "gpu" / "steps.txt").read_text().splitlines()]
    assert [code.split(",")[0] for code in codes] == ["exit code 0", "exit code 3", *["exit code 0"] * 10]
