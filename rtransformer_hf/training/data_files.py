# SPDX-License-Identifier: Apache-2.0
"""
Reads the splits of a training script's data from files, a local folder, or a data set on the Hub.

Cells of CSV and TSV files are text as written, wherever the files lie: None, NA and null are words, 00 has its zeros.
"""

import codecs
import glob
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, ClassVar

import datasets
import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets.packaged_modules.csv.csv import Csv
from datasets.utils.extract import Extractor

from .errors import UsageError
from .flags import fraction

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}  # any other suffix means plain text
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4")  # may follow the suffix of the format
COMPRESSION_PACKAGES = {"zstd": "zstandard", "lz4": "lz4"}  # datasets does not require them
ARCHIVES = ("zip", "tar", "rar", "7z")
VALIDATION_FRACTION = 0.1
BYTE_ORDER_MARK = "\ufeff"
OTHER_ENCODINGS = {  # by a file's first bytes
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is a prefix of this one
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass
class DataFileArguments:
    file_kinds: ClassVar[str] = "CSV, TSV, JSON or Parquet"

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set, in place of files: an id on the Hub or a local folder."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Files to train on: .csv, .tsv, .json, .jsonl or .parquet, any other holds bare text; in UTF-8, "
            "also compressed (.csv.gz, .txt.bz2, .xz, .zst). Cells of .csv and .tsv are text as written: None, NA and "
            "00 too."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Files to evaluate on during and after the training."}
    )
    test_file: list[str] | None = field(
        default=None, metadata={"help": "Files to evaluate on after the training only."}
    )
    train_split: str | None = field(
        default=None, metadata={"help": "Split of the data set to train on. Unset: train."}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of the data set to evaluate on. Unset: validation, if there is one."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split of the data set to evaluate on after the training only."}
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the training data held out for validation: the end of a text, or random rows with "
            f"labels, which do not depend on --seed. Unset: {VALIDATION_FRACTION} if there is no validation data.",
            "type": fraction,
        },
    )

    def __post_init__(self):
        if (self.dataset_name is None) == (self.train_file is None):
            raise UsageError(
                f"Give either --dataset_name or --train_file, got --dataset_name {self.dataset_name!r} and "
                f"--train_file {self.train_file!r}."
            )
        for name in ("train_split", "validation_split", "test_split", "dataset_config_name"):
            if self.train_file is not None and (value := getattr(self, name)) is not None:
                raise UsageError(f"--{name}: {value!r} goes with --dataset_name, not with {self.source('train')}")
        for split in ("validation", "test"):
            if getattr(self, f"{split}_file") and (value := getattr(self, f"{split}_split")) is not None:
                raise UsageError(f"--{split}_split: {value!r} goes without {self.source(split)}")
        if self.validation_fraction is not None and (self.validation_file or self.validation_split is not None):
            raise UsageError(
                f"--validation_fraction: {self.validation_fraction} goes without {self.source('validation')} "
                "(expected one of them)"
            )
        if self.dataset_name is not None and self.train_split is None:
            self.train_split = "train"
        for name in ("train_file", "validation_file", "test_file"):
            check_files(f"--{name}", getattr(self, name) or [], self.file_kinds)
        self.parts = {}  # of each split that was read: the name of a file, as of `source`, and its number of rows

    def source(self, split: str, files: list[str] | None = None) -> str:
        """The flag that names a split's data with its value, for messages. `files`: only these of its files."""
        if files := files or getattr(self, f"{split}_file"):
            return f"--{split}_file {' '.join(files)}"
        is_held_out = split == "validation" and self.validation_fraction is not None
        if self.dataset_name is None or is_held_out:
            return f"the {split} part (--validation_fraction {self.held_out_fraction}) of {self.source('train')}"
        return f"--{split}_split {getattr(self, f'{split}_split') or split} of {self.location}"

    @property
    def held_out_fraction(self) -> float:
        """The share of the training data that is held out where no other data is there to validate on."""
        return VALIDATION_FRACTION if self.validation_fraction is None else self.validation_fraction

    def keep_parts(self, split: str, parts: list[tuple[str, datasets.Dataset]]):
        """Remembers for [`place`] what a split was read from."""
        self.parts[split] = [(where, len(rows)) for where, rows in parts]

    def place(self, split: str, rows: datasets.Dataset, row: int) -> tuple[str, int]:
        """The file, as of [`source`], and the row there of a row of a split, all files of which `rows` joins."""
        if rows._indices is not None:  # a part of them was held out
            row = rows._indices.column(0)[row].as_py()
        for where, num_rows in self.parts[split if split in self.parts else "train"]:
            if row < num_rows:
                return where, row
            row -= num_rows
        raise ValueError(f"Row {row} is beyond the rows that were read of {split!r}.")

    @property
    def location(self) -> str:
        """The flags that name the data set, for messages."""
        config = f" (--dataset_config_name {self.dataset_config_name})" if self.dataset_config_name else ""
        return f"--dataset_name {self.dataset_name}{config}"

    @property
    def evaluation_data(self) -> list[str] | None:
        """Flags of scripts/evaluate_checkpoint.py for the test data, or else for separate validation data."""
        for split in ("test", "validation"):
            files, split_name = getattr(self, f"{split}_file"), getattr(self, f"{split}_split")
            if files:
                return ["--data", *files] if len(files) == 1 else ["--test_file", *files]
            if self.dataset_name and split_name:
                config = ["--dataset_config_name", self.dataset_config_name] if self.dataset_config_name else []
                return ["--data", self.dataset_name, *config, "--split", split_name]
        return None

    @property
    def data_name(self) -> str:
        """The data's name in a card: a Hub id with its configuration, or the names of a local folder or files."""
        if self.train_file:
            return ", ".join(Path(file).resolve().name for file in self.train_file)
        if Path(self.dataset_name).exists():
            return Path(self.dataset_name).resolve().name
        return self.dataset_name + (f" ({self.dataset_config_name})" if self.dataset_config_name else "")

    @property
    def dataset_id(self) -> str | None:
        """The data's Hub id, if any."""
        return None if self.train_file or Path(self.dataset_name).exists() else self.dataset_name


def check_files(flag: str, files: list[str], file_kinds: str):
    """
    Args:
        flag: the flag that names the files, for messages.
        file_kinds: what is expected of them, in words.

    Raises:
        UsageError: a file does not exist, is a folder or is empty.
    """
    for file in files:
        if Path(file).is_dir():
            raise UsageError(
                f"{flag}: {file!r} is a folder (expected {file_kinds} files, or the folder as --dataset_name)"
            )
        if not Path(file).is_file():
            raise UsageError(f"{flag}: no such file: {file!r} (expected {file_kinds})")
        if Path(file).stat().st_size == 0:
            raise UsageError(f"{flag}: {file!r} is empty (expected {file_kinds}, with rows in it)")


def load_split(
    args: DataFileArguments, split: str, columns: dict[str, str], streaming: bool = False
) -> list[tuple[str, datasets.Dataset | datasets.IterableDataset]] | None:
    """
    The rows of "train", "validation" or "test" in parts, each with its name for messages: a part for each file, or one
    for a data set. None where the arguments ask for none. Validation is taken unasked where a data set has it, unless
    `validation_fraction` is given.

    Args:
        args: say where the data is.
        split: which of it.
        columns: those wanted, by the flags that name them. The rows have no others.
        streaming: whether the rows are read when they are iterated over, and leave nothing on the disk.

    Raises:
        UsageError: there are no such files, data set, split, columns or rows, or they can't be read.
    """
    load = load_files if getattr(args, f"{split}_file") else load_data_set
    parts = load(args, split, streaming)
    for where, rows in parts or []:
        names = first_row(where, rows) if streaming else rows.column_names
        for flag, column in columns.items():
            if column not in names:
                raise UsageError(
                    f"{flag} {column!r} is no column of {where} (expected "
                    f"{', '.join(map(repr, names))}{layout(args, split)})"
                )
        if not streaming and len(rows) == 0:
            raise UsageError(f"{where} holds no rows (expected at least one)")
        if not streaming:
            check_kinds(where, rows, columns)
    if parts and not streaming:
        args.keep_parts(split, parts)
    return parts and [(where, rows.select_columns(list(columns.values()))) for where, rows in parts]


def first_row(where: str, rows: datasets.IterableDataset) -> dict:
    """
    Raises:
        UsageError: the stream can't be read, or holds no rows.
    """
    try:
        row = next(iter(rows), None)
    except Exception as error:  # the formats' readers raise many kinds
        raise UsageError(f"{where} can't be read: {error.__cause__ or error}") from error
    if row is None:
        raise UsageError(f"{where} holds no rows (expected at least one)")
    return row


def load_data_set(
    args: DataFileArguments, split: str, streaming: bool = False
) -> list[tuple[str, datasets.Dataset | datasets.IterableDataset]] | None:
    split_name = getattr(args, f"{split}_split")
    is_unasked = split_name is None and (split == "test" or args.validation_fraction is not None)
    if args.dataset_name is None or is_unasked:
        return None
    name = (args.dataset_name, args.dataset_config_name)
    try:
        available = datasets.get_dataset_split_names(*name)
        if split_name is None and "validation" not in available:
            return None
        builder = datasets.load_dataset_builder(*name)
        for file in local_files(builder):
            check_content(f"{args.location}: {file}", file)
        options = reader_options(args.location, builder)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{args.location} can't be loaded (expected an id on the Hub or a local folder): {error}"
        ) from error
    try:
        rows = datasets.load_dataset(*name, split=split_name or "validation", streaming=streaming, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        for file in local_files(builder):
            check_utf8(f"{args.location}: {file}", file)
        raise UsageError(f"{args.source(split)} can't be read: {error.__cause__ or error}") from error
    except ValueError as error:
        part = "" if streaming else f", or a part such as {available[0]}[:10%]"
        raise UsageError(f"{args.source(split)} does not exist (expected {', '.join(available)}{part})") from error
    check_quotes(args.source(split), rows, builder)
    return [(args.source(split), rows)]


def load_files(
    args: DataFileArguments, split: str, streaming: bool = False
) -> list[tuple[str, datasets.Dataset | datasets.IterableDataset]]:
    files = getattr(args, f"{split}_file")
    formats = {format_of(file) for file in files}
    if len(formats) > 1:
        raise UsageError(f"{args.source(split)} mixes {' and '.join(sorted(formats))} (expected one format)")
    (file_format,) = formats
    for file in files:
        check_content(args.source(split, [file]), file)
    # One file at a time: messages can name file and row, and a text ends where its file does.
    return [(args.source(split, [file]), load_file(args, split, file, file_format, streaming)) for file in files]


def load_file(
    args: DataFileArguments, split: str, file: str, file_format: str, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    where = args.source(split, [file])
    options = {"data_files": {"train": [glob.escape(file)]}}
    if suffix(file) == ".tsv":
        options["sep"] = "\t"
    try:
        builder = datasets.load_dataset_builder(file_format, **options)
        options |= reader_options(where, builder)
        rows = datasets.load_dataset(file_format, split="train", streaming=streaming, **options)
    except UsageError:
        raise
    except Exception as error:  # the formats' readers raise many kinds
        check_utf8(where, file)
        check_json_lines(where, file)
        if "corresponds to no data" in str(error):  # what Datasets says of a table with a header alone
            raise UsageError(f"{where} holds no rows (expected at least one)") from error
        raise UsageError(
            f"{where} can't be read (expected a {args.file_kinds} file in UTF-8, with rows in it): "
            f"{error.__cause__ or error}"
        ) from error
    check_quotes(where, rows, builder)
    return rows


def reader_options(where: str, builder: datasets.DatasetBuilder) -> dict:
    """
    Options for `datasets.load_dataset` by which every cell of a CSV or TSV file is text as written, or one of the
    classes that the data set declares; none for other formats. Left alone, pandas reads what looks like a number as
    one, and a few words as missing values.

    In a table of one column, a blank line is an empty cell; pandas leaves it out, and with it a step of a time series.

    Raises:
        UsageError: cells are separated by something else, a column is named twice, or the first row has more cells
            than there are columns: pandas would take the first for row numbers.
    """
    if not isinstance(builder, Csv):
        return {}
    file = next(iter(builder.config.data_files.values()))[0]
    options = {**builder.config.pd_read_csv_kwargs, "na_filter": False, "chunksize": None, "nrows": 1}
    first = pd.read_csv(file, **options)
    found = next((sep for sep in ";\t|" if len(first.columns) == 1 and sep in str(first.columns[0])), None)
    if found is not None:
        raise UsageError(
            f"{where}: the first line, {first.columns[0]!r}, has {found!r} between its cells (expected "
            f"{builder.config.sep!r}; a file with tabs has to be named .tsv)"
        )
    if builder.config.index_col is None and not isinstance(first.index, pd.RangeIndex):
        raise UsageError(
            f"{where}: row 0 has more cells than the first line names columns "
            f"({', '.join(map(repr, first.columns))}); a cell with {builder.config.sep!r} in it has to stand in "
            "quotation marks."
        )
    if builder.config.names is None and builder.config.header == "infer":
        names = pd.read_csv(file, **{**options, "header": None, "dtype": str}).iloc[0]
        if (twice := names.duplicated() & (names != "")).any():
            raise UsageError(
                f"{where}: the first line names {names[twice].iloc[0]!r} twice (expected each column once)"
            )
    declared = {
        name: feature
        for name, feature in (builder.info.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }
    features = {name: declared.get(name, datasets.Value("string")) for name in first.columns}
    options = {"na_filter": False, "features": datasets.Features(features)}
    return options if len(first.columns) > 1 else {**options, "skip_blank_lines": False}


def local_files(builder: datasets.DatasetBuilder) -> list[str]:
    """Local files of texts and tables that a data set reads."""
    files = [file for files in (builder.config.data_files or {}).values() for file in files]
    return [file for file in files if (suffix(file) in FORMATS or suffix(file) == ".txt") and Path(file).is_file()]


def format_of(file: str) -> str:
    return FORMATS.get(suffix(file), "text")


def suffix(file: str) -> str:
    """The suffix of a file's format, without that of a compression."""
    *others, last = ["", *(part.lower() for part in Path(file).suffixes)]
    return others[-1] if last in COMPRESSIONS else last


def layout(args: DataFileArguments, split: str) -> str:
    """How a table must look, for the message about a missing column."""
    files = getattr(args, f"{split}_file")
    kind = suffix(files[0]) if files else ""
    if FORMATS.get(kind) == "csv":
        return f"; the first line names the columns, with {'tabs' if kind == '.tsv' else 'commas'} between them"
    return "; of JSON, an object a row is read, one a line or all in a list" if FORMATS.get(kind) == "json" else ""


def check_content(where: str, file: str):
    """
    Raises:
        UsageError: the file is an archive, is compressed in a way that needs a package, or holds something else than
            text in UTF-8 where it should.
    """
    try:
        compression = Extractor.infer_extractor_format(file)
        if compression in ARCHIVES:
            raise UsageError(f"{where} is an archive ({compression}) (expected the files in it)")
        package = COMPRESSION_PACKAGES.get(compression)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UsageError(f"{where} can't be unpacked without the package {package}: pip install {package}")
        if format_of(file) == "parquet":
            return
        with open_unpacked(file) as opened:
            start = opened.read(1 << 16)
    except UsageError:
        raise
    except Exception as error:  # each format raises its own
        raise UsageError(f"{where} can't be unpacked: {error}") from error
    for mark, encoding in OTHER_ENCODINGS.items():
        if start.startswith(mark):
            raise UsageError(f"{where} is text in {encoding} (expected UTF-8)")
    if b"\0" in start:
        raise UsageError(f"{where} holds zero bytes, which text in UTF-8 has not; is it a file of another kind?")
    if format_of(file) == "json":  # whose reader lets other bytes through
        check_utf8(where, file)


def check_utf8(where: str, file: str):
    """
    Raises:
        UsageError: the file, of another format than parquet, is not in UTF-8.
    """
    if format_of(file) == "parquet":
        return
    with open_unpacked(file) as opened:
        for number, line in enumerate(opened, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{where} is not in UTF-8: line {number} holds the byte "
                    f"0x{line[error.start]:02x}. From Latin-1, convert it with: iconv -f latin1 -t utf-8"
                ) from error


def check_json_lines(where: str, file: str):
    """
    Raises:
        UsageError: a line of a JSON lines file holds no JSON.
    """
    if suffix(file) not in (".jsonl", ".ndjson"):
        return
    with open_unpacked(file) as opened:
        for number, line in enumerate(opened, start=1):
            try:
                json.loads(line.decode().removeprefix(BYTE_ORDER_MARK) or "null")
            except json.JSONDecodeError as error:
                if line.strip():
                    raise UsageError(
                        f"{where}: line {number} holds no JSON (expected an object a line): {error}"
                    ) from error


def open_unpacked(file: str) -> IO[bytes]:
    return fsspec.open(file, "rb", compression=Extractor.infer_extractor_format(file) or None).open()


def check_quotes(where: str, rows: datasets.Dataset | datasets.IterableDataset, builder: datasets.DatasetBuilder):
    """
    Raises:
        UsageError: a cell of a TSV file holds several rows, as after a quotation mark without its pair; or the file is
            a stream, of which this can't be known before the training.
    """
    if not isinstance(builder, Csv) or builder.config.sep != "\t":
        return
    if isinstance(rows, datasets.IterableDataset):
        raise UsageError(f"--streaming: {where} is TSV, whose quotation marks are checked before (expected others)")
    table = rows.with_format("arrow")[:]
    for column in (name for name, feature in rows.features.items() if kind_of(feature) == "string"):
        swallows = pc.match_substring_regex(table[column], r"(?s)\t.*\n|\n.*\t")
        if pc.any(swallows).as_py():
            raise UsageError(
                f"{where}: {column!r} in row {pc.index(swallows, True).as_py()} (from 0) holds tabs and line ends, as "
                "after a single quotation mark at a cell's start; there it has to be doubled, and the cell put in "
                "quotation marks."
            )


def check_kinds(where: str, rows: datasets.Dataset, columns: dict[str, str]):
    """
    Args:
        columns: those to check, by the flags that name them.

    Raises:
        UsageError: a column of a JSON file holds values of several kinds, such as numbers and strings.
    """
    for flag, column in columns.items():
        feature = rows.features[column]
        if "several kinds" not in kind_of(getattr(feature, "feature", feature)):
            continue
        first = None
        for row, cell in enumerate(rows[column][:]):
            for value in cell if isinstance(cell, list) else [cell]:
                if value is None:
                    continue
                first = first or (row, value)
                if type(value) is not type(first[1]):
                    raise UsageError(
                        f"{flag} {column!r} of {where} holds values of several kinds: {value!r} in row {row}, "
                        f"{first[1]!r} in row {first[0]} (from 0; expected one kind)"
                    )


def as_text(rows: datasets.Dataset, column: str, where: str) -> datasets.Dataset:
    """
    Rows whose `column` is text: integers become their digits, leading byte-order marks are dropped.

    Raises:
        UsageError: the column holds something else.
    """
    kind = kind_of(rows.features[column])
    if kind.startswith(("int", "uint")):
        return rows.cast_column(column, datasets.Value("string"))
    if kind not in ("string", "large_string"):
        raise UsageError(f"--text_column {column!r} of {where} holds {kind} (expected text)")
    if pc.any(pc.starts_with(rows.with_format("arrow")[:][column], BYTE_ORDER_MARK)).as_py():
        return rows.map(without_byte_order_marks, input_columns=column, fn_kwargs={"column": column}, batched=True)
    return rows


def texts_of(values: pa.ChunkedArray, column: str, where: str) -> list[str | None]:
    """
    As of [`as_text`], for some rows of a stream.

    Raises:
        UsageError: they are no texts.
    """
    if pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    elif not any(is_kind(values.type) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
        raise UsageError(f"--text_column {column!r} of {where} holds {values.type} (expected text)")
    return without_byte_order_marks(values.to_pylist(), column)[column]


def without_byte_order_marks(texts: list[str | None], column: str) -> dict[str, list[str | None]]:
    return {column: [text and text.removeprefix(BYTE_ORDER_MARK) for text in texts]}


def joined(parts: list[datasets.Dataset]) -> datasets.Dataset:
    """Joins the rows of files with equal columns; string and large_string count as equal."""
    features = parts[0].features
    return datasets.concatenate_datasets(
        [part if part.features == features else part.cast(features) for part in parts]
    )


def kind_of(feature) -> str:
    if isinstance(feature, datasets.Value):
        return feature.dtype
    return "values of several kinds" if type(feature).__name__ == "Json" else type(feature).__name__
