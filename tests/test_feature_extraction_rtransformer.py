# SPDX-License-Identifier: Apache-2.0

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from rtransformer_hf import RTransformerFeatureExtractor, RTransformerForSequenceClassification

LENGTHS = (5, 3, 8)


def make_sequences(channels=2):
    random = np.random.default_rng(0)
    return [random.normal(3, [1, 40][:channels], (length, channels)) for length in LENGTHS]


def test_fitted_values_normalise_the_training_data():
    sequences = make_sequences()
    sequences[1][2, 0] = math.nan
    extractor = RTransformerFeatureExtractor.fit(sequences, channel_names=["a", "b"])
    values = np.concatenate([extractor(sequence)["input_values"][0] for sequence in sequences])
    steps = np.concatenate(sequences)
    assert extractor.mean == pytest.approx(np.nanmean(steps, axis=0)) and extractor.channel_names == ["a", "b"]
    assert np.std(values[:, 1]) == pytest.approx(1, rel=1e-5) and np.mean(values[:, 1]) == pytest.approx(0, abs=1e-5)
    assert values[7, 0] == 0 and values.dtype == np.float32  # a missing value is the mean
    raw = RTransformerFeatureExtractor(2, mean=extractor.mean, fill_missing=False)(sequences[1])["input_values"]
    assert math.isnan(raw[0][2, 0])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_on_either_side(channels, side):
    sequences = make_sequences(channels)
    extractor = RTransformerFeatureExtractor.fit(sequences, padding_side=side, padding_value=-1)
    batch = extractor(sequences, return_tensors="pt")
    assert batch["input_values"].shape == (3, 8, channels) and batch["attention_mask"].shape == (3, 8)
    assert batch["attention_mask"].sum(dim=1).tolist() == list(LENGTHS)
    for values, mask, sequence in zip(batch["input_values"], batch["attention_mask"], sequences, strict=True):
        alone = extractor(sequence, return_tensors="pt")["input_values"][0]
        assert torch.equal(values[mask.bool()], alone) and (values[~mask.bool()] == -1).all()
        assert mask[0 if side == "right" else -1] == 1
    if channels == 1:
        flat = extractor([sequence[:, 0].tolist() for sequence in sequences], return_tensors="pt")
        assert torch.equal(flat["input_values"], batch["input_values"])
    cut = extractor(sequences, padding="max_length", max_length=4, truncation=True, return_tensors="np")
    assert cut["input_values"].shape == (3, 4, channels)


def test_it_is_saved_with_the_checkpoint_and_opened_by_the_auto_class(tiny_config, tmp_path):
    extractor = RTransformerFeatureExtractor.fit(make_sequences(), padding_side="left", sampling_rate=0.5)
    RTransformerForSequenceClassification(tiny_config(input_size=2)).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is RTransformerFeatureExtractor and loaded.to_dict() == extractor.to_dict()
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    auto_map = saved["auto_map"]["AutoFeatureExtractor"]
    assert auto_map == "feature_extraction_rtransformer.RTransformerFeatureExtractor"
    assert (tmp_path / "feature_extraction_rtransformer.py").exists()


def test_what_can_not_be_used_is_refused():
    for arguments, message in [
        ({"feature_size": 0}, "`feature_size` must be"),
        ({"padding_side": "both"}, "`padding_side` must be .* got 'both'"),
        ({"mean": [1.0, 2.0]}, "`mean` must have a value for each of the 1 channels .* got 2"),
        ({"std": [0.0]}, "`std` must be greater than 0"),
        ({"mean": [math.nan]}, "`mean` must hold finite numbers"),
        ({"channel_names": []}, "`channel_names` must have a value for each"),
    ]:
        with pytest.raises(ValueError, match=message):
            RTransformerFeatureExtractor(**arguments)
    extractor = RTransformerFeatureExtractor(2)
    for sequences, message in [
        (np.zeros((4, 3)), r"sequence 0 has the shape \(4, 3\)"),
        ([np.zeros((4, 2)), np.zeros((0, 2))], r"sequence 1 has the shape \(0, 2\)"),
        (np.array([[0, 1], [2, np.inf]]), "infinite value in step 1, channel 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            extractor(sequences)
    constant = np.stack([np.arange(4.0), np.full(4, 2.5)], axis=1)
    with pytest.raises(ValueError, match=r"the value 2\.5 alone in 'b'"):
        RTransformerFeatureExtractor.fit([constant], channel_names=["a", "b"])
    with pytest.raises(ValueError, match="no value at all in 'channel 1'"):
        RTransformerFeatureExtractor.fit([np.where(constant == 2.5, np.nan, constant)])
    with pytest.raises(ValueError, match="got none"):
        RTransformerFeatureExtractor.fit([])
