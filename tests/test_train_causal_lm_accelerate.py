# SPDX-License-Identifier: Apache-2.0
"""The training script with a loop of its own, end to end, with models of a few thousand parameters."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

import evaluate_checkpoint
import pytest
import torch
import train_causal_lm
import train_causal_lm_accelerate
from accelerate import Accelerator
from conftest import recipes, write_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from rtransformer_hf.training.errors import UsageError

RECIPE = """
tokenizer: char
block_size: 16
stride: 12
eval_stride: 9
shift_windows: true
hidden_size: 8
num_hidden_layers: 1
num_attention_heads: 2
local_window_size: 3
final_layer_norm: false
embedding_initializer_range: 0.3
max_steps: 12
logging_steps: 1
eval_strategy: steps
eval_steps: 3
save_steps: 2
save_total_limit: 2
per_device_train_batch_size: 4
per_device_eval_batch_size: 5
gradient_accumulation_steps: 3
learning_rate: 2e-2
weight_decay: 0.1
adam_beta2: 0.99
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
warmup_steps: 0.2
max_grad_norm: 0.8  # of some steps alone, so that a wrong scale of the gradients shows
dataloader_pin_memory: false
disable_tqdm: true
use_cpu: true
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in, with a recipe and three texts."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    write_texts(train=31, validation=21, test=9)
    return tmp_path


FILES = ["--train_file", "train.txt", "--validation_file", "validation.txt", "--test_file", "test.txt"]


def train(*flags: str, output_dir: str = "out") -> dict:
    train_causal_lm_accelerate.main(["recipe.yaml", *FILES, "--output_dir", output_dir, *flags])
    return results_of(output_dir)


def results_of(output_dir: str) -> dict:
    return json.loads(Path(output_dir, "all_results.json").read_text())


def step_losses(text: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+): loss ([\d.]+)", text)}


def weights(folder: str) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_it_trains_as_trainer_does(folder, capsys):
    results = train()
    losses = step_losses(capsys.readouterr().out)
    assert list(losses) == list(range(1, 13)) and losses[12] < losses[1] - 0.5

    train_causal_lm.main(["recipe.yaml", *FILES, "--output_dir", "trainer"])
    expected = results_of("trainer")
    history = json.loads(Path("trainer/trainer_state.json").read_text())["log_history"]
    expected_losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    assert losses == pytest.approx(expected_losses, abs=2e-4)
    for name in ("eval_loss", "eval_perplexity", "eval_bits_per_character", "test_loss", "test_predicted_tokens"):
        assert results[name] == pytest.approx(expected[name], rel=1e-4)

    train("--shift_windows", "false", output_dir="unshifted")
    unshifted = step_losses(capsys.readouterr().out)
    per_epoch = next(entry["step"] for entry in history if entry["epoch"] >= 1)
    assert [step for step in losses if losses[step] != unshifted[step]] == list(range(per_epoch + 1, 13))


def test_butterflies_do_not_decay(folder, monkeypatch):
    groups = []

    class AdamW(torch.optim.AdamW):
        def __init__(self, params, **settings):
            groups.extend((group["weight_decay"], {weight.ndim for weight in group["params"]}) for group in params)
            super().__init__(params, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    train("--projection_type", "butterfly", "--max_steps", "1")
    assert groups == [(0.1, {2}), (0.0, {1, 6})]  # the embeddings; biases, norms and twiddles


def test_the_folder_is_ready_to_use(folder, capsys):
    results = train("--max_steps", "2")
    printed = re.search(r"test: perplexity ([\d.]+), bits per character ([\d.]+)", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(results["test_perplexity"], abs=1e-4)
    assert float(printed[2]) == pytest.approx(results["test_bits_per_character"], abs=1e-4)
    assert AutoModelForCausalLM.from_pretrained("out").config.vocab_size == len(AutoTokenizer.from_pretrained("out"))

    evaluate_checkpoint.main(["out", "--data", "test.txt"])
    again = json.loads(capsys.readouterr().out)
    for name in ("loss", "perplexity", "bits_per_character", "predicted_tokens"):
        assert again[name] == pytest.approx(results[f"test_{name}"], rel=1e-6)


def test_a_killed_run_goes_on_with_the_same_losses(folder, capsys, monkeypatch):
    flags = ["--hidden_dropout", "0.2", "--load_best_model_at_end"]
    train(*flags)
    expected = step_losses(capsys.readouterr().out)
    Path("out").rename("uninterrupted")

    backward, num_backward = Accelerator.backward, []

    def backward_or_end(self, *args, **kwargs):
        num_backward.append(1)
        if len(num_backward) == 7 * 3 + 1:  # amid step 8; the last checkpoint, of step 6, is amid an epoch of 4 steps
            raise KeyboardInterrupt
        backward(self, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "backward", backward_or_end)
    with pytest.raises(KeyboardInterrupt):
        train(*flags)
    assert {path.name for path in Path("out").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    Path("out/checkpoint-7").mkdir()  # and while it saved: the state, which a checkpoint gets last, is missing
    capsys.readouterr()

    train(*flags)
    assert step_losses(capsys.readouterr().out) == {step: loss for step, loss in expected.items() if step > 6}
    for name, weight in weights("uninterrupted").items():
        torch.testing.assert_close(weights("out")[name], weight, rtol=0, atol=0)


def test_start_and_end_say_what_is_trained_and_how_to_use_it(folder, capsys):
    train("--max_steps", "2")
    said = capsys.readouterr().out
    assert re.match(
        r"Model: RTransformerForCausalLM, [\d,]+ parameters, a vocabulary of \d+.\n"
        r"Data: train [\d,]+ tokens, validation \d+ tokens, test \d+ tokens, in windows of 16.\n"
        r"Device: cpu, 1 process. Batch: 12 \(4 a device x 1 process x 3 accumulated\).\n"
        r"Steps: 2, 0.5 epochs of 4.\nLogs: the terminal.* Model and checkpoints: out.\n",
        said,
    )
    assert said.splitlines()[-1].endswith("scripts/evaluate_checkpoint.py out --data test.txt")
    train("--max_steps", "2")
    said = capsys.readouterr().out
    assert said.startswith("out holds this training, finished at step 2. It is evaluated again, not trained.")
    train("--max_steps", "3")
    assert "Steps: 3, 0.75 epochs of 4. On from step 2 (out/checkpoint-2).\n" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(folder, capsys, monkeypatch):
    backward, num_backward = Accelerator.backward, []

    def backward_or_end(self, *args, **kwargs):
        num_backward.append(1)
        if len(num_backward) == 3 * 3:
            raise KeyboardInterrupt
        backward(self, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "backward", backward_or_end)
    monkeypatch.setattr("sys.argv", ["loop.py"])
    with pytest.raises(SystemExit) as stop:
        run_command(train)
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith("\nloop.py: stopped. The same command goes on from out/checkpoint-2.\n")


def test_the_best_model_is_kept(folder, capsys):
    flags = ["--learning_rate", "0.5", "--lr_scheduler_type", "constant", "--max_steps", "6"]  # it gets worse
    results = train(*flags, "--load_best_model_at_end", "--metric_for_best_model", "loss")
    losses = [float(loss) for loss in re.findall(r"validation loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 2 and losses[0] < losses[1]
    assert results["eval_loss"] == pytest.approx(losses[0], abs=1e-4)
    last = train(*flags, "--overwrite_output_dir")
    assert last["eval_loss"] == pytest.approx(losses[1], abs=1e-4)


def test_what_a_resumed_run_keeps(folder, caplog):
    train("--max_steps", "2")
    with pytest.raises(UsageError, match=r"out/checkpoint-2 goes on .*: --learning_rate is 0.02 there and 0.5"):
        train("--max_steps", "4", "--learning_rate", "0.5")
    flags = ["--resume_from_checkpoint", "out/checkpoint-2", "--load_best_model_at_end"]
    with pytest.raises(UsageError, match="it ends at step 2, and --output_dir new lacks its model"):
        train("--max_steps", "2", *flags, output_dir="new")
    # The best model is in the folder of its run.
    Path("out/checkpoint-2/loop_state.json").write_text('{"step": 2, "best_loss": 0.0}')
    train("--max_steps", "3", *flags, output_dir="new")
    assert "--output_dir new lacks the best model of the run of out/checkpoint-2" in caplog.text
    assert Path("new/model.safetensors").exists()


def test_a_training_that_diverges_ends(folder):
    with pytest.raises(UsageError, match=r"diverged: .* is nan. A --learning_rate below 1e\+20 .* in another"):
        train("--learning_rate", "1e20", "--lr_scheduler_type", "constant")
    assert not Path("out/model.safetensors").exists()


def test_a_finished_run_is_evaluated_again_without_training(folder, monkeypatch):
    first = train("--max_steps", "2")
    monkeypatch.setattr(Accelerator, "backward", lambda *args, **kwargs: pytest.fail("trains again"))
    assert train("--max_steps", "2") == first
    with pytest.raises(UsageError, match=r"--output_dir: 'out' holds another model .*hidden_size is 8 there"):
        train("--hidden_size", "16")
    with pytest.raises(UsageError, match="loop is 'accelerate' there and None here"):  # Trainer can't go on from it
        train_causal_lm.main(["recipe.yaml", *FILES, "--output_dir", "out"])


def test_two_processes_train_as_one(folder, capsys):
    one = train("--max_steps", "6", "--gradient_accumulation_steps", "2", output_dir="one")
    expected = step_losses(capsys.readouterr().out)
    script = Path(train_causal_lm_accelerate.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    flags = ["--max_steps", "6", "--gradient_accumulation_steps", "1", "--output_dir", "two"]
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "recipe.yaml", *FILES, *flags], check=True, env=environment, timeout=120, stdout=-1, text=True
    )
    assert step_losses(run.stdout) == pytest.approx(expected, abs=2e-4)
    assert results_of("two") == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--optim", "sgd"], "unknown arguments: --optim sgd; --optim: Trainer's alone, not honoured here."),
        (["--early_stopping_patience", "2"], "--early_stopping_patience: Trainer's alone, not honoured here."),
        (["--learning_rte", "1"], "unknown arguments: --learning_rte 1 (did you mean --learning_rate?)"),
        (["--fp16"], "--fp16 needs an accelerator"),
        (["--lr_scheduler_kwargs", '{"nosuch": 1}'], "nosuch"),
        (["--group_by_length"], "unknown arguments: --group_by_length"),
        (
            ["--lr_scheduler_type", "reduce_lr_on_plateau"],
            "--lr_scheduler_type: reduce_lr_on_plateau (expected linear, cosine",
        ),
        (["--metric_for_best_model", "accuracy"], "--metric_for_best_model: accuracy (expected loss or eval_loss)"),
        (["--save_strategy", "best"], "--save_strategy: best (expected no, steps or epoch)"),
        (
            ["--gradient_accumulation_steps", "0"],
            "--gradient_accumulation_steps: 0 (expected an integer",
        ),
    ],
)
def test_bad_flags(folder, capsys, flags, named):
    with pytest.raises(SystemExit) as stop:
        train(*flags)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_stream_is_for_the_other_script(folder):
    with pytest.raises(UsageError, match=r"--streaming: .*expected scripts/train_causal_lm\.py"):
        train("--streaming")
    assert not Path("out").exists()


def test_a_folder_is_asked_for(folder, capsys):
    with pytest.raises(SystemExit):
        train_causal_lm_accelerate.main(["recipe.yaml", *FILES])
    assert "--output_dir: missing" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", recipes("context_length:", without="task:"))
def test_recipes_are_read_or_refused(recipe, folder, capsys):
    arguments = [str(recipe), "--train_file", "train.txt", "--output_dir", "out"]
    types = (
        train_causal_lm_accelerate.ArchitectureArguments,
        train_causal_lm_accelerate.DataArguments,
        train_causal_lm_accelerate.LoopArguments,
    )
    refused = [key for key in ("optim", "muon") if f"\n{key}: " in recipe.read_text()]
    if not refused:
        train_causal_lm_accelerate.parse_arguments(types, arguments, "")
        return
    with pytest.raises(SystemExit):
        train_causal_lm_accelerate.parse_arguments(types, arguments, "")
    assert f"unknown key {refused[0]!r}" in capsys.readouterr().err
