# SPDX-License-Identifier: Apache-2.0
"""Images become sequences of pixels: values, order, permutation, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from rtransformer_hf.image_processing_rtransformer import RTransformerImageProcessor

MEAN, STD = [0.2, 0.5, 0.7], [0.3, 0.4, 0.6]


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_grey_images_are_read_row_by_row():
    pixels = random_pixels(3, 5, 7)
    expected = ((pixels / 255 - 0.1307) / 0.3081).reshape(3, 35, 1)
    images = [Image.fromarray(image) for image in pixels]
    input_values = RTransformerImageProcessor()(images, return_tensors="pt").input_values
    assert input_values.dtype == torch.float32 and input_values.is_contiguous()
    torch.testing.assert_close(input_values, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("permutation_seed", [None, 3])
def test_colour_images_have_one_value_a_channel(permutation_seed):
    pixels = random_pixels(2, 4, 6, 3)
    expected = ((pixels / 255 - MEAN) / STD).reshape(2, 24, 3)
    if permutation_seed is not None:
        expected = expected[:, np.random.RandomState(permutation_seed).permutation(24)]
    processor = RTransformerImageProcessor(image_mean=MEAN, image_std=STD, permutation_seed=permutation_seed)
    images = [Image.fromarray(image) for image in pixels]
    np.testing.assert_allclose(processor(images, return_tensors="np")["input_values"], expected, rtol=1e-5, atol=1e-6)


def test_all_kinds_of_images_give_the_same():
    pixels = random_pixels(2, 5, 7)
    processor = RTransformerImageProcessor()
    expected = processor([Image.fromarray(image) for image in pixels], return_tensors="pt").input_values
    kinds = [
        list(pixels),
        list(torch.tensor(pixels)),
        pixels[:, None],
        pixels[..., None],
        torch.tensor(pixels)[:, None],
    ]
    for images in kinds:
        assert torch.equal(processor(images, return_tensors="pt").input_values, expected)
    for image in (Image.fromarray(pixels[0]), pixels[0], pixels[0][None], torch.tensor(pixels[0])):
        assert torch.equal(processor(image, return_tensors="pt").input_values, expected[:1])
    scaled = list(pixels / 255)  # float64
    input_values = processor(scaled, do_rescale=False, return_tensors="pt").input_values
    torch.testing.assert_close(input_values, expected)


def test_steps_that_the_base_brings():
    pixels = random_pixels(4, 6)
    image, raw = Image.fromarray(pixels), {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    processor = RTransformerImageProcessor(size={"height": 2, "width": 3})
    resized = np.array(image.resize((3, 2), Image.Resampling.BILINEAR)).reshape(1, 6, 1)
    input_values = processor(image, do_resize=True, resample=Image.Resampling.BILINEAR, **raw)["input_values"]
    assert input_values.dtype == np.float32
    np.testing.assert_array_equal(input_values, resized)
    processor = RTransformerImageProcessor(image_mean=MEAN, image_std=STD, do_convert_rgb=True)
    input_values = processor([image, image.convert("P"), image.convert("RGB")], **raw)["input_values"]
    np.testing.assert_array_equal(input_values, np.broadcast_to(pixels.reshape(1, 24, 1), (3, 24, 3)))


def test_permutation_is_fixed():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    raw = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    processor = RTransformerImageProcessor(permutation_seed=0)
    # Written out: the order is part of a checkpoint and must be this one everywhere.
    order = [6, 11, 4, 10, 2, 8, 1, 7, 9, 3, 0, 5]
    state = np.random.get_state()[1].copy()
    for images in ([pixels], [pixels, pixels]):
        assert processor(images, **raw)["input_values"][..., 0].tolist() == [order] * len(images)
    assert processor([pixels], permutation_seed=None, **raw)["input_values"].ravel().tolist() == list(range(12))
    assert processor([pixels], permutation_seed=1, **raw)["input_values"].ravel().tolist() != order
    assert np.array_equal(np.random.get_state()[1], state)  # the global generator is left alone

    pixels = np.arange(784, dtype=np.float32).reshape(28, 28)
    input_values = processor([pixels], **raw)["input_values"].ravel()
    assert sorted(input_values) == list(range(784))
    assert (input_values == np.arange(784)).mean() < 0.05


def test_saves_and_loads_with_its_code(tmp_path, monkeypatch):
    processor = RTransformerImageProcessor(
        image_mean=MEAN, image_std=STD, size={"height": 4, "width": 6}, permutation_seed=0, do_rescale=False
    )
    processor.save_pretrained(tmp_path / "checkpoint")
    auto_map = json.loads((tmp_path / "checkpoint" / "preprocessor_config.json").read_text())["auto_map"]
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    remote_class = get_class_from_dynamic_module(auto_map["AutoImageProcessor"], str(tmp_path / "checkpoint"))
    assert remote_class is not RTransformerImageProcessor and remote_class.__module__.startswith(
        "transformers_modules"
    )

    image = random_pixels(4, 6, 3)
    expected = processor(image, return_tensors="pt").input_values
    for loader in (RTransformerImageProcessor, AutoImageProcessor, remote_class):
        loaded = loader.from_pretrained(tmp_path / "checkpoint")
        assert loaded.to_dict() == processor.to_dict()
        assert torch.equal(loaded(image, return_tensors="pt").input_values, expected)
    loaded = RTransformerImageProcessor.from_pretrained(tmp_path / "checkpoint", permutation_seed=None)
    assert loaded.permutation_seed is None and loaded.size == {"height": 4, "width": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_mean": [0.1, 0.2]}, r"one value .* or three .*image_mean=\(0.1, 0.2\)"),
        ({"image_mean": 0.5}, "image_mean=0.5"),
        ({"image_mean": MEAN}, r"image_std=\(0.3081,\)"),
        ({"image_std": STD}, r"image_std=\(0.3, 0.4, 0.6\)"),
        ({"image_std": [0.0]}, r"`image_std` must be greater than 0 .*\(0.0,\)"),
        ({"image_mean": MEAN, "image_std": [0.3, 0.4, -0.6]}, "`image_std` must be greater than 0"),
        ({"size": {"shortest_edge": 28}}, "`size` must have the keys 'height' and 'width'.*shortest_edge"),
        ({"permutation_seed": -1}, "`permutation_seed` must be .* got -1"),
        ({"permutation_seed": 2**32}, "`permutation_seed` must be .* got 4294967296"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RTransformerImageProcessor(**arguments)
    with pytest.raises(ValueError, match=message):
        RTransformerImageProcessor()(random_pixels(4, 6), **arguments)


@pytest.mark.parametrize("permutation_seed", ["0", 1.5])
def test_refuses_a_seed_of_another_type(permutation_seed):
    with pytest.raises(ValueError, match="`permutation_seed` must be an integer"):
        RTransformerImageProcessor(permutation_seed=permutation_seed)


GREY, WIDE, COLOUR = random_pixels(4, 6), random_pixels(4, 7), random_pixels(4, 6, 3)


@pytest.mark.parametrize(
    ("arguments", "images", "message"),
    [
        ({}, [], "at least one image"),
        (
            {},
            [GREY, GREY, WIDE],
            "height 4 and the width 6, those of image 0: image 2 has the height 4 and the width 7",
        ),
        ({"size": {"height": 4, "width": 6}}, [GREY, WIDE], "width 6, those of `size`: image 1 has .* the width 7"),
        ({"size": {"height": 6, "width": 4}}, GREY, "height 6 and the width 4.* image 0 has the height 4"),
        ({}, [GREY, COLOUR], "as `image_mean` has values, 1: image 1 has 3"),
        ({}, Image.fromarray(COLOUR), "as `image_mean` has values, 1: image 0 has 3"),
        ({"image_mean": MEAN, "image_std": STD}, Image.fromarray(GREY), "has values, 3: image 0 has 1"),
        ({}, random_pixels(5, 4, 6), r"1 or 3 channels, got \(5, 4, 6\)"),
        ({}, torch.tensor(random_pixels(4, 6, 2)), r"1 or 3 channels, got \(4, 6, 2\)"),
        ({}, Image.fromarray(GREY).convert("P"), "mode 'L' or 'RGB', got 'P'"),
        ({}, Image.fromarray(GREY).convert("1"), "mode 'L' or 'RGB', got '1'"),
        ({}, Image.fromarray(GREY).convert("LA"), "mode 'L' or 'RGB', got 'LA'"),
    ],
)
def test_refuses_bad_images(arguments, images, message):
    with pytest.raises(ValueError, match=message):
        RTransformerImageProcessor(**arguments)(images)
