# SPDX-License-Identifier: Apache-2.0
"""Parsers and types of flags, for commands and for what they share. Importing this module changes nothing."""

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path


class CommandParser(argparse.ArgumentParser):
    """A parser of flags written out in full, which suggests the flag that a misspelt one may mean."""

    def __init__(self, *args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs):
        super().__init__(*args, formatter_class=formatter_class, allow_abbrev=allow_abbrev, **kwargs)

    def flags(self) -> Iterable[str]:
        """All flags, those of subcommands too."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.flags()

    def error(self, message: str):
        subject, _, unknown = message.partition("unrecognized arguments: ")
        if not subject:
            message += suggestion(unknown.split(), list(self.flags()))
        # Of a flag's spellings, "--batch_size/--batch-size", the first is enough.
        super().error(re.sub(r"^argument (-[\w-]+)(/-[\w-]+)*", r"\1", message).removeprefix("argument "))


def number(
    kind: type[int] | type[float],
    *,
    at_least: float | None = None,
    more_than: float | None = None,
    at_most: float | None = None,
    less_than: float | None = None,
) -> Callable[[str], int | float]:
    """
    The `type` of an argparse argument: a finite number within bounds.

    Raises:
        argparse.ArgumentTypeError: (by what is returned) the text is no such number.
    """
    bounds = {"at least": at_least, "more than": more_than, "at most": at_most, "less than": less_than}
    stated = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
    expected = f"{'an integer' if kind is int else 'a number'}{' of ' * bool(stated)}{stated}"

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
            is_finite = math.isfinite(value)
        except (ValueError, OverflowError):
            is_finite = False
        if (
            not is_finite
            or (at_least is not None and value < at_least)
            or (more_than is not None and value <= more_than)
            or (at_most is not None and value > at_most)
            or (less_than is not None and value >= less_than)
        ):
            raise argparse.ArgumentTypeError(f"{text} (expected {expected})")
        return value

    return parse


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """
    The `type` of an argparse argument: a file to write when the work is done, refused before it begins.

    Args:
        suffixes: what its name may end with; anything where none is given.

    Raises:
        argparse.ArgumentTypeError: (by what is returned) the name ends otherwise, is a folder's, or the file can't be
            made, as one of its parents is a file or may not be written to.
    """

    def parse(text: str) -> Path:
        path = Path(text)
        if suffixes and path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} (expected a name that ends with {' or '.join(suffixes)})")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a folder (expected a file's name)")
        check_writable(path, text)
        return path

    return parse


def output_folder(text: str) -> Path:
    """
    The `type` of an argparse argument: a folder to write files to, refused before the work whose results they are.

    Raises:
        argparse.ArgumentTypeError: it is a file, or one of its parents is, or it may not be written to.
    """
    path = Path(text)
    check_writable(path / "file", text)
    return path


def check_writable(path: Path, text: str):
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} can't be written: {str(parent)!r} is a file (expected a folder)")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r} can't be written: no permission to write to {str(parent)!r}")


def add_data_arguments(parser: argparse.ArgumentParser, purpose: str = "evaluate on"):
    """Adds the flags that say what data to use: --data, or those of the training scripts for test data."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help=f"What to {purpose}: a file, a folder, or a data set on the Hub.")
    source.add_argument("--test_file", nargs="+", help=f"Files to {purpose}, in any format of the training data.")
    source.add_argument("--dataset_name", help=f"Data set to {purpose}: an id on the Hub or a local folder.")
    parser.add_argument("--dataset_config_name", help="Configuration of the data set.")
    parser.add_argument(
        "--split",
        "--test_split",
        help="Split of a data set or of music. (default: test, unless another flag asks for one)",
    )


positive_integer = number(int, at_least=1)
fraction = number(float, more_than=0, less_than=1)
seed = number(int, at_least=0, at_most=2**32 - 1)


def suggestion(words: Iterable[str], flags: list[str]) -> str:
    """ " (did you mean --flag?)" for the flags nearest to unknown words, or nothing."""
    names = (word.partition("=")[0] for word in words)
    nearest = [match for name in names for match in difflib.get_close_matches(name, flags, n=1)]
    return f" (did you mean {' '.join(dict.fromkeys(nearest))}?)" if nearest else ""
