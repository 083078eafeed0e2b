# SPDX-License-Identifier: Apache-2.0
"""Several processes give what one gives: the scripts under DDP and FSDP2, and models that are sharded as they load."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import train_causal_lm
import train_polyphonic_music
import train_sequence_classification
import train_time_series
from sharded_models import MODEL_CLASSES, SETTINGS, TRAINED, make_batches, make_optimizer, train
from test_train_polyphonic_music import nats_tune_by_tune, read_rolls, write_mat
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from transformers import AutoModelForAudioFrameClassification, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.distributed import DistributedConfig

from rtransformer_hf import RTransformerConfig, RTransformerModel
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.run import train_and_evaluate

TINY = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 3,
    "initializer_range": 0.15,
}
RUNS = Path(__file__).parent / "distributed_runs.py"
RECIPE = """
hidden_size: 8
num_hidden_layers: 2
num_attention_heads: 2
local_window_size: 3
hidden_dropout: 0  # processes draw their own
max_steps: 20
logging_steps: 1
save_steps: 10
eval_strategy: steps
eval_steps: 10
load_best_model_at_end: true
learning_rate: 1e-2
lr_scheduler_type: constant
per_device_eval_batch_size: 5
use_cpu: true
dataloader_pin_memory: false
disable_tqdm: true
"""
TEXT = ("recipe.yaml", "--train_file", "train.txt", "--validation_file", "validation.txt", "--block_size", "16")
# The text model is dense, the classifier is made of Monarch matrices and heads, the music model of butterflies.
MONARCH = ("--projection_type", "monarch", "--local_rnn_num_heads", "2")
ROWS = ("recipe.yaml", "--train_file", "train.csv", "--validation_file", "validation.csv", *MONARCH)
BUTTERFLY = ("--projection_type", "butterfly", "--local_rnn_gate_activation", "hard_sigmoid")
SGD = ("--optim", "sgd", "--max_grad_norm", "0")
TUNES = ("recipe.yaml", "--data", "tunes.mat", "--max_steps", "4", *SGD, *BUTTERFLY)
SERIES = (  # with missing cells, and evaluations whose last batches are not full
    *("recipe.yaml", "--train_file", "series.csv", "--id_column", "id", "--target_columns", "x"),
    *("--max_steps", "4", "--save_steps", "2", "--eval_steps", "2", "--logging_steps", "1"),
)
FORECASTS = (*SERIES, "--horizon", "3", "--context_length", "6", "--num_parallel_samples", "9")
LABELS = (*SERIES, "--label_column", "y", "--test_file", "series.csv", "--validation_fraction", "0.36")
SERIES_RUNS = {
    "forecasts": FORECASTS,
    "classes": (*LABELS, "--task", "classify", "--label_column", "kind"),
    "numbers": (*LABELS, "--task", "label_each_step", "--regression"),
}
ACCUMULATED = ("--gradient_accumulation_steps", "2")
STREAM = ("--streaming", "--shuffle_buffer_size", "50")
SUMS = ("--sum_loss", "--learning_rate", "1e-4")
SEPARATELY = ("--average_tokens_across_devices", "false")  # a sum is one over all processes none the less
FSDP_IN_SHARDS = ("--fsdp", "--fsdp_config", '{"state_dict_type": "SHARDED_STATE_DICT"}')
FSDP_WHOLE = ("--fsdp", "--fsdp_config", '{"activation_checkpointing": true}')
ACCELERATE_CONFIG = """
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_reshard_after_forward: true
mixed_precision: 'no'
num_machines: 1
num_processes: 3
"""


def to(output_dir: str, batch_size: int) -> tuple[str, ...]:
    return "--output_dir", output_dir, "--per_device_train_batch_size", str(batch_size)


def launch(launcher: list[str], runs: list[tuple[str, ...]]):
    """Runs scripts in turn in the processes that a launcher starts, with no device but the CPU."""
    Path("runs.json").write_text(json.dumps(runs))
    settings = {"PYTHONPATH": str(RUNS.parent.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *launcher, str(RUNS), "runs.json"]
    with subprocess.Popen(command, env=os.environ | settings) as launched:
        try:
            assert launched.wait(timeout=500) == 0
        finally:
            launched.terminate()  # and with it, unlike `kill`, the processes that it has started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """
    A folder with what was trained by one process, `causal_lm` and `classifier`, and by two: the same under DDP and
    under FSDP2, and tiny models in every layout of `sharded_models`. A batch of all processes is that of one.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("distributed"))
        Path("recipe.yaml").write_text(RECIPE)
        for name, num_rows in (("train", 240), ("validation", 21)):
            texts = [" ".join(f"word{i * j % 9}" for j in range(1 + (i * i + num_rows) % 6)) for i in range(num_rows)]
            Path(f"{name}.txt").write_text("".join(f"{i * i} {text}\n" for i, text in enumerate(texts)))
            rows = [f"{text},{'long' if len(text) > 17 else 'short'}" for text in texts]
            Path(f"{name}.csv").write_text("\n".join(["text,label", *rows]))
        write_series("series.csv")
        write_mat("tunes.mat", {"traindata": 16, "validdata": 5, "testdata": 4})
        torch.manual_seed(0)
        for name, model_class in MODEL_CLASSES.items():
            model_class(RTransformerConfig(**TINY, **SETTINGS[name])).save_pretrained(f"tiny/{name}")

        train_polyphonic_music.main([*TUNES, *to("music", 8)])
        train_polyphonic_music.main([*TUNES, *to("music_sum", 8), *SUMS])
        train_causal_lm.main([*TEXT, *to("causal_lm", 12)])
        train_causal_lm.main([*TEXT, *to("stream", 12), *STREAM])
        train_sequence_classification.main([*ROWS, *to("classifier", 12)])
        for name, flags in SERIES_RUNS.items():
            train_time_series.main([*flags, *to(name, 8)])
        half = ("--max_steps", "10")
        launch(
            ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
            [
                ("train_polyphonic_music", *TUNES, *to("music_ddp", 2), "--gradient_accumulation_steps", "2"),
                ("train_polyphonic_music", *TUNES, *to("music_sum_ddp", 4), *SUMS, *SEPARATELY),
                ("train_causal_lm", *TEXT, *to("causal_lm_ddp", 6), *half),
                ("train_causal_lm", *TEXT, *to("stream_ddp", 6), *STREAM, *half),
                (
                    "train_sequence_classification",
                    *ROWS,
                    *to("classifier_ddp", 3),
                    "--gradient_accumulation_steps",
                    "2",
                ),
                ("train_time_series", *FORECASTS, *to("forecasts_ddp", 2), *ACCUMULATED, "--max_steps", "2"),
                *(
                    ("train_time_series", *flags, *to(f"{name}_ddp", 2), *ACCUMULATED)
                    for name, flags in SERIES_RUNS.items()
                ),
                ("train_causal_lm", *TEXT, *to("causal_lm_fsdp", 6), *FSDP_IN_SHARDS, *half),
                ("train_sequence_classification", *ROWS, *to("classifier_fsdp", 6), *FSDP_WHOLE),
                ("sharded_models", "tiny"),
            ],
        )
        yield


def write_series(path: str):
    lines, random = ["id,x,y,kind"], torch.Generator().manual_seed(0)
    for index in range(25):  # 16 to train on, whole batches
        values = torch.randn(14 + index % 9, generator=random).tolist()
        xs = [f"{x:.3f}" if (index + step) % 7 else "" for step, x in enumerate(values)]
        ys = [f"{x * step:.3f}" for step, x in enumerate(values)]
        lines += [f"{index},{x},{y},{'odd' if index % 2 else 'even'}" for x, y in zip(xs, ys, strict=True)]
    Path(path).write_text("\n".join(lines))


def log_history(output_dir: str) -> dict[tuple[int, str], float]:
    state = json.loads(Path(output_dir, "trainer_state.json").read_text())
    keys = ("loss", "eval_loss")
    return {(entry["step"], key): entry[key] for entry in state["log_history"] for key in keys if key in entry}


def assert_same_run(output_dir: str, expected_dir: str, auto_class: type):
    """All losses to 1e-4, the evaluation, and a whole model with its code and card."""
    history, expected = log_history(output_dir), log_history(expected_dir)
    assert len(expected) == 22 and history == pytest.approx(expected, abs=1e-4, rel=0)
    results, expected = (
        json.loads(Path(folder, "eval_results.json").read_text()) for folder in (output_dir, expected_dir)
    )
    for key in expected.keys() - {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}:
        assert results[key] == pytest.approx(expected[key], abs=1e-4)

    files = [{path.name for path in Path(folder).iterdir()} for folder in (output_dir, expected_dir)]
    assert files[0] == files[1] and {"model.safetensors", "modeling_rtransformer.py"} < files[0]
    assert Path(output_dir, "config.json").read_text() == Path(expected_dir, "config.json").read_text()
    facts = [json.loads(Path(folder, "model_card.json").read_text()) for folder in (output_dir, expected_dir)]
    for key in ("architecture", "num_parameters"):
        assert facts[0][key] == facts[1][key]
    models = [auto_class.from_pretrained(folder).eval() for folder in (output_dir, expected_dir)]
    input_ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(models[0](input_ids).logits, models[1](input_ids).logits, rtol=0, atol=1e-4)


def test_ddp(folder):
    assert_same_run("classifier_ddp", "classifier", AutoModelForSequenceClassification)
    train_causal_lm.main([*TEXT, *to("causal_lm_ddp", 12)])  # one process goes on for two
    assert_same_run("causal_lm_ddp", "causal_lm", AutoModelForCausalLM)


def test_ddp_of_a_stream(folder):
    """Two processes share its batches, and one goes on for two."""
    train_causal_lm.main([*TEXT, *to("stream_ddp", 12), *STREAM])
    assert_same_run("stream_ddp", "stream", AutoModelForCausalLM)


@pytest.mark.parametrize("name", ["music", "music_sum"])
def test_ddp_of_music(folder, name):
    """The mean over the frames of all processes, and their sum, of tunes of different lengths."""
    history, expected = log_history(f"{name}_ddp"), log_history(name)
    assert len(expected) == 5 and history == pytest.approx(expected, abs=1e-4, rel=1e-5)
    models = [AutoModelForAudioFrameClassification.from_pretrained(folder) for folder in (f"{name}_ddp", name)]
    weights, expected_weights = (model.state_dict() for model in models)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SERIES_RUNS)
def test_ddp_of_time_series(folder, name):
    """
    Two processes count each value once: the losses, metrics and baselines of one process. Forecasts stop halfway.
    """
    history, expected = log_history(f"{name}_ddp"), log_history(name)
    assert len(expected) == 6 and history == pytest.approx(expected, abs=1e-4, rel=1e-5)
    training = json.loads(Path(f"{name}_ddp/train_results.json").read_text())
    assert training["resumed_at_step"] == (2 if name == "forecasts" else 0)
    results, expected = (json.loads(Path(run, "all_results.json").read_text()) for run in (f"{name}_ddp", name))
    metrics = [key for key in expected if key.startswith(("eval_", "test_")) and not key.endswith(("time", "second"))]
    assert len(metrics) >= 8
    assert {key: results[key] for key in metrics} == pytest.approx({key: expected[key] for key in metrics}, rel=1e-3)
    tables = [Path(run, "README.md").read_text().partition("| split | answer |")[2] for run in (f"{name}_ddp", name)]
    assert "| test | " in tables[1] and tables[0].count("\n| test |") == tables[1].count("\n| test |")


def test_ddp_counts_every_frame_once(folder):
    results = json.loads(Path("music_ddp/all_results.json").read_text())
    model = AutoModelForAudioFrameClassification.from_pretrained("music_ddp").eval()
    for prefix, array in (("eval", "validdata"), ("test", "testdata")):
        rolls = read_rolls(array)
        assert results[f"{prefix}_predicted_frames"] == sum(len(roll) - 1 for roll in rolls)
        assert results[f"{prefix}_nll_per_frame"] == pytest.approx(nats_tune_by_tune(model, rolls), rel=1e-5)
    card = Path("music_ddp/README.md").read_text()
    assert "torchrun --nproc_per_node 2 scripts/" in card and "multi-GPU" not in card
    assert "batch size: 8 (2 x 2 processes x 2 accumulated)" in card


def test_fsdp(folder):
    assert_same_run("classifier_fsdp", "classifier", AutoModelForSequenceClassification)
    checkpoint = {path.name for path in Path("causal_lm_fsdp/checkpoint-10").iterdir()}
    assert "pytorch_model_fsdp_0" in checkpoint and "model.safetensors" not in checkpoint

    Path("accelerate.yaml").write_text(ACCELERATE_CONFIG)
    run = ("train_causal_lm", *TEXT, *to("causal_lm_fsdp", 4))  # three processes go on for two
    with socket.socket() as free:  # Accelerate's launcher doesn't look for a port itself
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["accelerate.commands.launch", "--config_file", "accelerate.yaml", "--main_process_port", port]
    launch(launcher, [run, run])  # and then evaluate alone
    assert_same_run("causal_lm_fsdp", "causal_lm", AutoModelForCausalLM)


def test_fsdp_without_accelerators():
    trainer = SimpleNamespace(args=SimpleNamespace(fsdp=True), is_fsdp_enabled=False)
    with pytest.raises(UsageError, match="--fsdp needs an accelerator"):
        train_and_evaluate(trainer, {}, None, None, {}, data="", commands=[])


@pytest.mark.parametrize(("name", "layout"), TRAINED)
def test_sharded_models(folder, name, layout):
    """Gradients and losses, on every rank; and one process goes on from what all of them have saved."""
    model = MODEL_CLASSES[name].from_pretrained(f"tiny/{name}")
    optimizer = make_optimizer(model)
    expected_losses, expected_gradients = train(model, optimizer, make_batches(name, 20))

    output_dir = f"tiny/{name}_{layout}"
    losses, gradients, optimizer_state = torch.load(f"{output_dir}/training.pt")
    losses = losses.mean(0, keepdim=True) if layout == "fsdp" else losses
    torch.testing.assert_close(losses, torch.tensor(expected_losses[:10]).expand_as(losses), rtol=0, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for key, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[key], gradient.expand_as(gradients[key]), rtol=1e-5, atol=1e-6)

    model = MODEL_CLASSES[name].from_pretrained(output_dir)
    optimizer = make_optimizer(model)
    set_optimizer_state_dict(model, optimizer, optimizer_state, options=StateDictOptions(full_state_dict=True))
    losses, _ = train(model, optimizer, make_batches(name, 20)[10:])
    assert losses == pytest.approx(expected_losses[10:], abs=1e-4, rel=0)


def test_ranks_have_as_many_heads_each():
    config = RTransformerConfig(**TINY)
    config.distributed_config = DistributedConfig(tp_size=3)
    with pytest.raises(ValueError, match=r"`tp_size` must divide `config.num_attention_heads`, 2 here, got 3"):
        RTransformerModel(config)
