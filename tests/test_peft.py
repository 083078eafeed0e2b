# SPDX-License-Identifier: Apache-2.0
"""Adapters (PEFT) on attention, feed-forward and LocalRNN layers; and instruction tuning with TRL."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from rtransformer_hf import RTransformerForCausalLM, RTransformerForSequenceClassification, RTransformerModel

PROJECTIONS = {
    *("input_proj", "recurrent_proj"),  # of the LocalRNN
    *("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
}


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """Saves a model of which the arguments say what differs from the smallest, and returns its folder."""

    def save(model_class=RTransformerForCausalLM, **overrides):
        model_class(tiny_config(**overrides)).save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return save


@pytest.fixture
def input_ids():
    return torch.randint(23, (3, 12))


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, **settings})


def steps(model, input_ids, number: int = 15) -> list[float]:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(number):
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits_and_continuation(model, input_ids):
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits
    return logits, model.generate(input_ids=input_ids[:, :5], max_new_tokens=8, do_sample=False)


@pytest.mark.parametrize(
    ("cell", "target_modules"), [("rnn", "all-linear"), ("gru", sorted(PROJECTIONS)), ("lstm", "all-linear")]
)
def test_lora_trains_every_projection_and_nothing_else(checkpoint, input_ids, cell, target_modules):
    base = AutoModelForCausalLM.from_pretrained(checkpoint(local_rnn_type=cell, num_local_rnn_layers=2))
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = get_peft_model(base, lora(target_modules=target_modules))

    losses = steps(model, input_ids)
    assert losses[-1] < losses[0] - 0.2
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    adapted = {name for name, _ in base.named_modules() if name.split(".")[-1] in PROJECTIONS}
    assert len(adapted) == 2 * (2 * 2 + 6)  # blocks * (LocalRNN layers * 2 + the others)
    assert trained == {f"base_model.model.{name}.lora_{part}.default.weight" for name in adapted for part in "AB"}
    model.unload()
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_adapters_saved_loaded_and_merged(checkpoint, input_ids, tmp_path, settings):
    path = checkpoint(tie_word_embeddings="modules_to_save" not in settings)
    plain, _ = logits_and_continuation(AutoModelForCausalLM.from_pretrained(path), input_ids)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), lora(**settings))
    steps(model, input_ids)
    logits, tokens = logits_and_continuation(model, input_ids)
    assert (logits - plain).abs().max() > 0.1
    uncached = model.generate(input_ids=input_ids[:, :5], max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(tokens, uncached)
    with model.disable_adapter():
        torch.testing.assert_close(logits_and_continuation(model, input_ids)[0], plain, rtol=0, atol=1e-5)

    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert isinstance(loaded.get_base_model(), RTransformerForCausalLM)
    torch.testing.assert_close(logits_and_continuation(loaded, input_ids)[0], logits)

    loaded.merge_adapter()  # the weights are merged, the layers still PEFT's
    for merged in (loaded, model.merge_and_unload()):
        merged_logits, merged_tokens = logits_and_continuation(merged, input_ids)
        torch.testing.assert_close(merged_logits, logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(merged_tokens, tokens)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_and_continuation(again, input_ids)[0], merged_logits)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_with_lora(checkpoint, input_ids, use_reentrant):
    base = AutoModelForCausalLM.from_pretrained(checkpoint(local_rnn_type="lstm"))
    model = get_peft_model(base, lora(init_lora_weights=False)).train()

    def gradients():
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        model.zero_grad()
        return found

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize("is_causal", [True, False])
def test_lora_and_a_new_head(checkpoint, input_ids, tmp_path, is_causal):
    path = checkpoint(is_causal=is_causal, model_class=RTransformerModel)
    labels = torch.tensor([0, 1, 2])

    def base():
        return RTransformerForSequenceClassification.from_pretrained(path, num_labels=3)

    model = get_peft_model(base(), lora(task_type="SEQ_CLS"))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(20):
        loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    logits = model.eval()(input_ids=input_ids).logits
    assert logits.argmax(-1).tolist() == [0, 1, 2]

    model.save_pretrained(tmp_path / "adapter")  # with the head
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids=input_ids).logits, logits)
    torch.testing.assert_close(loaded.merge_and_unload()(input_ids=input_ids).logits, logits, rtol=1e-5, atol=1e-5)


def test_new_tokens_beside_lora(checkpoint, input_ids, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint())
    model.resize_token_embeddings(25)
    old = model.get_input_embeddings().weight[:23].clone()
    model = get_peft_model(model, lora(trainable_token_indices={"embed_tokens": [23, 24]}))
    losses = steps(model, torch.cat([input_ids, torch.tensor([[23, 24]] * 3)], dim=1))
    assert losses[-1] < losses[0] - 0.2
    merged = model.merge_and_unload()
    assert torch.equal(merged.get_input_embeddings().weight[:23], old)
    assert merged.lm_head.weight is merged.get_input_embeddings().weight


# Instruction tuning

ALPHABET = "_|abcdefghijklmnop+=?"  # "_" pads, "|" ends an answer


@pytest.fixture
def chat_folder(tiny_config, tmp_path):
    """A small pretrained model with a tokenizer of characters."""
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(ALPHABET)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="_", eos_token="|")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    config = tiny_config(vocab_size=len(ALPHABET), hidden_size=32, eos_token_id=1, pad_token_id=0)
    RTransformerForCausalLM(config).save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained")


@pytest.fixture
def instructions():
    """A letter, as often as there are plus signs: prompts and answers of several lengths."""
    letters = "abcdefgh"
    rows = [(letter, number) for letter in letters for number in (1, 2, 3, 4)]
    return datasets.Dataset.from_dict(
        {
            "prompt": [letter + "+" * number + "=" for letter, number in rows],
            "completion": [letter * number + "|" for letter, number in rows],
        }
    )


def settings(folder, **overrides) -> SFTConfig:
    return SFTConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 40,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 8,
            "logging_steps": 5,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            **overrides,
        }
    )


def completion_loss(model, tokenizer, rows) -> float:
    """Nats a token of the completions, one row at a time and by the model alone."""
    nats, number = 0.0, 0
    for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
        input_ids = torch.tensor(tokenizer(prompt + completion)["input_ids"])[None]
        labels = input_ids.clone()
        labels[:, : len(prompt)] = -100
        with torch.no_grad():
            nats += model.eval()(input_ids=input_ids, labels=labels).loss.item() * len(completion)
        number += len(completion)
    return nats / number


@pytest.mark.parametrize(("with_lora", "packing"), [(False, False), (True, True)], ids=["full", "lora-packed"])
def test_instruction_tuning(chat_folder, instructions, tmp_path, with_lora, packing):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    before = completion_loss(AutoModelForCausalLM.from_pretrained(chat_folder), tokenizer, instructions)
    trainer = SFTTrainer(
        chat_folder,
        args=settings(tmp_path / "tuned", packing=packing, max_length=32),
        train_dataset=instructions,
        processing_class=tokenizer,
        peft_config=lora(r=16) if with_lora else None,
    )
    trainer.train()
    trainer.save_model()

    auto_class = AutoPeftModelForCausalLM if with_lora else AutoModelForCausalLM
    model = auto_class.from_pretrained(tmp_path / "tuned")
    after = completion_loss(model, AutoTokenizer.from_pretrained(tmp_path / "tuned"), instructions)
    assert after < before / 2


def test_a_folder_without_code_is_tuned(chat_folder, instructions, tmp_path):
    """SFTTrainer asks the configuration for `auto_map`, which such a folder has none of."""
    config_file = Path(chat_folder, "config.json")
    config = json.loads(config_file.read_text())
    del config["auto_map"]
    config_file.write_text(json.dumps(config))
    trainer = SFTTrainer(
        chat_folder,
        args=settings(tmp_path / "tuned", max_steps=1),
        train_dataset=instructions,
        processing_class=AutoTokenizer.from_pretrained(chat_folder),
    )
    assert type(trainer.model) is RTransformerForCausalLM


def test_packed_instructions_see_nothing_of_each_other(chat_folder, instructions, tmp_path):
    """SFTTrainer's loss of one packed row is that of the instructions one by one."""
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    trainer = SFTTrainer(
        chat_folder,
        args=settings(tmp_path / "tuned", packing=True, max_length=400),
        train_dataset=instructions,
        processing_class=tokenizer,
    )
    [batch] = trainer.get_train_dataloader()
    assert batch["input_ids"].shape[0] == 1 and (batch["position_ids"] == 0).sum() == len(instructions)
    loss = trainer.compute_loss(trainer.model, batch).item()
    expected = completion_loss(AutoModelForCausalLM.from_pretrained(chat_folder), tokenizer, instructions)
    assert loss == pytest.approx(expected, rel=1e-5)
