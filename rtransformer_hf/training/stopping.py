# SPDX-License-Identifier: Apache-2.0
"""What a command says when Ctrl-C stops it."""

from collections.abc import Callable

_how_to_go_on: Callable[[], str] | None = None


def on_stop(how_to_go_on: Callable[[], str] | None):
    """From now on, Ctrl-C is answered with the sentence that `how_to_go_on` returns, too; None: no longer."""
    global _how_to_go_on
    _how_to_go_on = how_to_go_on


def hint() -> str:
    """The sentence, after a space, or nothing."""
    return f" {_how_to_go_on()}" if _how_to_go_on is not None else ""
