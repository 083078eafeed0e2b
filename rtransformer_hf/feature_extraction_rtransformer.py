# SPDX-License-Identifier: Apache-2.0
"""Feature extractor for multivariate time series: normalisation per channel, and padding."""

from collections.abc import Sequence

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType


class RTransformerFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Normalises sequences of measurements per channel and pads them to one length. It does not resample.

    Args:
        feature_size (`int`, defaults to 1):
            Number of channels, the model's `input_size`.
        sampling_rate (`float`, *optional*):
            Steps per second, for information only.
        padding_value (`float`, defaults to 0.0):
            Value of padding, after normalisation.
        padding_side (`str`, defaults to `"right"`):
            `"right"` or `"left"`. The model gives the same outputs for both.
        mean, std (`list[float]`, *optional*):
            Mean and standard deviation of each channel for the normalisation; 0 and 1 if unset.
            [`~RTransformerFeatureExtractor.fit`] computes them from training data.
        channel_names (`list[str]`, *optional*):
            Names of the channels, in order.
        do_normalize (`bool`, defaults to `True`):
            Whether to normalise.
        fill_missing (`bool`, defaults to `True`):
            Whether missing values (NaN) are replaced by the channel's mean. The time series model accepts NaN.

    Raises:
        `ValueError`: an argument is out of range; the message gives its name, its value and what was expected.

    Example:

    ```python
    >>> from rtransformer_hf import RTransformerFeatureExtractor

    >>> extractor = RTransformerFeatureExtractor.fit(training_sequences)  # arrays (time, channels)
    >>> inputs = extractor(sequences, return_tensors="pt")  # input_values and attention_mask
    ```
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: float | None = None,
        padding_value: float = 0.0,
        padding_side: str = "right",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channel_names: Sequence[str] | None = None,
        do_normalize: bool = True,
        fill_missing: bool = True,
        **kwargs,
    ):
        super().__init__(feature_size, sampling_rate, padding_value, padding_side=padding_side, **kwargs)
        self.mean = [0.0] * feature_size if mean is None else [float(value) for value in mean]
        self.std = [1.0] * feature_size if std is None else [float(value) for value in std]
        self.channel_names = None if channel_names is None else [str(name) for name in channel_names]
        self.do_normalize = do_normalize
        self.fill_missing = fill_missing
        if feature_size < 1:
            raise ValueError(f"`feature_size` must be an integer of at least 1, got {feature_size}.")
        if padding_side not in ("right", "left"):
            raise ValueError(f"`padding_side` must be 'right' or 'left', got {padding_side!r}.")
        for name in ("mean", "std", "channel_names"):
            values = getattr(self, name)
            if values is not None and len(values) != feature_size:
                raise ValueError(
                    f"`{name}` must have a value for each of the {feature_size} channels (`feature_size`), got "
                    f"{len(values)}."
                )
        if not np.isfinite(self.mean).all():
            raise ValueError(f"`mean` must hold finite numbers, got {self.mean}.")
        if not all(0 < value < np.inf for value in self.std):
            raise ValueError(f"`std` must be greater than 0 in each channel, got {self.std}.")

    @classmethod
    def fit(
        cls, sequences: Sequence[np.ndarray], channel_names: Sequence[str] | None = None, **kwargs
    ) -> "RTransformerFeatureExtractor":
        """
        Makes a feature extractor with the mean and standard deviation over all steps of the given sequences.

        Args:
            sequences: arrays (time, channels), or (time,) for one channel. Missing values (NaN) are ignored.
            channel_names: names of the channels.
            kwargs: other arguments of the class.

        Raises:
            ValueError: there are no sequences, or a channel has fewer than two distinct values.
        """
        if len(sequences) == 0:
            raise ValueError("`sequences` must hold at least one sequence, got none.")
        steps = np.concatenate([as_steps(sequence) for sequence in sequences]).astype(np.float64)
        names = channel_names or [f"channel {index}" for index in range(steps.shape[1])]
        for name, values in zip(names, steps.T, strict=True):
            found = np.unique(values[~np.isnan(values)])
            if len(found) < 2:
                what = "no value at all" if len(found) == 0 else f"the value {found[0]:g} alone"
                raise ValueError(f"`sequences` hold {what} in {name!r}; a channel to normalise by must vary.")
        return cls(
            feature_size=steps.shape[1],
            mean=np.nanmean(steps, axis=0),
            std=np.nanstd(steps, axis=0),
            channel_names=channel_names,
            **kwargs,
        )

    def __call__(
        self,
        sequences: np.ndarray | Sequence[np.ndarray],
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Args:
            sequences: an array or tensor (time, channels), or a list of these; with one channel also (time,).
            padding, max_length, truncation, return_attention_mask, return_tensors: as in
                `SequenceFeatureExtractor.pad`. Truncation cuts the end.

        Returns:
            `BatchFeature` with `input_values` (batch, time, channels) and `attention_mask` (batch, time), 0 at
            padding.

        Raises:
            ValueError: a sequence is empty, has the wrong number of channels or an infinite value.
        """
        if not isinstance(sequences, (list, tuple)):
            sequences = list(sequences) if np.ndim(sequences) == 3 else [sequences]
        elif sequences and np.ndim(sequences[0]) == 0:
            sequences = [np.asarray(sequences)]
        normalised = [self.normalise(sequence, index) for index, sequence in enumerate(sequences)]
        return self.pad(
            BatchFeature({"input_values": normalised}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def normalise(self, sequence: np.ndarray, index: int = 0) -> np.ndarray:
        """One sequence as a float32 array (time, channels). `index` is its position in the list, for messages."""
        steps = as_steps(sequence)
        if steps.shape[1] != self.feature_size or len(steps) == 0:
            raise ValueError(
                f"Sequences must have the shape (time, {self.feature_size}) with at least one step (`feature_size` is "
                f"{self.feature_size}): sequence {index} has the shape {tuple(np.shape(sequence))}."
            )
        if np.isinf(steps).any():
            step, channel = np.argwhere(np.isinf(steps))[0]
            raise ValueError(f"Sequence {index} has an infinite value in step {step}, channel {channel}.")
        if self.do_normalize:
            steps = (steps.astype(np.float64) - self.mean) / self.std
        if self.fill_missing:
            steps = np.where(np.isnan(steps), 0.0 if self.do_normalize else self.mean, steps)
        return steps.astype(np.float32)

    def pad(self, processed_features, *args, **kwargs) -> BatchFeature:
        """As `SequenceFeatureExtractor.pad`, but sequences of one channel are (time, 1) here, and (time,) there."""
        if isinstance(processed_features, (list, tuple)):
            keys = processed_features[0].keys()
            processed_features = {key: [features[key] for features in processed_features] for key in keys}
        if self.feature_size > 1:
            return super().pad(processed_features, *args, **kwargs)
        flat = [np.asarray(values).reshape(-1) for values in processed_features["input_values"]]
        padded = super().pad(BatchFeature({**processed_features, "input_values": flat}), *args, **kwargs)
        values = padded["input_values"]
        if isinstance(values, list):
            padded["input_values"] = [np.asarray(row)[:, None] for row in values]
        else:
            padded["input_values"] = values[..., None]
        return padded


def as_steps(sequence: np.ndarray) -> np.ndarray:
    """(time, channels), or (time,) -> (time, channels)."""
    steps = np.asarray(sequence, dtype=np.float64 if isinstance(sequence, (list, tuple)) else None)
    return steps[:, None] if steps.ndim == 1 else steps


# Makes `save_pretrained` copy this file into the checkpoint, for `trust_remote_code=True`.
RTransformerFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["RTransformerFeatureExtractor"]
