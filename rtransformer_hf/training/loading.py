# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints opened strictly. Transformers draws weights that a checkpoint lacks at random, leaves out those that the
model lacks, and says so in a log alone.
"""

from collections.abc import Collection

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import FEATURE_EXTRACTOR_NAME, cached_file

from .. import RTransformerConfig
from .errors import listed, one_line


def read_config(checkpoint: str) -> PreTrainedConfig:
    """
    Raises:
        OSError: there is no such checkpoint.
        ValueError: its configuration is of no model, or has a value of another type than expected.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint)
    except StrictDataclassError as error:
        raise ValueError(f"in its configuration: {one_line(error)}") from error


def has_processor(checkpoint: str) -> bool:
    """
    Whether a checkpoint has an image processor or a feature extractor, even one that can't be read.

    Raises:
        OSError: there is no such checkpoint, or the Hub can't be reached.
    """
    return cached_file(checkpoint, FEATURE_EXTRACTOR_NAME, _raise_exceptions_for_missing_entries=False) is not None


def open_model(auto_class: type, checkpoint: str, **settings) -> PreTrainedModel:
    """
    A checkpoint's model, whose weights are those that the checkpoint has, all of them and finite. Only where its class
    or the kind of its key head is another than the checkpoint's does it have a new head.

    Args:
        auto_class: an Auto class, or the model's.
        checkpoint: a folder or an id on the Hub.
        settings: fields of the configuration and other arguments of `from_pretrained`.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: weights are missing, left over (of an R-Transformer), of another shape or not finite, or the
            configuration makes no model.
    """
    trained = read_config(checkpoint)
    try:
        model, loading = auto_class.from_pretrained(
            checkpoint, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(one_line(error)) from error
    missing, unexpected = loading["missing_keys"], loading["unexpected_keys"]
    has_new_head = type(model).__name__ not in (trained.architectures or [type(model).__name__]) or (
        getattr(trained, "key_head_type", None) != getattr(model.config, "key_head_type", None)
    )
    if not isinstance(model.config, RTransformerConfig):
        # Transformers has older checkpoints with buffers that models no longer have, and bodies without their pooler.
        missing, unexpected = set() if has_new_head else missing, set()
    elif has_new_head:
        missing, unexpected = below_head(model, missing), below_head(model, unexpected)
    faults = {
        "missing": missing,
        "left over": unexpected,
        "of another shape": {
            f"{name} ({list(found)}, expected {list(shape)})" for name, found, shape in loading["mismatched_keys"]
        },
    }
    if any(faults.values()):
        found = (f"{fault}: {listed(sorted(names), most=1)}" for fault, names in faults.items() if names)
        raise ValueError(f"its weights do not fit the configuration ({'; '.join(found)})")
    weights = [item for item in model.named_parameters() if type(item[1]) is nn.Parameter]  # others are quantised
    if broken := [name for name, weight in weights if weight.is_floating_point() and not weight.isfinite().all()]:
        raise ValueError(f"its weights are not finite: {listed(sorted(broken), most=1)}")
    return model


def below_head(model: PreTrainedModel, names: Collection[str]) -> set[str]:
    """The names of weights of the base model, which has no prefix in a checkpoint of its own."""
    parts = dict(model.base_model.named_children())
    return {name for name in names if name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] in parts}
