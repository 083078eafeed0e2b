# SPDX-License-Identifier: Apache-2.0
"""What pip installs: the wheel works by itself, and its lower bounds are versions that the tests run with."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

USE = """
import sys, torch
from transformers import AutoModelForCausalLM
import rtransformer_hf
assert rtransformer_hf.__file__.startswith(sys.argv[1]), rtransformer_hf.__file__

sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
model = rtransformer_hf.RTransformerForCausalLM(rtransformer_hf.RTransformerConfig(**sizes)).eval()
model.save_pretrained("checkpoint")
logits = model(torch.arange(9)[None]).logits
for name in [name for name in sys.modules if name.startswith("rtransformer_hf")]:
    del sys.modules[name]  # what follows is the checkpoint's own code
assert "rtransformer_hf.modeling_rtransformer" not in sys.modules
remote = AutoModelForCausalLM.from_pretrained("checkpoint", trust_remote_code=True, local_files_only=True)
torch.testing.assert_close(remote(torch.arange(9)[None]).logits, logits)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "rtransformer_hf", source / "rtransformer_hf", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run(command, cwd=source, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path for path in (REPOSITORY / "rtransformer_hf").rglob("*") if path.suffix == ".py"}
    assert names == {str(path.relative_to(REPOSITORY)) for path in files} | {"rtransformer_hf/py.typed"}


def test_the_installed_wheel_works(wheel, tmp_path):
    site = str(tmp_path / "site")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    environment = {"PYTHONPATH": site, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", USE, site]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_the_training_package_works_from_the_wheel(wheel, tmp_path):
    """What the commands share is for users, too, and metrics come with it."""
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    use = """
import sys
from rtransformer_hf.training.piano_rolls import read_midi
from rtransformer_hf.training.metric_modules import METRICS
assert METRICS.is_relative_to(sys.argv[1]) and (METRICS / "perplexity" / "perplexity.py").exists()
"""
    environment = {"PYTHONPATH": str(site), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", use, str(site)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def requirements() -> list[str]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [entry for group in groups for entry in group if not entry.startswith("rtransformer-hf[")]


@pytest.mark.parametrize("requirement", requirements())
def test_lower_bounds_are_versions_that_are_tested(requirement):
    """The newest are those of constraints.txt, the oldest Transformers that of constraints-oldest.txt."""
    name, bound = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
    tested = {}
    for file in ("constraints.txt", "constraints-oldest.txt"):
        lines = (REPOSITORY / "scripts" / file).read_text().splitlines()
        pins = dict(line.split("==") for line in lines if "==" in line)
        tested |= {pinned.lower().replace("_", "-"): version for pinned, version in pins.items()}
    assert f"{tested[name.lower()]}.".startswith(f"{bound}."), f"{name} is tested with {tested[name.lower()]}"


def test_the_supported_python_is_the_tested_one():
    assert PROJECT["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)
