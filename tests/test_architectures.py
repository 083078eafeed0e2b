# SPDX-License-Identifier: Apache-2.0
"""Models of any architecture in the training scripts: the same data, windows and metrics, and what is refused."""

import json
from pathlib import Path

import compare
import evaluate_checkpoint
import generate
import push_to_hub
import pytest
import torch
import train_causal_lm
import train_causal_lm_accelerate
import train_sequence_classification
import train_token_classification
from conftest import write_texts
from test_train_causal_lm import plain_loop_nats
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForMaskedLM, BertForTokenClassification, pipeline

from rtransformer_hf import RTransformerForCausalLM
from rtransformer_hf.training.architectures import check_causal_lm
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.model_arguments import ArchitectureArguments, make_model

SIZES = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2"
ROTARY = f"{SIZES},num_key_value_heads=2,intermediate_size=32"
OVERRIDES = {
    "gpt2": f"{SIZES},n_positions=17",
    "llama": f"{ROTARY},max_position_embeddings=17",
    "lfm2": json.dumps(
        {
            **dict(pair.split("=") for pair in ROTARY.split(",")),
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        }
    ),
    "qwen3": f"{ROTARY},head_dim=8",
    "mamba": "hidden_size=16,num_hidden_layers=2,state_size=4",
    "rtransformer": f"{SIZES},local_window_size=3,mlp_type=gated,hidden_act=silu",
}
TRAINING = {
    "max_steps": 2,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 5,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "output_dir": "out",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_texts(train=20, validation=8)
    return tmp_path


def flags(**values) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def train(model_type: str, overrides: str | None = None, script=train_causal_lm, **more) -> dict:
    data = {"train_file": "train.txt", "validation_file": "validation.txt", "block_size": 16, "eval_stride": 9}
    overrides = OVERRIDES[model_type] if overrides is None else overrides
    own = {"model_type": model_type, "config_overrides": overrides, "tokenizer": "char"}
    quiet = {} if script is train_causal_lm_accelerate else {"report_to": "none"}
    script.main(flags(**{**data, **own, **TRAINING, **quiet, **more}))
    return json.loads(Path("out/all_results.json").read_text())


@pytest.mark.parametrize("model_type", OVERRIDES)
def test_any_causal_model_is_trained_evaluated_and_used(folder, model_type, capsys):
    results = train(model_type)
    model, tokenizer = AutoModelForCausalLM.from_pretrained("out").eval(), AutoTokenizer.from_pretrained("out")
    config = model.config
    assert config.model_type == model_type and config.hidden_size == 16 and config.vocab_size == len(tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.eos_token_id == config.bos_token_id == tokenizer.eos_token_id

    text = Path("validation.txt").read_text()
    tokens = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    nats = plain_loop_nats(model, tokens, context_length=16, stride=9)
    assert results["eval_predicted_tokens"] == len(tokens) - 1
    assert results["eval_loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-4)

    capsys.readouterr()
    evaluate_checkpoint.main(["out", "--data", "validation.txt"])
    again = json.loads(capsys.readouterr().out)
    assert again["loss"] == pytest.approx(results["eval_loss"], rel=1e-4)
    generate.main(["out", "line", "--max_new_tokens", "3"])
    assert capsys.readouterr().out.startswith("line")

    card = Path("out/README.md").read_text()
    assert f"- {model_type}\n- generated_from_trainer" in card and type(model).__name__ in card
    assert ("trust_remote_code" in card) == ("R-Transformer puts" in card) == (model_type == "rtransformer")


def test_the_same_steps_by_the_loop_of_its_own(folder):
    first = train("llama")
    Path("out").rename("trainer")
    train("llama", script=train_causal_lm_accelerate)
    # Batches are drawn otherwise; model, windows and loss are the same.
    again = json.loads(Path("out/all_results.json").read_text())
    assert again["eval_loss"] == pytest.approx(first["eval_loss"], rel=0.05)
    assert again["eval_predicted_tokens"] == first["eval_predicted_tokens"]


def test_an_architecture_classifies(folder):
    rows = "".join(f"{word} {i},{word}\n" for i in range(12) for word in ("good", "bad"))
    Path("rows.csv").write_text(f"text,label\n{rows}")
    more = {"train_file": "rows.csv", "max_steps": 30, "report_to": "none", "metric_for_best_model": "accuracy"}
    sizes = flags(model_type="llama", config_overrides=OVERRIDES["llama"])
    train_sequence_classification.main([*sizes, *flags(**{**TRAINING, **more})])
    assert json.loads(Path("out/all_results.json").read_text())["eval_accuracy"] == 1
    config = json.loads(Path("out/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and set(config["label2id"]) == {"good", "bad"}

    short = flags(
        model_type="llama", config_overrides=f"{ROTARY},max_position_embeddings=1", overwrite_output_dir=True
    )
    with pytest.raises(UsageError, match=r"--max_length None: sequences of 2 tokens .expected at most 1, "):
        train_sequence_classification.main([*short, *flags(**{**TRAINING, **more})])
    with pytest.raises(UsageError, match=r"--model_type llama reads tokens, --image_column 'image' are pixels"):
        train_sequence_classification.main([*sizes, *flags(**{**TRAINING, **more, "image_column": "image"})])


def test_an_architecture_tags(folder, capsys):
    """One that sees later words; evaluated again, in a pipeline, shared without code, and resumed."""
    words = [("in", "O"), ("Oslo", "B-LOC"), ("rains", "O"), ("Anna", "B-PER")]
    Path("rows.conll").write_text("".join(f"{word} {tag}\n" for word, tag in words) * 3 + "\n")
    Path("rows.conll").write_text(Path("rows.conll").read_text() * 12)
    overrides = f"{SIZES},intermediate_size=32,max_position_embeddings=20"
    more = {"train_file": "rows.conll", "test_file": "rows.conll", "report_to": "none", "max_steps": 20}
    sizes = flags(model_type="bert", config_overrides=overrides)
    train_token_classification.main([*sizes, *flags(**{**TRAINING, **more})])
    results = json.loads(Path("out/all_results.json").read_text())
    assert results["test_span_f1"] == 1
    capsys.readouterr()
    evaluate_checkpoint.main(["out", "--data", "rows.conll"])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(results["test_loss"], rel=1e-4)
    found = pipeline("token-classification", model="out", aggregation_strategy="simple")("in Oslo rains Anna")
    assert [(entity["entity_group"], entity["word"]) for entity in found] == [("LOC", "Oslo"), ("PER", "Anna")]
    card = Path("out/README.md").read_text()
    assert "BertForTokenClassification" in card and "not what follows" not in card and "It returns its" in card
    push_to_hub.main(["out", "anna/tagger", "--dry_run"])
    compare.main(["out"])
    said = capsys.readouterr().out
    assert "| span f1, validation |" in said and "can't be counted" not in said  # over 20 positions
    more["max_steps"] = 22
    train_token_classification.main([*sizes, *flags(**{**TRAINING, **more})])
    assert json.loads(Path("out/trainer_state.json").read_text())["global_step"] == 22

    # Layers that were pretrained by filling in words get a head.
    masked = BertForMaskedLM.from_pretrained("out")
    masked.save_pretrained("masked")
    AutoTokenizer.from_pretrained("out").save_pretrained("masked")
    more |= {"model_name_or_path": "masked", "max_steps": 1, "learning_rate": 0, "output_dir": "further"}
    train_token_classification.main(flags(**{**TRAINING, **more}))
    tagger = BertForTokenClassification.from_pretrained("further")
    torch.testing.assert_close(tagger.bert.encoder.state_dict(), masked.bert.encoder.state_dict())


@pytest.mark.parametrize(
    ("script", "model_type", "overrides", "message"),
    [
        (
            train_token_classification,
            "mamba",
            None,
            "--model_type: unknown to AutoModelForTokenClassification: 'mamba'",
        ),
        (
            train_sequence_classification,
            "t5",
            "d_model=16,num_layers=1,num_heads=2,d_kv=8,d_ff=32",
            "--model_type t5 --config_overrides 'd_model=16,.*T5ForSequenceClassification can't be used on",
        ),
        (
            train_token_classification,
            "roberta",  # whose positions start at 2
            f"{SIZES},intermediate_size=32,max_position_embeddings=4",
            "--model_type roberta .*RobertaForTokenClassification can't be used on these tokens",
        ),
    ],
)
def test_models_without_a_head_that_labels_tokens_alone_are_refused(folder, script, model_type, overrides, message):
    if script is train_sequence_classification:
        Path("rows.csv").write_text("text,label\n" + "good day,good\nbad day,bad\n" * 10)
        data = {"train_file": "rows.csv"}
    else:
        Path("rows.conll").write_text("in O\nOslo B-LOC\nnow O\n\n" * 10)
        data = {"train_file": "rows.conll"}
    own = {"model_type": model_type, **({} if overrides is None else {"config_overrides": overrides})}
    with pytest.raises(UsageError, match=message):
        script.main(flags(**{**TRAINING, **data, **own, "report_to": "none", "metric_for_best_model": "accuracy"}))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model_type": "lama"}, r"--model_type: unknown to AutoModelForCausalLM: 'lama' \(did you mean llama\?\)"),
        ({"model_type": "t5"}, r"--model_type: unknown to AutoModelForCausalLM: 't5' .*expected .*gpt2"),
        ({"config_overrides": "hidden_size=16"}, "--config_overrides 'hidden_size=16' goes with --model_type alone"),
        ({"model_type": "llama", "model_name_or_path": "x"}, "--model_name_or_path 'x' trains one further"),
        (
            {"model_type": "llama", "hidden_size": 16, "final_layer_norm": False},
            "--hidden_size, --final_layer_norm: not",
        ),
        ({"config_overrides": "hiden_size=16"}, r"unknown to llama: 'hiden_size' \(did you mean hidden_size\?\)"),
        ({"config_overrides": "to_dict=1"}, "unknown to llama: 'to_dict'"),
        ({"config_overrides": "hidden_size"}, "'hidden_size' .expected NAME=VALUE,"),
        ({"config_overrides": "{1"}, "'{1' .expected NAME=VALUE,.* or a JSON object"),
        ({"config_overrides": "hidden_size=wide"}, "'hidden_size' expected int, got str .value: 'wide'"),
        ({"config_overrides": "hidden_size=1.5"}, "'hidden_size' expected int, got float .value: 1.5"),
        ({"config_overrides": "attention_bias=perhaps"}, "attention_bias=perhaps .expected true or false"),
        ({"config_overrides": "vocab_size=9"}, "vocab_size follows from the tokenizer"),
        ({"config_overrides": "hidden_size=16,num_attention_heads=3"}, "make no configuration of llama: .*multiple"),
        ({"config_overrides": "hidden_size=-16"}, "make no"),
        ({"model_type": "rtransformer", "config_overrides": "local_rnn_type=mgu"}, "`local_rnn_type` must be one of"),
    ],
)
def test_what_makes_no_model_is_named(arguments, message):
    if message != "--config_overrides 'hidden_size=16' goes with --model_type alone":
        arguments = {"model_type": "llama", **arguments}
    with pytest.raises(UsageError, match=message):
        make_model(ArchitectureArguments(**arguments), RTransformerForCausalLM, AutoModelForCausalLM, (), vocab_size=9)


def test_derived_fields_follow_what_is_overridden():
    """Unlike `update_from_string`, which leaves the defaults' width of a head."""
    args = ArchitectureArguments(model_type="llama", config_overrides=f"{SIZES},intermediate_size=32,rms_norm_eps=1")
    model = make_model(args, RTransformerForCausalLM, AutoModelForCausalLM, (), vocab_size=9)
    assert model.config.head_dim == 8 and model.config.num_key_value_heads == 2
    assert model.config.rms_norm_eps == 1.0 and isinstance(model.config.rms_norm_eps, float)


def test_models_that_see_the_future_or_have_too_few_positions_are_refused(folder):
    with pytest.raises(UsageError, match=r"--model_type bert: BertLMHeadModel sees later tokens .*is_decoder=true"):
        train("bert", f"{SIZES},intermediate_size=32")
    with pytest.raises(UsageError, match=r"--context_length 16, .*: sequences of 17 tokens .expected at most 16"):
        train("gpt2", f"{SIZES},n_positions=16")
    with pytest.raises(
        UsageError, match=r"--muon: GPT2LMHeadModel has no nn.Linear"
    ):  # its layers are of another class
        train("gpt2", muon=True, output_dir="muon")
    assert not Path("out").exists()


def test_a_loss_of_another_kind_is_refused():
    args = ArchitectureArguments(model_type="gpt2", config_overrides=f"{SIZES},n_positions=17")
    model = make_model(args, RTransformerForCausalLM, AutoModelForCausalLM, (), vocab_size=9)
    check_causal_lm(model, "--model_type gpt2", is_new=True)
    whole = model.loss_function
    model.loss_function = lambda *args, num_items_in_batch=None, **kwargs: whole(*args, **kwargs)
    with pytest.raises(UsageError, match=r"GPT2LMHeadModel computes a loss of its own"):
        check_causal_lm(model, "--model_type gpt2", is_new=True)
    check_causal_lm(model, "--model_name_or_path 'gpt2'", is_new=False)
