# SPDX-License-Identifier: Apache-2.0
"""Text to tokens to windows, and the metrics over them: exact against plain loops."""

import itertools
import math
import pickle
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import recipes
from tokenizers import models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, EvalPrediction

from rtransformer_hf.training import causal_lm
from rtransformer_hf.training.causal_lm import (
    DataArguments,
    TokenWindows,
    evaluation_settings,
    lines,
    load_texts,
    make_compute_metrics,
    make_windows,
    window_losses,
)
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.new_tokenizers import load_tokenizer, unknown_token_id
from rtransformer_hf.training.token_stream import Tokenization
from rtransformer_hf.training.token_windows import StreamedWindows

SETTINGS = ("tokenizer", "line_ending", "end_of_text", "context_length", "stride", "eval_stride")
TRAINED = str(Path(__file__).parent.parent / "model_cards" / "trec_seed3")
TEXT = "the cat  sat\n\n  on the <unk> mat .\nit 's naïve\tyes\n"


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 20, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("length", [2, 3, 9, 10, 11, 12, 37, 100])
@pytest.mark.parametrize(("context_length", "stride"), [(1, 1), (10, 10), (10, 3), (10, 1), (40, 32)])
def test_every_token_but_the_first_is_predicted_once(length, context_length, stride):
    windows = TokenWindows(torch.arange(length), length, context_length, stride)
    labels = torch.cat([window["labels"][1:] for window in windows])
    assert labels[labels != -100].tolist() == list(range(1, length))
    for window in windows:
        assert window["labels"][0] == -100  # no window has what precedes its first token
        assert len(window["input_ids"]) == min(length, context_length + 1)
    # each label but those of the first window has at least context_length - stride inputs before its own
    for window in list(windows)[1:]:
        assert (window["labels"] != -100).nonzero()[0] > context_length - stride


def test_windows_that_shift_are_cut_elsewhere_every_epoch():
    windows = TokenWindows(torch.arange(95), 95, context_length=10, stride=8, shifts=True)
    firsts = []
    for epoch in [0, 1, 2, 3, 1]:
        windows.set_epoch(epoch)
        labels = torch.cat([window["labels"][1:] for window in windows])
        labels = labels[labels != -100].tolist()
        firsts.append(labels[0] - 1)
        assert labels == [*range(firsts[-1] + 1, 95), *range(firsts[-1])]
    assert firsts[0] == 0 and len(set(firsts[:4])) == 4 and max(firsts) < 8 and firsts[1] == firsts[4]


@pytest.mark.parametrize(
    ("name", "text"),
    [("char", TEXT), ("bpe", TEXT), ("bpe", "unseen: ☃ 日本語 \N{GRINNING FACE}\r\n"), ("char", "unk <unk>")],
)
def test_tokenizers_give_the_text_back_without_this_package(tmp_path, name, text):
    vocab_size = 300 if name == "bpe" else None
    load_tokenizer(name, [TEXT], vocab_size).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.is_fast
    input_ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(input_ids) == tokenizer.decode(input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", ["char", "word", "bpe"])
def test_tokenizers_have_what_batches_and_generation_need(tmp_path, name):
    vocab_size = 300 if name == "bpe" else None
    load_tokenizer(name, [TEXT], vocab_size).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id is not None
    assert max(tokenizer.bos_token_id, tokenizer.pad_token_id) < tokenizer.vocab_size == len(tokenizer)
    texts = ["the", "the cat sat"]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].sum(dim=-1).tolist() == lengths
    assert batch["attention_mask"][0].tolist() == [0] * (lengths[1] - lengths[0]) + [1] * lengths[0]
    assert (batch["input_ids"][0] == tokenizer.pad_token_id).sum() == lengths[1] - lengths[0]
    decoded = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert [text.removeprefix(" ") for text in decoded] == texts
    # A collator that masks padding keeps the end of the text.
    ids = [*tokenizer(texts[0])["input_ids"], tokenizer.eos_token_id]
    longer = tokenizer(texts[1])["input_ids"]
    collated = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": ids}, {"input_ids": longer}])
    assert collated["labels"][0].tolist() == [-100] * (len(longer) - len(ids)) + ids


def test_char_tokenizer_has_one_token_a_character():
    tokenizer = load_tokenizer("char", [TEXT])
    assert len(tokenizer) == len(set(TEXT)) + 3
    ids = tokenizer("a☃☃\n")["input_ids"]
    assert len(ids) == 4 and ids[1] == ids[2] == unknown_token_id(tokenizer)
    for skip in (False, True):
        assert (
            tokenizer.decode(ids, skip_special_tokens=skip) == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\n"
        )


def test_word_tokenizer_ends_lines_and_keeps_the_most_frequent_words():
    tokenizer = load_tokenizer("word", [" the cat \n", "the <unk> sat\n"])
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(" the  dog \nthe <unk>\n")["input_ids"])
    assert tokens == ["the", "<unk>", "<eos>", "the", "<unk>", "<eos>"]
    assert len(tokenizer) == 6  # <unk> <eos> <pad> the cat sat
    small = load_tokenizer("word", [" the cat \n", "the sat\n"], vocab_size=4)
    assert set(small.get_vocab()) == {"<unk>", "<eos>", "<pad>", "the"}


def test_words_continue_a_text_and_unknown_ones_show():
    tokenizer = load_tokenizer("word", ["the cat\n"])
    ids = tokenizer("cat <unk> the dog\n")["input_ids"]
    assert tokenizer.decode(ids) == " cat <unk> the <unk> <eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == " cat <unk> the <unk>"
    assert "the" + tokenizer.decode(ids[:1]) == "the cat"


def test_text_files_keep_every_character(text_file):
    args = DataArguments(train_file=[text_file], validation_file=[text_file])
    assert "".join(lines(load_texts(args)["train"], args.line_ending)) == TEXT * 20
    without = "".join(lines(load_texts(args)["train"], ""))
    assert without == (TEXT * 20).replace("\n", "")


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_other_formats(tmp_path, suffix):
    rows = datasets.Dataset.from_dict({"sentence": ["a b", "c\nd", "e"], "label": [0, 1, 0]})
    path = tmp_path / f"data.{suffix}"
    {"csv": rows.to_csv, "json": rows.to_json, "jsonl": rows.to_json, "parquet": rows.to_parquet}[suffix](path)
    args = DataArguments(train_file=[str(path)], text_column="sentence", validation_fraction=0.34)
    texts = load_texts(args)
    assert list(lines(texts["train"], "|")) == ["a b|", "c\nd|"]
    assert list(lines(texts["validation"], "|")) == ["e|"]


def test_local_folder_with_splits(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split}\n" * 3)
    args = DataArguments(dataset_name=str(tmp_path), test_split="test[:2]")
    texts = load_texts(args)
    assert {split: list(lines(rows, "\n")) for split, rows in texts.items()} == {
        "train": ["train\n"] * 3,
        "validation": ["validation\n"] * 3,
        "test": ["test\n"] * 2,
    }


def end_positions(args: DataArguments, name: str = "char", split: str = "train") -> tuple[str, list[int]]:
    """A split as its tokens decode, with | for the end-of-text token, and the number of its characters."""
    texts = load_texts(args)
    tokenizer = load_tokenizer(name, lines(texts["train"], args.line_ending))
    windows = make_windows(texts, tokenizer, len(tokenizer), args)[split]
    text = tokenizer.decode(windows.tokens[:].tolist()).replace(tokenizer.eos_token, "|")
    return text, windows.num_characters


@pytest.mark.parametrize(
    ("end_of_text", "from_files", "from_rows"),
    [
        (None, "a b\nc\n|d\n|", "a b\n|c\n|d\n|"),
        ("file", "a b\nc\n|d\n|", "a b\nc\n|d\n|"),
        ("row", "a b\n|c\n|d\n|", "a b\n|c\n|d\n|"),
        ("none", "a b\nc\nd\n", "a b\nc\nd\n"),
    ],
)
def test_where_texts_end(tmp_path, end_of_text, from_files, from_rows):
    files = [write(tmp_path / "a.txt", "a b\nc\n"), write(tmp_path / "b.txt", "d")]
    tables = [write(tmp_path / "a.csv", "text\na b\nc\n"), write(tmp_path / "b.csv", "text\nd\n")]
    for paths, expected in ((files, from_files), (tables, from_rows)):
        args = DataArguments(train_file=paths, validation_file=paths[:1], end_of_text=end_of_text)
        # The end counts as no character, and the first token, which is not predicted, as none either.
        assert end_positions(args) == (expected, len("a b\nc\nd\n") - 1)
    args = DataArguments(train_file=files[:1], validation_file=files[:1], end_of_text=end_of_text)
    assert end_positions(args, "word") == (" a b | c |", len("a b\nc\n") - 1)  # as published, whatever a text is


def test_validation_has_the_texts_of_training(tmp_path):
    """Which evaluate_checkpoint.py has too, whatever the format of its data."""
    lines, table = write(tmp_path / "a.txt", "ab\ncd\n"), write(tmp_path / "a.csv", "text\nab\ncd\n")
    for train, validation, expected in ((lines, table, "ab\ncd\n|"), (table, lines, "ab\n|cd\n|")):
        args = DataArguments(train_file=[train], validation_file=[validation])
        assert end_positions(args, split="validation")[0] == expected
        settings = evaluation_settings(args)
        again = DataArguments(train_file=[validation], end_of_text=settings["end_of_text"], validation_file=[train])
        assert end_positions(again)[0] == expected


def test_a_text_of_which_the_end_is_held_out_goes_on(tmp_path):
    args = DataArguments(train_file=[write(tmp_path / "a.txt", "abcd\nabcd\n")], validation_fraction=0.5)
    assert [end_positions(args, split=split)[0] for split in ("train", "validation")] == ["abcd\n", "abcd\n|"]
    args = DataArguments(train_file=[write(tmp_path / "a.txt", "abcdabcd")], validation_fraction=0.5, line_ending="")
    assert [end_positions(args, split=split)[0] for split in ("train", "validation")] == ["abcd", "abcd|"]


def test_a_text_without_tokens_ends_too(tmp_path):
    table = write(tmp_path / "a.csv", 'text\n""\nab\n')
    args = DataArguments(train_file=[table], validation_file=[table], line_ending="")
    assert end_positions(args) == ("|ab|", 2)


def test_the_text_of_a_folder_ends_with_its_split(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("ab\ncd\n")
    assert end_positions(DataArguments(dataset_name=str(tmp_path)))[0] == "ab\ncd\n|"


@pytest.mark.parametrize("recipe", recipes("tokenizer: char\nline_ending"))
def test_published_protocols_predict_characters_alone(tmp_path, recipe):
    path = write(tmp_path / "a.txt", " ab c\n d\n")
    settings = {name: value for name, value in yaml.safe_load(recipe.read_text()).items() if name in SETTINGS}
    text, num_characters = end_positions(DataArguments(train_file=[path], validation_file=[path], **settings))
    assert text == " ab c d" and num_characters == len(text) - 1


def test_a_tokenizer_without_an_end_of_text(tmp_path, caplog):
    path = write(tmp_path / "a.txt", "abc\n")
    args = DataArguments(train_file=[path], validation_file=[path], tokenizer="./old")
    texts = load_texts(args)
    tokenizer = load_tokenizer("char", ["abc\n"])
    tokenizer.eos_token = None
    assert len(make_windows(texts, tokenizer, 10, args)["train"].tokens) == 4
    assert "--tokenizer ./old has no end-of-text token (eos_token), so --end_of_text file does nothing" in caplog.text
    caplog.clear()
    args.end_of_text = "none"
    make_windows(texts, tokenizer, 10, args)
    assert not caplog.text


@pytest.mark.parametrize("name", ["char", "word", "bpe"])
@pytest.mark.parametrize("end_of_text", ["row", "file"])
def test_tokens_are_those_of_the_tokenizer(tmp_path, name, end_of_text):
    """Of many parts, rows without text, characters of all sizes, and special tokens written out; in two processes."""
    odd = ["", "nul\x01 é 日本 😀", "an <|endoftext|> and <|pad|>, <unk> <eos>", "|" * 300]
    rows = [odd[i % 13] if i % 13 < len(odd) else f"row {i} of many" for i in range(2500)]
    path = tmp_path / "rows.csv"
    pd.DataFrame({"text": rows}).to_csv(path, index=False)
    held_out = write(tmp_path / "held_out.csv", "text\nnew: ñ\n")
    args = DataArguments(
        train_file=[str(path)],
        validation_file=[held_out],
        end_of_text=end_of_text,
        preprocessing_num_workers=2 if (name, end_of_text) == ("char", "row") else None,
    )
    texts = load_texts(args)
    tokenizer = load_tokenizer(name, (row + "\n" for row in rows), 300 if name == "bpe" else None)
    windows = make_windows(texts, tokenizer, len(tokenizer), args)
    for split, written in (("train", rows), ("validation", ["new: ñ"])):
        expected = []
        for number, row in enumerate(written):
            expected += tokenizer(row + "\n", add_special_tokens=False)["input_ids"]
            is_end = end_of_text == "row" or number == len(written) - 1
            if is_end and expected[-1] != tokenizer.eos_token_id:
                expected.append(tokenizer.eos_token_id)
        assert windows[split].tokens[:].tolist() == expected and len(windows[split].tokens) == len(expected)
    tokens = windows["train"].tokens
    assert len(tokens.parts) > 2
    for start, stop in ((0, 1), (len(tokens.parts[0]) - 3, len(tokens.parts[0]) + 4), (5, 5), (len(tokens) - 2, None)):
        assert tokens[start:stop].tolist() == tokens[:].tolist()[start:stop]
    assert pickle.loads(pickle.dumps(tokens))[7:9].tolist() == tokens[7:9].tolist()


def test_what_characters_alone_decide():
    """A tokenizer that looks at more than one character at a time has no table of characters."""
    char, word, bpe = (
        load_tokenizer(name, [TEXT], 300 if name == "bpe" else None) for name in ("char", "word", "bpe")
    )
    assert Tokenization(char, "").character_ids is not None
    assert Tokenization(word, "").character_ids is None and Tokenization(bpe, "").character_ids is None
    for step, value in {
        "normalizer": normalizers.Lowercase(),
        "pre_tokenizer": pre_tokenizers.WhitespaceSplit(),
        "model": models.BPE({"a": 0, "b": 1, "ab": 2, "?": 3}, merges=[("a", "b")], unk_token="?"),
    }.items():
        changed = load_tokenizer("char", [TEXT])
        setattr(changed.backend_tokenizer, step, value)
        assert Tokenization(changed, "").character_ids is None
    fused = load_tokenizer("char", [TEXT])
    fused.backend_tokenizer.model.fuse_unk = True
    assert Tokenization(fused, "").character_ids is None


def test_a_text_is_tokenized_once(tmp_path, monkeypatch):
    """By a resumed run neither, whose tokenizer is trained anew; another text, line ending or tokenizer is another."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path, calls = tmp_path / "text.txt", []
    tokenize = Tokenization.__call__
    monkeypatch.setattr(Tokenization, "__call__", lambda self, rows: calls.append(len(rows)) or tokenize(self, rows))

    def rows_tokenized(text: str, **settings) -> int:
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        calls.clear()
        args = DataArguments(train_file=[str(path)], validation_file=[str(path)], **settings)
        texts = load_texts(args)
        tokenizer = load_tokenizer("char", lines(texts["train"], args.line_ending))
        tokenizer("ab", padding="max_length", max_length=4)
        make_windows(texts, tokenizer, len(tokenizer), args)
        return sum(calls)

    assert rows_tokenized("ab\ncd\n") == 2
    assert rows_tokenized("ab\ncd\n") == 0
    assert rows_tokenized("ab\ncd\n", line_ending=" ") == 2
    assert rows_tokenized("ab\ndc\n") == 2


def test_hold_out_without_rows_to_spare(tmp_path):
    path = tmp_path / "one_line.txt"
    path.write_text("abcdefghij" * 10)
    texts = load_texts(DataArguments(train_file=[str(path)], validation_fraction=0.2))
    assert [len("".join(lines(texts[split], ""))) for split in ("train", "validation")] == [80, 20]


@pytest.mark.parametrize("name", ["char", "word", "bpe"])
def test_metrics_equal_a_plain_loop(text_file, name):
    """Windows of unequal numbers of labels, a last window that overlaps more, and characters that are not tokens."""
    args = DataArguments(train_file=[text_file], validation_file=[text_file], context_length=16, stride=5)
    texts = load_texts(args)
    tokenizer = load_tokenizer(name, lines(texts["train"], "\n"), 280 if name == "bpe" else None)
    windows = make_windows(texts, tokenizer, len(tokenizer), args)["validation"]
    torch.manual_seed(0)
    bigram = torch.randn(len(tokenizer), len(tokenizer))  # a model whose predictions need no context

    nats = 0.0
    tokens = tokenizer(TEXT * 20)["input_ids"]
    if name != "word":  # whose last line's end is that of the text
        tokens.append(tokenizer.eos_token_id)
    for previous, current in itertools.pairwise(tokens):
        nats -= F.log_softmax(bigram[previous].double(), dim=-1)[current].item()
    num_characters = len(TEXT * 20) - len(tokenizer.decode(tokens[:1]).removeprefix(" "))

    batches = [torch.utils.data.default_collate([windows[i]]) for i in range(len(windows))]
    predictions = torch.cat([window_losses(bigram[batch["input_ids"]], batch["labels"]) for batch in batches])
    metrics = make_compute_metrics(windows)(EvalPrediction(predictions=predictions.numpy(), label_ids=None))
    assert metrics["predicted_tokens"] == len(tokens) - 1
    assert metrics["loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=1e-5)
    assert metrics["bits_per_character"] == pytest.approx(nats / math.log(2) / num_characters, rel=1e-6)


def write(path: Path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, ["--dataset_name", "--train_file"]),
        ({"dataset_name": "a", "train_file": ["b"]}, ["--dataset_name", "--train_file", "'a'"]),
        ({"train_file": ["no_such_file"]}, ["--train_file: no such file: 'no_such_file'", "CSV, TSV"]),
        ({"train_file": ["empty.txt"]}, ["--train_file", "empty.txt", "empty"]),
        ({"train_file": ["t.txt"], "test_file": ["empty.txt"]}, ["--test_file", "empty.txt", "empty"]),
        ({"train_file": ["t.txt"], "stride": 300}, ["--stride: 300", "--context_length 256"]),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "t.txt", TEXT)
    with pytest.raises(UsageError) as error:
        DataArguments(**arguments)
    assert all(name in str(error.value) for name in named), error.value


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"train_file": ["t.txt", "t.csv"]}, ["--train_file", "csv and text"]),
        ({"train_file": ["binary.bin"]}, ["--train_file", "binary.bin", "UTF-8"]),
        ({"train_file": ["bad.json"]}, ["--train_file", "bad.json", "json"]),
        ({"train_file": ["t.csv"]}, ["--text_column 'text'", "'label', 'sentence'"]),
        ({"train_file": ["t.json"], "text_column": "label"}, ["--text_column 'label'", "float64", "text"]),
        ({"train_file": ["header.csv"]}, ["--train_file", "header.csv", "holds no rows"]),
        ({"dataset_name": "folder", "validation_split": "dev"}, ["--validation_split dev", "train, test"]),
        ({"dataset_name": "folder", "train_split": "training"}, ["--train_split training", "train, test"]),
        ({"dataset_name": "./no_such_folder"}, ["--dataset_name ./no_such_folder", "local folder"]),
    ],
)
def test_bad_data(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.txt", TEXT)
    write(tmp_path / "t.csv", "label,sentence\n1,hello\n")
    write(tmp_path / "t.json", '{"label": 0.5}')
    write(tmp_path / "header.csv", "label,text\n")
    write(tmp_path / "binary.bin", b"\xff\xfe\x00\n")
    write(tmp_path / "bad.json", '{"text": ')
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.txt", TEXT)
    write(tmp_path / "folder" / "test.txt", TEXT)
    with pytest.raises(UsageError) as error:
        load_texts(DataArguments(**arguments))
    assert all(name in str(error.value) for name in named), error.value


def test_token_ids_outside_the_vocabulary(text_file):
    args = DataArguments(train_file=[text_file])
    texts = load_texts(args)
    tokenizer = load_tokenizer("char", lines(texts["train"], "\n"))
    largest = len(tokenizer) - 1
    with pytest.raises(UsageError, match=f"--tokenizer .* token id {largest} .*vocab_size {largest} "):
        make_windows(texts, tokenizer, largest, args)


def test_text_of_one_token(tmp_path):
    path = write(tmp_path / "one.txt", "a")
    args = DataArguments(train_file=[path], validation_file=[path], line_ending="", end_of_text="none")
    texts = load_texts(args)
    with pytest.raises(UsageError, match=r"--train_file .*one\.txt holds 1 tokens \(expected at least 2\)"):
        make_windows(texts, load_tokenizer("char", ["a"]), 10, args)


def test_unknown_tokens_are_counted(tmp_path, caplog):
    train, validation = write(tmp_path / "train.txt", "abc\n"), write(tmp_path / "validation.txt", "axyc\n")
    args = DataArguments(train_file=[train], validation_file=[validation])
    texts = load_texts(args)
    make_windows(texts, load_tokenizer("char", lines(texts["train"], "\n")), 10, args)
    assert "2 of 6 tokens are unknown (33.3 %)." in caplog.text


@pytest.mark.parametrize(
    ("name", "vocab_size", "named"),
    [
        ("charr", None, ["--tokenizer 'charr'", "char, word, bpe"]),
        ("char", 50, ["--vocab_size 50", "word or bpe"]),
        ("bpe", 100, ["--vocab_size 100", "at least 258"]),
        ("word", 2, ["--vocab_size 2", "at least 3"]),
        (TRAINED, 270, ["--vocab_size 270 goes with --tokenizer word or bpe", "keeps its"]),
    ],
)
def test_bad_tokenizers(name, vocab_size, named, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError) as error:
        load_tokenizer(name, [TEXT], vocab_size)
    assert all(part in str(error.value) for part in named), error.value


def test_quickstart_data_holds_out_topics(tmp_path):
    from make_quickstart_data import main, split_topics

    paragraph = "A paragraph that both topics have, and that is longer than a line of text: " + "x" * 20
    topics = {"a": f"A\n\n{paragraph}\n", **{name: f"{name}\n\n{paragraph}\n\nNote:\n" for name in "bcdefghij"}}
    train, validation = split_topics(topics)
    assert paragraph not in train or paragraph not in validation
    assert "Note:" in train

    main([str(tmp_path)])
    from pydoc_data.topics import topics

    validation = (tmp_path / "python-topics.validation.txt").read_text(encoding="utf-8")
    train = (tmp_path / "python-topics.train.txt").read_text(encoding="utf-8")
    held_out = [name for name in topics if topics[name] in validation]
    assert len(held_out) >= len(topics) // 10  # some topics have the same text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "python-topics.train.txt",
        "python-topics.validation.txt",
    ]
    assert len(train) > 0.8 * sum(map(len, topics.values()))


@pytest.mark.parametrize("length", [2, 3, 9, 10, 11, 12, 21, 37, 100])
@pytest.mark.parametrize(("context_length", "stride"), [(1, 1), (10, 10), (10, 3), (10, 1), (40, 32)])
@pytest.mark.parametrize("part", [1, 7, 1000])
def test_a_stream_has_the_same_windows(length, context_length, stride, part):
    """In the same order, epoch by epoch, whatever the lengths of the parts that are read."""
    tokens = torch.arange(100, 100 + length)
    expected = TokenWindows(tokens, length, context_length, stride, shifts=True)
    streamed = StreamedWindows(lambda: map(np.asarray, tokens.split(part)), "", context_length, stride, shifts=True)
    windows = iter(streamed)
    for epoch in range(3):
        expected.set_epoch(epoch)
        for window in expected:
            torch.testing.assert_close(next(windows), window)


def test_a_stream_is_shuffled_by_a_buffer():
    def order(buffer_size: int, seed: int) -> list[int]:
        streamed = StreamedWindows(lambda: [np.arange(101)], "", 1, 1, False, buffer_size, seed)
        return [int(window["input_ids"][0]) for window in itertools.islice(streamed, 200)]

    assert order(1, 0) == 2 * list(range(100))
    for buffer_size in (10, 1000):
        drawn = order(buffer_size, 0)
        first, second = drawn[:100], drawn[100:]
        assert sorted(first) == sorted(second) == list(range(100)) and first != second
        assert (max(number - place for place, number in enumerate(first)) < 10) == (buffer_size == 10)
        assert drawn == order(buffer_size, 0) != order(buffer_size, 1)


@pytest.mark.parametrize("end_of_text", [None, "row", "file", "none"])
@pytest.mark.parametrize("source", ["text", "csv", "jsonl", "parquet", "folder"])
def test_a_stream_has_the_same_tokens(tmp_path, source, end_of_text):
    rows = [f"row {i}" * (i % 3) for i in range(2200)]
    numbers = datasets.Dataset.from_dict({"text": [*rows[:-1], "12"]})
    (tmp_path / "folder").mkdir()
    held_out = write(tmp_path / "folder" / "validation.txt", "ab\n")
    write(tmp_path / "folder" / "train.txt", "\ufeffone\n" + "\n".join(rows))
    files = {"text": [str(tmp_path / "folder" / "train.txt")] * 2}
    for suffix, save in (("csv", numbers.to_csv), ("jsonl", numbers.to_json), ("parquet", numbers.to_parquet)):
        save(tmp_path / f"a.{suffix}")
        files[suffix] = [str(tmp_path / f"a.{suffix}")] * 2
    place = {"dataset_name": str(tmp_path / "folder")}
    if source != "folder":
        place = {"train_file": files[source], "validation_file": [held_out]}
    windows = {}
    for streaming in (False, True):
        args = DataArguments(**place, end_of_text=end_of_text, context_length=50, streaming=streaming)
        texts = load_texts(args)
        tokenizer = load_tokenizer("char", lines(texts["train"], args.line_ending))
        windows[streaming] = make_windows(texts, tokenizer, len(tokenizer), args)
        assert args.end_of_text == (end_of_text or ("file" if source in ("text", "folder") else "row"))
    tokens = np.concatenate(list(windows[True]["train"].tokens()))
    assert tokens.tolist() == windows[False]["train"].tokens[:].tolist()
    held_out = [windows[streaming]["validation"] for streaming in (False, True)]
    assert held_out[0].tokens[:].tolist() == held_out[1].tokens[:].tolist()
    assert held_out[0].num_characters == held_out[1].num_characters


def test_a_tokenizer_of_the_start_of_a_stream(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(causal_lm, "STREAMED_TOKENIZER_TEXT", 2000)
    path = write(tmp_path / "a.txt", "ab\n" * 1000 + "ñ\n")
    args = DataArguments(train_file=[path], validation_file=[path], streaming=True, context_length=4)
    texts = load_texts(args)
    tokenizer = load_tokenizer("char", lines(texts["train"], args.line_ending))
    assert "ñ" not in tokenizer.get_vocab()
    make_windows(texts, tokenizer, len(tokenizer), args)
    caplog.clear()
    sum(len(part) for part in make_windows(texts, tokenizer, len(tokenizer), args)["train"].tokens())
    assert f"--train_file {path}: there are tokens that --tokenizer None does not know." in caplog.text


@pytest.mark.parametrize(
    ("content", "arguments", "named"),
    [
        ("a.txt", {"validation_file": None}, "--validation_file: missing (--streaming"),
        (
            "a.txt",
            {"validation_file": None, "validation_fraction": 0.2},
            "--validation_fraction: 0.2: nothing can be held out of a stream",
        ),
        ("a.txt", {"preprocessing_num_workers": 2}, "--preprocessing_num_workers: not with --streaming"),
        ("a.tsv", {}, "--streaming: --train_file a.tsv is TSV"),
        ("a.csv", {"text_column": "words"}, "--text_column 'words' is no column of --train_file a.csv"),
        ("a.jsonl", {}, "--text_column 'text' of --train_file a.jsonl holds double (expected text)"),
        (
            "one.txt",
            {"line_ending": "", "end_of_text": "none"},
            "--train_file one.txt holds 1 tokens (expected at least 2)",
        ),
        ("bad.txt", {}, "--train_file bad.txt can't be read"),
        ("late.txt", {}, "--train_file late.txt can't be read on"),
        ("folder", {"train_file": None, "validation_file": None, "dataset_name": "folder"}, "--validation_split: mi"),
        ("folder", {"train_file": None, "dataset_name": "folder", "train_split": "dev"}, "(expected train)"),
    ],
)
def test_bad_streams(tmp_path, monkeypatch, content, arguments, named):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for name, text in {
        "a.txt": TEXT,
        "a.csv": "text\nab\n",
        "a.tsv": "text\tlabel\nab\t1\n",
        "a.jsonl": '{"text": 0.5}',
        "one.txt": "a",
        "bad.txt": b"\xff\n",
        "late.txt": (b"a" * 999 + b"\n") * 10_500 + b"\xff\n",
        "folder/train.txt": TEXT,
    }.items():
        write(Path(name), text)
    place = {"train_file": [content], "validation_file": ["a.txt"]}
    with pytest.raises(UsageError) as error:
        args = DataArguments(**{**place, **arguments}, streaming=True, context_length=9999)
        texts = load_texts(args)
        tokenizer = load_tokenizer("char", [TEXT])
        for _ in make_windows(texts, tokenizer, len(tokenizer), args)["train"].epoch(0):
            pass
    assert named in str(error.value), error.value
