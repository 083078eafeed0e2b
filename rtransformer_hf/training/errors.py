# SPDX-License-Identifier: Apache-2.0
"""The error that every module of this package raises for what a user has given, and what its messages share."""

from collections.abc import Iterable


class UsageError(ValueError):
    """An argument that can't be used. The message names it, its value and what was expected."""


def listed(values: Iterable, most: int = 10) -> str:
    values = list(map(str, values))
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
