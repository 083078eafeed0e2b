# SPDX-License-Identifier: Apache-2.0
"""Training on piano rolls end to end, with models of a few thousand parameters."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import evaluate_checkpoint
import numpy as np
import pytest
import scipy.io
import torch
import train_polyphonic_music
from conftest import recipes
from huggingface_hub import ModelCard
from train_polyphonic_music import MusicArguments, MusicModelArguments, set_frames_per_beat
from transformers import AutoModelForAudioFrameClassification, Trainer

from rtransformer_hf import RTransformerConfig, RTransformerForCausalLM, RTransformerForPolyphonicMusic
from rtransformer_hf.training.arguments import parse_arguments
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.output_folder import ResumableTrainingArguments
from rtransformer_hf.training.piano_rolls import write_midi
from rtransformer_hf.training.polyphonic_music import MusicTrainer, Tunes, TuneSampler, pad_tunes, transposed
from rtransformer_hf.training.run import ReportingTrainer

RECIPE = """
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
per_device_eval_batch_size: 3
learning_rate: 1e-2
dataloader_pin_memory: false
disable_tqdm: true
"""


def write_mat(path: str, sizes: dict[str, int], seed: int = 0):
    random = np.random.RandomState(seed)
    arrays = {}
    for name, size in sizes.items():
        arrays[name] = np.empty((1, size), dtype=object)
        for index in range(size):
            arrays[name][0, index] = (random.rand(random.randint(2, 13), 88) < 0.05).astype(np.uint8)
    scipy.io.savemat(path, arrays)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in, with a recipe and tunes."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    write_mat("tunes.mat", {"traindata": 10, "validdata": 5, "testdata": 4})
    return tmp_path


def train(*flags: str) -> dict:
    train_polyphonic_music.main(["recipe.yaml", "--data", "tunes.mat", "--output_dir", "out", *flags])
    return json.loads(Path("out/all_results.json").read_text())


def log_history() -> list[tuple]:
    entries = json.loads(Path("out/trainer_state.json").read_text())["log_history"]
    return [(e["step"], e.get("loss"), e.get("eval_loss")) for e in entries if "loss" in e or "eval_loss" in e]


def read_rolls(array: str) -> list[np.ndarray]:
    return list(scipy.io.loadmat("tunes.mat")[array].flat)


@torch.no_grad()
def nats_tune_by_tune(model, rolls: list[np.ndarray]) -> float:
    nats = 0.0
    for roll in rolls:
        frames = torch.from_numpy(roll).float()[None]
        log_odds = model(input_values=frames, labels=frames).logits[0, :-1].double()
        nats -= torch.distributions.Bernoulli(logits=log_odds).log_prob(frames[0, 1:].double()).sum().item()
    return nats / sum(len(roll) - 1 for roll in rolls)


@pytest.mark.parametrize("key_head_type", ["independent", "autoregressive"])
def test_a_run_leaves_a_model_ready_to_use(folder, key_head_type, capsys):
    results = train("--key_head_type", key_head_type, "--transpose", "2")
    said = capsys.readouterr().out
    num_frames = sum(map(len, read_rolls("traindata")))
    assert re.match(r"Model: RTransformerForPolyphonicMusic, [\d,]+ parameters\.\n", said)
    assert f"\nData: train 10, validation 5, test 4 tunes; {num_frames} frames to train on.\n" in said
    assert "\nSteps: 6, 2 epochs of 3.\n" in said
    commands = [line.split("/")[-1] for line in said.splitlines()[-2:]]
    assert commands == ["generate_music.py out", "evaluate_checkpoint.py out --data tunes.mat --split test"]
    files = {path.name for path in Path("out").iterdir()}
    assert files >= {"model.safetensors", "config.json", "all_results.json", "evaluation.json", "README.md"}
    assert files >= {"learning_curves.png", "training_run.json", "modeling_rtransformer.py"}

    model = AutoModelForAudioFrameClassification.from_pretrained("out").eval()
    assert model.config.use_cache and model.config.key_head_type == key_head_type
    for prefix, array in (("eval", "validdata"), ("test", "testdata")):
        rolls = read_rolls(array)
        assert results[f"{prefix}_nll_per_frame"] == pytest.approx(nats_tune_by_tune(model, rolls), rel=1e-5)
        assert results[f"{prefix}_loss"] == results[f"{prefix}_nll_per_frame"]
        assert results[f"{prefix}_predicted_frames"] == sum(len(roll) - 1 for roll in rolls)

    card = ModelCard.load("out/README.md")
    values = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert values["test", "nll_per_frame"] == results["test_nll_per_frame"]
    assert str(folder) not in card.content


@pytest.mark.parametrize("flags", [(), ("--num_local_rnn_layers", "0", "--position_embedding_type", "sinusoidal")])
def test_the_card_says_what_the_model_is(folder, flags):
    train(*flags, "--max_steps", "1", "--hidden_dropout", "0" if flags else "0.1")
    card = ModelCard.load("out/README.md").content
    assert ("It is a Transformer" in card, "An R-Transformer puts" in card) == (bool(flags), not flags)
    assert ("The training loss is taken with dropout." in card) == (not flags)


def test_a_killed_run_goes_on_with_the_same_losses(folder, killed_at):
    flags = ("--transpose", "3", "--projection_type", "monarch", "--local_rnn_num_heads", "2")
    train(*flags)
    expected = log_history()
    Path("out").rename("uninterrupted")
    steps = killed_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(*flags)
    train(*flags)
    assert steps[6:] == [4, 5]  # the second epoch begins with the fourth step
    assert log_history() == expected


def test_a_training_that_diverges_ends(folder):
    with pytest.raises(UsageError, match=r"diverged: .* is nan. A --learning_rate below 1e\+20 or more"):
        train("--optim", "sgd", "--learning_rate", "1e20", "--max_grad_norm", "0")
    assert not Path("out/model.safetensors").exists()


def test_operations_are_counted_once_a_frame():
    """And not once a key, as Trainer counts them."""
    config = RTransformerConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, input_size=5)
    model = RTransformerForPolyphonicMusic(config)
    counted = ReportingTrainer.floating_point_ops(SimpleNamespace(model=model), {"input_values": torch.zeros(2, 7, 5)})
    assert counted == 6 * 14 * model.num_parameters(exclude_embeddings=True)


def test_summed_loss(folder):
    """The gradient of a batch is that of its mean loss, times its number of predicted frames."""
    sgd = ("--optim", "sgd", "--max_steps", "1", "--hidden_dropout", "0", "--max_grad_norm", "0")
    constant = ("--lr_scheduler_type", "constant", "--weight_decay", "0")
    train(*sgd, *constant, "--learning_rate", "1e-4", "--sum_loss")
    summed = AutoModelForAudioFrameClassification.from_pretrained("out").state_dict()
    loss = json.loads(Path("out/trainer_state.json").read_text())["log_history"][0]["loss"]
    Path("out").rename("summed")

    train(*sgd, *constant, "--learning_rate", "1e-4")
    mean_loss = json.loads(Path("out/trainer_state.json").read_text())["log_history"][0]["loss"]
    num_frames = round(loss / mean_loss)
    assert num_frames > 4 and loss == pytest.approx(num_frames * mean_loss, rel=1e-5)
    Path("out").rename("mean")
    train(*sgd, *constant, "--learning_rate", str(1e-4 * num_frames))
    for name, weight in AutoModelForAudioFrameClassification.from_pretrained("out").state_dict().items():
        torch.testing.assert_close(weight, summed[name], rtol=1e-4, atol=1e-6)


def fit(batch_size: int, accumulation_steps: int, trainer_class=MusicTrainer, **settings) -> tuple[list[float], dict]:
    """The losses of two steps, the second of which ends the epoch, and the weights after them."""
    random = np.random.RandomState(0)
    lengths = (9, 3, 12, 2, 7, 5, 11, 4, 2, 8)
    tunes = Tunes([(random.rand(length, 88) < 0.1).astype(np.uint8) for length in lengths])
    torch.manual_seed(0)
    config = RTransformerConfig(input_size=88, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = RTransformerForPolyphonicMusic(config)
    arguments = ResumableTrainingArguments(
        "fitted",
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation_steps,
        optim="sgd",
        learning_rate=1e-3 if settings.get("sums_loss") else 1e-1,
        max_grad_norm=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    if trainer_class is MusicTrainer:
        settings["report"] = None
    trainer = trainer_class(model, arguments, train_dataset=tunes, data_collator=pad_tunes, **settings)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model.state_dict()


@pytest.mark.parametrize(
    ("trainer_class", "settings"), [(MusicTrainer, {}), (MusicTrainer, {"sums_loss": True}), (Trainer, {})]
)
def test_accumulated_batches_are_one_batch(folder, trainer_class, settings):
    losses, weights = fit(6, 1, trainer_class, **settings)
    assert len(losses) == 2
    for sizes in ((3, 2), (1, 6)):
        other_losses, other_weights = fit(*sizes, trainer_class, **settings)
        assert other_losses == pytest.approx(losses, rel=1e-4)  # rounded in the log
        torch.testing.assert_close(other_weights, weights, rtol=0, atol=1e-6)


def test_plain_trainer_has_the_mean_over_predicted_frames(folder):
    """In training as in evaluation: the labels of a tune's first frame are not counted."""
    tunes = Tunes([np.eye(88, dtype=np.uint8)[:length] for length in (2, 5)])
    config = RTransformerConfig(input_size=88, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = RTransformerForPolyphonicMusic(config)
    batch = pad_tunes([tunes[0], tunes[1]])
    arguments = ResumableTrainingArguments("plain", report_to="none", use_cpu=True, disable_tqdm=True)
    evaluated = Trainer(model, arguments, data_collator=pad_tunes).evaluate(tunes)["eval_loss"]
    frames = [tunes[index]["input_values"][None] for index in range(2)]
    means = [model(input_values=tune, labels=tune).loss for tune in frames]
    assert evaluated == pytest.approx(((means[0] + 4 * means[1]) / 5).item(), rel=1e-6)
    assert evaluated == pytest.approx(model(**batch).loss.item(), rel=1e-6)


def test_transposed_tunes_stay_on_the_keyboard():
    roll = np.zeros((3, 88), dtype=np.uint8)
    roll[0, 2], roll[1, 84], roll[2, 40] = 1, 1, 1
    for semitones, shift in ((0, 0), (2, 2), (-2, -2), (5, 3), (-5, -2)):
        keys = np.argwhere(transposed(roll, semitones))[:, 1]
        assert keys.tolist() == [2 + shift, 84 + shift, 40 + shift]
    silence = np.zeros((2, 88), dtype=np.uint8)
    assert np.array_equal(transposed(silence, 4), silence)


def test_epochs_have_every_tune_once_in_an_order_and_key_of_their_own():
    rolls = [np.eye(88, dtype=np.uint8)[20 : 20 + length] for length in range(2, 42) for _ in range(5)]
    sampler = TuneSampler(Tunes(rolls, transpose=2), batch_size=4, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] != epochs[1]
    for epoch in epochs:
        assert sorted(index // 5 for index in epoch) == list(range(200)) and len({index % 5 for index in epoch}) == 5
    lengths = [len(rolls[index // 5]) for index in epochs[0]]
    batches = [lengths[start : start + 4] for start in range(0, 200, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / 50 < 8  # batches at random: 24 on average


def test_tunes_one_at_a_time_come_in_any_order():
    rolls = [np.ones((length, 88), dtype=np.uint8) for length in range(2, 202)]
    order = list(TuneSampler(Tunes(rolls), batch_size=1, seed=3))
    assert sorted(order) == list(range(200))
    assert 70 < (np.diff(order) < 0).sum() < 130  # a tune shorter than the one before


def test_padding_carries_no_loss():
    batch = pad_tunes([Tunes([np.ones((length, 88), dtype=np.uint8)])[0] for length in (2, 5)])
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_values"].sum(-1).tolist() == [[88, 88, 0, 0, 0], [88] * 5]
    assert (batch["labels"][0, 2:] == -100).all() and (batch["labels"][0, 1] == 1).all()
    assert (batch["labels"][:, 0] == -100).all()  # nothing predicts a tune's first frame


@pytest.mark.parametrize("roll", [np.full((3, 88), 0.5), np.full((3, 88), 64), np.ones((3, 87)), np.ones(88)])
def test_arrays_that_are_no_tunes(roll):
    with pytest.raises(
        UsageError, match=r"tune 1 (holds (0.5|64)|has the shape \((3, 87|88,)\)) \(expected a \(frames, 88\) matrix"
    ):
        Tunes([np.ones((2, 88)), roll])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data", "missing.mat"], "missing.mat"),
        (["--validation_split", "valid"], r"'valid' of 'tunes.mat' does not exist \(expected train, validation, test"),
        (["--transpose", "-1"], r"--transpose: -1 \(expected an integer of at least 0 and less than 88\)"),
        (
            ["--validation_fraction", "1"],
            r"--validation_fraction: 1 \(expected a number of more than 0",
        ),
        (["--model_name_or_path", "language"], "it holds RTransformerForCausalLM \\(expected .*PolyphonicMusic"),
        (["--key_head_type", "joint"], "`key_head_type` must be one of"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor: 0.1 .*each key of a frame"),
    ],
)
def test_bad_input_ends_before_training(folder, monkeypatch, capsys, flags, named):
    config = RTransformerConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    RTransformerForCausalLM(config).save_pretrained("language")
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("starts to train"))
    with pytest.raises((UsageError, SystemExit)) as error:
        train(*flags)
    message = str(error.value) if error.type is UsageError else capsys.readouterr().err
    assert re.search(named, message), message
    assert not Path("out").exists()


def test_a_mat_file_without_the_splits(folder):
    write_mat("tunes.mat", {"traindata": 3, "testdata": 3})
    with pytest.raises(UsageError, match=r"'tunes\.mat' has no array validdata"):
        train()


def test_a_corpus_of_midi_files_with_bad_ones(folder, capsys, caplog, monkeypatch):
    """All are named before the training; with --skip_unreadable the others are trained on, and evaluated again."""
    random = np.random.RandomState(0)
    for index in range(12):
        roll = (random.rand(random.randint(4, 9), 88) < 0.1).astype(np.uint8)
        roll[-1, 40] = 1
        write_midi(f"corpus/{index}.mid", roll, frames_per_beat=4, tempo=120)
    Path("corpus/empty.mid").touch()
    Path("corpus/page.mid").write_text("<html></html>")
    corpus = ("--data", "corpus", "--frames_per_beat", "4", "--validation_fraction", "0.25", "--max_steps", "1")
    with monkeypatch.context() as patch, pytest.raises(UsageError) as error:
        patch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("starts to train"))
        train(*corpus)
    for named in (
        "2 of 14 tunes of 'corpus'",
        "'corpus/empty.mid' can't",
        "it is empty",
        "'corpus/page.mid' can't",
        "HTML",
    ):
        assert named in str(error.value)
    assert not Path("out").exists()

    results = train(*corpus, "--skip_unreadable")
    skipped = json.loads(Path("out/skipped_tunes.json").read_text())
    assert skipped["skipped"] == 2 and "2 of 14 tunes are left out" in caplog.text
    assert AutoModelForAudioFrameClassification.from_pretrained("out").config.frames_per_beat == 4

    settings = json.loads(Path("out/evaluation.json").read_text())
    assert settings.pop("frames_per_beat") == 4  # older scripts look for it there
    Path("out/evaluation.json").write_text(json.dumps(settings))
    capsys.readouterr()
    evaluate_checkpoint.main(["out", "--data", "corpus", "--split", "validation", "--skip_unreadable"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["nll_per_frame"] == pytest.approx(results["eval_nll_per_frame"], rel=1e-6)
    evaluate_checkpoint.main(["out", "--data", "corpus", "--split", "all", "--skip_unreadable"])
    assert "2 of 14 tunes are left out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="2 of 14 tunes of 'corpus' can't be used"):
        evaluate_checkpoint.main(["out", "--data", "corpus", "--split", "all"])


def test_the_printed_command_holds_out_the_same_tunes(folder, capsys):
    """Files are held out from the sub-folder to train on, beside another one."""
    random = np.random.RandomState(0)
    for index in range(16):
        roll = (random.rand(6, 88) < 0.1).astype(np.uint8)
        roll[-1, 40] = 1
        write_midi(f"corpus/{'jazz' if index % 2 else 'classical'}/{index}.mid", roll, frames_per_beat=2, tempo=120)
    corpus = ("--data", "corpus", "--validation_fraction", "0.25", "--max_steps", "1")
    results = train(*corpus, "--train_split", "classical", "--test_split", "")
    line = next(line for line in capsys.readouterr().out.splitlines() if "evaluate_checkpoint.py" in line)
    evaluate_checkpoint.main(shlex.split(line.partition("evaluate_checkpoint.py")[2]))
    again = json.loads(capsys.readouterr().out)
    assert again["nll_per_frame"] == pytest.approx(results["eval_nll_per_frame"], rel=1e-6)


@pytest.mark.parametrize(
    ("trained", "flag", "expected"), [(None, None, 2), (4, None, 4), (4, 4, 4), (4, 3, 3), (None, 3, 3)]
)
def test_fine_tuning_keeps_the_frames_per_beat(folder, caplog, trained, flag, expected):
    config = RTransformerConfig(input_size=88, hidden_size=8, num_attention_heads=2, frames_per_beat=trained)
    config.save_pretrained("pretrained")
    args = MusicArguments(data="tunes.mat", frames_per_beat=flag)
    set_frames_per_beat(args, "pretrained", warns=True)
    assert args.frames_per_beat == expected
    is_different = (trained, flag) == (4, 3)
    assert ("--frames_per_beat 3: --model_name_or_path pretrained was trained on 4" in caplog.text) == is_different


@pytest.mark.parametrize("recipe", recipes("nll_per_frame"))
def test_recipes_of_music_models_are_valid(recipe, folder):
    types = (MusicModelArguments, MusicArguments, ResumableTrainingArguments)
    _, _, training_args = parse_arguments(types, [str(recipe), "--data", "tunes.mat", "--output_dir", "out"], "")
    assert training_args.metric_for_best_model == "nll_per_frame" and training_args.load_best_model_at_end


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        train_polyphonic_music.main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "--transpose" in output and "--key_head_type" in output and "--skip_unreadable" in output
