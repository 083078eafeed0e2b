# SPDX-License-Identifier: Apache-2.0
"""Finished trainings side by side."""

import json
import shutil
import subprocess
from pathlib import Path

import compare
import evaluate_checkpoint
import make_hub_folder
import push_to_hub
import pytest
import torch
import train_causal_lm
from conftest import write_texts
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from rtransformer_hf import RTransformerForCausalLM
from rtransformer_hf.training.arguments import parse_arguments
from rtransformer_hf.training.causal_lm import DataArguments
from rtransformer_hf.training.comparison import flops_per_position, load_runs
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import ArchitectureArguments, make_model
from rtransformer_hf.training.output_folder import ResumableTrainingArguments

CARDS = Path(__file__).parent.parent / "model_cards"
ROTARY = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2,intermediate_size=32"
MODELS = {
    "rtransformer": f"{ROTARY.replace('num_key_value_heads=2,', '')},local_window_size=3",
    "llama": f"{ROTARY},max_position_embeddings=40",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two trainings and texts."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_texts(train=30, validation=10, test=10)
        for model_type, overrides in MODELS.items():
            train_causal_lm.main(
                [
                    *("--train_file", "train.txt", "--validation_file", "validation.txt", "--test_file", "test.txt"),
                    *("--model_type", model_type, "--config_overrides", overrides, "--output_dir", model_type),
                    *("--block_size", "16", "--max_steps", "4", "--eval_steps", "2", "--eval_strategy", "steps"),
                    *("--save_strategy", "no", "--logging_steps", "1", "--report_to", "none", "--use_cpu"),
                    "--disable_tqdm=true",
                ]
            )
    return folder


def rows(table: str) -> list[dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_says_what_the_runs_did(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    evaluate_checkpoint.main(
        ["llama", "--data", "test.txt", "--context_length", "32", "--output", "llama/longer.json"]
    )
    capsys.readouterr()
    flags = ("--evaluation", "longer.json", "--decode_tokens", "4", "--step_rounds", "1", "--output", "page/all.md")
    compare.main(["rtransformer", "llama", *flags])
    said = capsys.readouterr().out
    first, second = rows(said)
    for row, name in ((first, "rtransformer"), (second, "llama")):
        results = json.loads(Path(name, "all_results.json").read_text())
        facts = json.loads(Path(name, "model_card.json").read_text())
        assert row["run"] == name and row["model"] == facts["architecture"]
        assert row["parameters"] == f"{facts['num_parameters']:,}"
        assert row["bits per character, validation"] == f"{results['eval_bits_per_character']:.4f}"
        assert row["bits per character, test"] == f"{results['test_bits_per_character']:.4f}"
        assert row["tokens a second, training"] == f"{results['train_tokens_per_second']:,.0f}"
        assert row["memory"] == f"{results['train_peak_memory_bytes'] / 1e9:,.2f} GB"
        assert int(row["tokens a second, decoding"].replace(",", "")) > 0
        assert int(row["step, ms"]) > 0
    longer = json.loads(Path("llama/longer.json").read_text())["bits_per_character"]
    assert second["bits per character, context 32"] == f"{longer:.4f}"
    assert first["bits per character, context 32"] == "-"
    page = Path("page/all.md").read_text()
    assert page.startswith("| run |") and page.endswith("![Learning curves](all.png)\n")
    assert rows(page) == rows(said)
    width, height = Image.open("page/all.png").size
    assert width > 3 * height  # against steps, against time, and the metric against the time of a step


def test_a_model_of_transformers_is_shared_without_code(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    folder = tmp_path / "llama"
    make_hub_folder.main(["llama", str(folder)])
    push_to_hub.main([str(folder), "anna/llama", "--dry_run"])
    assert "modeling" not in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    assert "With PyTorch and Transformers:" in card and "AutoModelForCausalLM.from_pretrained(" in card
    assert "rtransformer_hf" not in card and "trust_remote_code" not in card
    compare.main([str(folder)])
    assert load_runs([str(folder)], [], any_data=False)[0].curves["validation"]["step"] == [2, 4]


def test_flops_are_those_of_the_matrix_products(runs):
    [run] = load_runs([str(runs / "llama")], [], any_data=False)
    config, length = AutoConfig.from_pretrained(runs / "llama"), 16
    block = 4 * 16 * 16 + 3 * 16 * 32  # attention's four projections, the gated layer's three
    attention = 2 * length * 16  # every query with every key, every weight with every value
    rotary = 8 / 2  # of the frequencies with the positions, as an outer product
    expected = 2 * (2 * (block + attention) + 16 * config.vocab_size)
    assert flops_per_position(run) == pytest.approx(expected, abs=2 * rotary)


@pytest.mark.parametrize("card", ["air_passengers", "basic_motions", "nottingham", "smnist_small", "japanese_ner"])
def test_flops_of_every_task_are_counted(card):
    [run] = load_runs([str(CARDS / card)], [], any_data=False)
    assert 1e4 < flops_per_position(run) < 1e8


def test_folders_of_cards(capsys, tmp_path):
    names = ("ptb_char_small", "ptb_char_small_transformer")
    folders = [str(CARDS / name) for name in names]
    output = tmp_path / "cards.md"
    compare.main([*folders, "--metric", "perplexity", "--output", str(output)])
    said = capsys.readouterr().out
    assert [row["run"] for row in rows(said)] == list(names) and "perplexity, test" in said
    assert (
        "Not in the picture, since their folders keep no points of curves: ptb_char_small, ptb_char_small_tr" in said
    )
    assert output.exists() and not output.with_suffix(".png").exists()
    with pytest.raises(UsageError, match="no run has curves to draw"):
        compare.main([*folders, "--output", str(tmp_path / "cards.png")])


def test_other_tasks_are_compared_by_their_first_metric(capsys):
    for names, columns in (
        (("smnist_small", "smnist_small_transformer"), {"MFLOPs a pixel", "accuracy, validation", "accuracy, test"}),
        (("japanese_ner",), {"MFLOPs a token", "span f1, validation", "span f1, test"}),
    ):
        compare.main([str(CARDS / name) for name in names])
        table = rows(capsys.readouterr().out)
        assert [row["run"] for row in table] == list(names) and columns <= table[0].keys()
        assert all(float(row[column]) > 0 for row in table for column in columns)


def test_what_can_not_be_compared_is_named(runs, tmp_path, capsys):
    trained = str(runs / "llama")
    for folders, message in (
        (["nowhere"], r"RUN: no such folder: 'nowhere' \(expected the --output_dir of a finished training"),
        ([str(tmp_path)], r"has no model_card.json \(expected"),
        ([str(CARDS / "ptb_char_small"), str(CARDS / "ptb_word")], "different data: 'Penn Treebank, characters' and"),
        ([str(CARDS / "ptb_word"), str(CARDS / "nottingham")], "different tasks: 'language-modeling' and 'polyphonic"),
        (
            [trained, "--metric", "accuracy"],
            "--metric: not in all runs: 'accuracy' .*llama: bits_per_character, perplex",
        ),
        ([str(CARDS / "trec_seed3"), str(CARDS / "japanese_ner")], "tasks: 'text-classification' and 'token-class"),
        ([str(CARDS / "trec_seed3"), str(CARDS / "sst2_seed3")], "different data: 'TREC' and"),
        (
            [str(CARDS / "smnist_small"), str(CARDS / "smnist_small_permuted")],
            "have different pixel orders: None and 1111 .*--any_data",
        ),
        (
            [str(CARDS / "trec_seed3"), "--decode_tokens", "3"],
            "--decode_tokens: 3, and the runs' task is text-classif",
        ),
        ([str(CARDS / "japanese_ner"), "--step_rounds", "3"], "--step_rounds: 3, and the runs' task is token-class"),
        ([trained, "--evaluation", "none.json"], "--evaluation: no run has a file 'none.json'"),
        ([trained, "--decode_tokens", "33"], "llama has 40 positions .expected at most 32"),
    ):
        with pytest.raises(UsageError, match=message):
            compare.main(folders)
    with pytest.raises(SystemExit):
        compare.main([trained, "--output", "x.pdf"])
    assert "--output: 'x.pdf' (expected a name that ends with .png or .md)" in capsys.readouterr().err

    # Other text under the same name, and a training that is not over.
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    identity = json.loads((other / "training_run.json").read_text())
    [key] = [key for key in identity if "sha256" in key]
    (other / "training_run.json").write_text(json.dumps({**identity, key: "0"}))
    with pytest.raises(UsageError, match=r"llama and other have different tokenized training text"):
        compare.main([trained, str(other)])
    compare.main([trained, str(other), "--any_data"])
    facts = json.loads((other / "model_card.json").read_text())
    (other / "model_card.json").write_text(json.dumps({**facts, "results": []}))
    with pytest.raises(UsageError, match="other' has no results so far"):
        compare.main([trained, str(other)])
    (other / "model_card.json").write_text("{")
    with pytest.raises(UsageError, match="no facts of a card"):
        compare.main([str(other)])


STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$@" END >> "$LOG"
"""


def test_the_comparison_of_architectures_is_one_of_equal_sizes(tmp_path):
    """The script's commands, taken down by a stand-in for Python: the models have as many parameters as each other."""
    script = Path(compare.__file__).parent / "compare_ptb_char.sh"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STAND_IN)
    (tmp_path / "bin" / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "LOG": str(tmp_path / "log")}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess:
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, cwd=tmp_path)

    assert "expected DATA_FOLDER OUTPUT_FOLDER" in run("data").stderr
    assert "no such file: 'data/ptb.train.txt'" in run("data", "out").stderr
    (tmp_path / "data").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / f"ptb.{split}.txt").write_text("a text\n")
    unknown = run("data", "out", MODELS="llama lama")
    assert unknown.returncode == 2 and "MODELS: unknown: 'lama' (expected some of rtransformer " in unknown.stderr
    assert not (tmp_path / "log").exists()

    assert run("data", "out", "--seed", "3").returncode == 0
    commands = [command.strip("\0").split("\0") for command in (tmp_path / "log").read_text().split("\0END\0")[:-1]]
    trainings = [command for command in commands if command[0].endswith("train_causal_lm.py")]
    sizes = {}
    for command in trainings:
        args = command[1:]
        types = (ArchitectureArguments, DataArguments, ResumableTrainingArguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            model_args, _, training_args = parse_arguments(types, args, "")
        assert training_args.seed == 3
        with torch.device("meta"):
            model = make_model(model_args, RTransformerForCausalLM, AutoModelForCausalLM, (), vocab_size=50)
        sizes[Path(training_args.output_dir).name] = model.num_parameters()
    assert list(sizes) == ["rtransformer", "rtransformer_gated", "transformer", "llama", "gpt2", "lfm2"]
    assert max(sizes.values()) < 1.03 * min(sizes.values())
    assert [command[1] for command in commands if command[0].endswith("evaluate_checkpoint.py")] == [
        f"out/{name}" for name in sizes if name != "gpt2"
    ]
    assert commands[-1][1:7] == [f"out/{name}" for name in sizes]
    assert commands[-1][-2:] == ["--output", "out/comparison.md"]
