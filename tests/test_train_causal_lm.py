# SPDX-License-Identifier: Apache-2.0
"""The training script end to end, with models of a few thousand parameters."""

import json
import math
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

from rtransformer_hf.training.command_line import UsageError, run_command

import pytest
import torch
import torch.nn.functional as F
import train_causal_lm
from conftest import recipes, write_texts
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from rtransformer_hf import RTransformerForCausalLM
from rtransformer_hf.training import output_folder, stopping
from rtransformer_hf.training.causal_lm import TokenWindows
from rtransformer_hf.training.model_arguments import make_model

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
hidden_dropout: 0.1
max_steps: 6
logging_steps: 1
save_steps: 2
eval_strategy: steps
eval_steps: 3
per_device_train_batch_size: 4
per_device_eval_batch_size: 5
learning_rate: 1e-2
warmup_steps: 0
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
dataloader_pin_memory: false
disable_tqdm: true
"""


STEPS = ["--eval_strategy", "steps", "--eval_steps", "3", "--save_steps", "5"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in, with a recipe and three texts."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    write_texts(train=60, validation=21, test=9)
    return tmp_path


def train(*flags: str, files: tuple[str, ...] = ("train", "validation")) -> dict:
    data = [part for name in files for part in (f"--{name}_file", f"{name}.txt")]
    train_causal_lm.main(["recipe.yaml", *data, "--output_dir", "out", *flags])
    return json.loads(Path("out/all_results.json").read_text())


def losses(log_history: list[dict]) -> list[tuple]:
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in log_history]


def log_history() -> list[dict]:
    return json.loads(Path("out/trainer_state.json").read_text())["log_history"]


def test_a_run_leaves_a_model_ready_to_use(folder):
    results = train(files=("train", "validation", "test"))

    files = {path.name for path in Path("out").iterdir() if path.is_file()}
    assert files >= {"model.safetensors", "config.json", "tokenizer.json", "all_results.json", "README.md"}
    assert files >= {"learning_curves.png", "training_run.json", "modeling_rtransformer.py"}
    assert not [name for name in files if name.endswith(".unfinished")]
    points = json.loads(Path("out/learning_curves.json").read_text())
    for label, steps in (("training", [1, 2, 3, 4, 5, 6]), ("validation", [3, 6])):
        assert points[label]["step"] == steps and len(points[label]["loss"]) == len(steps)
        assert points[label]["seconds"] == sorted(points[label]["seconds"])
    assert points["training"]["seconds"][-1] <= results["training_seconds"] < results["train_runtime"]
    num_tokens = 6 * 4 * 17  # steps, windows, tokens
    assert results["train_tokens_per_second"] == pytest.approx(num_tokens / results["training_seconds"])
    assert 1e7 < results["train_peak_memory_bytes"] < 1e12

    model = AutoModelForCausalLM.from_pretrained("out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert model.config.use_cache and model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id and tokenizer.padding_side == "left"
    for prefix, name in (("eval", "validation"), ("test", "test")):
        text = Path(f"{name}.txt").read_text()
        tokens = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
        nats = plain_loop_nats(model, tokens, context_length=16, stride=9)
        assert results[f"{prefix}_predicted_tokens"] == len(tokens) - 1
        assert results[f"{prefix}_loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
        assert results[f"{prefix}_bits_per_character"] == pytest.approx(nats / math.log(2) / (len(text) - 1), rel=1e-5)
        assert results[f"{prefix}_perplexity"] == pytest.approx(math.exp(results[f"{prefix}_loss"]))

    card = ModelCard.load("out/README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    values = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert values["validation", "bits_per_character"] == results["eval_bits_per_character"]
    assert values["test", "perplexity"] == results["test_perplexity"]
    assert str(folder) not in card.content


def plain_loop_nats(model, tokens: torch.Tensor, context_length: int, stride: int) -> float:
    """Window by window, token by token."""
    nats, predicted = 0.0, 1
    for window in range(len(TokenWindows(tokens, 0, context_length, stride))):
        start = min(window * stride, len(tokens) - context_length - 1)
        inputs = tokens[start : start + context_length]
        with torch.no_grad():
            log_probabilities = F.log_softmax(model(input_ids=inputs[None]).logits[0].double(), dim=-1)
        while predicted <= start + context_length:
            nats -= log_probabilities[predicted - 1 - start, tokens[predicted]].item()
            predicted += 1
    assert predicted == len(tokens)
    return nats


@pytest.mark.parametrize("flags", [(), ("--torch_compile", "--torch_compile_backend", "eager")])
def test_label_smoothing(folder, flags):
    """One step of no length over all windows at once: the loss is the smoothed one of the next tokens."""
    flags = (*flags, "--max_steps", "1", "--learning_rate", "0", "--per_device_train_batch_size", "200")
    results = train("--label_smoothing_factor", "0.1", "--hidden_dropout", "0", "--shift_windows", "false", *flags)
    model, tokenizer = AutoModelForCausalLM.from_pretrained("out").eval(), AutoTokenizer.from_pretrained("out")
    tokens = torch.tensor([*tokenizer(Path("train.txt").read_text())["input_ids"], tokenizer.eos_token_id])
    nats = number = 0
    for row in TokenWindows(tokens, 0, context_length=16, stride=12):
        with torch.no_grad():
            logits, labels = model(row["input_ids"][None]).logits[0, :-1], row["labels"][1:]
        nats += F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
        number += (labels != -100).sum()
    assert results["train_loss"] == pytest.approx((nats / number).item(), rel=1e-5)


def test_a_killed_run_goes_on_with_the_same_losses(folder, killed_at, caplog):
    write_texts(train=8, validation=21, test=9)
    train()
    assert log_history()[-1]["epoch"] == 2  # so that step 4, at which it is killed, is within the second
    expected = losses(log_history())
    weights = AutoModelForCausalLM.from_pretrained("out").state_dict()
    Path("out").rename("uninterrupted")

    steps = killed_at(4)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert not Path("out/model.safetensors").exists()
    # and while it saved: the state, which a checkpoint gets last, is missing
    Path("out/checkpoint-5").mkdir()
    Path("out/checkpoint-5/config.json").write_text("{")

    with caplog.at_level("INFO"):
        train()
    assert "checkpoint-4" in caplog.text
    assert steps[5:] == [4, 5]
    resumed = log_history()
    seconds = [entry["training_seconds"] for entry in resumed if "training_seconds" in entry]
    assert seconds == sorted(seconds)  # of the whole training
    trained = [entry for entry in losses(resumed) if entry[1] is not None or entry[2] is not None]
    assert trained == [entry for entry in expected if entry[1] is not None or entry[2] is not None]
    assert " second from step 4 on, finished on " in Path("out/README.md").read_text().replace("seconds", "second")
    assert " second, finished on " in Path("uninterrupted/README.md").read_text().replace("seconds", "second")
    for name, weight in AutoModelForCausalLM.from_pretrained("out").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


def test_a_resumed_run_keeps_its_optimizer(folder, killed_at, monkeypatch, caplog):
    killed_at(4)
    with pytest.raises(KeyboardInterrupt):
        train()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("starts to train"))
        for flags, named in (
            (("--learning_rate", "0.5", "--adam_beta2", "0.9"), ("learning_rate is 0.01", "adam_beta2 is 0.99")),
            (("--muon",), ("muon is False there and True here",)),
            (("--optim", "adafactor"), ("optim is 'adamw_torch_fused' there and 'adafactor' here",)),
            (("--lr_scheduler_type", "greedy", "--lr_scheduler_kwargs", "{}"), ("lr_scheduler_type is 'cosine_with",)),
        ):
            with pytest.raises(UsageError, match=r"^out/checkpoint-4 goes on with the optimizer") as error:
                train(*flags)
            assert all(f"--{name}" in str(error.value) for name in named)

    Path("out/checkpoint-4/training_settings.json").unlink()  # as of an earlier version
    train("--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", "{}", "--max_steps", "8", "--logging_steps", "2")
    assert "out/checkpoint-4 is of an earlier version" in caplog.text
    rates = {entry["step"]: entry["learning_rate"] for entry in log_history() if "loss" in entry}
    assert list(rates) == [1, 2, 3, 4, 6, 8] and rates[4] < rates[8] == 0.01


def test_a_checkpoint_without_its_optimizer_is_not_gone_on_from(folder, killed_at):
    killed_at(4)
    with pytest.raises(KeyboardInterrupt):
        train("--save_only_model", "True")
    assert "out/checkpoint-4 holds the model alone (--save_only_model)" in stopping.hint()
    with pytest.raises(UsageError, match=r"^out/checkpoint-4 holds no optimizer and no schedule"):
        train()
    train("--save_only_model", "True", "--max_steps", "4")  # finished: nothing to go on with
    assert Path("out/model.safetensors").exists()


# The highest loss is the best: that of the first evaluation.
FIRST_IS_BEST = ["--load_best_model_at_end", "--greater_is_better", "True", "--eval_steps", "2"]


def weights_file(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def test_the_best_checkpoint_is_that_of_the_runs_own_folder(folder):
    train(*FIRST_IS_BEST)
    best, last = weights_file("out/checkpoint-2"), weights_file("out/checkpoint-6")
    shutil.copytree("out", "copy")
    Path("out/checkpoint-2/model.safetensors").write_bytes(last)
    card = "The weights are those of step 2, the best on validation by"
    for flags, expected, sentence in (
        ([], best, f"{card} loss."),
        (["--load_best_model_at_end", "False"], last, None),
        (["--metric_for_best_model", "perplexity"], best, f"{card} perplexity."),
    ):
        train(*FIRST_IS_BEST, *flags, "--output_dir", "copy")
        assert weights_file("copy") == expected
        text = Path("copy/README.md").read_text()
        assert "The weights are those of" not in text if sentence is None else sentence in text

    shutil.rmtree("copy/checkpoint-2")
    with pytest.raises(UsageError, match=r"^copy/checkpoint-2, the best checkpoint of this finished training"):
        train(*FIRST_IS_BEST, "--output_dir", "copy")
    assert weights_file("copy") == best


def test_a_best_checkpoint_that_did_not_come_along_is_forgotten(folder, killed_at, caplog):
    killed_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(*FIRST_IS_BEST)
    shutil.copytree("out/checkpoint-4", "pushed/last-checkpoint")
    Path("out").rename("moved")
    train(*FIRST_IS_BEST, "--resume_from_checkpoint", "pushed/last-checkpoint")
    assert (
        "pushed/checkpoint-2, the best checkpoint so far, is not there: it is forgotten. The best of those there is "
        "pushed/last-checkpoint."
    ) in caplog.text
    assert weights_file("out") == weights_file("pushed/last-checkpoint")
    assert (
        "The weights are those of step 4, the best on validation by loss of the checkpoints that were kept."
        in Path("out/README.md").read_text()
    )

    train(*FIRST_IS_BEST, "--output_dir", "moved")
    assert weights_file("moved") == weights_file("moved/checkpoint-2")
    assert "step 2, the best on validation by loss.\n" in Path("moved/README.md").read_text()


@pytest.mark.parametrize("source", ["file", "folder"])
def test_a_streamed_run_goes_on_with_the_same_losses(folder, killed_at, source, capsys):
    """Within its third pass through the text; the stream is shuffled by a buffer and cut elsewhere in each pass."""
    write_texts(train=8, validation=21, test=9)
    num_windows = len(TokenWindows(torch.zeros(len(Path("train.txt").read_text()) + 1), 0, 16, 12))
    assert 2 * num_windows < 4 * 8 < 3 * num_windows
    flags = ["--streaming", "--shuffle_buffer_size", "5", "--max_steps", "9", "--save_steps", "4"]
    data = ["--train_file", "train.txt", "--validation_file", "validation.txt"]
    if source == "folder":
        Path("texts").mkdir()
        for name in ("train", "validation"):
            Path(f"{name}.txt").rename(f"texts/{name}.txt")
        data = ["--dataset_name", "texts"]
    train = partial(train_causal_lm.main, ["recipe.yaml", *data, "--output_dir", "out", *flags])
    train()
    said = capsys.readouterr().out
    assert "\nData: train streamed, validation " in said and "\nSteps: 9, of a stream.\n" in said
    expected = log_history()
    weights = AutoModelForCausalLM.from_pretrained("out").state_dict()
    Path("out").rename("uninterrupted")

    steps = killed_at(8)
    with pytest.raises(KeyboardInterrupt):
        train()
    train()
    assert steps[9:] == [8] and losses(log_history())[:-1] == losses(expected)[:-1]
    for name, weight in AutoModelForCausalLM.from_pretrained("out").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)
    train()
    assert "finished at step 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max_steps", "-1"], "--max_steps: missing (--streaming: "),
        (["--dataloader_num_workers", "2"], "--dataloader_num_workers: 2 (expected 0 with --streaming"),
    ],
)
def test_flags_that_do_not_go_with_a_stream(folder, flags, named):
    with pytest.raises(UsageError) as error:
        train("--streaming", *flags)
    assert named in str(error.value) and not Path("out").exists()


def test_ctrl_c_says_how_to_go_on(folder, killed_at, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scripts/train_causal_lm.py"])
    for step, hint in (
        (1, "There is no checkpoint yet: the same command starts from the beginning."),
        (4, "The same command goes on from out/checkpoint-4."),
    ):
        killed_at(step)
        with pytest.raises(SystemExit) as stop:
            run_command(train)
        assert stop.value.code == 130
        assert capsys.readouterr().err.endswith(f"\ntrain_causal_lm.py: stopped. {hint}\n")


@pytest.mark.parametrize("metric", ["loss", "perplexity", "bits_per_character"])
def test_a_lower_metric_is_better(metric, tmp_path):
    args = output_folder.ResumableTrainingArguments(
        str(tmp_path), metric_for_best_model=metric, load_best_model_at_end=True, eval_strategy="steps", use_cpu=True
    )
    assert args.greater_is_better is False


def test_early_stopping_counts_on_in_a_resumed_run(folder, killed_at):
    flags = ("--max_steps", "60", "--eval_steps", "2", "--save_steps", "2", "--learning_rate", "1e-12")
    flags += ("--load_best_model_at_end", "--metric_for_best_model", "perplexity", "--early_stopping_patience", "3")
    steps = killed_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(*flags)
    train(*flags)
    # The first evaluation is the best: with a rate of nothing, none is better by more than rounding.
    last = steps[-1] + 1
    assert last < 60 and last - json.loads(Path("out/trainer_state.json").read_text())["best_global_step"] == 6
    card = Path("out/README.md").read_text()
    assert f"\n- stopped early: at step {last}\n" in card
    assert f"The weights are those of step {last - 6}, the best on validation by perplexity.\n" in card


def test_early_stopping_goes_by_the_patience_that_is_given_now(folder, killed_at, monkeypatch):
    flags = ("--max_steps", "60", "--eval_steps", "1", "--save_steps", "2", "--learning_rate", "0")
    flags += ("--load_best_model_at_end", "--metric_for_best_model", "eval_perplexity")
    steps = killed_at(6)
    with pytest.raises(KeyboardInterrupt):
        train(*flags, "--early_stopping_patience", "50")
    train(*flags, "--early_stopping_patience", "7")  # not 50: what is given now counts
    assert steps[-1] == 7  # no evaluation is better than that of step 1

    monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: pytest.fail("trains again"))
    train(*flags, "--early_stopping_patience", "7")


def test_early_stopping_of_a_run_that_began_without(folder, capsys):
    flags = ("--eval_steps", "1", "--save_steps", "1", "--learning_rate", "0", "--load_best_model_at_end")
    train(*flags, "--max_steps", "2")
    train(*flags, "--max_steps", "9", "--early_stopping_patience", "3")
    assert log_history()[-1]["step"] == 5
    capsys.readouterr()
    train(*flags, "--max_steps", "9", "--early_stopping_patience", "3")
    said = capsys.readouterr().out
    assert "out holds this training, finished at step 5 of 9, as --early_stopping_patience has it." in said


@pytest.mark.parametrize(
    "flags", [(), ("--save_strategy", "no"), ("--save_strategy", "best", "--load_best_model_at_end")]
)
def test_a_finished_run_is_evaluated_again_without_training(folder, monkeypatch, capsys, flags):
    first = train(*flags)
    weights = AutoModelForCausalLM.from_pretrained("out").state_dict()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", lambda *args, **kwargs: pytest.fail("trains again"))
        second = train(*flags)
    assert (
        "out holds this training, finished at step 6. It is evaluated again, not trained." in capsys.readouterr().out
    )
    for key in ("train_loss", "eval_loss", "eval_bits_per_character"):
        assert first[key] == second[key]
    for name, weight in AutoModelForCausalLM.from_pretrained("out").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)

    train(*flags, "--overwrite_output_dir", "--max_steps", "1")
    train(*flags)
    assert log_history()[-1]["step"] == 6


def test_start_and_end_say_what_is_trained_and_how_to_use_it(folder, capsys):
    files = ("train", "validation", "test")
    data = [part for name in files for part in (f"--{name}_file", f"{name}.txt")]
    flags = ("--output_dir", "out put", "--gradient_accumulation_steps", "2", "--use_cpu")
    train_causal_lm.main(["recipe.yaml", *data, *flags])
    said = capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained("out put")
    tokens = [len(Path(f"{name}.txt").read_text()) + 1 for name in files]  # an end of text follows
    num_windows = len(TokenWindows(torch.zeros(tokens[0]), 0, 16, 12))
    steps_per_epoch = math.ceil(math.ceil(num_windows / 4) / 2)
    assert said.startswith(
        f"Model: RTransformerForCausalLM, {model.num_parameters():,} parameters, a vocabulary of "
        f"{model.config.vocab_size}.\n"
        f"Data: train {tokens[0]:,} tokens, validation {tokens[1]:,} tokens, test {tokens[2]:,} tokens, in windows of "
        "16.\n"
        "Device: cpu, 1 process. Batch: 8 (4 a device x 1 process x 2 accumulated).\n"
        f"Steps: 6, {6 / steps_per_epoch:.3g} epochs of {steps_per_epoch}.\n"
        "Logs: the terminal. Model and checkpoints: out put.\n"
    )
    scripts = Path(train_causal_lm.__file__).parent
    prompt = shlex.quote(train_causal_lm.prompt_for(AutoTokenizer.from_pretrained("out put")))
    assert said.endswith(
        "The model is in out put. To use it:\n"
        f"    python {scripts}/generate.py 'out put' {prompt}\n"
        f"    python {scripts}/evaluate_checkpoint.py 'out put' --data test.txt\n"
    )


def test_commands_are_named_from_where_they_are_given(monkeypatch):
    monkeypatch.chdir(Path(train_causal_lm.__file__).parent.parent)
    assert train_causal_lm.command("generate.py", "out") == ["python", "scripts/generate.py", "out"]


def test_it_learns_without_a_recipe(folder):
    write_texts(train=400)
    flags = ("--block_size", "64", "--max_steps", "30", "--disable_tqdm", "true", "--use_cpu")
    train_causal_lm.main(["--train_file", "train.txt", "--output_dir", "out", *flags])
    assert json.loads(Path("out/all_results.json").read_text())["eval_bits_per_character"] < 2.5
    assert {entry["step"] for entry in log_history() if "loss" in entry} == {20}
    assert [entry["step"] for entry in log_history() if "eval_loss" in entry][:10] == list(range(3, 31, 3))


def test_more_steps_go_on_from_the_last_checkpoint(folder):
    train()
    train("--max_steps", "8")
    assert [entry["step"] for entry in log_history() if "loss" in entry] == list(range(1, 9))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--hidden_size", "16"], "hidden_size is 8 there and 16 here"),
        (["--train_file", "test.txt"], "training text"),
        (["--tokenizer", "word"], "training text"),
        (["--stride", "16"], "stride is 12 there and 16 here"),
    ],
)
def test_a_folder_with_another_model(folder, monkeypatch, flags, named):
    train("--max_steps", "1")
    before = Path("out/model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("starts to train"))
        with pytest.raises(UsageError, match="--output_dir: 'out' holds another model") as error:
            train(*flags)
    assert named in str(error.value) and "--overwrite_output_dir" in str(error.value)
    assert Path("out/model.safetensors").read_bytes() == before

    train(*flags, "--max_steps", "1", "--overwrite_output_dir")
    assert Path("out/model.safetensors").read_bytes() != before
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_folder_with_something_else(folder):
    Path("out").mkdir()
    Path("out/README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"--output_dir: 'out' holds other files \(README.md\)"):
        train()
    with pytest.raises(UsageError, match=r"--output_dir: 'train.txt' is a file"):
        train("--output_dir", "train.txt")
    with pytest.raises(UsageError, match=r"--resume_from_checkpoint: no checkpoint: 'nowhere' "):
        train("--output_dir", "new", "--resume_from_checkpoint", "nowhere")
    assert Path("out/README.md").read_text() == "mine"


def test_training_goes_on_from_another_model(folder):
    train("--max_steps", "1")
    Path("out").rename("first")
    train("--model_name_or_path", "first", "--tokenizer", "first", "--max_steps", "1")

    Path("train.txt").write_text("".join(map(chr, range(33, 127))) * 4)
    with pytest.raises(UsageError, match=r"--tokenizer char gives token id \d+ for --train_file .* vocab_size"):
        train("--model_name_or_path", "first", "--output_dir", "second")


def test_without_matplotlib_there_is_no_picture(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train("--max_steps", "1")
    assert "matplotlib is not installed" in caplog.text
    assert not Path("out/learning_curves.png").exists() and Path("out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("installed", "flags", "expected"),
    [(True, {}, ["tensorboard"]), (False, {}, []), (True, {"report_to": "none"}, [])],
)
def test_tensorboard_where_it_is_installed(monkeypatch, tmp_path, installed, flags, expected):
    monkeypatch.setattr(output_folder, "is_tensorboard_available", lambda: installed)
    available = ["tensorboard"] if installed else []
    monkeypatch.setattr(output_folder, "get_available_reporting_integrations", lambda: available)
    assert output_folder.ResumableTrainingArguments(str(tmp_path), **flags).report_to == expected


def test_flags_win_over_the_recipe(folder):
    model_args, data_args, training_args = train_causal_lm.parse_arguments(
        (
            train_causal_lm.ArchitectureArguments,
            train_causal_lm.DataArguments,
            train_causal_lm.ResumableTrainingArguments,
        ),
        [
            "recipe.yaml",
            "--train_file",
            "train.txt",
            "test.txt",
            "--hidden_size",
            "32",
            "--line_ending=",
            "--output_dir",
            "out",
        ],
        "",
    )
    assert model_args.hidden_size == 32 and model_args.num_hidden_layers == 1
    assert data_args.train_file == ["train.txt", "test.txt"] and data_args.line_ending == ""
    assert training_args.learning_rate == 0.01 and training_args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}


@pytest.mark.parametrize(
    ("recipe", "flags", "named"),
    [
        ("hiden_size: 8", [], "recipe 'recipe.yaml' has an unknown key 'hiden_size' (did you mean hidden_size?)"),
        ("hidden_size: big", [], "invalid int value: 'big'"),
        ("- a list", [], "recipe 'recipe.yaml' has no lines of"),
        ("a: b: c", [], "recipe 'recipe.yaml' can't be read (expected a YAML file)"),
        ("", [], "recipe 'recipe.yaml' has no lines of"),
        ("block_size: 0", [], "--context_length: 0 (expected an integer of at least 1)"),
        ("preprocessing_num_workers: 0", [], "--preprocessing_num_workers: 0 (expected an integer of at least 1)"),
        ("shuffle_buffer_size: 0", [], "--shuffle_buffer_size: 0 (expected an integer of at least 1)"),
        ("vocab_size: 1", [], "--vocab_size: 1 (expected an integer of at least 2)"),
        ("muon_learning_rate: 0", ["--muon"], "--muon_learning_rate: 0 (expected a number of more than 0)"),
        ("average_decay: 1.0", [], "--average_decay: 1.0 (expected a number of more than 0 and less than 1)"),
        ("block_size: 8", ["--blocksize", "9"], "--blocksize 9 (did you mean --block_size?); --help"),
        ("block_size: 8", ["--learning_rte=1"], "--learning_rte=1 (did you mean --learning_rate?); --help"),
        ("report_to: tensorbord", [], "--report_to: unknown: 'tensorbord' (did you mean tensorboard?)"),
        (
            "report_to: wandb",
            [],
            "--report_to wandb: not available here; `pip install wandb` installs its package, as the extra [log]",
        ),
        (
            "early_stopping_patience: 2",
            ["--eval_strategy", "no"],
            "--early_stopping_patience needs --load_best_model_at_end",
        ),
        ("early_stopping_patience: 0", [], "--early_stopping_patience: 0 (expected an integer of at least 1)"),
        ("block_size: 8", ["--hidden", "9"], "unknown arguments: --hidden 9"),
        ("block_size: 8", ["--stride", "9"], "--stride: 9 (expected at most --context_length 8)"),
        ("lr_scheduler_type: nosuch", [], "nosuch"),
        ("eval_strategy: sometimes", [], "sometimes"),
        (
            "load_best_model_at_end: true",
            ["--eval_strategy", "epoch"],
            "--save_strategy steps (expected best, or epoch",
        ),
        (
            "load_best_model_at_end: true",
            ["--eval_strategy", "no"],
            "--load_best_model_at_end needs an --eval_strategy",
        ),
        ("load_best_model_at_end: true", STEPS, "--load_best_model_at_end requires the saving steps to be a round"),
        ("fp16: true", ["--use_cpu"], "--fp16 needs an accelerator, and the training is on the CPU (expected --bf16)"),
        ("num_train_epochs: 0", [], "--num_train_epochs: 0 (expected a number of more than 0)"),
        ("max_steps: 0", [], "--max_steps: 0 (expected at least 1, or -1: by --num_train_epochs)"),
        ("save_steps: 1.5", [], "--save_steps: 1.5 (expected an integer, or less than 1: a share of all steps)"),
        ("seed: -1", [], "--seed: -1 (expected an integer of at least 0 and at most 4294967295)"),
        ("adam_beta1: 1.5", [], "--adam_beta1: 1.5 (expected a number of at least 0 and less than 1)"),
        ("learning_rate: .nan", [], "--learning_rate: nan (expected a number of at least 0)"),
        ("lr_scheduler_kwargs: min_lr=1", [], "--lr_scheduler_kwargs: 'min_lr=1' (expected JSON"),
        ("lr_scheduler_kwargs: {nosuch: 1}", [], """--lr_scheduler_kwargs ({"nosuch": 1}): """),
        ("lr_scheduler_type: cosine_with_min_lr", [], "--lr_scheduler_type cosine_with_min_lr does not go with these"),
        ("optim: galore_adamw", [], "--optim galore_adamw can't be made with these settings: You need to install"),
        ("dataloader_persistent_workers: true", [], "--dataloader_persistent_workers needs --dataloader_num_workers"),
        ("use_liger_kernel: true", [], "--use_liger_kernel: not available here; `pip install liger-kernel`"),
        ("deepspeed: x.json", [], "--deepspeed x.json: not available here; `pip install deepspeed`"),
        ("report_to: [none, tensorboard]", [], "--report_to: none tensorboard (expected none alone)"),
        (
            "report_to: mlflow",
            [],
            "--report_to mlflow: not available here; `pip install mlflow` installs its package.",
        ),
        ("prediction_loss_only: true", [], "--prediction_loss_only: True (expected False: the metrics are computed"),
        ("batch_eval_metrics: true", [], "--batch_eval_metrics: True (expected False"),
        ("eval_do_concat_batches: false", [], "--eval_do_concat_batches: False (expected True"),
        ("eval_use_gather_object: true", [], "--eval_use_gather_object: True (expected False"),
        ("bf16_full_eval: true", ["--use_cpu"], "--bf16_full_eval: it would convert the weights that are saved"),
        ("fp16_full_eval: true", ["--use_cpu"], "(expected --fp16, which computes in this precision"),
        ("label_smoothing_factor: 1.5", [], "--label_smoothing_factor: 1.5 (expected a number of at least 0 and"),
    ],
)
def test_bad_recipes_and_flags(folder, capsys, recipe, flags, named):
    Path("recipe.yaml").write_text(recipe)
    with pytest.raises(SystemExit) as stop:
        train(*flags)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err
    assert not Path("out").exists()


def test_output_dir_is_asked_for(folder, capsys):
    with pytest.raises(SystemExit):
        train_causal_lm.main(["recipe.yaml", "--train_file", "train.txt"])
    assert "--output_dir: missing (expected the folder to write to)" in capsys.readouterr().err


def test_a_misspelt_flag_is_named_before_the_one_that_is_missed(folder, capsys):
    with pytest.raises(SystemExit):
        train_causal_lm.main(["recipe.yaml", "--train_file", "train.txt", "--output_dirr", "out"])
    assert "unknown arguments: --output_dirr out (did you mean --output_dir?)" in capsys.readouterr().err


def test_missing_recipe(folder, capsys):
    with pytest.raises(SystemExit):
        train_causal_lm.main(["no_such.yaml"])
    assert "recipe 'no_such.yaml' can't be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--num_attention_heads", "3"], "num_attention_heads"),
        (["--local_rnn_type", "transformer"], "local_rnn_type"),
        (["--model_name_or_path", "./no_such_model"], "no_such_model"),
        (["--tokenizer", "./no_such_tokenizer"], "--tokenizer './no_such_tokenizer'"),
        (["--metric_for_best_model", "eval_perplexty"], "unknown: 'eval_perplexty' (did you mean perplexity?)"),
        (
            ["--shift_windows", "--dataloader_persistent_workers", "--dataloader_num_workers", "1"],
            "--dataloader_persistent_workers does not go with",
        ),
    ],
)
def test_models_and_flags_that_do_not_fit(folder, flags, named):
    with pytest.raises(UsageError) as error:
        train(*flags)
    assert named in str(error.value)
    assert not Path("out").exists()


def test_no_whole_batch_to_train_on(folder):
    with pytest.raises(UsageError, match=r"--dataloader_drop_last: no whole batch of .*_batch_size 900 in"):
        train("--dataloader_drop_last", "--per_device_train_batch_size", "900")


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        train_causal_lm.main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "--local_window_size" in output and "--push_to_hub" in output and "--line_ending" in output
    text = " ".join(output.split())
    for flag, default in (
        ("hidden_size", "Width of the model. (default: 128; with --model_name_or_path, that of the checkpoint)"),
        ("local_rnn_type", "rnn, gru or lstm. (default: gru; with --model_name_or_path, that of the checkpoint)"),
        ("learning_rate", "for the optimizer. (default: 0.003; with --model_name_or_path 0.0003)"),
        ("logging_steps", "(default: 20)"),
        ("eval_strategy", "(default: steps; where one of --eval_strategy, --eval_steps, "),
    ):
        assert default in text[text.index(f"--{flag.replace('_', '-')} ") :][:700], flag
    assert "(default: None)" not in text


@pytest.mark.parametrize("recipe", recipes("context_length:", without="task:"))
def test_recipes_of_causal_language_models_are_valid(recipe, folder):
    model_args, _, _ = train_causal_lm.parse_arguments(
        (
            train_causal_lm.ArchitectureArguments,
            train_causal_lm.DataArguments,
            train_causal_lm.ResumableTrainingArguments,
        ),
        [str(recipe), "--train_file", "train.txt", "--output_dir", "out"],
        "",
    )
    with torch.device("meta"):
        make_model(model_args, RTransformerForCausalLM, AutoModelForCausalLM, ())
