# SPDX-License-Identifier: Apache-2.0

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import train_causal_lm
import train_causal_lm_accelerate
import train_polyphonic_music
import train_sequence_classification
import train_time_series
import train_token_classification

from rtransformer_hf import RTransformerConfig
from rtransformer_hf.training.arguments import parse_arguments
from rtransformer_hf.training.output_folder import ResumableTrainingArguments

SCRIPTS = Path(train_causal_lm.__file__).parent
LANGUAGE = (train_causal_lm.ArchitectureArguments, train_causal_lm.DataArguments)
TASKS = {
    "task:": (
        train_time_series,
        train_time_series.TimeSeriesModelArguments,
        train_time_series.TimeSeriesArguments,
        ResumableTrainingArguments,
    ),
    "span_f1": (
        train_token_classification,
        train_token_classification.TaggerArguments,
        train_token_classification.TaggingArguments,
        ResumableTrainingArguments,
    ),
    "context_length": (train_causal_lm, *LANGUAGE, ResumableTrainingArguments),
    "nll_per_frame": (
        train_polyphonic_music,
        train_polyphonic_music.MusicModelArguments,
        train_polyphonic_music.MusicArguments,
        ResumableTrainingArguments,
    ),
    "accuracy": (
        train_sequence_classification,
        train_sequence_classification.ClassifierArguments,
        train_sequence_classification.ClassificationArguments,
        ResumableTrainingArguments,
    ),
}
LOOP = (train_causal_lm_accelerate, *LANGUAGE, train_causal_lm_accelerate.LoopArguments)


@pytest.mark.parametrize("path", sorted((SCRIPTS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_takes_nothing_from_the_defaults(path, tmp_path, monkeypatch):
    """What it leaves open stays as Transformers and RTransformerConfig have it, so that results can be had again."""
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text("text,label\na,0\nb,1\n")
    recipe = path.read_text()
    script, *types = next(task for word, task in TASKS.items() if word in recipe)
    data = ["--data", "tunes.mat"] if script is train_polyphonic_music else ["--train_file", "train.csv"]
    old = ["--model_name_or_path", "old"] if "--model_name_or_path" in recipe else []
    runs = [(script, types)]
    if script is train_causal_lm and "optim: sgd" not in recipe and "muon: true" not in recipe:
        runs.append((LOOP[0], LOOP[1:]))
    for script, types in runs:
        argv = [str(path), *data, *old, "--output_dir", "out", "--use_cpu"]
        with_defaults, without = (parse_arguments(types, argv, "", *rest) for rest in ((script.DEFAULTS,), ()))
        model, expected_model = (
            {name: value for name, value in asdict(run[0]).items() if value is not None}
            for run in (with_defaults, without)
        )
        if old or "model_type" in model:
            assert model == expected_model
        else:
            assert RTransformerConfig(**model).to_dict() == RTransformerConfig(**expected_model).to_dict()
        assert asdict(with_defaults[1]) == asdict(without[1])
        for flag in fields(without[2]):
            value, expected = (getattr(run[2], flag.name) for run in (with_defaults, without))
            assert repr(value) == repr(expected) or value == expected, flag.name


@pytest.mark.parametrize("task", [*TASKS.values(), LOOP], ids=lambda task: task[0].__name__)
def test_defaults_hold_where_nothing_is_said(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.csv").write_text("text,label\na,0\nb,1\n")
    script, *types = task
    data = ["--data", "tunes.mat"] if script is train_polyphonic_music else ["--train_file", "train.csv"]

    def parse(*flags: str) -> tuple:
        return parse_arguments(types, [*data, "--output_dir", "out", "--use_cpu", *flags], "", script.DEFAULTS)

    model, _, training = parse()
    assert model.hidden_size == script.DEFAULTS.new["hidden_size"] and model.final_layer_norm
    assert training.learning_rate >= 1e-3 and training.logging_steps == 20 and training.lr_scheduler_type == "cosine"
    assert training.eval_strategy == "steps" and training.eval_steps == training.save_steps == 0.1
    assert training.load_best_model_at_end

    model, _, training = parse("--model_name_or_path", "old")
    assert model.hidden_size is None and training.learning_rate == 3e-4

    model, _, training = parse("--hidden_size=64", "--save-steps", "50", "--learning_rate", "1")
    assert model.hidden_size == 64 and training.learning_rate == 1
    assert training.save_steps == 50 and training.eval_strategy == "no" and not training.load_best_model_at_end
