# Copyright 2026 The rtransformer_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Where a training script's data comes from: files, a local folder, or a data set on the Hub, and its splits."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import datasets
from script_arguments import InputError

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}  # any other suffix: plain text


@dataclass
class DataFileArguments:
    file_kinds: ClassVar[str] = "csv, json or parquet"

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set: an id on the Hub or a local folder, in place of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_file: list[str] | None = field(
        default=None,
        metadata={"help": "Files to train on: .csv, .json, .jsonl, .parquet; any other holds bare text."},
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Files to evaluate on while training, and at its end."}
    )
    test_file: list[str] | None = field(default=None, metadata={"help": "Files to evaluate on at the end alone."})
    train_split: str = field(default="train", metadata={"help": "Split of the data set to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of the data set to evaluate on; validation, where there is one."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split of the data set to evaluate on at the end alone."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of the training data held out where nothing else validates: the end of a text; of rows "
            "with labels some drawn at random, the same whatever --seed is."
        },
    )

    def __post_init__(self):
        if (self.dataset_name is None) == (self.train_file is None):
            raise InputError(
                f"Give either --dataset_name or --train_file, got --dataset_name {self.dataset_name!r} and "
                f"--train_file {self.train_file!r}."
            )
        for name in ("train_file", "validation_file", "test_file"):
            for file in getattr(self, name) or []:
                if not Path(file).is_file():
                    raise InputError(f"--{name} {file!r} does not exist; a {self.file_kinds} file is accepted.")
                if Path(file).stat().st_size == 0:
                    raise InputError(f"--{name} {file!r} is empty; a {self.file_kinds} file with content is accepted.")
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"--validation_fraction {self.validation_fraction} must be more than 0 and less than 1.")

    def source(self, split: str) -> str:
        """The flag that names a split's data, and its value, for messages."""
        if files := getattr(self, f"{split}_file"):
            return f"--{split}_file {' '.join(files)}"
        if self.dataset_name is None:  # it is held out
            return f"the {split} part (--validation_fraction {self.validation_fraction}) of {self.source('train')}"
        return f"--{split}_split {getattr(self, f'{split}_split') or split} of {self.location}"

    @property
    def location(self) -> str:
        """The flags that name the data set, for messages."""
        config = f" (--dataset_config_name {self.dataset_config_name})" if self.dataset_config_name else ""
        return f"--dataset_name {self.dataset_name}{config}"

    @property
    def data_name(self) -> str:
        """What a card calls the data: a Hub id with its configuration, or the names of a local folder or files."""
        if self.train_file:
            return ", ".join(Path(file).resolve().name for file in self.train_file)
        if Path(self.dataset_name).exists():
            return Path(self.dataset_name).resolve().name
        return self.dataset_name + (f" ({self.dataset_config_name})" if self.dataset_config_name else "")

    @property
    def dataset_id(self) -> str | None:
        """The Hub id of the data, if it has one."""
        return None if self.train_file or Path(self.dataset_name).exists() else self.dataset_name


def load_split(args: DataFileArguments, split: str) -> datasets.Dataset | None:
    """
    The rows of "train", "validation" or "test"; None where the arguments ask for none. Validation is taken unasked
    where a data set has it.

    Raises:
        InputError: there are no such files, data set or split, or they can't be read.
    """
    if getattr(args, f"{split}_file"):
        return load_files(args, split)
    split_name = getattr(args, f"{split}_split")
    if args.dataset_name is None or (split == "test" and split_name is None):
        return None
    name = (args.dataset_name, args.dataset_config_name)
    try:
        available = datasets.get_dataset_split_names(*name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{args.location} can't be loaded; an id on the Hub and a local folder are accepted: {error}"
        ) from error
    if split_name is None and "validation" not in available:
        return None
    try:
        return datasets.load_dataset(*name, split=split_name or "validation")
    except ValueError as error:
        raise InputError(
            f"{args.source(split)} does not exist; accepted: {', '.join(available)}, or a part such as "
            f"{available[0]}[:10%]."
        ) from error


def load_files(args: DataFileArguments, split: str) -> datasets.Dataset:
    files = getattr(args, f"{split}_file")
    formats = {FORMATS.get(Path(file).suffix.lower(), "text") for file in files}
    if len(formats) > 1:
        raise InputError(f"{args.source(split)} mixes {' and '.join(sorted(formats))}; one format is accepted.")
    try:
        return datasets.load_dataset(formats.pop(), data_files={"train": files}, split="train")
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        raise InputError(
            f"{args.source(split)} can't be read; a {args.file_kinds} file in UTF-8, with rows in it, is accepted: "
            f"{error.__cause__ or error}"
        ) from error
