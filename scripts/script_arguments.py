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
"""The command line of the training scripts: a recipe and flags, flags winning, and errors that say what to do."""

import json
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import yaml
from command_line import InputError, suggestion
from transformers import HfArgumentParser


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    pass


def parse_arguments(argument_types: Sequence[type], argv: list[str], description: str) -> tuple:
    """
    One dataclass of each type from `[RECIPE.yaml] [--flag value ...]`. What is wrong ends the program with a message.
    """
    parser = HfArgumentParser(
        argument_types,
        description=description,
        usage="%(prog)s [RECIPE.yaml] [--flag value ...]; --help lists the flags",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    try:
        if argv and not argv[0].startswith("-"):
            known = {flag.name for arguments in argument_types for flag in fields(arguments) if flag.init}
            argv = [*recipe_flags(argv[0], known), *argv[1:]]  # of two values for one flag the later one counts
        *arguments, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        parser.error(f"unknown arguments: {' '.join(unknown)}{suggestion(unknown, flags)}; --help lists all flags.")
    return tuple(arguments)


def recipe_flags(path: str, known: set[str]) -> list[str]:
    """The lines of a recipe as flags, so that they are read and checked as those are."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"recipe {path!r} can't be read; a YAML file is accepted: {error}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"recipe {path!r} has no lines of `flag: value`, which are accepted.")
    flags = []
    for key, value in recipe.items():
        if key not in known:
            hint = suggestion([str(key)], sorted(known))
            raise InputError(f"recipe {path!r} has an unknown key {key!r}{hint}; --help lists all flags.")
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
