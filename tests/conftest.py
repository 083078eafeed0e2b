# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

# Nothing in the tests may reach for the Hub; and two test workers share two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: without a GPU its kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

from accelerate.state import AcceleratorState
from transformers import Trainer

from rtransformer_hf import RTransformerConfig

SENTENCES = ("the cat sat on the mat", "my dog ran to the log", "one bird flew over a roof", "no fox fell in")


@pytest.fixture(autouse=True)
def fresh_process():
    """
    What a process begins with: its random numbers, no precision or device that Accelerate has settled on, and no
    compiled code, of which a function may have a few versions only.
    """
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.compiler.reset()


@pytest.fixture
def tiny_config():
    """Makes a configuration of a few thousand parameters; keyword arguments override its fields."""

    def make(**overrides):
        sizes = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        # Weights of this size make attention and gates far from uniform, so that no difference hides.
        return RTransformerConfig(**{**sizes, "local_window_size": 4, "initializer_range": 0.15, **overrides})

    return make


@pytest.fixture
def killed_at(monkeypatch):
    """
    `killed_at(step)` kills the first training of the test as that step begins, counted from 0. It returns the list of
    all steps that begin from now on, in this training and in later ones.
    """

    def install(step: int) -> list[int]:
        training_step, steps = Trainer.training_step, []

        def step_or_end(self, *args, **kwargs):
            steps.append(self.state.global_step)
            if steps == list(range(step + 1)):
                raise KeyboardInterrupt
            return training_step(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", step_or_end)
        return steps

    return install


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    """
    `text_model(tokenizer)`: a folder that scripts/train_causal_lm.py has made of a few sentences, each of them a text,
    with a tokenizer of "char", "word" or "bpe".
    """
    folder = tmp_path_factory.mktemp("text_models")
    sentences = torch.randint(len(SENTENCES), (100,), generator=torch.Generator().manual_seed(0))
    (folder / "text.csv").write_text("text\n" + "".join(f"{SENTENCES[index]}\n" for index in sentences))
    sizes = {"block_size": 24, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    steps = {"max_steps": 150, "learning_rate": 1e-2, "eval_strategy": "no", "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "dataloader_pin_memory": False}
    flags = {"train_file": folder / "text.csv", "validation_file": folder / "text.csv", **sizes, **steps, **quiet}

    def train(tokenizer: str) -> str:
        output_dir = folder / tokenizer
        if not output_dir.exists():
            import train_causal_lm

            vocab_size = {"vocab_size": 270} if tokenizer == "bpe" else {}
            own = {"tokenizer": tokenizer, "output_dir": output_dir, **vocab_size}
            train_causal_lm.main([f"--{name}={value}" for name, value in {**flags, **own}.items()])
        return str(output_dir)

    return train


def recipes(word: str, without: str = "no such word") -> list:
    """Parameters of a test: the recipes of one script, which hold a word and lack another."""
    folder = Path(__file__).parent.parent / "scripts" / "recipes"
    texts = {path: path.read_text() for path in sorted(folder.glob("*.yaml"))}
    chosen = [path for path, text in texts.items() if word in text and without not in text]
    return [pytest.param(path, id=path.name) for path in chosen]


def write_texts(**num_lines: int):
    """Writes NAME.txt for each name, of so many lines, no two alike."""
    for name, lines in num_lines.items():
        Path(f"{name}.txt").write_text("".join(f"line {i * i + len(name)} of a text\n" for i in range(lines)))


# A recipe of time series models of a few thousand parameters.
TINY_SERIES_RECIPE = """
hidden_size: 8
num_hidden_layers: 1
num_attention_heads: 2
local_window_size: 3
per_device_train_batch_size: 4
learning_rate: 1e-2
dataloader_pin_memory: false
disable_tqdm: true
use_cpu: true
report_to: none
"""
