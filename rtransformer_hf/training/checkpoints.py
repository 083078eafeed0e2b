# SPDX-License-Identifier: Apache-2.0
"""Opens the checkpoint of a task. One of another task is refused: the Auto classes would give it an untrained head."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioFrameClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

import rtransformer_hf
from rtransformer_hf import RTransformerFeatureExtractor

from .errors import UsageError
from .loading import open_model, read_config
from .model_arguments import (
    CAUSAL_LM_ARCHITECTURES,
    EVALUATION_FILE,
    check_architecture,
    default_device,
    trained_settings,
)
from .piano_rolls import NUM_KEYS

NUM_DIGITS = 10


@contextmanager
def open_checkpoint(checkpoint: str, expected: str, *architectures: str) -> Iterator[str]:
    """
    Checks the task of a checkpoint, and yields the name of its model class. The block loads what it needs.

    Args:
        checkpoint: a folder or an id on the Hub.
        expected: what the block loads, as a folder or Hub id "of ...".
        architectures: accepted model classes, or endings of their names.

    Raises:
        UsageError: there is no such checkpoint, it is of another task, or the block can't load it.
    """
    try:
        yield check_architecture(checkpoint, *architectures)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"checkpoint {checkpoint!r} can't be used (expected a folder or Hub id of {expected}): {error}"
        ) from error


def model_class(architecture: str) -> type[PreTrainedModel]:
    """
    The class of a name, as configurations and cards have it.

    Raises:
        ValueError: it is neither of this package nor of Transformers.
    """
    found = getattr(rtransformer_hf, architecture, None) or getattr(transformers, architecture, None)
    if found is None:
        raise ValueError(f"neither Transformers nor this package has {architecture}")
    return found


def load_causal_lm(checkpoint: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    A causal language model, on the accelerator if there is one, and its tokenizer.

    Raises:
        UsageError: there is no such checkpoint, or it holds something else.
    """
    with open_checkpoint(checkpoint, "a causal language model with its tokenizer", *CAUSAL_LM_ARCHITECTURES):
        model = open_model(AutoModelForCausalLM, checkpoint)
        return model.to(default_device()), AutoTokenizer.from_pretrained(checkpoint)


def load_music_model(checkpoint: str) -> PreTrainedModel:
    """
    A model of piano rolls with 88 keys, on the accelerator if there is one.

    Raises:
        UsageError: there is no such checkpoint, or it holds something else.
    """
    expected = f"a model of piano rolls with {NUM_KEYS} keys"
    with open_checkpoint(checkpoint, expected, "RTransformerForPolyphonicMusic"):
        if (input_size := read_config(checkpoint).input_size) != NUM_KEYS:
            raise ValueError(f"its input_size is {input_size}")
        return open_model(AutoModelForAudioFrameClassification, checkpoint).to(default_device())


def load_digit_classifier(checkpoint: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    A causal classifier of handwritten digits that reads their grey pixels row by row, on the accelerator if there is
    one, and its image processor.

    Raises:
        UsageError: there is no such checkpoint, or it holds something else.
    """
    expected = f"a causal classifier of {NUM_DIGITS} digits, reading grey pixels row by row, with its image processor"
    with open_checkpoint(checkpoint, expected, "RTransformerForSequenceClassification"):
        model = open_model(AutoModelForSequenceClassification, checkpoint).to(default_device())
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        config, permutation_seed = model.config, getattr(processor, "permutation_seed", None)
        found = (config.input_size, config.num_labels, config.is_causal, permutation_seed)
        if found != (1, NUM_DIGITS, True, None):
            raise ValueError(f"its input_size, num_labels, is_causal and permutation_seed are {found}")
        return model, processor


def load_text_classifier(checkpoint: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """
    A classifier of texts, or a model that predicts a number from them, on the accelerator if there is one, its
    tokenizer, and how its training data was read, as far as that is known.

    Raises:
        UsageError: there is no such checkpoint, or it holds something else.
    """
    return load_text_reader(
        checkpoint, "a classifier of texts", "ForSequenceClassification", AutoModelForSequenceClassification
    )


def load_tagger(checkpoint: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """
    As of [`load_text_classifier`], a tagger of words.

    Raises:
        UsageError: there is no such checkpoint, or it holds something else.
    """
    return load_text_reader(checkpoint, "a tagger of words", "ForTokenClassification", AutoModelForTokenClassification)


def load_text_reader(
    checkpoint: str, expected: str, architecture: str, auto_class: type
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    with open_checkpoint(checkpoint, f"{expected} with its fast tokenizer", architecture):
        model = open_model(auto_class, checkpoint)
        if (input_size := getattr(model.config, "input_size", None)) is not None:
            raise ValueError(f"it reads vectors of {input_size} values")
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        if not tokenizer.is_fast:
            raise ValueError(f"its tokenizer, {type(tokenizer).__name__}, does not tell the characters of a token")
        return model.to(default_device()), tokenizer, trained_settings(checkpoint)


def load_forecaster(checkpoint: str) -> tuple[PreTrainedModel, RTransformerFeatureExtractor, dict]:
    """
    A model that forecasts time series without other covariates than the season, on the accelerator if there is one,
    its feature extractor, and how its training data was read.

    Raises:
        UsageError: there is no such checkpoint, or it holds something else.
    """
    expected = "a model that forecasts time series, with its feature extractor"
    with open_checkpoint(checkpoint, expected, "RTransformerForTimeSeriesPrediction"):
        model = open_model(AutoModelForTimeSeriesPrediction, checkpoint).to(default_device())
        settings = json.loads(Path(cached_file(checkpoint, EVALUATION_FILE)).read_text(encoding="utf-8"))
        if settings["covariate_columns"]:
            raise ValueError(f"it reads the covariates {settings['covariate_columns']}")
        return model, AutoFeatureExtractor.from_pretrained(checkpoint), settings
