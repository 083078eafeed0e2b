# SPDX-License-Identifier: Apache-2.0
"""The evaluation harness of EleutherAI runs checkpoints of language models, batched as one by one."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES

pytest.importorskip("lm_eval")
import evaluate_checkpoint
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from rtransformer_hf.training.run import EVALUATION_FILE

TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
task: {name}
output_type: {output_type}
doc_to_text: "{{{{prompt}}}}"
"""
TASKS = {
    "loglikelihood_rolling": """
doc_to_target: "{{text}}"
metric_list:
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
""",
    "multiple_choice": """
doc_to_target: 0
doc_to_choice: ["{{rest}}", "mat mat mat", "the the the the"]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "generate_until": """
doc_to_target: "{{rest}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 40}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: strip, filter: [{function: remove_whitespace}, {function: take_first}]}
""",
}


def requests(request_type: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type, {}, pair, index) for index, pair in enumerate(arguments)]


def split(sentence: str) -> tuple[str, str]:
    """Its beginning, of two words, and the rest."""
    words = sentence.split(" ")
    return " ".join(words[:2]), " " + " ".join(words[2:])


def log_probability(folder: str, prompt: list[int], rest: list[int]) -> float:
    model = HFLM(folder, device="cpu").model
    with torch.no_grad():
        log_probabilities = model(torch.tensor([prompt + rest])).logits[0].log_softmax(dim=-1)
    return sum(log_probabilities[len(prompt) - 1 + i, token].item() for i, token in enumerate(rest))


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_batches_give_what_single_requests_give(text_model, tokenizer):
    folder = text_model(tokenizer)
    single, batched = (HFLM(folder, device="cpu", batch_size=size, max_length=64) for size in (1, 4))
    pairs = [split(sentence) for sentence in SENTENCES] + [("", SENTENCES[0])]
    for request_type, arguments in (
        ("loglikelihood", pairs),
        ("loglikelihood_rolling", [(sentence + "\n",) for sentence in (*SENTENCES, " ".join(SENTENCES))]),
    ):
        expected, actual = (getattr(lm, request_type)(requests(request_type, arguments)) for lm in (single, batched))
        torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=0, atol=1e-4)
    prompts = [(prompt, {"until": ["\n"], "max_gen_toks": 40}) for prompt, _ in pairs[:-1]]
    expected, actual = (lm.generate_until(requests("generate_until", prompts)) for lm in (single, batched))
    assert actual == expected == [rest for _, rest in pairs[:-1]]

    encode = single.tok_encode
    [(log_likelihood, is_greedy)] = single.loglikelihood(requests("loglikelihood", pairs[:1]))
    ids = log_probability(folder, encode(pairs[0][0]), encode(SENTENCES[0])[len(encode(pairs[0][0])) :])
    assert log_likelihood == pytest.approx(ids, abs=1e-4) and is_greedy


def test_rolling_log_likelihood_is_what_evaluate_checkpoint_sums(text_model, tmp_path, capsys):
    """Of the same windows: as long as the harness's contexts, after an end of text as its first one is."""
    folder = tmp_path / "model"
    shutil.copytree(text_model("char"), folder)
    settings = json.loads((folder / EVALUATION_FILE).read_text())
    settings |= {"context_length": 20, "eval_stride": 20, "end_of_text": "none", "line_ending": ""}
    (folder / EVALUATION_FILE).write_text(json.dumps(settings))
    text = " ".join(SENTENCES)
    (tmp_path / "text.txt").write_text("<|endoftext|>" + text)
    capsys.readouterr()
    evaluate_checkpoint.main([str(folder), "--data", str(tmp_path / "text.txt")])
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["predicted_tokens"] == len(text)
    lm = HFLM(str(folder), device="cpu", batch_size=2, max_length=20)
    [log_likelihood] = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    ends_overlap = (
        len(text) % 20 != 0
    )  # the last window then has more context here, as it has in evaluate_checkpoint.py
    assert ends_overlap
    assert -log_likelihood == pytest.approx(metrics["loss"] * len(text), rel=1e-5)
    assert -log_likelihood / math.log(2) / len(text) == pytest.approx(metrics["bits_per_character"], rel=1e-5)


def run_harness(monkeypatch, tmp_path: Path, model_args: str) -> dict:
    rows = [
        dict(zip(("text", "prompt", "rest"), (text, *map(str.strip, split(text))), strict=True)) for text in SENTENCES
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for output_type, fields in TASKS.items():
        task = TASK.format(data=tmp_path / "data.jsonl", name=f"local_{output_type}", output_type=output_type)
        (tmp_path / f"{output_type}.yaml").write_text(task + fields)
    flags = ["--model", "hf", "--model_args", model_args, "--device", "cpu", "--batch_size", "3"]
    tasks = ["--tasks", ",".join(f"local_{name}" for name in TASKS), "--include_path", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *flags, *tasks, "--output_path", str(tmp_path / "results")])
    cli_evaluate()
    [results] = tmp_path.glob("results/**/results_*.json")
    return json.loads(results.read_text())["results"]


def test_the_command(text_model, tmp_path, monkeypatch):
    results = run_harness(monkeypatch, tmp_path, f"pretrained={text_model('word')},trust_remote_code=True")
    assert results["local_multiple_choice"]["acc,none"] == 1
    assert results["local_loglikelihood_rolling"]["byte_perplexity,none"] < 2
    assert results["local_generate_until"]["exact_match,strip"] == 1


@pytest.mark.parametrize("name", ["ptb_char_small", "ptb_word"])
def test_checkpoints_of_before(tmp_path, monkeypatch, name):
    folder = Path(__file__).parent.parent / "model_cards" / name
    results = run_harness(monkeypatch, tmp_path, f"pretrained={folder},max_length=128")
    assert results["local_loglikelihood_rolling"]["byte_perplexity,none"] < 20
    assert "exact_match,strip" in results["local_generate_until"]
