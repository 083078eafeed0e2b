# SPDX-License-Identifier: Apache-2.0
"""Labels by the names that a model's configuration gets, the same in every task."""

import logging
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import datasets
import numpy as np
from transformers import PreTrainedConfig

from .data_files import BYTE_ORDER_MARK
from .errors import UsageError, listed

logger = logging.getLogger(__name__)

INTEGER = re.compile(r"0|-?[1-9]\d*")
DECIMAL = re.compile(r"[+-]?\d+(\.\d+)?")
LABEL_KINDS = ("ClassLabel", "string", "large_string", "bool", "int", "uint", "float")  # how their names begin


def names_of(labels: Sequence, feature: datasets.ClassLabel | datasets.Value) -> list[str]:
    """Strings without white space around them, integers by their digits, truth values as True and False."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(labels)
    if feature.dtype.startswith("float"):
        return [np.format_float_positional(label, trim="0") for label in labels]
    return [str(label).replace(BYTE_ORDER_MARK, "").strip() for label in labels]


def without_fractions(parts: list[list[str]], place: Callable[[int, int], str]) -> list[list[str]]:
    """
    The names of labels, where 1.0 is the integer 1 if all of them are numbers.

    Args:
        parts: names as of [`names_of`].
        place: says for messages what holds a label, by its part and its position there.

    Raises:
        UsageError: all labels are numbers, and one of them a fraction.
    """
    found = set().union(*parts)
    if not any("." in name for name in found) or not all(map(DECIMAL.fullmatch, found)):
        return parts
    fractions = {name for name in found if not float(name).is_integer()}
    for index, part in enumerate(parts if fractions else ()):
        for position, name in enumerate(part):
            if name in fractions:
                raise UsageError(f"{place(index, position)}: the fraction {name} (expected names or integers)")
    return [[str(int(float(name))) for name in part] for part in parts]


def in_order(names: Iterable[str]) -> list[str]:
    """Integers by size, other names in alphabetical order."""
    names = sorted(names)
    return sorted(names, key=int) if all(map(INTEGER.fullmatch, names)) else names


def trained_label2id(config: PreTrainedConfig, architecture: str) -> dict[str, int] | None:
    """The class indices of a trained classifier, by name; None if the model is of another task than `architecture`."""
    if not (config.architectures or [""])[0].endswith(architecture):
        return None
    return {name: index for index, name in config.id2label.items()}


def fit_label2id(label2id: dict[str, int], trained: dict[str, int], where: str) -> dict[str, int]:
    """
    The class indices of a classifier that has been trained, for labels of data.

    Args:
        label2id: those of the data, by name.
        trained: those of the classifier. Where it has none but the names that the library gives, LABEL_0 and so on,
            its classes go by the indices of the data's.
        where: the data, for the message.

    Raises:
        UsageError: the data has labels that the classifier does not know.
    """
    if all(name == f"LABEL_{index}" for name, index in trained.items()):
        if len(label2id) == len(trained):
            return label2id
    elif label2id.keys() <= trained.keys():
        return trained
    raise UsageError(
        f"{where} has {len(label2id)} labels ({listed(label2id)}), those of --model_name_or_path are {len(trained)} "
        f"({listed(trained)}) (expected labels of the model, or a model of another task, which gets a new head)"
    )


def log_repeats(inputs: Mapping[str, Iterable[Hashable]], source: Callable[[str], str]):
    """
    Warns of inputs to validate or test on that are those of training rows as well, as where an id is in both.

    Args:
        inputs: of each split, "train" among them.
        source: names a split, for messages.
    """
    known = set(inputs["train"])
    for split in [split for split in inputs if split != "train"]:
        found = [value in known for value in inputs[split]]
        if any(found):
            logger.warning(
                f"{source(split)}: {sum(found):,} of {len(found):,} inputs are in the training data as well, so their "
                "figures say little of new ones."
            )
