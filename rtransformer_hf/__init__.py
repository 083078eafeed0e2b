# SPDX-License-Identifier: Apache-2.0
"""
R-Transformer (arXiv 1907.05572) for Hugging Face Transformers.

Importing the package makes the model known to the Auto classes of Transformers.
"""

import transformers
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .configuration_rtransformer import RTransformerConfig
from .image_processing_rtransformer import RTransformerImageProcessor
from .modeling_rtransformer import (
    AUTO_CLASSES,
    RTransformerForCausalLM,
    RTransformerForPolyphonicMusic,
    RTransformerForSequenceClassification,
    RTransformerForTokenClassification,
    RTransformerModel,
    RTransformerPreTrainedModel,
)

__version__ = "0.1.0"

for name, registered_class in AUTO_CLASSES.items():
    key = RTransformerConfig.model_type if name == "AutoConfig" else RTransformerConfig
    getattr(transformers, name).register(key, registered_class, exist_ok=True)
del name, registered_class, key
AutoImageProcessor.register(
    RTransformerConfig, image_processor_classes={"pil": RTransformerImageProcessor}, exist_ok=True
)

__all__ = [
    "RTransformerConfig",
    "RTransformerForCausalLM",
    "RTransformerForPolyphonicMusic",
    "RTransformerForSequenceClassification",
    "RTransformerForTokenClassification",
    "RTransformerImageProcessor",
    "RTransformerModel",
    "RTransformerPreTrainedModel",
]
