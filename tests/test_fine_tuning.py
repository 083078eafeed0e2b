# SPDX-License-Identifier: Apache-2.0
"""From a pretrained language model to other tasks, other text and a larger vocabulary."""

import json
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import train_causal_lm
import train_causal_lm_accelerate
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from rtransformer_hf import (
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerForTokenClassification,
)
from rtransformer_hf.training.causal_lm import TokenWindows, window_losses
from rtransformer_hf.training.new_tokenizers import train_char_tokenizer

ALPHABET = "abcdefgh \n"


@pytest.fixture
def pretrained(tiny_config, tmp_path, monkeypatch):
    """A folder with a language model and its tokenizer of characters; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_char_tokenizer([ALPHABET], None)
    tokenizer.save_pretrained("pretrained")
    config = tiny_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    RTransformerForCausalLM(config).save_pretrained("pretrained")
    return "pretrained"


def texts(number: int) -> list[str]:
    random = np.random.RandomState(0)
    return ["".join(random.choice(list("abcd"), random.randint(4, 11))) for _ in range(number)]


def fine_tune(model, tokenizer, examples: list[dict], data_collator) -> Trainer:
    arguments = TrainingArguments(
        "outputs",
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        data_collator=data_collator,
    )
    trainer.train()
    trainer.save_model("tuned")
    return trainer


def check_new_head(folder: str, model, caplog):
    """The body is that of the language model, the head is new, and a warning says so."""
    body = AutoModelForCausalLM.from_pretrained(folder).model.state_dict()
    for name, weight in model.model.state_dict().items():
        assert torch.equal(weight, body[name]), name
    for name in ("score.weight", "score.bias"):
        [line] = [line for line in caplog.text.splitlines() if name in line]
        assert "MISSING" in line
    assert "newly initialized" in caplog.text


def test_a_language_model_learns_to_classify(pretrained, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=2)
    check_new_head(pretrained, model, caplog)

    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    examples = [{**tokenizer(text), "labels": int(text[-1] in "ab")} for text in texts(128)]
    trainer = fine_tune(model, tokenizer, examples, DataCollatorWithPadding(tokenizer))
    output = trainer.predict(trainer.train_dataset)
    assert (output.predictions.argmax(-1) == output.label_ids).mean() > 0.9

    tuned = AutoModelForSequenceClassification.from_pretrained("tuned").eval()
    logits = tuned(**AutoTokenizer.from_pretrained("tuned")(texts(1), return_tensors="pt")).logits
    np.testing.assert_allclose(logits.detach(), output.predictions[:1], atol=1e-4)


def test_a_language_model_learns_to_tag(pretrained, caplog):
    model = AutoModelForTokenClassification.from_pretrained(pretrained, num_labels=2)
    check_new_head(pretrained, model, caplog)

    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    examples = [  # whether a letter is the one before it again
        {**tokenizer(text), "labels": [int(text[:i].endswith(letter)) for i, letter in enumerate(text)]}
        for text in texts(128)
    ]
    trainer = fine_tune(model, tokenizer, examples, DataCollatorForTokenClassification(tokenizer))
    output = trainer.predict(trainer.train_dataset)
    is_real = output.label_ids != -100
    assert (output.predictions.argmax(-1) == output.label_ids)[is_real].mean() > 0.9

    tuned = AutoModelForTokenClassification.from_pretrained("tuned").eval()
    logits = tuned(**AutoTokenizer.from_pretrained("tuned")(texts(1), return_tensors="pt")).logits[0].detach()
    np.testing.assert_allclose(logits, output.predictions[0, -len(logits) :], atol=1e-4)


SMOOTHED_MODELS = {
    "language model": RTransformerForCausalLM,
    "with LoRA": lambda config: get_peft_model(RTransformerForCausalLM(config), LoraConfig(target_modules=["q_proj"])),
    "as FSDP names it": type("FSDPRTransformerForCausalLM", (RTransformerForCausalLM,), {}),
    "token classifier": RTransformerForTokenClassification,
    "sequence classifier": RTransformerForSequenceClassification,
}


@pytest.mark.parametrize("name", SMOOTHED_MODELS)
def test_label_smoothing(tiny_config, tmp_path, name):
    """Trainer shifts the labels of a language model, and of no other."""
    model = SMOOTHED_MODELS[name](tiny_config(num_labels=23)).eval()
    arguments = TrainingArguments(tmp_path, label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    input_ids = torch.randint(1, 23, (2, 9))
    labels = torch.tensor([5, 7]) if name == "sequence classifier" else input_ids.clone()
    if labels.ndim == 2:
        labels[0, 3:5] = -100
    loss = Trainer(model, arguments).compute_loss(model, {"input_ids": input_ids, "labels": labels.clone()})
    logits = model(input_ids=input_ids).logits
    if not name.endswith("classifier"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    expected = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("script", [train_causal_lm, train_causal_lm_accelerate])
def test_a_language_model_goes_on_with_another_text(pretrained, script):
    Path("text.txt").write_text("bad cab fed a deaf hag\n" * 30)
    flags = ["--model_name_or_path", "pretrained", "--train_file", "text.txt", "--block_size", "16", "--use_cpu"]
    script.main([*flags, "--output_dir", "outputs", "--max_steps", "30", "--learning_rate", "0.01"])
    tuned, tokenizer = AutoModelForCausalLM.from_pretrained("outputs"), AutoTokenizer.from_pretrained("outputs")
    before = AutoModelForCausalLM.from_pretrained(pretrained)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(pretrained).get_vocab()
    assert tuned.config.hidden_size == before.config.hidden_size

    # a step of no length: the model is the pretrained one, and not a new one of its sizes
    script.main([*flags, "--output_dir", "same", "--max_steps", "1", "--learning_rate", "0"])
    same = json.loads(Path("same/all_results.json").read_text())
    tokens = torch.tensor([*tokenizer(Path("text.txt").read_text())["input_ids"], tokenizer.eos_token_id])
    held_out = TokenWindows(tokens[-same["eval_predicted_tokens"] - 1 :], 1, 16, 16)
    with torch.no_grad():
        losses = [window_losses(before(row["input_ids"][None]).logits, row["labels"][None]) for row in held_out]
    nats, num_tokens = torch.cat(losses).sum(dim=0).tolist()
    assert same["eval_loss"] == pytest.approx(nats / num_tokens, rel=1e-5)
    assert json.loads(Path("outputs/all_results.json").read_text())["eval_loss"] < same["eval_loss"] / 2


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_larger_vocabulary(pretrained, tiny_config, tied):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = RTransformerForCausalLM(tiny_config(vocab_size=len(tokenizer), tie_word_embeddings=tied)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    old_size, old_bias = len(tokenizer), model.lm_head.bias.detach().clone()
    old_text = tokenizer("a bad cab", return_tensors="pt")
    with torch.no_grad():  # a graph of the smaller weights must not outlive them
        old_logits = model(**old_text).logits

    assert tokenizer.add_tokens(["<verse>", "<chorus>"]) == 2
    model.resize_token_embeddings(len(tokenizer))
    assert model.config.vocab_size == model.vocab_size == len(tokenizer) == old_size + 2
    logits = model(**old_text).logits
    assert logits.shape[-1] == old_size + 2 and logits.isfinite().all()
    torch.testing.assert_close(logits[..., :old_size], old_logits)
    assert torch.equal(model.lm_head.bias[:old_size], old_bias)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied

    new_text = tokenizer("<verse>a bad cab<chorus>", return_tensors="pt")
    assert new_text["input_ids"][0, [0, -1]].tolist() == [old_size, old_size + 1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(**new_text, labels=new_text["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    output = model.generate(tokenizer("<verse>", return_tensors="pt")["input_ids"], max_new_tokens=10, do_sample=False)
    assert tokenizer.decode(output[0]) == "<verse>a bad cab<chorus>"

    model.save_pretrained("larger")
    tokenizer.save_pretrained("larger")
    loaded = AutoModelForCausalLM.from_pretrained("larger").eval()
    assert len(AutoTokenizer.from_pretrained("larger")) == loaded.config.vocab_size == old_size + 2
    torch.testing.assert_close(loaded(**new_text).logits, model(**new_text).logits)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied


def labeled_rows(problem_type: str) -> list[dict[str, torch.Tensor]]:
    """Ten rows of one to ten tokens or frames, none as long as another."""
    rows = []
    for length in (3, 9, 1, 6, 10, 2, 8, 4, 7, 5):
        input_ids = torch.randint(1, 23, (length,))
        labels = {
            "causal": input_ids,
            "token": torch.randint(3, (length,)),
            "music": torch.randint(2, (length, 5)).float(),
            "single_label_classification": torch.randint(3, ()),
            "multi_label_classification": torch.randint(2, (3,)).float(),
        }[problem_type]
        rows.append({"inputs": labels if problem_type == "music" else input_ids, "labels": labels})
    return rows


def pad_rows(rows: list[dict[str, torch.Tensor]], is_music: bool, is_row_labeled: bool) -> dict[str, torch.Tensor]:
    def padded(name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    lengths = torch.tensor([len(row["inputs"]) for row in rows])
    return {
        "input_values" if is_music else "input_ids": padded("inputs", 0),
        "attention_mask": (torch.arange(lengths.max()) < lengths[:, None]).long(),
        "labels": torch.stack([row["labels"] for row in rows]) if is_row_labeled else padded("labels", -100),
    }


@pytest.mark.parametrize(
    ("model_class", "problem_type"),
    [
        (RTransformerForCausalLM, "causal"),
        (RTransformerForTokenClassification, "token"),
        (RTransformerForPolyphonicMusic, "music"),
        (RTransformerForSequenceClassification, "single_label_classification"),
        (RTransformerForSequenceClassification, "multi_label_classification"),
    ],
)
def test_accumulated_batches_are_one_batch(tiny_config, tmp_path, model_class, problem_type):
    """With Trainer as it is, to 1e-6; the last batch of the epoch is smaller than the others."""
    is_music, is_row_labeled = problem_type == "music", problem_type.endswith("classification")
    sizes = {"input_size": 5} if is_music else {}
    problem = {"problem_type": problem_type} if is_row_labeled else {}
    config = tiny_config(num_labels=3, num_hidden_layers=1, **problem, **sizes)
    rows, initial = labeled_rows(problem_type), model_class(config).state_dict()

    def train(batch_size: int, accumulation_steps: int) -> tuple[float, dict[str, torch.Tensor]]:
        model = model_class(config)
        model.load_state_dict(initial)
        arguments = TrainingArguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation_steps,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0,
            logging_steps=1,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        collate = partial(pad_rows, is_music=is_music, is_row_labeled=is_row_labeled)
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
        trainer.train()
        return trainer.state.log_history[0]["loss"], model.state_dict()

    loss, weights = train(12, 1)
    assert not torch.equal(weights["model.layers.0.mlp.up_proj.weight"], initial["model.layers.0.mlp.up_proj.weight"])
    other_loss, other_weights = train(4, 3)
    assert other_loss == pytest.approx(loss, rel=1e-4)  # it is rounded in the log
    torch.testing.assert_close(other_weights, weights, rtol=0, atol=1e-6)
