# SPDX-License-Identifier: Apache-2.0
"""The error that every module of this package raises for what a user has given."""


class UsageError(ValueError):
    """An argument that can't be used. The message names it, its value and what was expected."""
