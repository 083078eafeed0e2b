# SPDX-License-Identifier: Apache-2.0
"""Every folder of model_cards is what its Hub repository would be, and what any card says holds, its code included."""

import ast
import json
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import datasets
import make_hub_folder
import numpy as np
import pytest
import torch
import train_causal_lm
import train_polyphonic_music
import train_sequence_classification
import train_time_series
import transformers
from card_code import code_of, run_code
from huggingface_hub import ModelCard
from PIL import Image
from test_train_polyphonic_music import write_mat
from transformers import AutoConfig

from rtransformer_hf.modeling_rtransformer import AUTO_CLASSES
from rtransformer_hf.training import report
from rtransformer_hf.training.card_tasks import TASKS
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_card import CardArguments, duration, read_facts, render_card, update_card
from rtransformer_hf.training.new_tokenizers import train_bpe_tokenizer, train_char_tokenizer, train_word_tokenizer
from rtransformer_hf.training.output_folder import ResumableTrainingArguments
from rtransformer_hf.training.report import command_line, hyperparameters, prompt_for, sample_outputs
from rtransformer_hf.training.run import EVALUATION_FILE

ROOT = Path(__file__).parent.parent
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/README.md"))
LARGEST_WEIGHTS = {"ptb_char": 26e6}  # bytes; all others take 10 MB at most, because every clone has them
AUTO_CLASS_OF = {model_class.__name__: auto_class for auto_class, model_class in AUTO_CLASSES.items()}
TRAINED = ("letters", "moods", "pixels", "tunes", "series", "steps", "numbers", "ahead", "shared/moods")
RECIPE = """
per_device_train_batch_size: 8
hidden_size: 8
num_hidden_layers: 1
num_attention_heads: 2
local_window_size: 3
max_steps: 2
eval_strategy: "no"
dataloader_pin_memory: false
disable_tqdm: true
"""


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_the_checkpoint_opens(folder):
    architecture = AutoConfig.from_pretrained(folder).architectures[0]
    auto_class = getattr(transformers, AUTO_CLASS_OF[architecture])
    model, loading = auto_class.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == architecture and model.dtype == torch.float32
    assert not any(loading.values())
    assert (folder / "model.safetensors").stat().st_size <= LARGEST_WEIGHTS.get(folder.name, 10e6)
    settings = json.loads((folder / EVALUATION_FILE).read_text())
    assert settings and model.config.frames_per_beat == settings.get("frames_per_beat")
    facts = read_facts(folder)
    assert facts.architecture == architecture and facts.num_parameters == model.num_parameters()
    assert facts.sizes == {name: getattr(model.config, name) for name in facts.sizes}
    # The weights are those of the figures: of two exchanged folders, neither has these outputs.
    assert facts.sample_outputs == pytest.approx(sample_outputs(model), abs=1e-3)


def test_outputs_tell_checkpoints_apart():
    outputs = {folder.name: torch.tensor(read_facts(folder).sample_outputs) for folder in CARDS}
    for (one, its_outputs), (other, other_outputs) in combinations(outputs.items(), 2):
        assert (its_outputs - other_outputs).abs().max() > 0.1, (one, other)


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_the_card(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.content == render_card(read_facts(folder))
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
    assert "rtransformer" in card.data.tags and card.data.metrics
    assert "test" in {result.dataset_split for result in card.data.eval_results}
    for heading in ("## Use", "## Results", "## Training", "## Limits and biases", "## Citation"):
        assert heading in card.text
    assert f'"model_cards/{folder.name}"' in code_of(card.content)
    assert "1907.05572" in card.text and "(learning_curves.png)" in card.text
    assert (folder / "learning_curves.png").exists()
    assert f"| {folder.name} |" in (folder.parent / "README.md").read_text()
    for wrong in ("multi-GPU", "OptimizerNames", " 0 minutes"):
        assert wrong not in card.text
    assert ("longest river" in card.text) == ("TREC" in card.text)
    config = AutoConfig.from_pretrained(folder)
    structure = (config.projection_type, config.local_rnn_projection_type, config.local_rnn_num_heads)
    assert (structure == ("dense", "dense", 1)) != ("The weights of " in card.text or "block-diagonal" in card.text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model of every task, as its training left it, and one of them as a folder to share."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("recipe.yaml").write_text(RECIPE)
        Path("letter.txt").write_text("".join(f"зима {i * i}\n" for i in range(60)))
        # The whole path, the flag's other form, and a token: what a card must not tell.
        text = ["--train_file", str(folder / "letter.txt"), f"--validation_file={folder / 'letter.txt'}"]
        train_causal_lm.main(["recipe.yaml", *text, "--block_size", "16", "--output_dir", "letters"])

        rows = [f'{("sad", "glad")[i % 2]},"my secret diary, day {i}"' for i in range(30)]
        Path("diary.csv").write_text("\n".join(["label,text", *rows]))
        diary = ["recipe.yaml", "--train_file", "diary.csv", "--license", "cc-by-nc-4.0"]
        train_sequence_classification.main([*diary, "--output_dir", "moods"])

        random = np.random.RandomState(0)
        images = [Image.fromarray(random.randint(0, 256, (4, 5, 3), dtype=np.uint8)) for _ in range(12)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"])})
        pictures = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(12)]}, features)
        pictures.to_parquet("pictures.parquet")
        pictures = ["--train_file", "pictures.parquet", "--image_column", "image"]
        channels = [*("--image_mean", "0.5", "0.5", "0.5"), *("--image_std", "0.3", "0.3", "0.3")]
        train_sequence_classification.main(["recipe.yaml", *pictures, *channels, "--output_dir", "pixels"])

        write_mat("tunes.mat", {"traindata": 6, "validdata": 3, "testdata": 3})
        music = ["recipe.yaml", "--data", "tunes.mat", "--hidden_dropout", "0.1"]
        train_polyphonic_music.main([*music, "--output_dir", "tunes"])
        further = ["--model_name_or_path", "tunes", "--muon", "--average_decay", "0.9", "--output_dir", "further"]
        train_polyphonic_music.main([*music, *further])

        rows = [f"{i},{'ab'[i % 2]},{i + step % 3},{step}" for i in range(20) for step in range(12 + i % 3)]
        Path("sensors.csv").write_text("\n".join(["id,kind,x,y", *rows]))
        sensors = ["recipe.yaml", "--train_file", "sensors.csv", "--id_column", "id"]
        labelled = [*sensors, "--label_column", "kind"]
        train_time_series.main([*labelled, "--task", "classify", "--output_dir", "series"])
        train_time_series.main([*labelled, "--task", "label_each_step", "--output_dir", "steps"])
        numbers = ["--target_columns", "x", "--label_column", "y", "--regression"]
        train_time_series.main([*sensors, "--task", "label_each_step", *numbers, "--output_dir", "numbers"])
        ahead = ["--target_columns", "x", "--covariate_columns", "y", "--horizon", "3"]
        train_time_series.main([*sensors, *ahead, "--test_length", "0", "--output_dir", "ahead"])

        make_hub_folder.main(["moods", "shared/moods", "--example", "a day"])
    return folder


def read_card(path: Path) -> ModelCard:
    return ModelCard.load(path / "README.md")


def test_the_code_of_every_card_runs_as_printed(trained, tmp_path):
    code = {folder.name: (code_of(read_card(folder).content), ROOT) for folder in CARDS}
    for name in TRAINED:
        code[name] = code_of(read_card(trained / name).content), trained
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(tmp_path)}
    printed = run_code(code, environment)
    for folder in [*CARDS, *(trained / name for name in TRAINED)]:
        output = printed[folder.name if folder.parent == ROOT / "model_cards" else str(folder.relative_to(trained))]
        facts = read_facts(folder)
        labels = list(AutoConfig.from_pretrained(folder).label2id)
        if facts.task == "language-modeling":
            # Word tokenizers decode a space before the first word too.
            assert output.strip().startswith(facts.example.strip()) and len(output.strip()) > len(
                facts.example.strip()
            )
        elif facts.task == "text-classification":
            assert any(f"'label': '{label}', 'score': " in output for label in labels)
        elif facts.task == "token-classification":
            assert all(f"'word': '{word}'" in output for word in facts.example.split(" "))
        elif facts.task == "image-classification":
            assert output.strip() in labels
        elif facts.task == "time-series-forecasting":
            assert output.strip() == f"(1, {facts.example[3]}, {facts.example[0] - facts.example[1]}) True"
        elif facts.task == "time-series-classification":
            assert output.strip() in labels
        elif facts.task == "time-series-labelling":
            assert len(ast.literal_eval(output)) == 50 and set(ast.literal_eval(output)) <= set(labels)
        elif facts.task == "time-series-regression":
            assert len(ast.literal_eval(output)) == 50
        else:
            assert output.startswith("torch.Size([1, 101, 88]) with ")


def test_a_card_says_what_holds_of_this_model_alone(trained):
    cards = {name: read_card(trained / name) for name in ("letters", "moods", "pixels", "tunes", "further")}
    for name, card in cards.items():
        auto_class = getattr(transformers, AUTO_CLASS_OF[AutoConfig.from_pretrained(trained / name).architectures[0]])
        outputs = sample_outputs(auto_class.from_pretrained(trained / name))
        assert read_facts(trained / name).sample_outputs == pytest.approx(outputs, abs=1e-5)
        assert str(trained) not in card.content and "multi-GPU" not in card.text and "OptimizerNames" not in card.text
        assert card.data.license == ("cc-by-nc-4.0" if name == "moods" else None)
        assert " parameters, trained on " in card.text and "0.00 million" not in card.text
        assert " CPU thread" in card.text and " second, finished on " in card.text.replace("seconds", "second")
        assert "- steps: 2\n- batch size: 8\n" in card.text and "longest river" not in card.text
    assert "--train_file letter.txt --validation_file=letter.txt " in cards["letters"].text
    assert 'tokenizer("The ' not in cards["letters"].text and 'tokenizer("зима' not in cards["letters"].text
    assert 'classifier("Your text here.")' in cards["moods"].text and "diary, day" not in cards["moods"].content
    assert 'Image.new("RGB", (5, 4))' in cards["pixels"].text
    assert cards["pixels"].data.pipeline_tag == "image-classification"
    assert "- optimizer: adamw_torch_fused, betas 0.9 and 0.99, " in cards["tunes"].text
    further = cards["further"].text
    assert "- optimizer: Muon (learning rate 0.0003) for the matrices of the blocks, else AdamW" in further
    assert "- weights: exponential moving average with decay 0.9\n" in further
    assert "trained on tunes.mat, starting from the weights of an earlier training, `tunes`." in further
    assert cards["further"].data.base_model is None
    of_the_hub = replace(read_facts(trained / "further"), base_model="anna/tunes", base_model_id="anna/tunes")
    assert ModelCard(render_card(of_the_hub)).data.base_model == "anna/tunes"


def test_a_shared_folder_has_a_card_of_its_own(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    card = read_card(trained / "shared" / "moods")
    assert card.data.license == "cc-by-nc-4.0" and card.data.model_name == "moods"
    assert "import rtransformer_hf" in code_of(card.content) and 'classifier("a day")' in card.text
    make_hub_folder.main(["tunes", "shared/tunes"])
    said = capsys.readouterr().out
    assert "Nothing was uploaded" in said and "The card states no licence" in said
    make_hub_folder.main(
        ["tunes", "shared/mit", "--license", "other", "--license_name", "ours", "--dataset_name", "X"]
    )
    card = read_card(trained / "shared" / "mit")
    assert (card.data.license, card.data.license_name) == ("other", "ours") and "trained on X.\n" in card.text
    assert capsys.readouterr().out.startswith("shared/mit: ")
    with pytest.raises(UsageError, match="--example: 'a day' is no input of this model"):
        make_hub_folder.main(["tunes", "shared/other", "--example", "a day"])
    assert not Path("shared/other").exists()

    # by a training of before facts were kept
    Path("tunes/model_card.json").rename("facts.json")
    make_hub_folder.main(["tunes", "shared/old", "--license", "mit", "--dataset_name", "Old tunes"])
    Path("facts.json").rename("tunes/model_card.json")
    card = read_card(trained / "shared" / "old")
    assert card.data.license == "mit" and card.data.model_name == "old" and '"shared/old"' in card.text
    assert "\n# old\n" in card.text and "trained on Old tunes.\n" in card.text
    assert "README.md was not rendered again" in capsys.readouterr().out


def test_a_path_of_another_system_is_quoted(trained):
    facts = replace(read_facts(trained / "moods"), checkpoint=r"outputs\new", example='a "quoted" word')
    code = code_of(render_card(facts))
    assert r'model="outputs\\new"' in code and r'classifier("a \"quoted\" word")' in code
    compile(code, "card", "exec")


def test_a_card_with_other_facts(trained):
    old = read_facts(trained / "moods")
    new = replace(old, checkpoint="anna/feelings", license="mit", data_name="Diary", dataset_id="anna/diary")
    assert update_card(render_card(old), old, new) == (render_card(new), [])

    card = ModelCard(render_card(old))  # edited by its owner
    card.data.language = "en"
    card.text = card.text.replace('("Your text here.")', '("Hello")').replace("## Citation", "Mine.\n\n## Citation")
    card.text = card.text.replace("# moods\n", "# moods\n\nRead this.\n")
    updated, edited = update_card(str(card), old, new)
    card = ModelCard(updated)
    assert edited == ["Use"] and 'model="anna/feelings"' in card.text and 'classifier("Hello")' in card.text
    assert "# feelings\n\nRead this.\n" in card.text and "Mine.\n\n## Citation" in card.text
    assert (card.data.language, card.data.license, card.data.datasets) == ("en", "mit", ["anna/diary"])
    assert {result.dataset_name for result in card.data.eval_results} == {"Diary"}


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({}, ""),
        (
            {"projection_type": "butterfly", "local_rnn_projection_type": "butterfly"},
            " The weights of attention and feed-forward layers and of the LocalRNN are butterfly matrices.",
        ),
        (
            {"projection_type": "monarch", "local_rnn_num_heads": 4},
            " The weights of attention and feed-forward layers are Monarch matrices. The LocalRNN's recurrent weights "
            "are block-diagonal, in 4 heads.",
        ),
        (
            {"local_rnn_projection_type": "monarch", "projection_type": "butterfly"},
            " The weights of attention and feed-forward layers are butterfly matrices. The weights of the LocalRNN "
            "are Monarch matrices.",
        ),
        ({"local_rnn_projection_type": "monarch", "local_rnn_num_heads": 4, "num_local_rnn_layers": 0}, ""),
    ],
)
def test_a_card_names_weights_that_are_not_dense(trained, sizes, sentence):
    facts = read_facts(trained / "letters")
    assert {"projection_type", "local_rnn_projection_type", "local_rnn_num_heads"} <= facts.sizes.keys()
    text = render_card(replace(facts, sizes={**facts.sizes, **sizes}))
    assert f"no position embeddings.{sentence}\n" in text


def test_a_finished_training_is_evaluated_again(trained, monkeypatch):
    """What was trained, where and when stays; figures of other models do not."""
    monkeypatch.chdir(trained)
    before = read_facts("tunes")
    monkeypatch.setattr(report, "hardware", lambda args: "another machine")
    run = ["recipe.yaml", "--data", "tunes.mat", "--hidden_dropout", "0.1", "--output_dir", "tunes"]
    train_polyphonic_music.main([*run, "--per_device_eval_batch_size", "2"])
    again = read_facts("tunes")
    assert again.training == before.training and [result[:2] for result in again.results] == [
        result[:2] for result in before.results
    ]
    train_polyphonic_music.main([*run, "--overwrite_output_dir", "--test_split", ""])
    anew = read_facts("tunes")
    assert anew.training.hardware == "another machine" and [split for split, *_ in anew.results] == ["validation"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"license": "apache2"}, "--license: unknown to the Hub: 'apache2' (did you mean 'apache-2.0'? "),
        ({"license": "mine"}, "(expected an identifier of https://"),
        ({"license": "other"}, "--license_name: missing"),
        ({"license": "mit", "license_name": "ours"}, "--license_name: 'ours' goes with --license other alone"),
        ({"license_link": "LICENSE"}, "--license_link: 'LICENSE' goes with --license other alone"),
    ],
)
def test_no_licence_of_the_hub(flags, named, capsys):
    with pytest.raises(UsageError) as error:
        CardArguments(**flags)
    assert named in str(error.value)
    with pytest.raises(SystemExit) as stop:
        make_hub_folder.main(["out", "new", *(f"--{name}={value}" for name, value in flags.items())])
    assert stop.value.code == 2 and named in " ".join(capsys.readouterr().err.split())


def test_durations():
    seconds = {0.2: "less than a second", 1.2: "1 second", 43: "43 seconds", 119: "119 seconds", 125: "2 minutes"}
    assert {time: duration(time) for time in seconds} == seconds
    assert duration(4 * 3600) == "4.0 hours"


def test_a_command_tells_no_folder_and_no_token():
    args = ResumableTrainingArguments(output_dir="out", hub_token="hf_secret", use_cpu=True)
    words = ["scripts/train.py", "/home/anna/recipe.yaml", "--train_file=/home/anna/a.txt", "~/b.txt", "../c.txt"]
    windows = [r"C:\Users\anna\d.txt", r"--test_file=C:\Users\anna\e.txt"]
    command = command_line([*words, *windows, "--hub_token=hf_secret", "--hub_token", "hf_secret"], args)
    expected = "recipe.yaml --train_file=a.txt b.txt ../c.txt d.txt --test_file=e.txt"
    assert command == f"python scripts/train.py {expected} --hub_token=$HF_TOKEN --hub_token $HF_TOKEN"


def test_hyperparameters_in_words():
    args = ResumableTrainingArguments(
        output_dir="out",
        use_cpu=True,
        optim="sgd",
        gradient_accumulation_steps=4,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        num_train_epochs=2,
        weight_decay=0.1,
        bf16=True,
    )
    assert hyperparameters(args) == {
        "epochs": "2",
        "batch size": "32 (8 x 4 accumulated)",
        "optimizer": "sgd",
        "learning rate": "5e-05, schedule cosine, warmup over 5% of the steps",
        "weight decay": "0.1",
        "gradient norm": "clipped at 1",
        "mixed precision": "bfloat16",
        "seed": "42",
    }


@pytest.mark.parametrize(
    ("train", "text", "prompt"),
    [
        (train_char_tokenizer, "The end of it", "The "),
        (train_char_tokenizer, "the end", "the "),
        (train_char_tokenizer, "жизнь", "ж"),
        (train_word_tokenizer, "The end", "The"),
        (train_word_tokenizer, "in the end", "the"),
        (train_word_tokenizer, "no end", "end"),
        (train_bpe_tokenizer, "зима", "The "),
    ],
)
def test_a_prompt_is_known_to_the_tokenizer(train, text, prompt):
    assert prompt_for(train([text], None)) == prompt


def test_tasks_are_of_the_hub():
    assert {task.pipeline_tag for task in TASKS.values()} == {
        "text-generation",
        "text-classification",
        "token-classification",
        "image-classification",
        "time-series-forecasting",
    }
