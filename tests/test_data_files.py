# SPDX-License-Identifier: Apache-2.0
"""What is read of files and data sets: texts and labels as written, in every format, or an error that says where."""

import gzip
import json
import zipfile
from pathlib import Path

import datasets
import pandas as pd
import pytest

from rtransformer_hf.training import causal_lm, sequence_classification, token_classification
from rtransformer_hf.training.causal_lm import DataArguments
from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.evaluation import LabeledData, TextData
from rtransformer_hf.training.sequence_classification import ClassificationArguments
from rtransformer_hf.training.time_series import TimeSeriesArguments
from rtransformer_hf.training.token_classification import TaggingArguments

# Words that a reader may take for missing values, and what it may take for numbers, dates or truth values.
TEXTS = [
    "None",
    "NA",
    "N/A",
    "null",
    "nan",
    "#N/A",
    "<NA>",
    "007",
    "1.50",
    "1e3",
    "true",
    " a, b ",
    'say "so"',
    "#",
    "two\nlines",
]
LABELS = ["None", "NA", "n/a", "null", "nan", "#N/A", "<NA>", "00", "01", "1.0", "true", "neg ", "neg", " neg\t", "-"]
NAMES = [label.strip() for label in LABELS]
CARD = """\
---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': neg
          '1': pos
---
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes, encoding: str = "utf-8") -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return name


def write_rows(name: str, texts: list, labels: list) -> dict:
    """Writes them in the format that the name says, and gives the arguments by which they are read."""
    table = pd.DataFrame({"text": texts, "label": labels})
    format_suffix = Path(name.removesuffix(".gz")).suffix
    Path(name).parent.mkdir(exist_ok=True)
    if format_suffix in (".csv", ".tsv"):
        table.to_csv(name, index=False, sep="\t" if format_suffix == ".tsv" else ",")
    elif format_suffix == ".parquet":
        datasets.Dataset.from_dict({"text": texts, "label": labels}).to_parquet(name)
    else:
        table.to_json(name, orient="records", lines=format_suffix == ".jsonl")
    return {"dataset_name": "folder"} if name.startswith("folder/") else {"train_file": [name]}


def labeled_rows(**arguments) -> datasets.Dataset:
    return sequence_classification.load_rows(ClassificationArguments(**arguments), "train")


def label2id(rows: datasets.Dataset) -> dict[str, int]:
    return sequence_classification.make_label2id(rows, ClassificationArguments(train_file=[__file__]))


def texts(**arguments) -> list[str]:
    return causal_lm.load_rows(DataArguments(**arguments), "train")["text"][:]


FILES = [
    "rows.csv",
    "rows.tsv",
    "rows.json",
    "rows.jsonl",
    "rows.parquet",
    "rows.csv.gz",
    "rows.tsv.gz",
    "rows.json.gz",
]


@pytest.mark.parametrize("name", [*FILES, "folder/train.csv", "folder/train.tsv", "folder/train.jsonl"])
def test_texts_and_labels_are_read_as_written(name):
    place = write_rows(name, TEXTS, LABELS)
    rows = labeled_rows(**place)
    assert rows["text"][:] == TEXTS and rows["label"][:] == NAMES
    assert list(label2id(rows)) == sorted(set(NAMES))
    assert texts(**place) == TEXTS
    # as scripts/evaluate_checkpoint.py and scripts/plot_checkpoint.py read them
    rows = sequence_classification.load_rows(LabeledData(**place), "train")
    assert rows["text"][:] == TEXTS and rows["label"][:] == NAMES
    assert causal_lm.load_rows(TextData(**place), "train")["text"][:] == TEXTS


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.parquet", "folder/train.csv"])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([10, 2, 1], {"1": 0, "2": 1, "10": 2}),
        ([1, -1, 1], {"-1": 0, "1": 1}),
        ([0, 2, 0], {"0": 0, "2": 1}),
        ([1.0, 2.0, 1.0], {"1": 0, "2": 1}),
        ([True, False, True], {"False": 0, "True": 1}),
        (["2", "b", "10"], {"10": 0, "2": 1, "b": 2}),
    ],
)
def test_names_of_labels(name, labels, expected):
    rows = labeled_rows(**write_rows(name, [5, 6, 7], labels))
    assert rows["text"][:] == ["5", "6", "7"]
    assert label2id(rows) == expected


def test_declared_classes():
    write("folder/README.md", CARD)
    write("folder/train.csv", "text,label\nNA,1\n007,neg\n")
    rows = labeled_rows(dataset_name="folder")
    assert rows["text"][:] == ["NA", "007"] and rows["label"][:] == [1, 0]
    assert label2id(rows) == {"neg": 0, "pos": 1}

    for name, classes in (("a", ["pos", "neg"]), ("b", ["pos", "neg"]), ("c", ["neg", "pos"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=classes)})
        datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features).to_parquet(f"{name}.parquet")
    rows = labeled_rows(train_file=["a.parquet", "b.parquet"])
    assert rows["label"][:] == [0, 1, 0, 1] and label2id(rows) == {"pos": 0, "neg": 1}
    rows = labeled_rows(train_file=["a.parquet", "c.parquet"])
    assert rows["label"][:] == ["pos", "neg", "neg", "pos"]


def test_several_files():
    first, second = write("a.csv", "text,label\nhi,1\n"), write("b.tsv", "id\tlabel\ttext\n0\t2.0\tho\n")
    rows = labeled_rows(train_file=[first, second, first])
    assert rows["text"][:] == ["hi", "ho", "hi"] and rows["label"][:] == ["1", "2", "1"]
    assert labeled_rows(train_file=[write("rows[1].csv", "text,label\nhi,1\n")])["text"][:] == ["hi"]


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz", "t.csv", "t.tsv", "t.json", "t.csv.gz", "folder/train.txt"])
def test_byte_order_marks_are_no_characters(name):
    lines = {"json": '[{"text": "hi"}, {"text": "\ufeffho"}]', "txt": "hi\r\nho\r\n"}
    content = "\ufeff" + lines.get(name.removesuffix(".gz").split(".")[1], "text\r\nhi\r\nho\r\n")
    write(name, gzip.compress(content.encode()) if name.endswith(".gz") else content)
    place = {"dataset_name": "folder"} if name.startswith("folder/") else {"train_file": [name]}
    assert texts(**place) == ["hi", "ho"]
    if name == "t.json":
        assert labeled_rows(train_file=[write("l.json", '[{"text": "a", "label": "\ufeffb"}]')])["label"][:] == ["b"]


def test_line_ends_of_windows_and_quoted_line_ends():
    write("rows.csv", 'text,label\r\n"one\r\ntwo, three",a\r\nfour,b\r\n')
    rows = labeled_rows(train_file=["rows.csv"])
    assert rows["text"][:] == ["one\r\ntwo, three", "four"] and rows["label"][:] == ["a", "b"]


def test_empty_texts_are_empty_lines_to_a_language_model(caplog):
    assert texts(train_file=[write("rows.csv", 'text,label\n"",1\na,2\n')]) == ["", "a"]
    missing = {"train_file": [write("rows.jsonl", '{"text": null}\n{"text": "a"}\n')]}
    rows = causal_lm.load_rows(DataArguments(**missing), "train")
    assert list(causal_lm.lines(rows, "\n")) == ["\n", "a\n"]
    assert "--train_file rows.jsonl: 1 of 2 rows have no text and are read as empty lines." in caplog.text


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz", "folder/train.csv"])
def test_blank_lines_of_a_single_column_are_empty_cells(name):
    content = b"text\r\na\r\n\r\nb\r\n"
    write(name, gzip.compress(content) if name.endswith(".gz") else content)
    place = {"dataset_name": "folder"} if name.startswith("folder/") else {"train_file": [name]}
    assert texts(**place) == ["a", "", "b"]
    write("two.csv", "text,label\na,1\n\nb,2\n")
    assert texts(train_file=["two.csv"]) == ["a", "b"]


def test_rows_are_counted_in_their_own_file():
    good = "text,label\n" + "".join(f"hi {row},{row % 2}\n" for row in range(20))
    files = [write("a.csv", good), write("b.csv", good + "\nho,2\n")]
    args = ClassificationArguments(train_file=files)
    tokenizer = sequence_classification.make_tokenizer(args, labeled_rows(train_file=files), None)

    def encode(split: str, rows: datasets.Dataset):
        sequence_classification.encode(rows, tokenizer, args, split, {"0": 0, "1": 1})

    rows = sequence_classification.load_rows(args, "train")
    named = r"'label' of --train_file b\.csv holds '2', first in row 20 \(from 0"
    with pytest.raises(UsageError, match=named):
        encode("train", rows)
    parts = sequence_classification.hold_out({"train": rows}, args)
    split = next(split for split in parts if "2" in parts[split]["label"][:])
    with pytest.raises(UsageError, match=named):
        encode(split, parts[split])

    files = [write("a.conll", "hi A\n\nho B\n"), write("b.conll", "hi A\n\nho A\nha C\n")]
    args = token_classification.TaggingArguments(train_file=files)
    rows = token_classification.load_rows(args, "train")
    tokenizer = token_classification.make_tokenizer(args, rows, None)
    with pytest.raises(UsageError, match=r"of --train_file b\.conll: unknown: 'C' in row 1, .*, in line 4 \('ha'\)"):
        token_classification.encode(rows, tokenizer, args, "train", {"A": 0, "B": 1})


def refused(**arguments) -> str:
    with pytest.raises(UsageError) as error:
        labeled_rows(**arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (
            "a.csv",
            "text;label\nhi;1\n",
            "--train_file a.csv: the first line, 'text;label', has ';' between its cells (expected ','",
        ),
        (
            "a.csv",
            "text;label\nhi, you;1\n",
            "a.csv: the first line, 'text;label', has ';' between its cells (expected ','",
        ),
        (
            "a.csv",
            "text\tlabel\nhi\t1\n",
            "has '\\t' between its cells (expected ','; a file with tabs has to be named",
        ),
        ("a.csv", "text,label\n", "--train_file a.csv holds no rows (expected at least one)"),
        ("a.csv", "hi,1\nho,2\n", "(expected 'hi', '1'; the first line names the columns, with commas between them)"),
        ("a.tsv", "text,label\nhi,1\n", "(expected 'text,label'; the first line names the columns, with tabs between"),
        (
            "a.csv",
            "text,label\nhi, you,1\n",
            "row 0 has more cells than the first line names columns ('text', 'label')",
        ),
        (
            "a.csv",
            "text,label\n1,hi,1\n",
            "--train_file a.csv: row 0 has more cells than the first line names columns",
        ),
        ("a.csv", "text,label\nhi,1\nho, you,2\n", "--train_file a.csv can't be read"),
        (
            "a.csv",
            "text,label\nhi,1\nho\n",
            "--label_column 'label' of --train_file a.csv is missing in row 1 (from 0)",
        ),
        (
            "a.csv",
            'text,label\nhi,1\n" \t",2\n,3\n',
            "'text' of --train_file a.csv is missing in row 1 (from 0), and in 2",
        ),
        (
            "a.jsonl",
            '{"text": "\\ufeff ", "label": "a"}',
            "'text' of --train_file a.jsonl is missing in row 0 (from 0)",
        ),
        ("a.jsonl", '{"text": "a", "label": NaN}', "'label' of --train_file a.jsonl is missing in row 0 (from 0)"),
        (
            "a.csv",
            "text,label\nhi,1\nho,0.5\n",
            "'label' of --train_file a.csv, row 1 (from 0): the fraction 0.5 (expected names or integers)",
        ),
        ("a.json", '[{"text": "a", "label": 0.00001}]', "row 0 (from 0): the fraction 0.00001 (expected"),
        ("a.json", '{"data": [{"text": "a", "label": 1}]}', "(expected 'data'; of JSON, an object a row is read"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}',
            "--label_column 'label' of --train_file a.jsonl holds values of several kinds: 'x' in row 1, 1 in row 0",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": [1]}\n{"text": "b", "label": [null, "x"]}',
            "a.jsonl holds values of several kinds: 'x' in row 1, 1 in row 0 (from 0",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n\n{"text": "b", ',
            "a.jsonl: line 3 holds no JSON (expected an object a",
        ),
        ("a.csv", "text,label,text\nhi,1,ho\n", "--train_file a.csv: the first line names 'text' twice"),
        ("a.csv", 'text,label\n"hi,1\nho,2\n', "--train_file a.csv can't be read"),
        (
            "a.tsv",
            'text\tlabel\n"hi\t1\n"good" one\t2\n',
            "--train_file a.tsv: 'text' in row 0 (from 0) holds tabs and li",
        ),
        (
            "folder/train.tsv",
            'text\tlabel\n"hi\t1\n"good" one\t2\n',
            "'text' in row 0 (from 0) holds tabs and line ends",
        ),
        ("folder/train.csv", "text,label\nhi, you,1\n", "--dataset_name folder: row 0 has more cells than"),
    ],
)
def test_tables_that_are_refused(name, content, named):
    write(name, content)
    place = {"dataset_name": "folder"} if name.startswith("folder/") else {"train_file": [name]}
    assert named in refused(**place)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz", "folder/train.csv", "folder/train.jsonl"])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        (
            "latin1",
            "is not in UTF-8: line 3 holds the byte 0xe9. From Latin-1, convert it with: iconv",
        ),
        ("utf-16", "is text in UTF-16 (expected UTF-8)"),
        ("utf-16-le", "holds zero bytes"),
    ],
)
def test_other_encodings_are_refused(name, encoding, named):
    rows = [("no", "1"), ("yes", "1"), ("café", "2")]
    content = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)
    if ".csv" in name:
        content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows[1:])
    content = content.encode(encoding)
    write(name, gzip.compress(content) if name.endswith(".gz") else content)
    place = {"dataset_name": "folder"} if name.startswith("folder/") else {"train_file": [name]}
    message = refused(**place)
    assert named in message and name in message


def test_text_in_another_encoding_is_refused():
    for encoding, named in (("latin1", "line 2 holds the byte 0xe9"), ("utf-16", "text in UTF-16")):
        write("a.txt", "no\ncafé\n", encoding)
        with pytest.raises(UsageError, match=f"--train_file a.txt is .*{named}"):
            texts(train_file=[write("b.txt", "whole\n"), "a.txt"])


def test_the_file_is_named_among_several():
    good = write("a.csv", "text,label\nhi,1\n")
    named = "of --train_file b.csv is missing in row 1 (from 0)"
    assert named in refused(train_file=[good, write("b.csv", "text,label\nhi,1\n,2\n")])
    named = "--label_column 'label' is no column of --train_file c.csv (expected 'text', 'y'"
    assert named in refused(train_file=[good, write("c.csv", "text,y\nhi,1\n")])


def test_folders_and_archives_are_refused():
    write("folder/train.csv", "text,label\nhi,1\n")
    message = refused(train_file=["folder"])
    assert "--train_file: 'folder' is a folder" in message and "--dataset_name" in message
    with zipfile.ZipFile("sheet.xlsx", "w") as archive:
        archive.writestr("sheet.xml", "<a/>")
    with pytest.raises(UsageError, match=r"--train_file sheet.xlsx is an archive \(zip\)"):
        texts(train_file=["sheet.xlsx"])
    write("cut.csv.gz", gzip.compress(bytes(range(256)) * 9)[:100])
    assert "--train_file cut.csv.gz can't be unpacked: Compressed file ended" in refused(train_file=["cut.csv.gz"])


def test_compressions_that_need_a_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, mark, package in (
        ("a.csv.zst", b"\x28\xb5\x2f\xfd", "zstandard"),
        ("a.csv.lz4", b"\x04\x22\x4d\x18", "lz4"),
    ):
        message = refused(train_file=[write(name, mark + b"\0" * 20)])
        assert f"--train_file {name} can't be unpacked without the package {package}: pip install {package}" in message


@pytest.mark.parametrize("kind", [DataArguments, ClassificationArguments, TaggingArguments, TimeSeriesArguments])
def test_what_names_a_part_of_a_data_set_goes_without_files(kind):
    task = {"task": "classify"} if kind is TimeSeriesArguments else {}
    for name in ("train_split", "validation_split", "test_split", "dataset_config_name"):
        with pytest.raises(UsageError, match=f"--{name}: 'a' goes with --dataset_name, not with --train_file"):
            kind(train_file=[__file__], **task, **{name: "a"})
    with pytest.raises(UsageError, match="--test_split: 'a' goes without --test_file"):
        kind(dataset_name="b", test_file=[__file__], test_split="a", **task)
    assert kind(dataset_name="b", **task).train_split == "train"
