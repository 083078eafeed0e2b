# SPDX-License-Identifier: Apache-2.0
"""
R-Transformer (arXiv 1907.05572) for Hugging Face Transformers.

Importing the package makes the model known to the Auto classes of Transformers. PyTorch and Transformers load with the
first class that is used, so that a command answers `--help` and Ctrl-C at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import auto_registration

if TYPE_CHECKING:
    from .configuration_rtransformer import RTransformerConfig
    from .feature_extraction_rtransformer import RTransformerFeatureExtractor
    from .image_processing_rtransformer import RTransformerImageProcessor
    from .modeling_rtransformer import (
        RTransformerForCausalLM,
        RTransformerForPolyphonicMusic,
        RTransformerForSequenceClassification,
        RTransformerForTimeSeriesPrediction,
        RTransformerForTokenClassification,
        RTransformerModel,
        RTransformerPreTrainedModel,
    )

__version__ = "0.1.0"

__all__ = [
    "RTransformerConfig",
    "RTransformerFeatureExtractor",
    "RTransformerForCausalLM",
    "RTransformerForPolyphonicMusic",
    "RTransformerForSequenceClassification",
    "RTransformerForTimeSeriesPrediction",
    "RTransformerForTokenClassification",
    "RTransformerImageProcessor",
    "RTransformerModel",
    "RTransformerPreTrainedModel",
]

MODULES = {
    "RTransformerConfig": "configuration_rtransformer",
    "RTransformerFeatureExtractor": "feature_extraction_rtransformer",
    "RTransformerImageProcessor": "image_processing_rtransformer",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULES.get(name, 'modeling_rtransformer')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


auto_registration.start()
