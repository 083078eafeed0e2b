# SPDX-License-Identifier: Apache-2.0
"""The command line of the training scripts: a recipe and flags. Flags override the recipe; errors say what to do."""

import json
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .errors import UsageError, one_line
from .flags import CommandParser, suggestion

# These belong together: as soon as one is given, Trainer's own defaults hold for the others.
EVALUATION_FLAGS = ("eval_strategy", "eval_steps", "save_strategy", "save_steps")
TRAINING_DEFAULTS = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,  # of all steps
    "weight_decay": 0.1,
    "logging_steps": 20,
    "dataloader_pin_memory": False,
}
EVALUATION_DEFAULTS = {
    "eval_strategy": "steps",
    "eval_steps": 0.1,  # of all steps
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
}


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    def _get_help_string(self, action: Action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)


@dataclass
class Defaults:
    """
    What a training script takes where neither a recipe nor a flag says anything, beside `TRAINING_DEFAULTS` and
    `EVALUATION_DEFAULTS`.

    Args:
        new: flags and their values, for a new model.
        fine_tuning: flags and their values with --model_name_or_path.
        architecture: flags and their values with --model_type.
        shown: flags and what they come to in the end where they are unset, for --help alone.
    """

    new: dict[str, Any] = field(default_factory=dict)
    fine_tuning: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)

    def flags(self, given: set[str]) -> list[str]:
        """The defaults beneath the flags that are given, themselves as flags."""
        own = self.fine_tuning if "model_name_or_path" in given else self.new
        values = TRAINING_DEFAULTS | (self.architecture if "model_type" in given else own)
        if not given.intersection(EVALUATION_FLAGS):
            values |= EVALUATION_DEFAULTS
        return [f"--{name}={value}" for name, value in values.items()]

    def explain(self, action: Action):
        """Adds a flag's default to its help."""
        name = action.dest
        if name in self.fine_tuning and name in self.new and self.fine_tuning[name] != self.new[name]:
            text = f"{self.new[name]}; with --model_name_or_path {self.fine_tuning[name]}"
        elif name in self.new and name in self.fine_tuning:
            text = self.new[name]
        elif name in self.new or name in self.shown:
            value = self.new.get(name, self.shown.get(name))
            text = f"{value}; with --model_name_or_path, that of the checkpoint"
        elif name in EVALUATION_DEFAULTS:
            flags = ", ".join(f"--{flag}" for flag in EVALUATION_FLAGS)
            others = "unset" if action.default is None else action.default
            text = f"{EVALUATION_DEFAULTS[name]}; where one of {flags} is given: {others}"
        elif name in TRAINING_DEFAULTS:
            text = TRAINING_DEFAULTS[name]
        else:
            return
        action.help = f"{action.help} (default: {text})"
        action.default = None  # what was said here is not said again


class TrainingParser(HfArgumentParser, CommandParser):
    """
    A parser of dataclasses. The annotation of a field gives a flag's type, unless its metadata names a narrower one as
    "type", or `flag_types` of the dataclass does: {name: type}, for fields that it inherits.
    """

    def __init__(self, argument_types: Sequence[type], **kwargs):
        super().__init__(argument_types, **kwargs)
        for arguments in argument_types:
            types = {flag.name: flag.metadata["type"] for flag in fields(arguments) if "type" in flag.metadata}
            types |= getattr(arguments, "flag_types", {})
            for action in self._actions:
                action.type = types.get(action.dest, action.type)


def parse_arguments(
    argument_types: Sequence[type], argv: list[str], description: str, defaults: Defaults | None = None
) -> tuple:
    """
    One dataclass of each type from `[RECIPE.yaml] [--flag value ...]`. What is wrong ends the program with a message.
    """
    unsupported = {name for arguments in argument_types for name in getattr(arguments, "unsupported_flags", ())}
    parser = TrainingParser(
        argument_types,
        description=description,
        usage="%(prog)s [RECIPE.yaml] [--flag value ...]; --help lists the flags",
        formatter_class=HelpFormatter,
    )
    try:
        if argv and not argv[0].startswith("-"):
            options = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
            known = {name for name in options if "-" not in name}
            # Of two values for one flag the later one counts.
            argv = [*recipe_flags(argv[0], known, unsupported), *argv[1:]]
        if defaults is not None:
            argv = [*defaults.flags(given_flags(argv)), *argv]
            if {"-h", "--help"}.intersection(argv):
                for action in parser._actions:
                    defaults.explain(action)
        _, unknown = parser.parse_known_args(argv)
        if unknown:  # before the dataclasses miss the flag that was meant
            flags = [flag for action in parser._actions for flag in action.option_strings]
            hint = f"{suggestion(unknown, flags)}; --help lists all flags."
            if elsewhere := given_flags(unknown) & unsupported:
                names = ", ".join(f"--{name}" for name in sorted(elsewhere))
                hint = f"; {names}: Trainer's alone, not honoured here."
            parser.error(f"unknown arguments: {' '.join(unknown)}{hint}")
        return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except ValueError as error:
        parser.error(one_line(error))


def given_flags(argv: list[str]) -> set[str]:
    return {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def recipe_flags(path: str, known: set[str], unsupported: set[str]) -> list[str]:
    """The lines of a recipe as flags, so that both are parsed and checked alike."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"recipe {path!r} can't be read (expected a YAML file): {error}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"recipe {path!r} has no lines of `flag: value` (expected at least one)")
    flags = []
    for key, value in recipe.items():
        if key in unsupported:
            raise UsageError(f"recipe {path!r} has an unknown key {key!r}: Trainer's alone, not honoured here.")
        if key not in known:
            hint = suggestion([str(key)], sorted(known))
            raise UsageError(f"recipe {path!r} has an unknown key {key!r}{hint}; --help lists all flags.")
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
