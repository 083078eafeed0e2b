# SPDX-License-Identifier: Apache-2.0
"""Models of any architecture of Transformers: their configuration from text, and what a training relies on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from .errors import UsageError
from .flags import suggestion

TRUE, FALSE = ("true", "1", "yes", "y"), ("false", "0", "no", "n")  # as of PreTrainedConfig.update_from_string
EXPECTED_OVERRIDES = "expected NAME=VALUE,NAME=VALUE,... or a JSON object"
SET_BY_DATA = {
    **dict.fromkeys(("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"), "the tokenizer"),
    **dict.fromkeys(("num_labels", "id2label", "label2id", "problem_type"), "the labels"),
    "model_type": "--model_type",
}


def new_config(
    auto_class: type[_BaseAutoModelClass], model_type: str, overrides: str | None, settings: dict[str, Any]
) -> PreTrainedConfig:
    """
    The configuration of a new model. What is not overridden has the default of the architecture, or follows from what
    is, as the width of a head does from that of the model.

    Args:
        auto_class: that of the task.
        model_type: as of `AutoConfig.for_model`.
        overrides: fields of the configuration, as of `parse_overrides`.
        settings: fields that follow from the data; those that are None are not set.

    Raises:
        UsageError: there is no such architecture, or it has no model for the task, or not with these fields.
    """
    accepted = sorted({config.model_type for config in auto_class._model_mapping})
    if model_type not in accepted:
        raise UsageError(
            f"--model_type: unknown to {auto_class.__name__}: {model_type!r}{suggestion([model_type], accepted)} "
            f"(expected {', '.join(accepted)})"
        )
    changed = {} if overrides is None else parse_overrides(overrides, AutoConfig.for_model(model_type))
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        return AutoConfig.for_model(model_type, **settings, **changed)
    except Exception as error:  # of some two hundred configurations
        raise UsageError(
            f"--config_overrides {overrides!r} make no configuration of {model_type}: {' '.join(str(error).split())}"
        ) from error


def parse_overrides(text: str, defaults: PreTrainedConfig) -> dict[str, Any]:
    """
    Fields of a configuration from "hidden_size=256,hidden_act=silu", as `PreTrainedConfig.update_from_string` reads
    them, or from a JSON object, which can hold lists.

    Args:
        text: to read.
        defaults: says which fields there are, and of which type.

    Raises:
        UsageError: the text is of another form, names no field, or a value is of another type than the default.
    """
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"--config_overrides: {text!r} ({EXPECTED_OVERRIDES}): {error}") from error
    else:
        pairs = [pair.partition("=") for pair in text.split(",")]
        if not all(name.strip() and equals and value.strip() for name, equals, value in pairs):
            raise UsageError(f"--config_overrides: {text!r} ({EXPECTED_OVERRIDES}, such as hidden_size=256)")
        values = {name.strip(): value.strip() for name, _, value in pairs}
    fields, overrides = [*defaults.to_dict(), *defaults.attribute_map], {}
    for name, value in values.items():
        if name in SET_BY_DATA:
            raise UsageError(f"--config_overrides: {name} follows from {SET_BY_DATA[name]} (expected other fields)")
        if name not in fields:
            raise UsageError(
                f"--config_overrides: unknown to {defaults.model_type}: {name!r}{suggestion([name], fields)} "
                f"(expected a field of {type(defaults).__name__})"
            )
        overrides[defaults.attribute_map.get(name, name)] = typed(name, value, getattr(defaults, name))
    return overrides


def typed(name: str, value: Any, default: Any) -> Any:
    """
    The value of a field, from text by the type of its default; the configuration checks the types that come out.

    Raises:
        UsageError: it is no truth value, and the default is one.
    """
    if isinstance(default, bool):
        if str(value).lower() not in (*TRUE, *FALSE):
            raise UsageError(f"--config_overrides: {name}={value} (expected true or false)")
        return str(value).lower() in TRUE
    if isinstance(value, str) and not isinstance(default, str):
        with suppress(ValueError):  # of a field without a default, a name
            value = json.loads(value)
    return float(value) if isinstance(default, float) and isinstance(value, int) else value


def check_context(model: PreTrainedModel, num_tokens: int, what: str):
    """
    Args:
        model: that is to read sequences.
        num_tokens: of the longest.
        what: the flag that makes them so long, for the message.

    Raises:
        UsageError: the model has no positions for so many.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < num_tokens:
        raise UsageError(
            f"{what}: sequences of {num_tokens:,} tokens (expected at most {limit:,}, the max_position_embeddings of "
            f"{type(model).__name__}; for a new model, --config_overrides max_position_embeddings={num_tokens})"
        )


@contextmanager
def tried(model: PreTrainedModel, message: str) -> Iterator[None]:
    """Sets the model to evaluation meanwhile, and turns any error into a UsageError that begins with the message."""
    was_training = model.training
    model.eval()
    try:
        yield
    except Exception as error:  # of some two hundred architectures
        raise UsageError(f"{message}: {' '.join(str(error).split())[:500]}") from error
    finally:
        model.train(was_training)


@torch.no_grad()
def check_labels_of_text(model: PreTrainedModel, batch: dict[str, torch.Tensor], what: str):
    """
    Args:
        model: a classifier or tagger of texts that is not this package's own.
        batch: what it is to be trained on, the longest sequence among it: `input_ids`, (batch, time), and `labels`.
        what: the flag that it comes from, for the message.

    Raises:
        UsageError: the model does not run on it, as some with encoder and decoder do not, or gives logits of another
            shape than (batch, labels), or for tags (batch, time, labels).
    """
    with tried(model, f"{what}: {type(model).__name__} can't be used on these tokens alone"):
        outputs = model(**batch)
        found, loss = tuple(outputs.logits.shape), outputs.loss
    labels = batch["labels"]
    of_tokens = labels.shape == batch["input_ids"].shape and labels.dtype == torch.long
    expected = (*batch["input_ids"].shape[: 1 + of_tokens], model.config.num_labels)
    if found != expected or loss is None:
        raise UsageError(
            f"{what}: {type(model).__name__} gives logits of shape {found}, and a loss: {loss is not None} (expected "
            f"{expected}, and a loss)"
        )


@torch.no_grad()
def check_causal_lm(model: PreTrainedModel, what: str, is_new: bool):
    """
    Args:
        model: a causal language model that is not this package's own.
        what: the flag that it comes from, for the message.
        is_new: whether its loss is checked as well.

    Raises:
        UsageError: the model does not run on tokens alone, or what it predicts of a token depends on later tokens, as
            with BERT's classes unless `is_decoder` is set; or its loss is not the sum over predicted tokens divided by
            `num_items_in_batch`, as accumulated batches and windows with context rely on.
    """
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.arange(8, device=model.device) % vocab_size
    changed = tokens.clone()
    changed[5:] = (changed[5:] + 1) % vocab_size
    labels = tokens.clone()[None]
    labels[:, :3] = -100
    with tried(model, f"{what}: {type(model).__name__} can't be used on tokens alone"):
        logits, changed_logits = (model(input_ids=ids[None]).logits for ids in (tokens, changed))
        loss = model(input_ids=tokens[None], labels=labels, num_items_in_batch=2).loss if is_new else None
    difference = (logits - changed_logits)[0].abs().amax(-1)
    if difference[:5].max() > 1e-5 * difference[5:].max():
        raise UsageError(
            f"{what}: {type(model).__name__} sees later tokens than the one that it predicts (expected a causal "
            "model, as many are with is_decoder=true)"
        )
    expected = F.cross_entropy(logits[0, 2:-1].float(), tokens[3:], reduction="sum") / 2
    if loss is not None and not torch.isclose(loss.float(), expected, rtol=1e-3):
        raise UsageError(
            f"{what}: {type(model).__name__} computes a loss of its own, {loss:.4f} in place of {expected:.4f} "
            "(expected a sum over the predicted tokens, divided by num_items_in_batch)"
        )
