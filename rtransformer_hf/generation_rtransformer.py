# SPDX-License-Identifier: Apache-2.0
"""What `generate` does differently for R-Transformer: room in static caches, refused padding, and the token mask."""

import torch
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.masking_utils import create_masks_for_generate

from .configuration_rtransformer import RTransformerConfig
from .masking_rtransformer import create_token_mask


class RTransformerGenerationMixin(GenerationMixin):
    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict, *args, **kwargs
    ) -> None:
        """
        Makes the cache of `generate`. Transformers makes a static one as long as the text, but tokens from prompt
        lookup may reach beyond its end before they are rejected.

        Raises:
            ValueError: a row of the prompt ends with padding.
        """
        attention_mask = model_kwargs.get("attention_mask")
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 and not attention_mask[:, -1].all():
            raise ValueError(
                "`attention_mask`, given or inferred from `pad_token_id`, has rows that end with 0, so generation "
                'would continue from padding; padding must be on the left: tokenize with `padding_side="left"`.'
            )
        if num_tokens := generation_config.prompt_lookup_num_tokens:
            max_cache_len = getattr(generation_config, "max_cache_len", None) or 0
            generation_config.max_cache_len = max(max_cache_len, generation_config.max_length + num_tokens)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    @staticmethod
    def create_masks_for_generate(
        config: RTransformerConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> dict | torch.Tensor | None:
        """The masks for a static cache. Transformers' own version ignores padding in a single step."""
        masks = create_masks_for_generate(config, inputs_embeds, attention_mask, **kwargs)
        if isinstance(masks, dict) and "linear_attention" in masks:
            masks["linear_attention"] = create_token_mask(inputs_embeds, attention_mask)
        return masks
