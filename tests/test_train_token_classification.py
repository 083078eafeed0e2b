# SPDX-License-Identifier: Apache-2.0
"""The training script for taggers end to end, with models of a few thousand parameters, and the data that it reads."""

import json
from pathlib import Path

import datasets
import evaluate_checkpoint
import numpy as np
import pytest
import torch
import train_token_classification as script
from huggingface_hub import ModelCard
from seqeval.metrics import f1_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

from rtransformer_hf import RTransformerConfig, RTransformerForCausalLM, RTransformerForTokenClassification
from rtransformer_hf.training import token_classification
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.token_classification import TaggingArguments, first_tokens, load_rows, make_label2id

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
per_device_eval_batch_size: 5
learning_rate: 1e-2
dataloader_pin_memory: false
disable_tqdm: true
"""
NAMES = {"Anna": "PER", "Bo": "PER", "Rome": "LOC", "Oslo": "LOC"}


def make_sentences(number: int) -> list[list[tuple[str, str]]]:
    """Names of one or two words, in sentences of unequal length."""
    random, made = np.random.RandomState(number), []
    for _ in range(number):
        words = [("it", "O"), ("rains", "O")][: random.randint(3)]
        for name in random.choice(list(NAMES), random.randint(1, 4)):
            words += [("in", "O"), (name, f"B-{NAMES[name]}")]
            words += [("Lee", "I-PER")] if NAMES[name] == "PER" and random.randint(2) else []
        made.append([*words, (".", "O")])
    return made


def write_conll(file: str, sentences: list[list[tuple[str, str]]]):
    """As CoNLL-2003 has it: four columns between spaces, and a line ahead of each document."""
    lines = ["-DOCSTART- -X- O O", ""]
    for sentence in sentences:
        lines += [*(f"{word} NN I-NP {tag}" for word, tag in sentence), ""]
    Path(file).write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    for name, number in (("train", 40), ("validation", 13), ("test", 7)):
        write_conll(f"{name}.conll", make_sentences(number))
    return tmp_path


def train(*flags: str, files: tuple[str, ...] = ("train", "validation")) -> dict:
    data = [part for name in files for part in (f"--{name}_file", f"{name}.conll")]
    script.main(["recipe.yaml", *data, "--output_dir", "out", *flags])
    return json.loads(Path("out/all_results.json").read_text())


def log_history() -> list[dict]:
    return json.loads(Path("out/trainer_state.json").read_text())["log_history"]


def assert_refused(named: str, *flags: str, **options):
    """With a message that names what is wrong, before anything is trained or written."""
    with pytest.raises(UsageError) as error:
        train(*flags, **options)
    assert named in str(error.value)
    assert not Path("out").exists()


def args_of(file: str, **flags) -> TaggingArguments:
    return TaggingArguments(train_file=[file], **flags)


def write_json(file: str, tokens: list, tags: list, **others):
    rows = [
        {"tokens": words, "tags": names, **{name: column[row] for name, column in others.items()}}
        for row, (words, names) in enumerate(zip(tokens, tags, strict=True))
    ]
    Path(file).write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("direction", [(), ("--bidirectional",)])
def test_a_run_leaves_a_tagger_ready_to_use(folder, capsys, direction):
    flags = ("--max_steps", "60", "--eval_steps", "60", "--save_steps", "60", "--hidden_size", "16")
    flags += ("--dataloader_drop_last", *direction)  # of training batches alone
    results = train(*flags, files=("train", "validation", "test"))
    said = capsys.readouterr().out
    assert "\nData: train 40, validation 13, test 7 sentences with 4 tags.\n" in said
    assert said.splitlines()[-1].endswith("evaluate_checkpoint.py out --data test.conll")
    settings = json.loads(Path("out/evaluation.json").read_text())
    assert settings["word_separator"] == " " and settings["conll_columns"] is None

    model = AutoModelForTokenClassification.from_pretrained("out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert model.config.label2id == {"B-LOC": 0, "B-PER": 1, "I-PER": 2, "O": 3}
    assert model.config.is_causal == model.config.use_cache == (not direction)
    tags, predicted, losses = [], [], []
    for sentence in make_sentences(7):
        words, true = zip(*sentence, strict=True)
        with torch.no_grad():  # one at a time, without padding
            logits = model(**tokenizer(" ".join(words), return_tensors="pt")).logits[0]
        assert len(logits) == len(words)  # a token each
        labels = torch.tensor([model.config.label2id[tag] for tag in true])
        losses += torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none").tolist()
        tags.append(list(true))
        predicted.append([model.config.id2label[index.item()] for index in logits.argmax(-1)])
    assert results["test_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert results["test_span_f1"] == pytest.approx(f1_score(tags, predicted)) and results["test_span_f1"] > 0.8
    words = [(a, b) for row in zip(tags, predicted, strict=True) for a, b in zip(*row, strict=True)]
    assert results["test_accuracy"] == pytest.approx(np.mean([a == b for a, b in words]))
    assert results["test_samples"] == 7 and "test_macro_f1" not in results

    tagger = pipeline("token-classification", model="out", aggregation_strategy="simple")
    found = tagger("it rains in Oslo in Rome.")
    assert [(entity["entity_group"], entity["word"]) for entity in found] == [("LOC", "Oslo"), ("LOC", "Rome")]

    card = ModelCard.load("out/README.md")
    assert card.data.pipeline_tag == "token-classification"
    assert ("It sees a word and the text before it, not what follows." in card.text) == (not direction)
    assert (" and reads in both directions." in card.text) == bool(direction)
    values = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert values["test", "span_f1"] == results["test_span_f1"] and "macro_f1" not in card.data.metrics

    evaluate_checkpoint.main(["out", "--data", "test.conll", "--batch_size", "2"])
    again = json.loads(capsys.readouterr().out)
    for name in ("loss", "accuracy", "span_f1", "span_precision", "span_recall"):
        assert again[name] == pytest.approx(results[f"test_{name}"], rel=1e-5)


def test_a_killed_run_goes_on_with_the_same_losses(folder, killed_at):
    train()
    keys = ("step", "loss", "eval_loss", "eval_span_f1")
    expected = [[entry.get(key) for key in keys] for entry in log_history()]
    weights = AutoModelForTokenClassification.from_pretrained("out").state_dict()
    Path("out").rename("uninterrupted")
    steps = killed_at(4)
    with pytest.raises(KeyboardInterrupt):
        train()
    train()
    assert steps[5:] == [4, 5]
    assert [[entry.get(key) for key in keys] for entry in log_history()] == expected
    for name, weight in AutoModelForTokenClassification.from_pretrained("out").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


def test_tags_of_single_words(folder):
    """Integers, from JSON, without spaces between characters; and a tagger is trained further, and on other tags."""
    write_json("train.json", [list("ab-"), list("ba")] * 10, [[1, 10, 2], [10, 1]] * 10)
    flags = ("--train_file", "train.json", "--tokenizer", "char", "--word_separator", "", "--max_steps", "2")
    results = train(*flags, "--metric_for_best_model", "macro_f1", files=())
    assert 0 <= results["eval_macro_f1"] <= 1 and "eval_span_f1" not in results
    model = AutoModelForTokenClassification.from_pretrained("out")
    assert model.config.label2id == {"1": 0, "2": 1, "10": 2}
    assert len(pipeline("token-classification", model="out")("ab-")) == 3

    write_json("train.json", [list("ab")] * 10, [[10, 2]] * 10)  # fewer tags: the order of the old one is kept
    train(*flags, "--model_name_or_path", "out", "--tokenizer", "out", "--output_dir", "next", files=())
    assert AutoModelForTokenClassification.from_pretrained("next").config.label2id == {"1": 0, "2": 1, "10": 2}
    with pytest.raises(UsageError, match=r"3 labels .* those of --model_name_or_path are 3 .1, 2, 10"):
        write_json("other.json", [list("ab-")] * 10, [["x", "y", "z"]] * 10)
        train(*flags, "--train_file", "other.json", "--model_name_or_path", "out", "--output_dir", "o2", files=())


def test_a_language_model_gets_a_head(folder):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whitespace_tokenizer(["?", "it", "in", "Oslo"]), unk_token="?"
    )
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "local_window_size": 3}
    RTransformerForCausalLM(RTransformerConfig(vocab_size=4, **sizes)).save_pretrained("lm")
    tokenizer.save_pretrained("lm")
    train("--model_name_or_path", "lm", "--max_steps", "1")
    model = AutoModelForTokenClassification.from_pretrained("out")
    assert model.config.vocab_size == 5 and model.config.pad_token_id == 4  # one for padding, new to it


def test_directions_of_a_model_to_train_further(folder):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whitespace_tokenizer(["?", "it", "in"]), unk_token="?")
    tokenizer.save_pretrained("lm")
    sizes = {"vocab_size": 3, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}

    def save(model_class, **settings):
        model_class(RTransformerConfig(**sizes, **settings)).save_pretrained("lm")

    flags = ("--model_name_or_path", "lm", "--max_steps", "1")
    save(RTransformerForCausalLM)
    named = "--bidirectional: {}, but the LocalRNN layers of --model_name_or_path 'lm' have the weights for {}"
    assert_refused(named.format(True, "one direction (expected"), *flags, "--bidirectional")
    tags = dict(enumerate(["B-LOC", "B-PER", "I-PER", "O"]))
    save(RTransformerForTokenClassification, is_causal=False, id2label=tags)
    assert_refused(named.format(False, "both directions (expected"), *flags, "--bidirectional", "false")
    train(*flags)
    assert not AutoModelForTokenClassification.from_pretrained("out").config.is_causal
    # Without LocalRNN layers, a language model becomes an encoder.
    save(RTransformerForCausalLM, num_local_rnn_layers=0, position_embedding_type="sinusoidal")
    train(*flags, "--bidirectional", "--overwrite_output_dir")
    assert not AutoModelForTokenClassification.from_pretrained("out").config.is_causal
    Path("out").rename("encoder")
    LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=8)).save_pretrained("lm")
    assert_refused("--bidirectional: 'lm' is a llama, which has directions of its own", *flags, "--bidirectional")


def whitespace_tokenizer(words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize(("tokenizer", "separator"), [("char", " "), ("char", ""), ("word", " "), ("bpe", " ")])
def test_the_first_token_of_a_word_carries_its_label(folder, tokenizer, separator):
    words = ["Zoë", "can't", "\u3000", "write", "日本", "U.S.", "5,000"]
    write_json("train.json", [words], [[f"T{i}" for i in range(len(words))]])
    args = args_of("train.json", tokenizer=tokenizer, word_separator=separator)
    rows = load_rows(args, "train")
    trained = token_classification.make_tokenizer(args, rows, None)
    encoded = token_classification.encode(rows, trained, args, "train", make_label2id(rows, args))
    [labels], [ids] = encoded["labels"][:], encoded["input_ids"][:]
    carried = [
        (label, trained.decode([token]).strip()) for label, token in zip(labels, ids, strict=True) if label >= 0
    ]
    # Between words white space is no word; the third word is nothing else, and has a token only where that is one.
    assert [label for label, _ in carried] == [0, 1, 3, 4, 5, 6]
    if tokenizer == "char":
        assert "".join(token for _, token in carried) == "Zcw日U5"


def test_first_tokens():
    # A token that reaches over a boundary is of the word in which it starts; the next word has none of its own.
    assert first_tokens(["ab", "c", "d"], "abcd", [(0, 0), (0, 1), (1, 3), (3, 4)], 0) == {1: 0, 3: 2}
    assert first_tokens(["ab", "c"], "ab c", [(0, 2), (2, 4)], 1) == {0: 0, 1: 1}  # with the space ahead
    assert first_tokens(["é"], "é", [(0, 1), (0, 1)], 1) == {0: 0}  # two tokens of one character's bytes


def test_words_that_are_cut_off_are_told_of(folder, caplog):
    with caplog.at_level("WARNING"):
        results = train("--max_length", "2", "--max_steps", "1", "--test_file", "train.conll")
    total = sum(map(len, make_sentences(40)))
    assert f"--train_file train.conll: {total - 80:,} of {total:,} words have no token of their own" in caplog.text
    assert results["eval_samples"] == 13
    assert "--test_file train.conll: 40 of 40 inputs are in the training data as well" in caplog.text


def test_conll_files(folder):
    Path("a.conllu").write_text(
        "# text = I'm in\n1-2\tI'm\t_\t_\n1\tI\ti\tPRON\n2\t'm\tbe\tAUX\n2.1\tgone\tgo\tVERB\n3\tin\tin\tADP\n\n"
        "# none\n1\tRun\trun\tVERB"
    )
    rows = load_rows(args_of("a.conllu"), "train")
    assert rows[:] == {"tokens": [["I", "'m", "in"], ["Run"]], "tags": [["PRON", "AUX", "ADP"], ["VERB"]]}
    rows = load_rows(args_of("a.conllu", conll_columns=[2, 3]), "train")
    assert rows["tokens"][0] == ["i", "be", "in"]

    # A byte-order mark, ends of lines of Windows, tabs, empty lines at the start and between; # is a word.
    Path("b.txt").write_bytes("\ufeff\r\n# 1\tO\r\nyork\tB-LOC\r\n\r\n\r\nend\tO\r\n".encode())
    rows = load_rows(args_of("b.txt"), "train")
    assert rows[:] == {"tokens": [["# 1", "york"], ["end"]], "tags": [["O", "B-LOC"], ["O"]]}

    # Documents start sentences, and so do the first words of CoNLL-U; no-break spaces are in words; ends as of old.
    Path("d.txt").write_bytes("-DOCSTART- O\ra O\r-DOCSTART- (2)\r10\u00a0000  B-N \r\u3000 O\r".encode())
    rows = load_rows(args_of("d.txt", conll_columns=[0, 1]), "train")
    assert rows[:] == {"tokens": [["a"], ["10\u00a0000", "\u3000"]], "tags": [["O"], ["B-N", "O"]]}
    Path("e.conllu").write_text("1\ta\t_\tX\n0.1\tb\t_\tY\n1\tc d\t_\tY\n \n# 2\n1\te\t_\t_\n")
    rows = load_rows(args_of("e.conllu"), "train")
    assert rows[:] == {"tokens": [["a"], ["c d"], ["e"]], "tags": [["X"], ["Y"], ["_"]]}

    Path("c.tsv").write_text("a\tx\tO\nb\tB\n")
    with pytest.raises(UsageError, match="line 2 has 2 columns, and 3 in the lines before"):
        load_rows(args_of("c.tsv"), "train")
    assert load_rows(args_of("c.tsv", conll_columns=[0, -1]), "train")["tags"][:] == [["O", "B"]]


def test_classes_of_a_data_set(folder):
    features = {
        "tokens": datasets.List(datasets.Value("string")),
        "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
    }
    Path("set").mkdir()
    rows = {"tokens": [["a", "b"], ["c"]] * 5, "ner_tags": [[0, 1], [0]] * 5}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet("set/train-00000-of-00001.parquet")
    args = TaggingArguments(dataset_name="set", tags_column="ner_tags")
    loaded = load_rows(args, "train")
    assert make_label2id(loaded, args) == {"O": 0, "B-X": 1, "I-X": 2}  # I-X, which no row has, too
    train("--dataset_name", "set", "--tags_column", "ner_tags", "--max_steps", "1", files=())
    assert AutoModelForTokenClassification.from_pretrained("out").config.id2label == {0: "O", 1: "B-X", 2: "I-X"}


@pytest.mark.parametrize(
    ("tokens", "tags", "named"),
    [
        ([["a"], ["b", "c"]], [["O"], ["O"]], "1 in row 1, from 0, which has 2 words (expected as many)"),
        ([["a"], []], [["O"], []], "of --train_file bad.json: none in row 1, from 0 (expected at least one"),
        ([["a"], None], [["O"], ["O"]], "none in row 1, from 0 (expected at least one"),
        ([["a", ""]], [["O", "O"]], "row 0, from 0, word 1, is ''"),
        ([["a", "b"]], [["O", None]], "none in row 0, from 0, word 1 ('b')"),
        ([["a"], ["b"]], [["O"], ["7"]], "the integer 7 in row 1, from 0, word 0, beside names (O)"),
        ([["a", "b"]], [["O", 7]], "--tags_column 'tags' of --train_file bad.json"),
        ([["a"], ["b"]], [["O"], [7]], "--train_file bad.json"),
        (["a b"], [["O", "O"]], "--tokens_column 'tokens' of --train_file bad.json holds string (expected lists of"),
        ([["a"]], ["O"], "--tags_column 'tags' of --train_file bad.json holds string (expected lists of tags"),
        ([["a"]], [[0.5]], "--tags_column 'tags' of --train_file bad.json holds lists of float64 (expected"),
        ([["a", "b"]], [["O", "O"]], "--train_file bad.json holds a single tag, 'O' (expected at least two)"),
        ([["\u2003"]] * 20, [["O"], ["P"]] * 10, "the tokenizer makes no token of row"),
    ],
)
def test_bad_rows(folder, tokens, tags, named):
    write_json("bad.json", tokens, tags)
    assert_refused(named, "--train_file", "bad.json", files=())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a O\n\nb B-X\nc", "--train_file bad.conll: line 4 has 1 column, and 2 in the lines before (expected a word"),
        ("word\n", "line 1 has 1 column (expected a word in column 0 and its tag in column -1"),
        ("\n\n", "--train_file bad.conll holds no sentences"),
        ("a\tO\n\n\nb\tB-X\nc\t\n", "none in row 1, from 0, word 1, in line 5 ('c')"),
        ("a O\n\nb 7\n", "the integer 7 in row 1, from 0, word 0, in line 3, beside names (O)"),
    ],
)
def test_bad_conll_files(folder, text, named):
    Path("bad.conll").write_text(text)
    assert_refused(named, "--train_file", "bad.conll", files=())


def test_conll_files_in_another_form(folder):
    Path("bad.conllu").write_text("1\tEgo\tego\tPRON\nsum\tsum\tsum\tAUX\n")
    named = "--test_file bad.conllu: line 2 starts with 'sum' (expected, in CoNLL-U, the number of a word, a range as"
    assert_refused(named, "--train_file", "train.conll", "--test_file", "bad.conllu", files=())
    Path("latin.conll").write_bytes("Zoë B-PER\nist O\n".encode("latin-1"))
    named = "--test_file latin.conll is not in UTF-8: line 1 holds the byte 0xeb. From Latin-1, convert it with: iconv"
    assert_refused(named, "--train_file", "train.conll", "--test_file", "latin.conll", files=())


def test_tags_that_mark_no_spans_among_those_that_do(folder, caplog):
    write_conll("train.conll", [*make_sentences(20), [("Ada", "PER"), ("Lee", "PER")]])
    with caplog.at_level("WARNING"):
        results = train("--max_steps", "1", files=("train",))
    assert (
        "--train_file train.conll: PER, first in row 20, from 0, mark no spans, beside B-LOC, B-PER, I-PER"
        in caplog.text
    )
    assert "eval_macro_f1" in results and "eval_span_f1" not in results


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--tags_column", "ner"], "--tags_column 'ner' is no column of --train_file rows.json (expected 'tokens'"),
        (["--tokens_column", "words"], "--tokens_column 'words' is no column of --train_file rows.json (expected"),
        (["--train_file", "rows.json", "train.conll"], "mixes CoNLL and json files"),
        (["--train_file", "rows.csv"], "--train_file: 'rows.csv' is CSV, whose cells hold no lists (expected CoNLL"),
        (
            ["--validation_file", "bad.conll"],
            "unknown: 'B-ORG' in row 1, from 0, word 0, in line 5 ('Acme') (expected those",
        ),
        (["--metric_for_best_model", "span_f1"], "--metric_for_best_model: unknown: 'span_f1'"),
        (["--metric_for_best_model", "f1"], "--metric_for_best_model: unknown: 'f1'"),
        (["--model_name_or_path", "none"], "--model_name_or_path 'none' can't be opened"),
    ],
)
def test_bad_flags(folder, flags, named):
    write_json("rows.json", [["a", "b"]] * 20, [["X", "Y"]] * 20)
    Path("rows.csv").write_text("tokens,tags\na,O\n")
    write_conll("bad.conll", [[("it", "X")], [("Acme", "B-ORG")]])
    assert_refused(named, "--train_file", "rows.json", *flags, files=())


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--conll_columns", "1"], "--conll_columns: 1 (expected two integers"),
        (["--word_separator", "x"], "--word_separator: 'x' (expected white space"),
        (["--max_length", "0"], "--max_length: 0 (expected an integer of at least 1)"),
        (["--train_file", "none.conll"], "--train_file: no such file: 'none.conll' (expected CoNLL, JSON or Parquet)"),
    ],
)
def test_values_out_of_range(folder, capsys, flags, named):
    with pytest.raises(SystemExit):
        train(*flags)
    assert named in capsys.readouterr().err
