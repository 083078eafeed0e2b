# SPDX-License-Identifier: Apache-2.0
"""Image processor for images as sequences of pixels, as in sequential MNIST (section 4.1 of the paper)."""

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    SizeDict,
    infer_channel_dimension_format,
    is_pil_image,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType


class RTransformerImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    permutation_seed (`int`, *optional*):
        If set, pixels are permuted in a random order fixed by this seed, from 0 to 2**32 - 1.
    """

    permutation_seed: int | None


class RTransformerImageProcessor(PilBackend):
    r"""
    Turns images into sequences of pixels, row by row from the top left. A step is a pixel with its channels.

    Images are PIL images of mode "L" or "RGB", arrays or tensors (height, width), (height, width, channels) or
    (channels, height, width), a list of these, or an array (batch, height, width, channels) or (batch, channels,
    height, width). All must have the same size. Values are expected to be between 0 and 255; set `do_rescale=False`
    if they are between 0 and 1.

    Arguments can be set here, or for a single call together with the images. Other arguments are `PilBackend`'s.

    Args:
        image_mean, image_std (`list[float]`, default to `[0.1307]` and `[0.3081]`, those of MNIST):
            Mean and standard deviation of each channel for the normalisation: one for grey images, three for RGB.
            Images must have that many channels, and so must the model (`input_size`).
        size (`dict[str, int]`, *optional*):
            The size that images must have, such as `{"height": 28, "width": 28}`. If unset, any common size.
        permutation_seed (`int`, *optional*):
            If set, pixels are permuted in a random order fixed by this seed, from 0 to 2**32 - 1: the same for all
            images with that many pixels, on every machine. It comes from `numpy.random.RandomState`, whose streams are
            frozen (NEP 19). Those of NumPy's `Generator` and of PyTorch may change between releases.
        do_rescale (`bool`, defaults to `True`):
            Whether to multiply values by `rescale_factor`, 1/255.
        do_normalize (`bool`, defaults to `True`):
            Whether to normalise.
        do_convert_rgb (`bool`, *optional*):
            Whether to convert images to RGB first. Allows PIL images of any mode.
        do_resize (`bool`, *optional*):
            Whether to resize images to `size` with the filter `resample`.

    Returns:
        `BatchFeature` with `input_values` (batch, height * width, channels), float32.

    Raises:
        `ValueError`: an argument is out of range, there is no image, or an image has the wrong mode, size or number of
        channels; the message gives the value and what was expected.

    Example:

    ```python
    >>> from rtransformer_hf import RTransformerImageProcessor

    >>> processor = RTransformerImageProcessor(size={"height": 28, "width": 28}, permutation_seed=0)
    >>> input_values = processor(images, return_tensors="pt").input_values  # (batch, 784, 1)
    ```
    """

    valid_kwargs = RTransformerImageProcessorKwargs
    model_input_names = ["input_values"]
    image_mean = [0.1307]
    image_std = [0.3081]
    do_rescale = True
    do_normalize = True

    def _standardize_kwargs(self, **kwargs) -> dict:
        """Also checks the arguments. Called when a processor is made, and for each call."""
        kwargs = super()._standardize_kwargs(**kwargs)
        mean, std, size, seed = (kwargs[name] for name in ("image_mean", "image_std", "size", "permutation_seed"))
        if np.shape(mean) not in ((1,), (3,)) or np.shape(std) != np.shape(mean):
            raise ValueError(
                "`image_mean` and `image_std` must be lists of one value (grey images) or three (RGB) each, got "
                f"`image_mean={mean}` and `image_std={std}`."
            )
        if not all(value > 0 for value in std):
            raise ValueError(f"`image_std` must be greater than 0 in each channel, got {std}.")
        if size is not None and dict(size).keys() != {"height", "width"}:
            raise ValueError(f"`size` must have the keys 'height' and 'width' or be None, got {dict(size)}.")
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise ValueError(f"`permutation_seed` must be an integer from 0 to 2**32 - 1 or None, got {seed!r}.")
        return kwargs

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> ImageInput:
        first = images[0] if isinstance(images, (list, tuple)) and images else images
        if getattr(first, "ndim", None) == 2:  # an array or a tensor (height, width)
            expected_ndims = 2
        return super()._prepare_images_structure(images, expected_ndims=expected_ndims)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> np.ndarray:
        """One image as an array (channels, height, width)."""
        if is_pil_image(image):
            # Palette indices or bits would be read as grey values.
            if not do_convert_rgb and image.mode not in ("L", "RGB"):
                raise ValueError(
                    f"A PIL image must have the mode 'L' or 'RGB', got {image.mode!r}: convert it, or set "
                    "`do_convert_rgb`."
                )
        elif image.ndim == 3 and input_data_format is None:
            if not {1, 3} & {image.shape[0], image.shape[2]}:
                raise ValueError(
                    "An image must have the shape (height, width), (height, width, channels) or (channels, height, "
                    f"width) with 1 or 3 channels, got {tuple(image.shape)}."
                )
            input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3))
        return super().process_image(image, do_convert_rgb, input_data_format, **kwargs)

    def _preprocess(
        self,
        images: list[np.ndarray],
        size: SizeDict | None,
        image_mean: tuple[float, ...],
        permutation_seed: int | None,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        if not images:
            raise ValueError("`images` must hold at least one image, got none.")
        num_channels = len(image_mean)
        for index, image in enumerate(images):
            if len(image) != num_channels:
                raise ValueError(
                    f"Images must have as many channels as `image_mean` has values, {num_channels}: image {index} has "
                    f"{len(image)}."
                )
        images = super()._preprocess(images, size=size, image_mean=image_mean, return_tensors=None, **kwargs)
        images = images["pixel_values"]

        height, width = images[0].shape[1:] if size is None else (size.height, size.width)
        for index, image in enumerate(images):
            if image.shape[1:] != (height, width):
                raise ValueError(
                    f"Images must have the height {height} and the width {width}, "
                    f"{'those of image 0' if size is None else 'those of `size`'}: image {index} has the height "
                    f"{image.shape[1]} and the width {image.shape[2]}."
                )
        pixels = np.stack(images).reshape(len(images), num_channels, height * width).swapaxes(1, 2)
        if permutation_seed is not None:
            pixels = pixels[:, np.random.RandomState(permutation_seed).permutation(height * width)]
        input_values = np.ascontiguousarray(pixels, dtype=np.float32)
        return BatchFeature(data={"input_values": input_values}, tensor_type=return_tensors)


# Makes `save_pretrained` copy this file into the checkpoint, for `trust_remote_code=True`.
RTransformerImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["RTransformerImageProcessor"]
