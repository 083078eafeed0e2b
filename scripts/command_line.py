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
"""What every command does with its arguments, with input that can't be used, and when Ctrl-C stops it."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class InputError(ValueError):
    """An argument that can't be used. The message names it, its value and what was expected."""


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
        super().error(message)


def suggestion(words: Iterable[str], flags: list[str]) -> str:
    """ " (did you mean --flag?)" for the flags nearest to unknown words, or nothing."""
    names = (word.partition("=")[0] for word in words)
    nearest = [match for name in names for match in difflib.get_close_matches(name, flags, n=1)]
    return f" (did you mean {' '.join(dict.fromkeys(nearest))}?)" if nearest else ""


def run_command(main: Callable[[], None]):
    """
    Runs a command to its end. Unusable input ends it with one line and exit code 1; Ctrl-C with one line, to which
    `KeyboardInterrupt` may add how to go on, and exit code 130.
    """
    name = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        sys.exit(f"{name}: error: {error}")
    except KeyboardInterrupt as interrupt:
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            hint = f" {interrupt}" if str(interrupt) else ""
            print(f"\n{name}: stopped.{hint}", file=sys.stderr)
        sys.exit(130)
